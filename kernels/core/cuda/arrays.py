"""Checks of arrays for launch code, before it hands them to a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.core.device import Array, array_module

TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
MOST = 2**31 - 2**24  # values: indices are 32-bit numbers, and a block may reach a little past the end
ALIGNMENT = 16  # bytes of the widest access


def type_of(*arrays: Array) -> str | None:
    """The CUDA name of the one floating-point type that all arrays have; None for other types, empty arrays, and more
    than MOST values.
    """
    dtypes = {a.dtype for a in arrays}
    if len(dtypes) > 1 or any(not 0 < a.size <= MOST for a in arrays):
        return None
    return TYPES.get(arrays[0].dtype)


def is_ready(array: Array) -> bool:
    """Contiguous, and at an address that 16-byte accesses may use."""
    return array.flags.c_contiguous and array.data.ptr % ALIGNMENT == 0


def ready(array: Array) -> Array:
    """The array, or a copy of it, such that `is_ready`."""
    return array if is_ready(array) else array_module(array).array(array, order="C", copy=True)


def compact(array: Array, dtype: Any = None) -> Array:
    """The array, or a copy of it, such that it is contiguous (and of `dtype`, if given): enough for vectors that are
    read value by value.
    """
    return (
        array
        if array.flags.c_contiguous and dtype in (None, array.dtype)
        else array_module(array).array(array, dtype, order="C")
    )


def variant(name: str, kind: str, channels: int) -> str:
    """The instance `name<type, values per access>`: four floats at once where the channels allow it, else one value."""
    return f"{name}<{kind}, {4 if kind == 'float' and channels % 4 == 0 else 1}>"


def variants(*names: str) -> tuple[str, ...]:
    """All instances that `variant` may ask for."""
    return tuple(f"{name}<{kind}>" for name in names for kind in ("float, 4", "float, 1", "double, 1"))


def width_of(kernel: str) -> int:
    """Values per access of an instance named by `variant`."""
    return int(kernel.rstrip(">").split(",")[-1])


def group_of(packs: int) -> int:
    """Neighbouring lanes that share a row of `packs` packs: the smallest power of two that covers it, 32 at most."""
    return min(32, 1 << max(0, packs - 1).bit_length())
