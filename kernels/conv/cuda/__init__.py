"""Convolution on CUDA: the dispatch between its files. float32, float64 and, without groups, 16-bit arrays; anything
else goes to the reference.

tensor_core.py     groups 1: float32 arrays under a precision policy other than float32, 16-bit arrays. The files below
are exact float32
pointwise.py       1x1, one map, nothing fused into it: a matrix product by cuBLAS
single_channel.cu  forward of one input channel
depthwise.cu       groups = C = K
winograd.cu        3x3 of stride 1 where its cost model says so (error within 3e-5 of the largest output)
implicit_gemm.cu   forward, data gradient and transposed convolution as one implicit matrix product
backward_filter.cu the filter gradient, split over pixels
naive.cu           one thread per result: float64, other groups, data gradients of strides above 4
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from kernels import norm
from kernels.conv.cuda import depthwise, implicit_gemm, naive, pointwise, single_channel, tensor_core, winograd
from kernels.conv.cuda.geometry import LARGEST, PHASES, data_walk, forward_walk
from kernels.core.device import Array
from kernels.core.geometry import Pair, Window
from kernels.shape import concat_channels


def _serves(*arrays: Array | None, results: int = 0) -> bool:
    """Whether all arrays (and a result of that many elements) are of one type that has kernels, on the device, and
    within 32-bit indices.
    """
    given = [a for a in arrays if a is not None]
    kinds = {a.dtype for a in given}
    on_device = all(isinstance(a, cupy.ndarray) for a in given)
    return (
        on_device
        and len(kinds) == 1
        and kinds <= naive.TYPES.keys()
        and max(results, *(a.size for a in given)) <= LARGEST
    )


def _matrix_product(window: Window, groups: int, maps: Sequence[Any], *fused: Array | None) -> bool:
    """Whether cuBLAS computes exactly this: one map, no bias, nothing added to."""
    return (
        groups == 1
        and len(maps) == 1
        and all(f is None for f in fused)
        and pointwise.is_pointwise(window)
        and pointwise.cublas_serves()
    )


def _contiguous(maps: Sequence[Array]) -> list[Array]:
    return [cupy.ascontiguousarray(m) for m in maps]


def conv2d_forward(
    maps: tuple[Array, ...],
    w: Array,
    b: Array | None,
    window: Window,
    groups: int = 1,
    relu: bool = False,
    residual: Array | None = None,
) -> Any:
    """As kernels.conv.reference.conv2d_forward; more than two maps are concatenated, the residual and the ReLU are
    passes of their own.
    """
    y = _forward((concat_channels(maps),) if len(maps) > 2 else maps, w, b, window, groups)
    if y is not NotImplemented and residual is not None:
        cupy.add(y, residual, out=y)
    return cupy.maximum(y, 0, out=y) if relu and y is not NotImplemented else y


def _forward(maps: Sequence[Array], w: Array, b: Array | None, window: Window, groups: int) -> Any:
    if (y := tensor_core.conv2d_forward(maps, w, b, window, groups)) is not NotImplemented:
        return y
    n, h, wd, _ = maps[0].shape
    c = sum(m.shape[3] for m in maps)
    k = w.shape[3]
    out = window.output_size((h, wd))
    if not _serves(*maps, w, b, results=n * out[0] * out[1] * k):
        return NotImplemented
    maps = _contiguous(maps)
    b = b if b is None else cupy.ascontiguousarray(b)
    if _matrix_product(window, groups, maps, b):  # (N H W, C) @ (C, K)
        return cupy.matmul(maps[0].reshape(-1, c), w.reshape(c, k)).reshape(n, *out, k)
    if w.dtype == np.float32:
        if groups == 1 and single_channel.is_single_channel(n, out, c, k, window):
            return single_channel.single_channel_forward(maps[0], cupy.ascontiguousarray(w), b, window)
        walk = forward_walk(n, (h, wd), c, k, window)
        y = cupy.empty((n, *out, k), w.dtype)
        if groups == 1 and winograd.serves(n, out, c, k, window):
            before = (window.padding[0][0], window.padding[1][0])
            winograd.convolve(maps, cupy.ascontiguousarray(w), b, before, [y])
            return y
        if groups == 1:
            implicit_gemm.convolve(walk, maps, w, b, [y])
            return y
        if groups == c == k:
            depthwise.depthwise(walk, maps[0], cupy.ascontiguousarray(w), b, y)
            return y
    return naive.forward(maps, cupy.ascontiguousarray(w), b, window, groups)


def conv2d_backward_data(
    dy: Array,
    w: Array,
    size: Pair,
    window: Window,
    groups: int = 1,
    parts: tuple[int, ...] | None = None,
    accumulate_into: tuple[Array | None, ...] = (None,),
) -> Any:
    """As kernels.conv.reference.conv2d_backward_data."""
    if (
        dxs := tensor_core.conv2d_backward_data(dy, w, size, window, groups, parts, accumulate_into)
    ) is not NotImplemented:
        return dxs
    return _backward_data(dy, w, None, size, window, groups, parts or (w.shape[2] * groups,), accumulate_into)


def _backward_data(
    dy: Array,
    w: Array,
    b: Array | None,
    size: Pair,
    window: Window,
    groups: int,
    parts: tuple[int, ...],
    accumulate_into: tuple[Array | None, ...],
) -> Any:
    n = dy.shape[0]
    c = sum(parts)
    fits = len(parts) <= 2 and all(
        total is None or (total.flags.c_contiguous and total.dtype == dy.dtype) for total in accumulate_into
    )
    if not fits or not _serves(dy, w, b, *accumulate_into, results=n * size[0] * size[1] * c):
        return NotImplemented
    dy = cupy.ascontiguousarray(dy)
    b = b if b is None else cupy.ascontiguousarray(b)
    k = dy.shape[3]
    if _matrix_product(window, groups, parts, b, *accumulate_into):  # (N H W, K) @ (C, K)^T
        return (cupy.matmul(dy.reshape(-1, k), w.reshape(c, k).T).reshape(n, *size, c),)
    dxs = [
        cupy.empty((n, *size, part), dy.dtype) if t is None else t
        for part, t in zip(parts, accumulate_into, strict=True)
    ]
    add = sum(1 << i for i, t in enumerate(accumulate_into) if t is not None)
    walked = dy.dtype == np.float32 and max(window.stride) <= PHASES
    if walked and groups == 1 and winograd.serves(n, size, k, c, window):
        before = (2 - window.padding[0][0], 2 - window.padding[1][0])
        winograd.convolve([dy], cupy.ascontiguousarray(w), b, before, dxs, add, flipped=True)
    elif walked and groups == 1:
        implicit_gemm.convolve(data_walk(n, dy.shape[1:3], size, k, c, window), [dy], w.swapaxes(2, 3), b, dxs, add)
    elif walked and groups == c == k:
        depthwise.depthwise(
            data_walk(n, dy.shape[1:3], size, k, c, window), dy, cupy.ascontiguousarray(w), b, dxs[0], bool(add)
        )
    else:
        naive.backward_data(dy, cupy.ascontiguousarray(w), b, window, groups, dxs, add)
    return tuple(dxs)


def conv2d_backward_filter(maps: Sequence[Array], dy: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_backward_filter."""
    if (dw := tensor_core.conv2d_backward_filter(maps, dy, window, groups)) is not NotImplemented:
        return dw
    if not _serves(
        *maps, dy, results=window.kernel[0] * window.kernel[1] * sum(m.shape[3] for m in maps) // groups * dy.shape[3]
    ):
        return NotImplemented
    maps = _contiguous(maps)
    dy = cupy.ascontiguousarray(dy)
    if dy.dtype == np.float32:
        if groups == 1 and winograd.serves(
            dy.shape[0], dy.shape[1:3], sum(m.shape[3] for m in maps), dy.shape[3], window
        ):
            return winograd.backward_filter(maps, dy, window)
        if groups == 1:
            return implicit_gemm.backward_filter(maps, dy, window)
        if groups == maps[0].shape[3] == dy.shape[3]:
            return depthwise.depthwise_filter(maps[0], dy, window)
    return naive.backward_filter(maps, dy, window, groups)


def conv_transpose2d_forward(x: Array, w: Array, b: Array | None, size: Pair, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_forward: the data gradient, with a bias."""
    if (y := tensor_core.conv_transpose2d_forward(x, w, b, size, window, groups)) is not NotImplemented:
        return y
    result = _backward_data(x, w.swapaxes(2, 3), b, size, window, groups, (w.shape[3] * groups,), (None,))
    return result if result is NotImplemented else result[0]


def conv_transpose2d_backward_data(dy: Array, w: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_data."""
    return conv2d_forward((dy,), w.swapaxes(2, 3), None, window, groups)


def conv_transpose2d_backward_filter(x: Array, dy: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_filter."""
    dw = conv2d_backward_filter((dy,), x, window, groups)
    return dw if dw is NotImplemented else dw.swapaxes(2, 3)


def backward_bias(dy: Array) -> Any:
    """As kernels.conv.reference.backward_bias."""
    return norm.sum_pixels(dy).astype(dy.dtype)
