"""What vector programs compute with: the host's vector unit, and integers, vectors, pointers and variables of the code
being emitted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
from llvmlite import ir

if TYPE_CHECKING:
    from kernels.core.simd import Code


@dataclass(frozen=True)
class Target:
    """name, float32 lanes of a vector, number of vector registers; asks: whether asking for memory far in advance pays.

    It pays on AMD's processors. Intel's own prefetchers do as well, and the instructions cost a tenth of a convolution.
    """

    name: str
    lanes: int
    registers: int
    asks: bool = False


TARGETS = {
    t.name: t for t in (Target("avx512", 16, 32), Target("avx2", 8, 16), Target("neon", 4, 32), Target("scalar", 1, 16))
}

# processors that compute AVX-512 in two halves: AVX2 trains as fast or faster and needs fewer kernels
_HALVES = {"znver4"}


@lru_cache(maxsize=1)
def usable_targets() -> tuple[str, ...]:
    """The names of the vector units that this processor has, the one to use first."""
    features = dict(llvm.get_host_cpu_features())
    if all(features.get(f"avx512{part}") for part in ("f", "vl", "dq", "bw")):
        return ("avx2", "avx512", "scalar") if llvm.get_host_cpu_name() in _HALVES else ("avx512", "avx2", "scalar")
    if features.get("avx2") and features.get("fma"):
        return "avx2", "scalar"
    if features.get("neon") or llvm.get_process_triple().startswith("aarch64"):
        return "neon", "scalar"
    return ("scalar",)


@lru_cache(maxsize=1)
def target() -> Target:
    """The vector unit to use, or the one named by AREOGRAD_SIMD. ValueError for an unknown or missing one."""
    asked = os.environ.get("AREOGRAD_SIMD", "").strip().lower() or usable_targets()[0]
    if asked not in usable_targets():
        raise ValueError(f"AREOGRAD_SIMD: got {asked!r}, this processor has {', '.join(usable_targets())}")
    return replace(TARGETS[asked], asks=llvm.get_host_cpu_name().startswith("znver"))


def mask_bytes(elements: int) -> int:
    """Bytes of the stored masks of so many elements: a bit each, a byte per vector at least."""
    lanes = target().lanes
    return -(-elements // lanes) * max(1, lanes // 8)


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
