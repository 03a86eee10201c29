"""Fast batch norm: vector programs over the flat map, with the channels' constants in tables of one period (in the
thread's own scratch memory).

Bytes per element: statistics 4 read; forward 4 read, 4 written (8 and a bit with a residual); backward 8 read for the
sums, 8 read and 4 written for dx. The ReLU's mask is computed again from x; only with a residual it is stored, one bit
per element.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, F64, U8
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.target import mask_bytes
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.cpu.vector_ops import clear, copy, period_of, periodic_loop
from kernels.core.dispatch import mark_host_computation
from kernels.norm.cpu import channel_vectors
from kernels.norm.records import SavedBatchNorm

_CHUNK = 65_536  # floats, 256 KB
# floats that are prefetched: the arithmetic between two loads is too much for the processor's own look-ahead
_AHEAD = 1024
_FLUSH = 64  # periods summed in float32 before they are added in float64


def _chunks(n: int, period: int) -> tuple[int, int]:
    """(how many chunks, floats per chunk: a whole number of periods)."""
    per = max(1, _CHUNK // period) * period
    return -(-n // per), per


@inline()
def _fill_tables(rows, count, channels, period, scratch, at):
    """A table of one period for each of `count` vectors of channels: scratch[at + k period : ...]."""
    for k in range(count):
        for base in range(0, period, channels):
            copy(rows, k * channels, scratch, at + k * period + base, channels)


@inline()
def _add_periods(sums, period, channels, totals):
    """totals[0 or 1, c] += the two rows of sums at c, c + channels, ..., in float64."""
    for base in range(0, period, channels):
        for c in range(channels):
            totals[0, c] += sums[base + c]
            totals[1, c] += sums[period + base + c]


# -- statistics --------------------------------------------------------------------------------------------------------


@program
def _moments(code: Code, x: Pointer, start: Int, stop: Int, period: Int, sums: Pointer) -> None:
    """sums[j] += x - shift, sums[period + j] += (x - shift)^2; the shifts are a table after the sums."""
    shift = sums + period * 2

    def body(i: Int, j: Int, rest: Any) -> None:
        code.prefetch(x, i + _AHEAD)
        d = code.load(x, i, rest) - code.load(shift, j, rest)
        code.store(code.load(sums, j, rest) + d, sums, j, rest)
        code.store(code.fma(d, d, code.load(sums, j + period, rest)), sums, j + period, rest)

    periodic_loop(code, start, stop, period, body)


@lru_cache(maxsize=1)
def _statistics_kernel() -> Kernel:
    @cpu_kernel()
    def batch_norm_statistics(
        start, stop, scratch, x: F32, shift: F32, out: F64, n: int, period: int, channels: int, per_chunk: int
    ):
        sums = carray(scratch, 2 * period)
        _fill_tables(shift, 1, channels, period, scratch, 2 * period)
        for k in range(start, stop):
            chunk = (n - 1) // per_chunk - k  # backwards: what was written last is still in the cache
            totals = carray(out, ((chunk + 1) * 2, channels))[chunk * 2 :]
            totals[:] = 0.0
            at = chunk * per_chunk
            end = min((chunk + 1) * per_chunk, n)
            while at < end:
                to = min(at + _FLUSH * period, end)
                clear(scratch, 0, 2 * period)
                _moments(x, at, to, period, scratch)
                _add_periods(sums, period, channels, totals)
                at = to

    return batch_norm_statistics


def sum_pixels(x: np.ndarray) -> Any:
    """As kernels.core.reduction.sum_pixels."""
    if x.dtype != np.float32 or x.size < 16_384:
        return NotImplemented
    mark_host_computation()
    x = contiguous(x)
    return pixel_sums(x, np.zeros(x.shape[-1], np.float32))[:, 0].sum(0)


def pixel_sums(x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Sums of x - shift and of their squares over pixels, chunk by chunk: (chunks, 2, C) float64."""
    channels = x.shape[-1]
    period = period_of(x.shape[-1])
    chunks, per = _chunks(x.size, period)
    out = buffer_pool.empty((chunks, 2, channels), np.float64)
    parallel(
        _statistics_kernel(),
        chunks,
        x.reshape(-1),
        shift,
        out.reshape(-1),
        x.size,
        period,
        channels,
        per,
        scratch=3 * period,
    )
    return out


