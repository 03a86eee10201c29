"""The arguments of kernels, as annotations of their parameters.

    class Geometry(NamedTuple):                          # numbers that a kernel reads by name
        rows: int
        columns: int

    @cpu_kernel()
    def scale(start, stop, scratch, x: F32, y: F32, geometry: Geometry, factor: float): ...

annotation           given to `parallel`                          in the kernel
F32, U8, F64, I64    a one-dimensional contiguous array           its address: x[i] reads and writes
int, float           a number                                     int64, float32
a NamedTuple of int  an instance                                  the same, its fields int64
a NamedTuple of F32  an instance, of arrays                       the same, its fields addresses
Ints(n)              a tuple of n integers                        the same
Arrays(n)            n float32 arrays, in a tuple or list         a tuple of n addresses

A launch hands over one 64-bit word for each array and number, and the address of an int64 array for a tuple of
integers. That array is made once for equal numbers.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import types


class F32:
    """A float32 array."""


class U8:
    """A uint8 array."""


class F64:
    """A float64 array."""


class I64:
    """An int64 array."""


@dataclass(frozen=True)
class Ints:
    """A tuple of so many integers."""

    count: int


@dataclass(frozen=True)
class Arrays:
    """A tuple of so many float32 arrays."""

    count: int


POINTERS = {F32: types.float32, U8: types.uint8, F64: types.float64, I64: types.int64}
_EXPECTED = "expected F32, U8, F64, I64, int, float, a NamedTuple of int or of F32, Ints(n) or Arrays(n)"


def annotations_of(function: Callable[..., Any], skip: int, what: str) -> dict[str, Any]:
    """The annotations of a function's parameters after the first `skip`; ValueError where one has none."""
    hints = inspect.get_annotations(function, eval_str=True)
    names = list(inspect.signature(function).parameters)[skip:]
    for name in names:
        if name not in hints:
            raise ValueError(f"{what}: its parameter {name!r} has no annotation")
    return {name: hints[name] for name in names}


def is_record(kind: Any, of: type) -> bool:
    """Whether an annotation is a NamedTuple whose fields are all `of` one type: int or F32."""
    if not (isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return False
    return set(typing.get_type_hints(kind).values()) == {of}


def count_of_arrays(kind: Any) -> int:
    """How many arrays an annotation stands for, each in a slot of its own, if it is Arrays(n) or a NamedTuple of F32; 0
    for any other.
    """
    if isinstance(kind, Arrays):
        return kind.count
    return len(kind._fields) if is_record(kind, F32) else 0


MOST_ARGUMENTS = 64  # slots of a launch


class Signature:
    """The parameters of a kernel after start, stop and scratch. Raises ValueError for an annotation that is none of the
    above, and for more slots than a launch has.

    slots: per 64-bit word of a launch F32, U8, F64, I64, int, float, or tuple for the address of integers.
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self.kinds = annotations_of(function, 3, what)
        for name, kind in self.kinds.items():
            known = isinstance(kind, Ints) or kind in (*POINTERS, int, float) or is_record(kind, int)
            if not known and not count_of_arrays(kind):
                raise ValueError(f"{what}: its parameter {name!r} is annotated with {kind!r}, {_EXPECTED}")
        self.slots: list[Any] = []
        for kind in self.kinds.values():
            one = kind if kind in (*POINTERS, int, float) else tuple
            self.slots += [F32] * count_of_arrays(kind) or [one]
        if len(self.slots) > MOST_ARGUMENTS:
            raise ValueError(f"{what}: its parameters take {len(self.slots)} slots, expected {MOST_ARGUMENTS} at most")
        kinds = list(enumerate(self.kinds.values()))
        self._arrays = [k for k, kind in reversed(kinds) if count_of_arrays(kind)]
        self._integers = [k for k, kind in kinds if k not in self._arrays and kind not in (*POINTERS, int, float)]

    def arguments(self, given: tuple[Any, ...]) -> Sequence[Any]:
        """The arguments of a launch, an array or number per slot, from those given to `parallel`."""
        if not self._integers and not self._arrays:
            return given
        out = list(given)
        for k in self._integers:
            out[k] = _array(out[k])
        for k in self._arrays:  # the last first: places before it stay
            out[k : k + 1] = out[k]
        return out

    def argument_types(self) -> tuple[types.Type, ...]:
        """The numba types of `arguments`; arrays may be read-only: a kernel knows which ones it writes."""
        arrays = {**POINTERS, tuple: types.int64}
        numbers = {int: types.int64, float: types.float64}
        return tuple(numbers.get(s) or types.Array(arrays[s], 1, "C", readonly=True) for s in self.slots)

    def kernel_types(self) -> list[types.Type]:
        """The numba types that the kernel itself sees."""
        return [_kernel_type(kind) for kind in self.kinds.values()]


@lru_cache(maxsize=4096)
def _array(values: tuple[int, ...]) -> np.ndarray:
    return np.array(values, np.int64)


def _kernel_type(kind: Any) -> types.Type:
    if kind in POINTERS:
        return types.CPointer(POINTERS[kind])
    if kind is int or kind is float:
        return types.int64 if kind is int else types.float32
    element = types.CPointer(types.float32) if count_of_arrays(kind) else types.int64
    if isinstance(kind, (Ints, Arrays)):
        return types.UniTuple(element, kind.count)
    return types.NamedUniTuple(element, len(kind._fields), kind)
