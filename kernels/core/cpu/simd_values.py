"""What vector programs compute with: integers, vectors, pointers and variables of the code being emitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llvmlite import ir

if TYPE_CHECKING:
    from kernels.core.cpu.simd import Code


class Int:
    """A 64-bit integer of the program. + - * with Ints and Python ints."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value

    def _op(self, other: Any, name: str, swap: bool = False) -> Int:
        a, b = self.value, self.code.int(other).value
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

    def __lt__(self, other: Any) -> ir.Value:
        return self.code.builder.icmp_signed("<", self.value, self.code.int(other).value)

    def __ge__(self, other: Any) -> ir.Value:
        return self.code.builder.icmp_signed(">=", self.value, self.code.int(other).value)

    def has(self, bit: int) -> ir.Value:
        """Whether a bit of it, given by its value, is set."""
        masked = self.code.builder.and_(self.value, self.code.int(bit).value)
        return self.code.builder.icmp_signed("!=", masked, self.code.int(0).value)


class Vec:
    """A vector of float32 (of float64 in a `wide` Code). + - * with Vecs and Python numbers."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value

    def _op(self, other: Any, name: str, swap: bool = False) -> Vec:
        a, b = self.value, self.code.vec(other).value
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

    def __gt__(self, other: Any) -> ir.Value:
        """Where it is greater; false where either is NaN."""
        return self.code.builder.fcmp_ordered(">", self.value, self.code.vec(other).value)

    def not_at_most(self, other: Any) -> ir.Value:
        """Where it is greater, or either is NaN."""
        return self.code.builder.fcmp_unordered(">", self.value, self.code.vec(other).value)

    def equals(self, other: Any) -> ir.Value:
        """Where the two are equal (== keeps its meaning for Python objects)."""
        return self.code.builder.fcmp_ordered("==", self.value, self.code.vec(other).value)

    def is_nan(self) -> ir.Value:
        """Where it is not a number."""
        return self.code.builder.fcmp_unordered("uno", self.value, self.value)


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
