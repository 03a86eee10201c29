"""Copies and sums by all threads: a single core cannot fill the memory's bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel
from kernels.core.runs import add, copy
from kernels.core.threads import parallel

_SMALL = 16_384  # floats; below, NumPy is as fast
_CHUNK = 65_536


@lru_cache(maxsize=1)
def _rows_kernel() -> Kernel:
    @cpu_kernel("piipiiiii")
    def copy_rows(start, stop, scratch, x, x0, x_row, y, y0, y_row, length, rows, per_chunk):  # type: ignore[no-untyped-def]
        for row in range(start * per_chunk, min(stop * per_chunk, rows)):
            copy(x, x0 + row * x_row, y, y0 + row * y_row, length)

    return copy_rows


def _copy_rows(x: np.ndarray, x0: int, x_row: int, y: np.ndarray, y0: int, y_row: int, length: int, rows: int) -> None:
    per = max(1, _CHUNK // length)
    parallel(_rows_kernel(), -(-rows // per), x.reshape(-1), x0, x_row, y.reshape(-1), y0, y_row, length, rows, per)


def _large(arrays: Sequence[np.ndarray]) -> bool:
    return all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays) and sum(a.size for a in arrays) >= _SMALL


def concat_channels(xs: Sequence[np.ndarray]) -> Any:
    """As kernels.shape.reference.concat_channels."""
    if not _large(xs):
        return NotImplemented
    width = sum(x.shape[-1] for x in xs)
    y = memory.empty((*xs[0].shape[:-1], width), np.float32)
    rows, at = math.prod(y.shape[:-1]), 0
    for x in xs:
        _copy_rows(x, 0, x.shape[-1], y, at, width, x.shape[-1], rows)
        at += x.shape[-1]
    return y


def split_channels(dy: np.ndarray, sizes: Sequence[int]) -> Any:
    """As kernels.shape.reference.split_channels, as contiguous copies."""
    if not _large([dy]):
        return NotImplemented
    out, at, rows = [], 0, math.prod(dy.shape[:-1])
    for size in sizes:
        x = memory.empty((*dy.shape[:-1], size), np.float32)
        _copy_rows(dy, at, dy.shape[-1], x, 0, size, size, rows)
        out.append(x)
        at += size
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