def batch_norm_statistics(x: np.ndarray) -> Any:
    """As kernels.norm.reference.batch_norm_statistics; in one pass over x.

    Sums are taken of x minus the mean of a few sample pixels: then the subtraction in var = E[d^2] - E[d]^2 cancels
    next to nothing.
    """
    if x.dtype != np.float32 or not x.size:
        return NotImplemented
    mark_host_computation()
    x = contiguous(x)
    rows = x.size // x.shape[-1]
    sample = x.reshape(rows, -1)[:: max(1, rows // 8)][:8]
    shift = sample.sum(0) * np.float32(1 / len(sample))
    # infinities and NaN belong in the sums over the map, and a sum of huge samples overflows
    if not math.isfinite(shift.sum()):
        shift = np.where(np.isfinite(shift), shift, np.float32(0))
    mean, square = pixel_sums(x, shift).sum(0) / rows
    return mean + shift, np.maximum(square - mean * mean, 0)


# -- forward -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _forward_kernel(residual: bool, relu: bool) -> Kernel:
    @program
    def normalise(
        code: Code,
        x: Pointer,
        start: Int,
        stop: Int,
        period: Int,
        tables: Pointer,
        other: Pointer,
        y: Pointer,
        mask: Pointer,
    ) -> None:
        def body(i: Int, j: Int, rest: Any) -> None:
            code.prefetch(x, i + _AHEAD)
            value = _normalised(code, x, i, j, rest, tables, period)
            if residual:
                code.prefetch(other, i + _AHEAD)
                value = value + code.load(other, i, rest)
            if relu and residual:
                code.store_mask(code.relu_open(value), mask, i)
            code.store(code.relu(value) if relu else value, y, i, rest)

        periodic_loop(code, start, stop, period, body)

    @cpu_kernel(f"{'residual ' * residual}{'relu' * relu}")
    def batch_norm_forward(
        start,
        stop,
        scratch,
        x: F32,
        rows: F32,
        other: F32,
        y: F32,
        mask: U8,
        n: int,
        period: int,
        channels: int,
        per_chunk: int,
    ):
        _fill_tables(rows, 3, channels, period, scratch, 0)
        for chunk in range(start, stop):
            normalise(x, chunk * per_chunk, min((chunk + 1) * per_chunk, n), period, scratch, other, y, mask)

    return batch_norm_forward


def _normalised(code: Code, x: Pointer, i: Int, j: Int, rest: Any, tables: Pointer, period: Int) -> Any:
    """(x - mean) scale + bias; forward and backward must round it alike, because its sign decides where the gradient
    passes.
    tables: of the three.
    """
    mean, scale, bias = (code.load(tables, j + period * k, rest) for k in range(3))
    return code.fma(code.load(x, i, rest) - mean, scale, bias)


_NO_MASK = np.zeros(0, np.uint8)


def batch_norm_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    inverse: np.ndarray,
    residual: np.ndarray | None = None,
    activation: str | None = None,
) -> Any:
    """As kernels.norm.reference.batch_norm_forward; the mask is bits where there is a residual, else None (computed
    again).
    """
    if not x.size or any(a is not None and a.dtype != np.float32 for a in (x, residual)):
        return NotImplemented
    x = contiguous(x)
    period = period_of(x.shape[-1])
    chunks, per = _chunks(x.size, period)
    y = buffer_pool.empty(x.shape, np.float32)
    relu = activation == "relu"
    stored = activation == "relu" and residual is not None
    mask = buffer_pool.empty((mask_bytes(x.size),), np.uint8) if stored else _NO_MASK
    rows = channel_vectors.rows(weight, bias, mean, inverse)
    other = x if residual is None else contiguous(residual)
    kernel = _forward_kernel(residual is not None, relu)
    sizes = x.size, period, len(weight), per
    parallel(kernel, chunks, x.reshape(-1), rows, other.reshape(-1), y.reshape(-1), mask, *sizes, scratch=3 * period)
    return y, mask if stored else None


# -- backward ----------------------------------------------------------------------------------------------------------


def masked_gradient(
    code: Code,
    dy: Pointer,
    x: Pointer,
    i: Int,
    j: Int,
    rest: Any,
    relu: str,
    tables: Pointer,
    period: Int,
    mask: Pointer,
) -> Any:
    """The ReLU-masked gradient: dy where the ReLU was open."""
    g = code.load(dy, i, rest)
    code.prefetch(dy, i + _AHEAD)
    code.prefetch(x, i + _AHEAD)
    if relu == "none":
        return g
    is_open = (
        code.load_mask(mask, i)
        if relu == "stored"
        else code.relu_open(_normalised(code, x, i, j, rest, tables, period))
    )
    return code.select(is_open, g, 0)


@lru_cache(maxsize=6)
def _sums_kernel(relu: str, keeps: bool) -> Kernel:
    @program
    def gradient_sums(
        code: Code,
        dy: Pointer,
        x: Pointer,
        start: Int,
        stop: Int,
        period: Int,
        mask: Pointer,
        sums: Pointer,
        kept: Pointer,
    ) -> None:
        tables = sums + period * 2

        def body(i: Int, j: Int, rest: Any) -> None:
            g = masked_gradient(code, dy, x, i, j, rest, relu, tables, period, mask)
            if keeps:
                code.store(g, kept, i, rest)
            d = code.load(x, i, rest) - code.load(tables, j, rest)
            code.store(code.load(sums, j, rest) + g, sums, j, rest)
            code.store(code.fma(g, d, code.load(sums, j + period, rest)), sums, j + period, rest)

        periodic_loop(code, start, stop, period, body)

    @cpu_kernel(f"{relu}{' keep' * keeps}")
    def batch_norm_gradient_sums(
        start,
        stop,
        scratch,
        dy: F32,
        x: F32,
        rows: F32,
        mask: U8,
        kept: F32,
        out: F64,
        n: int,
        period: int,
        channels: int,
        per_chunk: int,
    ):
        sums = carray(scratch, 2 * period)
        _fill_tables(rows, 3, channels, period, scratch, 2 * period)
        for k in range(start, stop):
            chunk = (n - 1) // per_chunk - k  # backwards: what was written last is still in the cache
            totals = carray(out, ((chunk + 1) * 2, channels))[chunk * 2 :]
            totals[:] = 0.0
            at = chunk * per_chunk
            end = min((chunk + 1) * per_chunk, n)
            while at < end:
                to = min(at + _FLUSH * period, end)
                clear(scratch, 0, 2 * period)
                gradient_sums(dy, x, at, to, period, mask, scratch, kept)
                _add_periods(sums, period, channels, totals)
                at = to

    return batch_norm_gradient_sums


@lru_cache(maxsize=12)
def _backward_kernel(relu: str, training: bool, with_residual: bool) -> Kernel:
    @program
    def gradient(
        code: Code,
        dy: Pointer,
        x: Pointer,
        start: Int,
        stop: Int,
        period: Int,
        tables: Pointer,
        mask: Pointer,
        dx: Pointer,
        dresidual: Pointer,
    ) -> None:
        def body(i: Int, j: Int, rest: Any) -> None:
            g = masked_gradient(code, dy, x, i, j, rest, relu, tables, period, mask)
            if with_residual:
                code.store(g, dresidual, i, rest)
            value = code.load(tables, j + period, rest) * g
            if training:
                slope, constant = (code.load(tables, j + period * k, rest) for k in (3, 4))
                value = value + code.fma(code.load(x, i, rest) - code.load(tables, j, rest), slope, constant)
            code.store(value, dx, i, rest)

        periodic_loop(code, start, stop, period, body)

    @cpu_kernel(f"{relu}{' training' * training}{' residual' * with_residual}")
    def batch_norm_backward(
        start,
        stop,
        scratch,
        dy: F32,
        x: F32,
        rows: F32,
        mask: U8,
        dx: F32,
        dresidual: F32,
        n: int,
        period: int,
        channels: int,
        per: int,
    ):
        _fill_tables(rows, 5, channels, period, scratch, 0)
        for chunk in range(start, stop):
            gradient(dy, x, chunk * per, min((chunk + 1) * per, n), period, scratch, mask, dx, dresidual)

    return batch_norm_backward


def batch_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    norm: SavedBatchNorm,
    training: bool,
    with_residual: bool,
    donated: bool = False,
) -> Any:
    """As kernels.norm.reference.batch_norm_backward, in two passes."""
    if any(a.dtype != np.float32 or not a.size for a in (dy, x)) or not is_own(norm.mask, x):
        return NotImplemented
    dy, x = contiguous(dy), contiguous(x)
    dweight, dbias, rows = gradient_rows(dy, x, norm, training)
    relu = _relu(norm.activation, norm.mask)
    copied = with_residual and relu != "none"
    dx = (
        dy
        if donated and dy.flags.writeable and (copied or not with_residual)
        else buffer_pool.empty(x.shape, np.float32)
    )
    dresidual = buffer_pool.empty(x.shape, np.float32) if copied else dx
    channels = x.shape[-1]
    period = period_of(x.shape[-1])
    chunks, per = _chunks(x.size, period)
    kernel = _backward_kernel(relu, training, copied)
    bits = _NO_MASK if norm.mask is None else norm.mask
    maps = dy.reshape(-1), x.reshape(-1), rows, bits, dx.reshape(-1), dresidual.reshape(-1)
    parallel(kernel, chunks, *maps, x.size, period, channels, per, scratch=5 * period)
    gradient = (dresidual if copied else dy) if with_residual else None
    return dx, dweight, dbias, gradient


