"""Copies and sums by all threads: a single core cannot saturate the memory's bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, Arrays, Ints
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.thread_pool import flat, parallel
from kernels.core.cpu.vector_ops import add, copy, copy_rows

_SMALL = 16_384  # floats; below, NumPy is as fast
_CHUNK = 65_536
# pixels moved at a time for one map after the other: what they make up stays in the L1 cache, and its lines are written
# once
_ROWS = 32
_MOST = 8  # maps


_MAPS = Arrays(_MOST)
_CHANNELS = Ints(_MOST)
_STEPS = Ints(3 * _MOST + 3)


class _Walk(NamedTuple):
    """The number of maps, lines of an image and pixels of a line, and the walk of a launch over the pixels."""

    maps: int
    lines: int
    pixels: int
    rows: int  # pixels in all
    per_chunk: int


@lru_cache(maxsize=2)
def _rows_kernel(concatenates: bool) -> Kernel:
    """Copies between one wide map and up to _MOST narrow ones: into the wide one (concatenates), or out of it.

    steps: three for each map, the wide one last: floats from image to image, line to line, pixel to pixel; 0 where a
        map repeats itself.
    """

    @cpu_kernel("concat" if concatenates else "split")
    def move_channels(start, stop, scratch, maps: _MAPS, wide: F32, channels: _CHANNELS, steps: _STEPS, walk: _Walk):
        wide_step = steps[3 * _MOST + 2]
        for chunk in range(start, stop):
            row = chunk * walk.per_chunk
            end = min((chunk + 1) * walk.per_chunk, walk.rows)
            while row < end:
                line = row // walk.pixels
                pixel = row % walk.pixels
                image = line // walk.lines
                line = line % walk.lines
                n = min(_ROWS, end - row, walk.pixels - pixel)
                at = image * steps[3 * _MOST] + line * steps[3 * _MOST + 1] + pixel * wide_step
                for k in range(walk.maps):
                    size = channels[k]
                    step = steps[3 * k + 2]
                    place = image * steps[3 * k] + line * steps[3 * k + 1] + pixel * step
                    if concatenates:
                        copy_rows(maps[k], place, step, wide, at, wide_step, size, n)
                    else:
                        copy_rows(wide, at, wide_step, maps[k], place, step, size, n)
                    at += size
                row += n

    return move_channels


def _memory(x: np.ndarray) -> np.ndarray | None:
    """The numbers of a contiguous map, or of one that repeats a contiguous one along its leading axes, each once; None
    for any other.
    """
    once = x if x.flags.c_contiguous else x[tuple(slice(None) if step else slice(1) for step in x.strides)]
    same = once.shape[-1] == x.shape[-1] and 0 < x.ndim <= 4
    return once.reshape(-1) if once is x or (same and once.flags.c_contiguous) else None


def _move(maps: Sequence[np.ndarray], wide: np.ndarray, concatenates: bool) -> bool:
    """Whether it could be done."""
    lie = [_memory(m) for m in (*maps, wide)]
    found = [m for m in lie if m is not None]
    if len(found) < len(lie):
        return False
    sizes = [m.shape[-1] for m in maps]
    width = wide.shape[-1]
    rows = wide.size // width
    if all(m.flags.c_contiguous for m in (*maps, wide)):
        lines = 1
        pixels = rows
        steps = [(0, 0, size) for size in (*sizes, width)]
    else:
        shape = (1,) * (4 - wide.ndim) + wide.shape
        lines, pixels = shape[1:3]
        steps = [
            tuple(
                0 if n == 1 else s // 4 for n, s in zip(shape[:3], ((0,) * (4 - m.ndim) + m.strides)[:3], strict=True)
            )
            for m in (*maps, wide)
        ]
    per = max(_ROWS, _CHUNK // width // _ROWS * _ROWS)
    rest = _MOST - len(maps)
    flat_steps = (step for three in (*steps[:-1], *[(0, 0, 0)] * rest, steps[-1]) for step in three)
    parallel(
        _rows_kernel(concatenates),
        -(-rows // per),
        found[:-1] + [found[-1]] * rest,
        found[-1],
        (*sizes, *[0] * rest),
        tuple(flat_steps),
        _Walk(len(maps), lines, pixels, rows, per),
    )
    return True


def _large(arrays: Sequence[np.ndarray]) -> bool:
    return all(a.dtype == np.float32 for a in arrays) and sum(a.size for a in arrays) >= _SMALL


def concat_channels(xs: Sequence[np.ndarray]) -> Any:
    """As kernels.shape.reference.concat_channels, for up to _MOST maps, which may be broadcast."""
    if len(xs) > _MOST or not _large(xs) or any(x.shape[:-1] != xs[0].shape[:-1] for x in xs):
        return NotImplemented
    y = buffer_pool.empty((*xs[0].shape[:-1], sum(x.shape[-1] for x in xs)), np.float32)
    return y if _move(xs, y, True) else NotImplemented


def split_channels(dy: np.ndarray, sizes: Sequence[int]) -> Any:
    """As kernels.shape.reference.split_channels, as contiguous copies; dy may be broadcast."""
    if len(sizes) > _MOST or not _large([dy]):
        return NotImplemented
    out = [buffer_pool.empty((*dy.shape[:-1], size), np.float32) for size in sizes]
    return out if _move(out, dy, False) else NotImplemented


@lru_cache(maxsize=1)
def _add_kernel() -> Kernel:
    @cpu_kernel()
    def accumulate(start, stop, scratch, total: F32, more: F32, n: int):
        for chunk in range(start, stop):
            at = chunk * _CHUNK
            add(total, at, more, at, min(_CHUNK, n - at))

    return accumulate


def accumulate(total: np.ndarray, more: np.ndarray) -> Any:
    """As kernels.shape.reference.accumulate."""
    if (
        total.shape != more.shape
        or not _large([total, more])
        or not (total.flags.c_contiguous and more.flags.c_contiguous)
    ):
        return NotImplemented
    parallel(_add_kernel(), -(-total.size // _CHUNK), total.reshape(-1), more.reshape(-1), total.size)
    return None


@lru_cache(maxsize=1)
def _sum_kernel() -> Kernel:
    @cpu_kernel()
    def added(start, stop, scratch, a: F32, b: F32, y: F32, n: int):
        for chunk in range(start, stop):
            at = chunk * _CHUNK
            copy(a, at, y, at, min(_CHUNK, n - at))
            add(y, at, b, at, min(_CHUNK, n - at))

    return added


def added(a: np.ndarray, b: np.ndarray) -> Any:
    """As kernels.shape.reference.added."""
    if a.shape != b.shape or not _large([a, b]):
        return NotImplemented
    y = buffer_pool.empty(a.shape, np.float32)
    parallel(_sum_kernel(), -(-a.size // _CHUNK), *flat(a, b, y), a.size)
    return y
