"""Fast layer norm: x (..., C) as M rows of C channels, float32.

    y = xhat weight + bias          xhat = (x - mean) inverse          inverse = 1 / sqrt(var + eps)         over a row
    dx = inverse (g - mean(g) - xhat mean(g xhat))          g = dy weight
    dweight = sum dy xhat          dbias = sum dy           over rows

A row is read three times, twice of them from the L1 cache: for the mean, for the variance about it, and for the result.
Backward takes the sums of g and of g (x - mean) with these and keeps nothing of forward. Bytes per element: forward 4
read, 4 written; backward 8 and 4.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, F64
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Float, Int, Pointer, program
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.cpu.vector_ops import clear, vector_loop
from kernels.norm.cpu import channel_vectors
from kernels.norm.cpu.row_statistics import Rows

_CHUNK = 32_768  # floats, 128 KB
_FLUSH = 16  # rows summed in float32 before they are added in float64


def _is_wide(channels: int) -> bool:
    """Whether rows are computed in float64: short ones, whose dx is a small difference of larger numbers, and ones too
    long for sums in float32.
    """
    lanes = target().lanes
    return lanes == 1 or not 16 <= channels <= 64 * lanes


@lru_cache(maxsize=2)
def _forward_kernel(wide: bool) -> Kernel:
    @program
    def normalise(
        code: Code,
        x: Pointer,
        weight: Pointer,
        bias: Pointer,
        y: Pointer,
        first: Int,
        last: Int,
        channels: Int,
        eps: Float,
    ) -> None:
        rows = Rows(code, channels, eps, wide)

        def some(places: list[Int]) -> None:
            known = rows.statistics(x, places)

            def body(j: Int, rest: Any) -> None:
                w = rows.load(weight, j, rest)
                b = rows.load(bias, j, rest)
                for place, row in zip(places, known, strict=True):
                    rows.store(rows.math.fma(rows.xhat(x, place + j, rest, row), w, b), y, place + j, rest)

            vector_loop(code, channels, body)

        rows.over(first, last, some)

    @cpu_kernel("wide" * wide)
    def layer_norm_forward(
        start,
        stop,
        _scratch,
        x: F32,
        weight: F32,
        bias: F32,
        y: F32,
        rows: int,
        channels: int,
        per_chunk: int,
        eps: float,
    ):
        for chunk in range(start, stop):
            normalise(x, weight, bias, y, chunk * per_chunk, min((chunk + 1) * per_chunk, rows), channels, eps)

    return layer_norm_forward


@lru_cache(maxsize=2)
def _backward_kernel(wide: bool) -> Kernel:
    @program
    def gradient(
        code: Code,
        dy: Pointer,
        x: Pointer,
        weight: Pointer,
        dx: Pointer,
        sums: Pointer,
        first: Int,
        last: Int,
        channels: Int,
        eps: Float,
    ) -> None:
        """dx of the rows first .. last; sums[c] += dy xhat, sums[C + c] += dy, in float64 if the rows are wide."""
        rows = Rows(code, channels, eps, wide)
        math = rows.math

        def some(places: list[Int]) -> None:
            known = rows.statistics(x, places, (dy, weight))

            def body(j: Int, rest: Any) -> None:
                w = rows.load(weight, j, rest)
                dweight = math.load(sums, j, rest)
                dbias = math.load(sums, channels + j, rest)
                for place, row in zip(places, known, strict=True):
                    xhat = rows.xhat(x, place + j, rest, row)
                    d = rows.load(dy, place + j, rest)
                    dweight = math.fma(d, xhat, dweight)
                    dbias = dbias + d
                    rows.store(math.fma(xhat, -row.product, math.fma(d, w, -row.g)) * row.inverse, dx, place + j, rest)
                math.store(dweight, sums, j, rest)
                math.store(dbias, sums, channels + j, rest)

            vector_loop(code, channels, body)

        rows.over(first, last, some)

    @cpu_kernel("wide" * wide)
    def layer_norm_backward(
        start,
        stop,
        scratch,
        dy: F32,
        x: F32,
        weight: F32,
        dx: F32,
        out: F64,
        rows: int,
        channels: int,
        per_chunk: int,
        eps: float,
    ):
        sums = carray(scratch, 2 * channels)
        for chunk in range(start, stop):
            totals = carray(out, (chunk + 1, 2 * channels))[chunk]
            totals[:] = 0.0
            at = chunk * per_chunk
            end = min((chunk + 1) * per_chunk, rows)
            if wide:
                gradient(dy, x, weight, dx, totals, at, end, channels, eps)
                continue
            while at < end:
                to = min(at + _FLUSH, end)
                clear(scratch, 0, 2 * channels)
                gradient(dy, x, weight, dx, scratch, at, to, channels, eps)
                for c in range(2 * channels):
                    totals[c] += sums[c]
                at = to

    return layer_norm_backward


def _served(x: np.ndarray, *arrays: np.ndarray) -> bool:
    return x.size > 0 and all(a.dtype == np.float32 for a in (x, *arrays))


def _sizes(x: np.ndarray) -> tuple[int, int, int, int]:
    """(chunks, rows, channels, rows per chunk)."""
    channels = x.shape[-1]
    rows = x.size // channels
    per = max(1, _CHUNK // channels)
    return -(-rows // per), rows, channels, per


def layer_norm_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> Any:
    """As kernels.norm.reference.layer_norm_forward: x (..., C), weight and bias (C,) -> (..., C)."""
    if not _served(x, weight, bias):
        return NotImplemented
    x, y = contiguous(x), buffer_pool.empty(x.shape, np.float32)
    chunks, *sizes = _sizes(x)
    parallel(
        _forward_kernel(_is_wide(sizes[1])),
        chunks,
        x.reshape(-1),
        contiguous(weight),
        contiguous(bias),
        y.reshape(-1),
        *sizes,
        eps,
    )
    return y


def layer_norm_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> Any:
    """As kernels.norm.reference.layer_norm_backward: dy and x (..., C), weight (C,) -> dx (..., C), dweight (C,), dbias
    (C,).
    """
    if not _served(x, dy, weight):
        return NotImplemented
    dy, x, dx = contiguous(dy), contiguous(x), buffer_pool.empty(x.shape, np.float32)
    chunks, *sizes = _sizes(x)
    channels = sizes[1]
    parts = buffer_pool.empty((chunks, 2 * channels), np.float64)
    arrays = dy.reshape(-1), x.reshape(-1), contiguous(weight), dx.reshape(-1), parts.reshape(-1)
    parallel(_backward_kernel(_is_wide(channels)), chunks, *arrays, *sizes, eps, scratch=2 * channels)
    sums = channel_vectors.totals(parts, 2 * channels)
    return dx, sums[:channels], sums[channels:]
