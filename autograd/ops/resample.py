"""Average, adaptive and strip pooling, bilinear and nearest resizing: all are Y = A X B^T."""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd.checks import checked_image, pooling_window
from autograd.function import Function
from autograd.tensor import Tensor
from kernels import resample as kernels
from kernels.core.device import Array
from kernels.core.geometry import pair
from kernels.resample import adaptive_matrix, average_matrix, bilinear_matrix, nearest_matrix

__all__ = ["adaptive_avg_pool2d", "avg_pool2d", "resize_bilinear", "resize_nearest", "strip_pool2d"]


class Resample2d(Function):
    """Y_c = A X_c B^T for every channel c;  dX_c = A^T dY_c B. Saves nothing."""

    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Array) -> Array:
        return kernels.resample2d_forward(x, self.a, self.b)

    def backward(self, dy: Array) -> Array:
        return kernels.resample2d_backward(dy, self.a, self.b)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        n, _, w, c = inputs[0].shape
        nonzero_a = np.count_nonzero(self.a)
        nonzero_b = np.count_nonzero(self.b)
        return 2 * n * c * (nonzero_a * w + nonzero_b * self.a.shape[0])


def _sizes(name: str, x: Tensor) -> tuple[int, int]:
    """(H, W) of an image whose pixels can be weighted: integers would lose their fractions."""
    if x.dtype.kind != "f":
        raise TypeError(f"{name}: x is {x.dtype}, expected floats")
    return checked_image(name, x)


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean over windows, as PyTorch's avg_pool2d: input (N, H, W, C) -> (N, P, Q, C), P = floor((H + top + bottom -
    kernel_size) / stride) + 1.

    kernel_size, stride, padding: an int, or a pair for rows and columns. stride defaults to kernel_size. ceil_mode: P
    is rounded up. count_include_pad: padding counts, as zeros.
    Raises ValueError for padding above half the kernel.
    """
    _sizes("avg_pool2d", input)
    window, after = pooling_window("avg_pool2d", input, kernel_size, stride, padding, 1, ceil_mode)
    a, b = (
        average_matrix(n, k, s, p[0], bottom, count_include_pad, ceil_mode)
        for n, k, s, p, bottom in zip(
            input.shape[1:3], window.kernel, window.stride, window.padding, after, strict=True
        )
    )
    return Resample2d(a, b)(input)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Means over an (H', W') grid of bins that covers the image, as PyTorch's; a None keeps that axis: (N, H, W, C) ->
    (N, H', W', C).

    (1, 1) is global average pooling, (1, None) the mean of each column, (None, 1) that of each row.
    """
    wanted = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    return _means_of_bins("adaptive_avg_pool2d", input, wanted, "output_size")


def _means_of_bins(name: str, input: Tensor, wanted: tuple[Any, ...], argument: str) -> Tensor:
    size = _sizes(name, input)
    filled = tuple(n if o is None else o for o, n in zip(wanted, size, strict=True)) if len(wanted) == 2 else wanted
    p, q = pair(filled, f"{name}: {argument}")
    return Resample2d(adaptive_matrix(size[0], p), adaptive_matrix(size[1], q))(input)


def strip_pool2d(input: Tensor, strips: int = 1, axis: int = 1) -> Tensor:
    """Means over `strips` bands of rows (axis 1: -> (N, strips, W, C)) or of columns (axis 2: -> (N, H, strips, C)).

    input (N, H, W, C). Raises ValueError for another axis, and for strips below 1.
    Source: strip pooling, Hou et al., arXiv 2003.13328, for one strip.
    """
    if axis not in (1, 2):
        raise ValueError(f"strip_pool2d: axis is {axis}, expected 1 (bands of rows) or 2 (bands of columns)")
    return _means_of_bins("strip_pool2d", input, (strips, None) if axis == 1 else (None, strips), "strips")


def resize_bilinear(input: Tensor, size: Any, align_corners: bool = False) -> Tensor:
    """Linear interpolation to size (H', W'), as PyTorch's interpolate(mode='bilinear', antialias=False): (N, H, W, C)
    -> (N, H', W', C).

    size: a pair, or an int for both. align_corners: the corner pixels' centres are mapped to each other, else the
    images' borders.
    """
    h, w = _sizes("resize_bilinear", input)
    p, q = pair(size, "resize_bilinear: size")
    return Resample2d(bilinear_matrix(h, p, align_corners), bilinear_matrix(w, q, align_corners))(input)


def resize_nearest(input: Tensor, size: Any, align_corners: bool = False) -> Tensor:
    """Nearest neighbour to size (H', W'), as PyTorch's interpolate(mode='nearest'): (N, H, W, C) -> (N, H', W', C).

    size: a pair, or an int for both. Row i comes from row floor(i H / H'). align_corners maps corner to corner.
    """
    h, w = _sizes("resize_nearest", input)
    p, q = pair(size, "resize_nearest: size")
    return Resample2d(nearest_matrix(h, p, align_corners), nearest_matrix(w, q, align_corners))(input)
