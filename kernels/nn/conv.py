"""Convolutions of images and of sequences: forward, and the gradients by the data, the filter and the bias.

What holds for all of them. Arrays are NumPy's or CuPy's, of one dtype, float16, float32 or float64, which the result
has, and on one device, where the result is. float16 is added up in float32 and rounded once. `layout` says where the
channels are. `stride` and `dilation` are an int, or a pair for rows and columns; `padding` is an int, a pair,
((top, bottom), (left, right)), 'same' (for stride 1) or 'valid', and counts as zeros. `groups` divides both numbers of
channels, and output channel k reads the input channels of its group only: groups = C is a depthwise convolution.
"""

from __future__ import annotations

from typing import Any

from kernels import conv as kernels
from kernels.core.device import Array
from kernels.core.geometry import Pair, Window, row_settings
from kernels.nn.checks import check_arrays, check_groups, check_shape, filter_sizes, integer, map_sizes, place_pair
from kernels.nn.layout import IMAGES, SEQUENCES, Layout, layout_of

Settings = tuple[Any, Any, Any]  # stride, padding, dilation as callers give them


def conv2d(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "NCHW",
) -> Array:
    """Cross-correlation of images with a filter.

    y[n,k,p,q] = bias[k] + sum_{c,r,s} x[n, c, p stride - top + r dilation, q stride - left + s dilation] w[k,c,r,s]

    layout "NCHW": x (N, C, H, W), w (K, C / groups, R, S), bias (K,) -> y (N, K, P, Q).
    layout "NHWC": x (N, H, W, C), w (R, S, C / groups, K) -> y (N, P, Q, K); nothing is transposed.
    P = floor((H + top + bottom - dilation (R - 1) - 1) / stride) + 1, likewise Q. Arrays are of one dtype, float16,
    float32 or float64, and so is y.
    stride, dilation: an int, or a pair for rows and columns. padding: an int, a pair, ((top, bottom), (left, right)),
    'same' (stride 1) or 'valid'; it counts as zeros. groups: a divisor of C and K; C is a depthwise convolution.
    Gradients: conv2d_backward_data, conv2d_backward_filter, bias_backward. Raises TypeError for other dtypes and for
    arrays on two devices, ValueError for shapes and settings that do not fit.
    Replaces cupyx.cudnn.convolution_forward.
    """
    name = "nn.conv2d"
    return _forward(name, (x, w, bias), (stride, padding, dilation), groups, layout_of(name, layout, IMAGES))


def conv2d_backward_data(
    dy: Array,
    w: Array,
    size: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "NCHW",
) -> Array:
    """The gradient of conv2d by x.

    dx[n,c,h,w] = sum of dy[n,k,p,q] w[k,c,r,s] over all k, p stride - top + r dilation = h,
    q stride - left + s dilation = w

    dy has conv2d's result's shape; w as conv2d's; size (H, W), of x, which a stride leaves open -> dx of x's shape and
    dy's dtype. Settings are conv2d's.
    Raises TypeError and ValueError as conv2d, and ValueError unless dy has the size that x of this size gives.
    Replaces cupyx.cudnn.convolution_backward_data.
    """
    name = "nn.conv2d_backward_data"
    return _backward_data(name, (dy, w), size, (stride, padding, dilation), groups, layout_of(name, layout, IMAGES))


def conv2d_backward_filter(
    x: Array,
    dy: Array,
    kernel_size: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "NCHW",
) -> Array:
    """The gradient of conv2d by w.

    dw[k,c,r,s] = sum_{n,p,q} x[n, c, p stride - top + r dilation, q stride - left + s dilation] dy[n,k,p,q]

    x as conv2d's, dy of its result's shape, kernel_size (R, S) or an int -> dw of w's shape and x's dtype. Settings are
    conv2d's.
    Raises TypeError and ValueError as conv2d, and ValueError unless dy has the size that x gives.
    Replaces cupyx.cudnn.convolution_backward_filter.
    """
    name = "nn.conv2d_backward_filter"
    settings = stride, padding, dilation
    return _backward_filter(name, (x, dy), kernel_size, settings, groups, layout_of(name, layout, IMAGES))


def conv1d(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "NCL",
) -> Array:
    """Cross-correlation of sequences with a filter: conv2d of images that are one row high.

    y[n,k,p] = bias[k] + sum_{c,r} x[n, c, p stride - before + r dilation] w[k,c,r]

    layout "NCL": x (N, C, L), w (K, C / groups, R), bias (K,) -> y (N, K, P).
    layout "NLC": x (N, L, C), w (R, C / groups, K) -> y (N, P, K); nothing is transposed.
    P = floor((L + before + after - dilation (R - 1) - 1) / stride) + 1. Dtypes and groups as conv2d's.
    stride, dilation: an int. padding: an int, (before, after), 'same' (stride 1) or 'valid'.
    Gradients: conv1d_backward_data, conv1d_backward_filter, bias_backward. Raises TypeError and ValueError as conv2d.
    Replaces cupyx.cudnn.convolution_forward of three axes.
    """
    name = "nn.conv1d"
    return _forward(name, (x, w, bias), (stride, padding, dilation), groups, layout_of(name, layout, SEQUENCES))


