"""Every separable linear map of pixels: average, adaptive, strip and global pooling; bilinear and nearest resizing.

All are Y = A X B^T per channel, with small matrices A (P, H) and B (Q, W), and so the gradient of all of them is
dX = A^T dY B. The matrices are built here, in float64, by pure functions of the sizes (cached: they are tiny).
Bytes per element, ideally: read X once, write Y once.
"""

from __future__ import annotations

import functools

import numpy as np

from kernels.core.device import Array, array_module
from kernels.core.reduction import wide_type

Matrix = np.ndarray


def resample2d_forward(x: Array, a: Array, b: Array) -> Array:
    """Y = A X B^T: x (N, H, W, C), a (P, H), b (Q, W) -> (N, P, Q, C)."""
    xp = array_module(x)
    n, h, w, c = x.shape
    # (P, H) @ (N, H, W*C) -> (N, P, W*C); then (Q, W) @ (N, P, W, C) -> (N, P, Q, C)
    wide = wide_type(x.dtype)
    rows = _product(xp.asarray(a, wide), x.astype(wide, copy=False).reshape(n, h, w * c)).reshape(n, a.shape[0], w, c)
    return _product(xp.asarray(b, wide), rows).astype(x.dtype, copy=False)


def _product(a: Array, x: Array) -> Array:
    """a @ x, (P, H) @ (..., H, M), where a weight of 0 takes nothing:
    not even the NaN that 0 times infinity would be.
    """
    xp = array_module(x)
    y = a @ x
    if bool(xp.isfinite(y).all()):
        return y
    y[...] = 0
    for k in range(a.shape[1]):
        weight = a[:, k, None]
        y += xp.where(weight != 0, weight * x[..., k : k + 1, :], xp.zeros((), x.dtype))
    return y


def resample2d_backward(dy: Array, a: Array, b: Array) -> Array:
    """dX = A^T dY B: dy (N, P, Q, C) -> (N, H, W, C)."""
    return resample2d_forward(dy, a.T, b.T)


@functools.lru_cache(maxsize=256)
def adaptive_matrix(n: int, out: int) -> Matrix:
    """(out, n): row i averages the pixels [floor(i n / out), ceil((i + 1) n / out)). out = 1 is the mean, out = n the
    identity.
    """
    a = np.zeros((out, n))
    for i in range(out):
        start = i * n // out
        stop = -(-(i + 1) * n // out)
        a[i, start:stop] = 1 / (stop - start)
    return a


@functools.lru_cache(maxsize=256)
def average_matrix(
    n: int, kernel: int, stride: int, before: int, after: int, count_include_pad: bool, ceil_mode: bool
) -> Matrix:
    """(P, n) of a sliding mean. The divisor is the window clipped to the padded size, or to the input (not
    count_include_pad).
    """
    span = n + before + after - kernel
    p = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (p - 1) * stride >= n + before:
        p -= 1
    a = np.zeros((p, n))
    for i in range(p):
        start = i * stride - before
        stop = min(start + kernel, n + after)
        inside = slice(max(start, 0), min(stop, n))
        a[i, inside] = 1 / (stop - start if count_include_pad else inside.stop - inside.start)
    return a


@functools.lru_cache(maxsize=256)
def bilinear_matrix(n: int, out: int, align_corners: bool) -> Matrix:
    """(out, n) of linear interpolation: source = (i + .5) n / out - .5 clipped at 0, or i (n - 1) / (out - 1) with
    align_corners.
    """
    i = np.arange(out)
    if align_corners:
        source = i * ((n - 1) / (out - 1) if out > 1 else 0.0)
    else:
        source = np.maximum((i + 0.5) * (n / out) - 0.5, 0)
    low = np.minimum(np.floor(source).astype(int), n - 1)
    high = np.minimum(low + 1, n - 1)
    a = np.zeros((out, n))
    np.add.at(a, (i, low), 1 - (source - low))
    np.add.at(a, (i, high), source - low)
    return a


@functools.lru_cache(maxsize=256)
def nearest_matrix(n: int, out: int, align_corners: bool) -> Matrix:
    """(out, n) that picks source = floor(i n / out), or the nearest of i (n - 1) / (out - 1) with align_corners."""
    i = np.arange(out)
    if align_corners:
        source = np.floor(i * ((n - 1) / (out - 1) if out > 1 else 0.0) + 0.5).astype(int)
    else:
        source = i * n // out
    a = np.zeros((out, n))
    a[i, np.minimum(source, n - 1)] = 1
    return a
