"""The exact CUDA convolutions: who serves what. float32 and float64; anything else goes to the reference.

    plain.cu       one thread per result: float64, groups, strides above 4
    direct.cu      forward, data gradient and transposed convolution as one implicit matrix product
    filter.cu      the filter gradient, split over pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from kernels.conv import cuda_direct, cuda_plain
from kernels.conv.cuda_axes import LARGEST, PHASES, data_walk, forward_walk
from kernels.core.device import Array
from kernels.core.geometry import Pair, Window

Maps = Array | tuple[Array, Array]


def _serves(*arrays: Array | None, results: int = 0) -> bool:
    """Whether all arrays (and a result of that many elements) are of one type that has kernels, on the device, and within 32-bit indices."""
    given = [a for a in arrays if a is not None]
    kinds = {a.dtype for a in given}
    on_device = all(isinstance(a, cupy.ndarray) for a in given)
    return on_device and len(kinds) == 1 and kinds <= cuda_plain.TYPES.keys() and max(results, *(a.size for a in given)) <= LARGEST


def _tiled(dtype: Any, groups: int) -> bool:
    return dtype == np.float32 and groups == 1


def _contiguous(maps: Sequence[Array]) -> list[Array]:
    return [cupy.ascontiguousarray(m) for m in maps]


def conv2d_forward(x: Maps, w: Array, b: Array | None, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_forward."""
    maps = x if isinstance(x, tuple) else (x,)
    n, h, wd, _ = maps[0].shape
    c, k = sum(m.shape[3] for m in maps), w.shape[3]
    out = window.output_size((h, wd))
    if not _serves(*maps, w, b, results=n * out[0] * out[1] * k):
        return NotImplemented
    maps, b = _contiguous(maps), b if b is None else cupy.ascontiguousarray(b)
    if not _tiled(w.dtype, groups):
        return cuda_plain.forward(maps, cupy.ascontiguousarray(w), b, window, groups)
    y = cupy.empty((n, *out, k), w.dtype)
    cuda_direct.convolve(forward_walk(n, (h, wd), c, k, window), maps, w, b, [y])
    return y


def conv2d_backward_data(
    dy: Array,
    w: Array,
    size: Pair,
    window: Window,
    groups: int = 1,
    parts: tuple[int, ...] | None = None,
    into: tuple[Array | None, ...] = (None,),
) -> Any:
    """As kernels.conv.reference.conv2d_backward_data."""
    return _backward_data(dy, w, None, size, window, groups, parts or (w.shape[2] * groups,), into)


def _backward_data(
    dy: Array, w: Array, b: Array | None, size: Pair, window: Window, groups: int, parts: tuple[int, ...], into: tuple[Array | None, ...]
) -> Any:
    n, c = dy.shape[0], sum(parts)
    fits = len(parts) <= 2 and all(total is None or (total.flags.c_contiguous and total.dtype == dy.dtype) for total in into)
    if not fits or not _serves(dy, w, b, *into, results=n * size[0] * size[1] * c):
        return NotImplemented
    dxs = [cupy.empty((n, *size, part), dy.dtype) if t is None else t for part, t in zip(parts, into, strict=True)]
    add = sum(1 << i for i, t in enumerate(into) if t is not None)
    dy, b = cupy.ascontiguousarray(dy), b if b is None else cupy.ascontiguousarray(b)
    if _tiled(dy.dtype, groups) and max(window.stride) <= PHASES:
        cuda_direct.convolve(data_walk(n, dy.shape[1:3], size, dy.shape[3], c, window), [dy], w.swapaxes(2, 3), b, dxs, add)
    else:
        cuda_plain.backward_data(dy, cupy.ascontiguousarray(w), b, window, groups, dxs, add)
    return tuple(dxs)


def conv2d_backward_filter(x: Maps, dy: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_backward_filter."""
    maps = x if isinstance(x, tuple) else (x,)
    if not _serves(*maps, dy):
        return NotImplemented
    maps, dy = _contiguous(maps), cupy.ascontiguousarray(dy)
    if _tiled(dy.dtype, groups):
        return cuda_direct.backward_filter(maps, dy, window)
    return cuda_plain.backward_filter(maps, dy, window, groups)


def conv_transpose2d_forward(x: Array, w: Array, b: Array | None, size: Pair, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_forward: the data gradient, with a bias."""
    result = _backward_data(x, w.swapaxes(2, 3), b, size, window, groups, (w.shape[3] * groups,), (None,))
    return result if result is NotImplemented else result[0]


def conv_transpose2d_backward_data(dy: Array, w: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_data."""
    return conv2d_forward(dy, w.swapaxes(2, 3), None, window, groups)


def conv_transpose2d_backward_filter(x: Array, dy: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_filter."""
    dw = conv2d_backward_filter(dy, x, window, groups)
    return dw if dw is NotImplemented else dw.swapaxes(2, 3)
