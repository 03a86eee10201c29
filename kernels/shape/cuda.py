"""Concatenation, its inverse and sums in place on CUDA; the kernels are described in shape.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.core.cuda.arrays import ALIGNMENT, MOST, is_ready, ready, type_of
from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, array_module

THREADS = 256
MOST_MAPS = 8  # of one launch
UNITS = {16: "uint4", 8: "uint2", 4: "unsigned"}
MODULE = Module(
    "shape/shape.cu",
    (
        *(f"move_channels<{unit}, {concatenates}>" for unit in UNITS.values() for concatenates in ("true", "false")),
        *(f"accumulate<{kind}>" for kind in ("float", "double")),
    ),
)
_MAPS = np.dtype([("map", np.uint64, MOST_MAPS), ("start", np.int32, MOST_MAPS + 1), ("padding", np.int32)])


def unit_of(sizes: Sequence[int]) -> int | None:
    """The widest unit, in bytes, that all runs of channels are made of; their sizes are given in bytes."""
    return next((unit for unit in UNITS if math.gcd(*sizes) % unit == 0), None)


def flat_launch(kernel: str, count: int) -> Launch:
    """A launch of that many threads."""
    return Launch(kernel, (blocks(count, THREADS),), (THREADS,))


def _move(maps: Sequence[Array], wide: Array, concatenates: bool) -> bool:
    """Copy between ready arrays; False when there is no unit for them."""
    sizes = [m.shape[-1] * m.itemsize for m in maps]
    unit = unit_of(sizes)
    if unit is None:
        return False
    starts = np.full(MOST_MAPS + 1, sum(sizes) // unit)
    starts[: len(maps)] = np.cumsum([0, *sizes[:-1]]) // unit
    pointers = [m.data.ptr for m in maps] + [0] * (MOST_MAPS - len(maps))
    argument = np.array([(pointers, starts, 0)], _MAPS)[0]
    count = wide.size * wide.itemsize // unit
    MODULE.run(
        flat_launch(f"move_channels<{UNITS[unit]}, {str(concatenates).lower()}>", count),
        argument,
        wide,
        count,
        sum(sizes) // unit,
    )
    return True


def _served(arrays: Sequence[Array]) -> bool:
    """Whether the arrays have one dtype of at least 4 bytes, none is empty, and they are not too many."""
    return (
        0 < len(arrays) <= MOST_MAPS and len({a.dtype for a in arrays}) == 1 and all(0 < a.size <= MOST for a in arrays)
    )


def concat_channels(xs: Sequence[Array]) -> Any:
    """As kernels.shape.reference.concat_channels, for up to MOST_MAPS maps."""
    if not _served(xs):
        return NotImplemented
    shape = (*xs[0].shape[:-1], sum(x.shape[-1] for x in xs))
    if math.prod(shape) > MOST:
        return NotImplemented
    y = array_module(xs[0]).empty(shape, xs[0].dtype)
    return y if _move([ready(x) for x in xs], y, True) else NotImplemented


def split_channels(dy: Array, sizes: Sequence[int]) -> Any:
    """As kernels.shape.reference.split_channels, as contiguous copies."""
    if not _served([dy]) or not 0 < len(sizes) <= MOST_MAPS or min(sizes) < 1:
        return NotImplemented
    out = [array_module(dy).empty((*dy.shape[:-1], size), dy.dtype) for size in sizes]
    return out if _move(out, ready(dy), False) else NotImplemented


def accumulate(total: Array, more: Array) -> Any:
    """As kernels.shape.reference.accumulate."""
    kind = type_of(total, more)
    if kind is None or total.shape != more.shape or not is_ready(total):
        return NotImplemented
    MODULE.run(
        flat_launch(f"accumulate<{kind}>", blocks(total.size * total.itemsize, ALIGNMENT)),
        total,
        ready(more),
        total.size,
    )
    return None
