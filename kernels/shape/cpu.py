"""Copies and sums by all threads: a single core cannot fill the memory's bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel
from kernels.core.runs import add, copy_rows
from kernels.core.threads import parallel

_SMALL = 16_384  # floats; below, NumPy is as fast
_CHUNK = 65_536
_ROWS = 32  # pixels moved at a time for one map after the other: what they make up stays in the L1 cache, and its lines are written once
_MOST = 8  # maps


@lru_cache(maxsize=2)
def _rows_kernel(together: bool) -> Kernel:
    """Copies between one wide map and up to _MOST narrow ones: into the wide one (together), or out of it."""

    @cpu_kernel("p" * (_MOST + 1) + f"g{_MOST}iiii", "concat" if together else "split")
    def move_channels(start, stop, scratch, m0, m1, m2, m3, m4, m5, m6, m7, wide, sizes, count, width, rows, per_chunk):  # type: ignore[no-untyped-def]
        maps = (m0, m1, m2, m3, m4, m5, m6, m7)
        for chunk in range(start, stop):
            end = min((chunk + 1) * per_chunk, rows)
            for row in range(chunk * per_chunk, end, _ROWS):
                n, at = min(_ROWS, end - row), row * width
                for k in range(count):
                    size = sizes[k]
                    if together:
                        copy_rows(maps[k], row * size, size, wide, at, width, size, n)
                    else:
                        copy_rows(wide, at, width, maps[k], row * size, size, size, n)
                    at += size

    return move_channels


def _move(maps: Sequence[np.ndarray], wide: np.ndarray, together: bool) -> None:
    sizes = [m.shape[-1] for m in maps]
    width = wide.shape[-1]
    rows = wide.size // width
    per = max(_ROWS, _CHUNK // width // _ROWS * _ROWS)
    padded = [m.reshape(-1) for m in maps] + [wide.reshape(-1)] * (_MOST - len(maps))
    geometry = np.array(sizes + [0] * (_MOST - len(maps)), np.int64)
    parallel(_rows_kernel(together), -(-rows // per), *padded, wide.reshape(-1), geometry, len(maps), width, rows, per)


def _large(arrays: Sequence[np.ndarray]) -> bool:
    return all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays) and sum(a.size for a in arrays) >= _SMALL


def concat_channels(xs: Sequence[np.ndarray]) -> Any:
    """As kernels.shape.reference.concat_channels, for up to _MOST maps."""
    if len(xs) > _MOST or not _large(xs):
        return NotImplemented
    y = memory.empty((*xs[0].shape[:-1], sum(x.shape[-1] for x in xs)), np.float32)
    _move(xs, y, True)
    return y


def split_channels(dy: np.ndarray, sizes: Sequence[int]) -> Any:
    """As kernels.shape.reference.split_channels, as contiguous copies."""
    if len(sizes) > _MOST or not _large([dy]):
        return NotImplemented
    out = [memory.empty((*dy.shape[:-1], size), np.float32) for size in sizes]
    _move(out, dy, False)
    return out


@lru_cache(maxsize=1)
def _add_kernel() -> Kernel:
    @cpu_kernel("ppi")
    def accumulate(start, stop, scratch, total, more, n):  # type: ignore[no-untyped-def]
        for chunk in range(start, stop):
            at = chunk * _CHUNK
            add(total, at, more, at, min(_CHUNK, n - at))

    return accumulate


def accumulate(total: np.ndarray, more: np.ndarray) -> Any:
    """As kernels.shape.reference.accumulate."""
    if total.shape != more.shape or not _large([total, more]):
        return NotImplemented
    parallel(_add_kernel(), -(-total.size // _CHUNK), total.reshape(-1), more.reshape(-1), total.size)
    return None
