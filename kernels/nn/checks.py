"""Checks of a caller's arguments: one line that names the function, the argument, what came and what was expected."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.core.device import Array, array_module
from kernels.core.geometry import Pair, as_index, one, pair
from kernels.core.shapes import shown
from kernels.nn.layout import Layout

FLOATS = ("float16", "float32", "float64")


def check_arrays(name: str, **arrays: Array) -> None:
    """Raise TypeError unless all are arrays of one of the FLOATS, on one device, where nothing is copied to or from.

    Their dtypes may differ in the order of bytes.
    """
    first, array = next(iter(arrays.items()))
    for argument, other in arrays.items():
        check_array(name, argument, other)
        if other.dtype.name != array.dtype.name:
            raise TypeError(f"{name}: {argument}: got {other.dtype.name}, expected {array.dtype.name} as {first}")
        check_device(name, argument, other, first, array)


def check_array(name: str, argument: str, array: Any, dtypes: tuple[str, ...] = FLOATS) -> None:
    """Raise TypeError unless it is an array of NumPy or CuPy, of one of the dtypes."""
    if not isinstance(array, np.ndarray) and array_module(array) is np:
        raise TypeError(f"{name}: {argument}: got {type(array).__name__}, expected a NumPy or CuPy array")
    if array.dtype.name not in dtypes:
        raise TypeError(f"{name}: {argument}: got {array.dtype}, expected {either(dtypes)}")


def either(words: tuple[str, ...]) -> str:
    """The words with commas, and `or` before the last."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def check_device(name: str, argument: str, array: Array, first: str, other: Array) -> None:
    """Raise TypeError for an array that is on another device than another one."""
    if str(array.device) != str(other.device):
        raise TypeError(f"{name}: {argument}: got an array on {_place(array)}, expected {_place(other)} as {first}")


def _place(array: Array) -> str:
    return "the host" if isinstance(array, np.ndarray) else f"CUDA device {array.device.id}"


def check_shape(name: str, argument: str, array: Array, shape: tuple[int, ...], given: str) -> None:
    """Raise ValueError for another shape; `given` says from what the expected one follows."""
    if array.shape != shape:
        raise ValueError(f"{name}: {argument}: got shape {array.shape}, expected {shape} for {given}")


def map_sizes(name: str, argument: str, array: Array, layout: Layout) -> tuple[int, Pair, int]:
    """(N, (H, W), C) of a map, which may be empty only along N; ValueError for other axes."""
    if array.ndim != len(layout.axes):
        axes = ", ".join(layout.axes)
        raise ValueError(f"{name}: {argument}: got shape {array.shape}, expected {len(layout.axes)} axes ({axes})")
    if 0 in array.shape[1:]:
        raise ValueError(f"{name}: {argument}: got shape {array.shape}, expected at least one pixel and one channel")
    return layout.sizes(array.shape)


def filter_sizes(name: str, w: Array, layout: Layout, axes: str) -> tuple[Pair, int, int]:
    """((R, S), second, first channels) of a filter without empty axes; ValueError for others than those of `axes`."""
    if w.ndim != len(layout.axes) or 0 in w.shape:
        raise ValueError(f"{name}: w: got shape {w.shape}, expected {len(layout.axes)} axes {axes}, none of them empty")
    return layout.filter_sizes(w.shape)


def place_pair(name: str, argument: str, value: Any, layout: Layout) -> Pair:
    """A kernel or an image by its size: an int or a pair, of a sequence an int; ValueError for less than 1."""
    if not layout.is_sequence:
        return pair(value, f"{name}: {argument}")
    return 1, one(name, argument, value)


def check_groups(name: str, groups: Any, c: int, k: int) -> int:
    """The number of groups; ValueError unless it divides the channels."""
    groups = integer(name, "groups", groups, 1)
    if c % groups or k % groups:
        raise ValueError(f"{name}: groups: got {groups}, expected a divisor of {c} input and {k} output channels")
    return groups


def integer(name: str, argument: str, value: Any, least: int, most: int | None = None) -> int:
    """An int from `least` to `most`; ValueError for another one and for what is none."""
    expected = f"an int of at least {least}" if most is None else f"an int from {least} to {most}"
    number = as_index(value)
    if number is None or number < least or (most is not None and number > most):
        raise ValueError(f"{name}: {argument}: got {shown(value)}, expected {expected}")
    return number


def real(name: str, argument: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number from `least` to `most`; ValueError for another one and for what is none."""
    bounds = "" if math.isinf(least) else f" of at least {least}" if math.isinf(most) else f" from {least} to {most}"
    try:
        number = float(value) if isinstance(value, (int, float, np.integer, np.floating)) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number) or not least <= number <= most:
        raise ValueError(f"{name}: {argument}: got {shown(value)}, expected a finite number{bounds}")
    return number


def flag(name: str, argument: str, value: Any) -> bool:
    """True or False; ValueError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: {argument}: got {shown(value)}, expected True or False")
    return bool(value)
