"""The vectors of channels that batch norm needs. Kernels compute them from the sums of chunks, without NumPy between
two passes over a map.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, F64
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.thread_pool import contiguous, parallel

_CHANNELS_PER_CHUNK = 16  # channels that one thread computes: a cache line
_FAR = 100.0  # mean^2 / variance from which on E[y^2] - E[y]^2 is not trusted


@lru_cache(maxsize=1)
def _moments_kernel() -> Kernel:
    @cpu_kernel()
    def batch_norm_moments(
        start,
        stop,
        _scratch,
        sums: F64,
        y: F32,
        mean: F64,
        variance: F64,
        chunks: int,
        times: int,
        channels: int,
        pixels: int,
        together: int,
    ):
        for c in range(start * together, min(stop * together, channels)):
            total = square = 0.0
            for k in range(chunks):
                for i in range(times):
                    total += sums[(2 * k * times + i) * channels + c]
                    square += sums[((2 * k + 1) * times + i) * channels + c]
            first = total / pixels
            second = square / pixels - first * first
            if first * first > _FAR * second:  # digits were lost to cancellation: sum again, about the mean
                total = square = 0.0
                for i in range(pixels):
                    d = y[i * channels + c] - first
                    total += d
                    square += d * d
                second = square / pixels - (total / pixels) ** 2
                first += total / pixels
            mean[c] = first
            variance[c] = 0.0 if second < 0 else second

    return batch_norm_moments


def moments(sums: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance (C,), float64, of y (..., C) from its sums and sums of squares (chunks, 2, times C):
    `times` pixels in a row.
    """
    channels = y.shape[-1]
    mean = buffer_pool.empty((channels,), np.float64)
    variance = buffer_pool.empty((channels,), np.float64)
    sizes = len(sums), sums.shape[2] // channels, channels, y.size // channels, _CHANNELS_PER_CHUNK
    parallel(
        _moments_kernel(), -(-channels // _CHANNELS_PER_CHUNK), sums.reshape(-1), y.reshape(-1), mean, variance, *sizes
    )
    return mean, variance


@lru_cache(maxsize=1)
def _running_kernel() -> Kernel:
    @cpu_kernel()
    def batch_norm_running(
        start,
        stop,
        _scratch,
        running_mean: F32,
        running_var: F32,
        mean: F64,
        variance: F64,
        momentum: float,
        rows: int,
        channels: int,
    ):
        for c in range(channels):
            running_mean[c] = (1 - momentum) * running_mean[c] + momentum * np.float32(mean[c])
            running_var[c] = (1 - momentum) * running_var[c] + momentum * np.float32(variance[c] * (rows / (rows - 1)))

    return batch_norm_running


def running(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    rows: int,
    momentum: float,
) -> None:
    """As kernels.norm.reference.batch_norm_running, of contiguous float32 running statistics."""
    mean = contiguous(mean, np.float64)
    variance = contiguous(variance, np.float64)
    parallel(_running_kernel(), 1, running_mean, running_var, mean, variance, momentum, rows, len(mean))


@lru_cache(maxsize=1)
def _inverse_kernel() -> Kernel:
    @cpu_kernel()
    def batch_norm_inverse(start, stop, _scratch, variance: F64, inverse: F64, eps: F64, channels: int):
        for c in range(channels):
            inverse[c] = 1 / np.sqrt(variance[c] + eps[0])

    return batch_norm_inverse


@lru_cache(maxsize=8)
def _float64(value: float) -> np.ndarray:
    return np.array([value])


def inverse(variance: np.ndarray, eps: float) -> np.ndarray:
    """As kernels.norm.reference.batch_norm_inverse."""
    variance, out = contiguous(variance, np.float64), buffer_pool.empty(variance.shape, np.float64)
    parallel(_inverse_kernel(), 1, variance.reshape(-1), out.reshape(-1), _float64(eps), variance.size)
    return out


@lru_cache(maxsize=1)
def _rows_kernel() -> Kernel:
    @cpu_kernel()
    def batch_norm_rows(
        start, stop, _scratch, weight: F32, bias: F32, mean: F64, inverse: F64, rows: F32, channels: int
    ):
        for c in range(channels):
            rows[c] = mean[c]
            rows[channels + c] = weight[c] * inverse[c]
            rows[2 * channels + c] = bias[c]

    return batch_norm_rows


def _operands(weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, ...]:
    """A norm's vectors as kernels take them; they may come in any layout and of any float type."""
    return (
        contiguous(weight, np.float32),
        contiguous(bias, np.float32),
        contiguous(mean, np.float64),
        contiguous(inverse, np.float64),
    )


def rows(weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """mean, scale = weight inverse and bias, one after the other: (3 C,) float32."""
    out = buffer_pool.empty((3 * len(weight),), np.float32)
    parallel(_rows_kernel(), 1, *_operands(weight, bias, mean, inverse), out, len(weight))
    return out


@lru_cache(maxsize=1)
def _totals_kernel() -> Kernel:
    @cpu_kernel()
    def sum_chunks(start, stop, _scratch, sums: F64, out: F32, chunks: int, step: int, count: int):
        for c in range(count):
            total = 0.0
            for k in range(chunks):
                total += sums[k * step + c]
            out[c] = total

    return sum_chunks


def totals(sums: np.ndarray, count: int) -> np.ndarray:
    """The first `count` sums of every chunk (chunks, ...) float64, added in order: (count,) float32."""
    out = buffer_pool.empty((count,), np.float32)
    parallel(_totals_kernel(), 1, sums.reshape(-1), out, len(sums), sums.size // len(sums), count)
    return out


@lru_cache(maxsize=1)
def _gradient_kernel() -> Kernel:
    @cpu_kernel()
    def batch_norm_gradient_rows(
        start,
        stop,
        _scratch,
        sums: F64,
        weight: F32,
        bias: F32,
        dweight: F32,
        dbias: F32,
        rows: F32,
        mean: F64,
        inverse: F64,
        chunks: int,
        channels: int,
        count: int,
    ):
        for c in range(channels):
            first = second = 0.0
            for k in range(chunks):
                first += sums[2 * k * channels + c]
                second += sums[(2 * k + 1) * channels + c]
            second *= inverse[c]
            scale = weight[c] * inverse[c]
            dbias[c], dweight[c] = first, second
            rows[c] = mean[c]
            rows[channels + c] = scale
            rows[2 * channels + c] = bias[c]
            rows[3 * channels + c] = -scale * inverse[c] * second / count if count else 0.0
            rows[4 * channels + c] = -scale * first / count if count else 0.0

    return batch_norm_gradient_rows


def gradient_rows(
    sums: np.ndarray, weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, inverse: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dweight, dbias, rows) from the sums (chunks, 2, C) of g and g (x - mean); count: values per channel, 0 where
    mean and inverse are constants.

    dweight and dbias have the types of weight and bias.

    rows (5 C,) float32: mean, scale, bias, slope, constant, such that dx = scale g + slope (x - mean) + constant.
    """
    channels = len(weight)
    dweight, dbias, out = (buffer_pool.empty((n * channels,), np.float32) for n in (1, 1, 5))
    gain, offset, mean, inverse = _operands(weight, bias, mean, inverse)
    parallel(_gradient_kernel(), 1, sums.reshape(-1), gain, offset, dweight, dbias, out, mean, inverse, len(sums),
             channels, count)  # fmt: skip
    return contiguous(dweight, weight.dtype), contiguous(dbias, bias.dtype), out
