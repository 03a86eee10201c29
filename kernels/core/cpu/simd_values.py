"""The values of vector programs: integers, vectors, pointers and variables of the code being emitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from llvmlite import ir

if TYPE_CHECKING:
    from kernels.core.cpu.simd import Code


class ProgramError(TypeError):
    """A vector program uses a part of Python that cannot be emitted as code."""


_TRUTH = "`if`, `while`, `and`, `or` or `not`"


def _refuse(code: Code, construct: str, instead: str) -> NoReturn:
    raise ProgramError(f"program {code.name}: got {construct}, which is not known before the kernel runs; {instead}")


def _refusing(what: str, operators: dict[str, str]) -> Callable[[type], type]:
    """Let a class refuse operators that it has not: dunder name -> how it is written."""

    def decorate(kind: type) -> type:
        for name, written in operators.items():

            def refuse(self: Any, *_: Any, written: str = written) -> Any:
                raise ProgramError(f"program {self.code.name}: got {written} of {what}, which programs do not have")

            setattr(kind, f"__{name}__", refuse)
        return kind

    return decorate


class Condition:
    """A truth value that is known when the kernel runs: a single bit, or a mask with a bit for each lane."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value

    def __bool__(self) -> bool:
        return _refuse(
            self.code, "a condition in `if`, `while`, `and`, `or` or `not`", "use code.when, code.select, code.both"
        )


_DIVISIONS = {"floordiv": "//", "mod": "%", "pow": "**", "iter": "a loop"}


@_refusing("an Int", {**_DIVISIONS, "truediv": "/", "neg": "unary -"})
class Int:
    """A 64-bit integer of the program. + - * and comparisons with Ints and Python ints."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value

    def _op(self, other: Any, name: str, swap: bool = False) -> Int:
        a = self.value
        b = self.code.int(other).value
        return Int(self.code, getattr(self.code.builder, name)(*((b, a) if swap else (a, b))))

    def __add__(self, other: Any) -> Int:
        return self if other == 0 and isinstance(other, int) else self._op(other, "add")

    __radd__ = __add__

    def __sub__(self, other: Any) -> Int:
        return self._op(other, "sub")

    def __rsub__(self, other: Any) -> Int:
        return self._op(other, "sub", swap=True)

    def __mul__(self, other: Any) -> Int:
        return self if other == 1 and isinstance(other, int) else self._op(other, "mul")

    __rmul__ = __mul__

    def _compared(self, sign: str, other: Any) -> Condition:
        return Condition(self.code, self.code.builder.icmp_signed(sign, self.value, self.code.int(other).value))

    def __lt__(self, other: Any) -> Condition:
        return self._compared("<", other)

    def __le__(self, other: Any) -> Condition:
        return self._compared("<=", other)

    def __gt__(self, other: Any) -> Condition:
        return self._compared(">", other)

    def __ge__(self, other: Any) -> Condition:
        return self._compared(">=", other)

    def equals(self, other: Any) -> Condition:
        """Whether the two are equal (== keeps its meaning for Python objects)."""
        return self._compared("==", other)

    def has(self, bit: int) -> Condition:
        """Whether a bit of it, given by its value, is set."""
        masked = self.code.builder.and_(self.value, self.code.int(bit).value)
        return Condition(self.code, self.code.builder.icmp_signed("!=", masked, self.code.int(0).value))

    def __bool__(self) -> bool:
        return _refuse(
            self.code, "an Int in `if`, `while`, `and`, `or` or `not`", "compare it and use code.when or code.choose"
        )

    def __index__(self) -> int:
        _refuse(self.code, "an Int where Python needs a number", "use code.loop for loops over it")


@_refusing("a Float", dict.fromkeys(("add", "sub", "mul", "truediv", "lt", "gt", "le", "ge", "bool"), "an operator"))
class Float:
    """A float32 argument of the program; code.splat makes it a vector."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value


@_refusing("a Vec", {**_DIVISIONS, "getitem": "an index"})
class Vec:
    """A vector of float32 (of float64 in a `wide` Code). + - * / and comparisons with Vecs and Python numbers."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value

    def _op(self, other: Any, name: str, swap: bool = False) -> Vec:
        a = self.value
        b = self.code.vec(other).value
        return Vec(self.code, getattr(self.code.builder, name)(*((b, a) if swap else (a, b))))

    def __add__(self, other: Any) -> Vec:
        return self._op(other, "fadd")

    __radd__ = __add__

    def __sub__(self, other: Any) -> Vec:
        return self._op(other, "fsub")

    def __rsub__(self, other: Any) -> Vec:
        return self._op(other, "fsub", swap=True)

    def __mul__(self, other: Any) -> Vec:
        return self._op(other, "fmul")

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Vec:
        return self._op(other, "fdiv")

    def __rtruediv__(self, other: Any) -> Vec:
        return self._op(other, "fdiv", swap=True)

    def __neg__(self) -> Vec:
        return self * -1.0

    def _compared(self, sign: str, other: Any, unordered: bool = False) -> Condition:
        compare = self.code.builder.fcmp_unordered if unordered else self.code.builder.fcmp_ordered
        return Condition(self.code, compare(sign, self.value, self.code.vec(other).value))

    def __gt__(self, other: Any) -> Condition:
        """Where it is greater; like all comparisons false where either is NaN."""
        return self._compared(">", other)

    def __ge__(self, other: Any) -> Condition:
        return self._compared(">=", other)

    def __lt__(self, other: Any) -> Condition:
        return self._compared("<", other)

    def __le__(self, other: Any) -> Condition:
        return self._compared("<=", other)

    def not_at_most(self, other: Any) -> Condition:
        """Where it is greater, or either is NaN."""
        return self._compared(">", other, unordered=True)

    def equals(self, other: Any) -> Condition:
        """Where the two are equal (== keeps its meaning for Python objects)."""
        return self._compared("==", other)

    def is_nan(self) -> Condition:
        """Where it is not a number."""
        return self._compared("uno", self, unordered=True)

    def __bool__(self) -> bool:
        _refuse(self.code, f"a Vec in {_TRUTH}", "compare it and use code.select")


@dataclass(frozen=True)
class Pointer:
    """The address of an array's element; `+` moves it by elements."""

    code: Code
    value: ir.Value

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.code, self.code.builder.gep(self.value, [self.code.int(offset).value]))


class Variable:
    """A Vec that changes, for instance an accumulator of a loop. LLVM keeps it in a register."""

    def __init__(self, code: Code, start: Vec) -> None:
        self.code = code
        with code.builder.goto_entry_block():
            self.place = code.builder.alloca(code.vector_type)
        self.set(start)

    def get(self) -> Vec:
        """Its value here."""
        return Vec(self.code, self.code.builder.load(self.place))

    def set(self, value: Vec) -> None:
        """Its value from here on."""
        self.code.builder.store(value.value, self.place)