def conv1d_backward_data(
    dy: Array,
    w: Array,
    size: int,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "NCL",
) -> Array:
    """The gradient of conv1d by x.

    dx[n,c,l] = sum of dy[n,k,p] w[k,c,r] over all k, p stride - before + r dilation = l

    dy has conv1d's result's shape; w as conv1d's; size L, of x -> dx of x's shape and dy's dtype.
    Settings are conv1d's. Raises TypeError and ValueError as conv2d_backward_data.
    Replaces cupyx.cudnn.convolution_backward_data of three axes.
    """
    name = "nn.conv1d_backward_data"
    return _backward_data(name, (dy, w), size, (stride, padding, dilation), groups, layout_of(name, layout, SEQUENCES))


def conv1d_backward_filter(
    x: Array,
    dy: Array,
    kernel_size: int,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "NCL",
) -> Array:
    """The gradient of conv1d by w.

    dw[k,c,r] = sum_{n,p} x[n, c, p stride - before + r dilation] dy[n,k,p]

    x as conv1d's, dy of its result's shape, kernel_size R -> dw of w's shape and x's dtype. Settings are conv1d's.
    Raises TypeError and ValueError as conv2d_backward_filter.
    Replaces cupyx.cudnn.convolution_backward_filter of three axes.
    """
    name = "nn.conv1d_backward_filter"
    settings = stride, padding, dilation
    return _backward_filter(name, (x, dy), kernel_size, settings, groups, layout_of(name, layout, SEQUENCES))


def bias_backward(dy: Array, *, layout: str = "NCHW") -> Array:
    """The gradient of any convolution by its bias.

    dbias[k] = sum_{n,p,q} dy[n,k,p,q]

    dy (N, K, ...) in the layouts "NCHW" and "NCL", (N, ..., K) in "NHWC" and "NLC" -> (K,), of dy's dtype. Sums are
    taken in float64 over runs of float32. Raises TypeError for no floats, ValueError for less than two axes.
    Replaces cupy.cuda.cudnn.convolutionBackwardBias.
    """
    name = "nn.bias_backward"
    form = layout_of(name, layout, IMAGES + SEQUENCES)
    check_arrays(name, dy=dy)
    if dy.ndim < 2 or 0 in dy.shape[1:]:
        raise ValueError(f"{name}: dy: got shape {dy.shape}, expected at least 2 axes, none but N empty")
    return kernels.backward_bias(form.channels_last(dy))


def window_of(name: str, kernel: Pair, settings: Settings, layout: Layout) -> Window:
    """The window of a filter, or of a kernel_size."""
    return Window.of(name, kernel, *(row_settings(name, *settings) if layout.is_sequence else settings))


def check_operands(name: str, bias: Array | None, **arrays: Array) -> None:
    """`check_arrays` of a convolution, whose bias may be None."""
    check_arrays(name, **arrays, **({} if bias is None else {"bias": bias}))


def _forward(
    name: str, arrays: tuple[Array, Array, Array | None], settings: Settings, groups: Any, layout: Layout
) -> Array:
    x, w, bias = arrays
    check_operands(name, bias, x=x, w=w)
    _, size, c = map_sizes(name, "x", x, layout)
    axes = layout.filter_axes("C / groups", "K")
    kernel, per_group, k = filter_sizes(name, w, layout, axes)
    groups = check_groups(name, groups, c, k)
    if per_group * groups != c:
        raise ValueError(
            f"{name}: w: got shape {w.shape}, expected {axes} with C / groups = {c // groups} for x {x.shape}"
        )
    if bias is not None:
        check_shape(name, "bias", bias, (k,), f"w {w.shape}")
    window = window_of(name, kernel, settings, layout)
    window.checked_output_size(name, size)
    return layout.map_out(kernels.conv2d_forward((layout.map_in(x),), layout.filter_in(w), bias, window, groups))


def _backward_data(
    name: str, arrays: tuple[Array, Array], size: Any, settings: Settings, groups: Any, layout: Layout
) -> Array:
    dy, w = arrays
    check_arrays(name, dy=dy, w=w)
    n, _, _ = map_sizes(name, "dy", dy, layout)
    kernel, per_group, k = filter_sizes(name, w, layout, layout.filter_axes("C / groups", "K"))
    groups = integer(name, "groups", groups, 1)
    check_groups(name, groups, per_group * groups, k)
    size = place_pair(name, "size", size, layout)
    window = window_of(name, kernel, settings, layout)
    out = window.checked_output_size(name, size)
    check_shape(name, "dy", dy, layout.shape(n, out, k), f"w {w.shape} and size {size}")
    (dx,) = kernels.conv2d_backward_data(layout.map_in(dy), layout.filter_in(w), size, window, groups)
    return layout.map_out(dx)


def _backward_filter(
    name: str, arrays: tuple[Array, Array], kernel_size: Any, settings: Settings, groups: Any, layout: Layout
) -> Array:
    x, dy = arrays
    check_arrays(name, x=x, dy=dy)
    n, size, c = map_sizes(name, "x", x, layout)
    _, _, k = map_sizes(name, "dy", dy, layout)
    groups = check_groups(name, groups, c, k)
    kernel = place_pair(name, "kernel_size", kernel_size, layout)
    window = window_of(name, kernel, settings, layout)
    out = window.checked_output_size(name, size)
    check_shape(name, "dy", dy, layout.shape(n, out, k), f"x {x.shape} and kernel_size {kernel_size}")
    return layout.filter_out(kernels.conv2d_backward_filter((layout.map_in(x),), layout.map_in(dy), window, groups))
