"""The conversion of values to arrays: the one place at which foreign arrays, byte orders and Python values become NumPy
or CuPy arrays.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

from kernels.core.device import CPU, CUDA, Array, default, device_of, module_of

_CPU, _CUDA, _PINNED, _MANAGED = 1, 2, 3, 13  # DLPack's device types


def is_array(value: Any) -> bool:
    """Whether `value` is a NumPy or CuPy array."""
    return isinstance(value, np.ndarray) or device_of(value) == CUDA


def array_from(value: Any, name: str = "Tensor") -> Array:
    """The array behind `value`, in native byte order, of booleans, integers or floating-point numbers.

    NumPy and CuPy arrays are kept. Arrays of other libraries are shared through DLPack, or else taken through
    `__array__`. NumPy makes arrays of numbers and nested lists; Python floats become float32.
    Raises TypeError, naming the type, for anything but an array of numbers.
    """
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array, whose mask would be lost; fill it first")
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
    elif device_of(value) == CUDA:
        array = value
    elif hasattr(value, "__dlpack__") or hasattr(value, "__array__"):
        array = _foreign(value, name)
    else:
        array = _made(value, name)
    dtype = array.dtype
    if dtype.kind not in "biufc" and "float" not in dtype.name:  # bfloat16 is of kind V
        raise TypeError(
            f"{name}: got {kind_of(value)} (as an array: {dtype}), expected an array of booleans, integers or "
            "floating-point numbers"
        )
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _made(value: Any, name: str) -> Array:
    """An array of Python values, on the default device."""
    try:
        array = module_of(default()).asarray(value)
    except (ValueError, OverflowError) as error:  # rows of different lengths, for one
        raise type(error)(f"{name}: {kind_of(value)} gives no array: {error}") from None
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _foreign(value: Any, name: str) -> Array:
    """The array of another library: shared where DLPack can, converted by `__array__` where not."""
    reasons = []
    try:
        where = value.__dlpack_device__()[0] if hasattr(value, "__dlpack__") else None
        if where in (_CPU, _PINNED):
            return np.from_dlpack(value)
        if where in (_CUDA, _MANAGED):
            return importlib.import_module("cupy").from_dlpack(value)
    except Exception as error:  # libraries refuse in many ways; each means that DLPack does not serve
        reasons.append(str(error))
    try:
        if hasattr(value, "__array__"):
            return np.asarray(value)
    except Exception as error:
        reasons.append(str(error))
    why = f": {reasons[0].splitlines()[0]}" if reasons and reasons[0] else ""
    raise TypeError(f"{name}: {kind_of(value)} cannot be converted to an array{why}")


def kind_of(value: Any) -> str:
    """The name of a value's type, for messages."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def same_kind(array: Array, device: str) -> bool:
    """Whether an array lives on `device`; asks CuPy only where it is imported."""
    return device_of(array) == device if "cupy" in sys.modules else device == CPU