def is_own(mask: np.ndarray | None, x: np.ndarray) -> bool:
    """Whether a mask has the form that `batch_norm_forward` gives for a map like x."""
    return mask is None or (mask.dtype == np.uint8 and mask.shape == (mask_bytes(x.size),))


def _relu(activation: str | None, mask: np.ndarray | None) -> str:
    """Where the ReLU's mask comes from."""
    return "none" if activation is None else "computed" if mask is None else "stored"


def gradient_rows(
    dy: np.ndarray,
    x: np.ndarray,
    norm: SavedBatchNorm,
    training: bool,
    kept: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dweight, dbias, rows): one pass over contiguous float32 dy and x. `kept` receives the masked gradient g; it may
    be dy itself.

    rows: as channel_vectors.gradient_rows returns them.
    """
    mask, weight, bias, mean, inverse, activation = norm
    channels = x.shape[-1]
    period = period_of(x.shape[-1])
    chunks, per = _chunks(x.size, period)
    sums = buffer_pool.empty((chunks, 2, channels), np.float64)
    kernel = _sums_kernel(_relu(activation, mask), kept is not None)
    bits = _NO_MASK if mask is None else mask
    maps = (
        dy.reshape(-1),
        x.reshape(-1),
        channel_vectors.rows(weight, bias, mean, inverse),
        bits,
        (dy if kept is None else kept).reshape(-1),
    )
    parallel(kernel, chunks, *maps, sums.reshape(-1), x.size, period, channels, per, scratch=5 * period)
    return channel_vectors.gradient_rows(sums, weight, bias, mean, inverse, x.size // channels if training else 0)


def batch_norm_running(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    rows: int,
    momentum: float,
) -> Any:
    """As kernels.norm.reference.batch_norm_running."""
    if any(a.dtype != np.float32 or not a.flags.c_contiguous for a in (running_mean, running_var)):
        return NotImplemented
    channel_vectors.running(running_mean, running_var, mean, variance, rows, momentum)
    return None


def batch_norm_inverse(variance: np.ndarray, eps: float) -> Any:
    """As kernels.norm.reference.batch_norm_inverse."""
    return channel_vectors.inverse(variance, eps) if variance.dtype == np.float64 and variance.size else NotImplemented
