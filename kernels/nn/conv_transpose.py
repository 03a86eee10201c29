"""Transposed convolution of images: forward, and the gradients by the data and the filter (by the bias: bias_backward).

Arrays, dtypes, layouts and settings are as in kernels/nn/conv.py.
"""

from __future__ import annotations

from typing import Any

from kernels import conv as kernels
from kernels.core.device import Array
from kernels.core.geometry import Pair, Window
from kernels.nn.checks import check_arrays, check_groups, check_shape, filter_sizes, integer, map_sizes, place_pair
from kernels.nn.conv import check_operands, window_of
from kernels.nn.layout import Layout, layout_of


def conv_transpose2d(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "NCHW",
) -> Array:
    """Transposed convolution (deconvolution): every pixel adds its value times the filter to a window of the result.

    y[n,k,h,w] = bias[k] + sum of x[n,c,p,q] w[c,k,r,s] over all c, p stride - top + r dilation = h,
    q stride - left + s dilation = w

    layout "NCHW": x (N, C, P, Q), w (C, K / groups, R, S), bias (K,) -> y (N, K, H, W).
    layout "NHWC": x (N, P, Q, C), w (R, S, C, K / groups) -> y (N, H, W, K); nothing is transposed.
    H = (P - 1) stride - top - bottom + dilation (R - 1) + 1 + output_padding, which must be below stride or dilation.
    Dtypes and the other settings are conv2d's.
    Gradients: conv_transpose2d_backward_data, conv_transpose2d_backward_filter, bias_backward. Raises TypeError for
    other dtypes and for arrays on two devices, ValueError for shapes and settings that do not fit.
    Replaces cupyx.cudnn.convolution_backward_data where it was a forward pass, with its bias.
    """
    name = "nn.conv_transpose2d"
    form = layout_of(name, layout)
    check_operands(name, bias, x=x, w=w)
    _, size, c = map_sizes(name, "x", x, form)
    kernel, groups, k = _filter(name, w, groups, form)
    if _channels(w, form) != c:
        raise ValueError(f"{name}: w: got shape {w.shape}, expected {_axes(form)} with C = {c} for x {x.shape}")
    if bias is not None:
        check_shape(name, "bias", bias, (k,), f"w {w.shape} and groups {groups}")
    window = window_of(name, kernel, (stride, padding, dilation), form)
    whole = window.checked_input_size(name, size, output_padding)
    return form.map_out(kernels.conv_transpose2d_forward(form.map_in(x), _in(w, form), bias, whole, window, groups))


def conv_transpose2d_backward_data(
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
    """The gradient of conv_transpose2d by x: a convolution of dy.

    dx[n,c,p,q] = sum_{k,r,s} dy[n, k, p stride - top + r dilation, q stride - left + s dilation] w[c,k,r,s]

    dy has conv_transpose2d's result's shape, whatever its output_padding; w as conv_transpose2d's; size (P, Q), of x
    -> dx of x's shape and dy's dtype. Settings are conv_transpose2d's. Raises TypeError and ValueError as
    conv_transpose2d, and ValueError unless x of this size gives dy's size with an allowed output_padding.
    Replaces cupyx.cudnn.convolution_forward where it was the gradient of a deconvolution.
    """
    name = "nn.conv_transpose2d_backward_data"
    form = layout_of(name, layout)
    check_arrays(name, dy=dy, w=w)
    n, whole, _ = map_sizes(name, "dy", dy, form)
    kernel, groups, k = _filter(name, w, groups, form)
    check_shape(name, "dy", dy, form.shape(n, whole, k), f"w {w.shape} and groups {groups}")
    size = place_pair(name, "size", size, form)
    window = window_of(name, kernel, (stride, padding, dilation), form)
    window, dy = _first_windows(name, dy, window, size, form)
    return form.map_out(kernels.conv_transpose2d_backward_data(dy, _in(w, form), window, groups))


def conv_transpose2d_backward_filter(
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
    """The gradient of conv_transpose2d by w.

    dw[c,k,r,s] = sum_{n,p,q} x[n,c,p,q] dy[n, k, p stride - top + r dilation, q stride - left + s dilation]

    x as conv_transpose2d's, dy of its result's shape, kernel_size (R, S) or an int -> dw of w's shape and x's dtype.
    Settings are conv_transpose2d's. Raises TypeError and ValueError as conv_transpose2d_backward_data.
    Replaces cupyx.cudnn.convolution_backward_filter with its two maps exchanged.
    """
    name = "nn.conv_transpose2d_backward_filter"
    form = layout_of(name, layout)
    check_arrays(name, x=x, dy=dy)
    n, size, c = map_sizes(name, "x", x, form)
    _, whole, k = map_sizes(name, "dy", dy, form)
    check_shape(name, "dy", dy, form.shape(n, whole, k), f"x {x.shape}")
    groups = check_groups(name, groups, c, k)
    kernel = place_pair(name, "kernel_size", kernel_size, form)
    window = window_of(name, kernel, (stride, padding, dilation), form)
    window, dy = _first_windows(name, dy, window, size, form)
    dw = kernels.conv_transpose2d_backward_filter(form.map_in(x), dy, window, groups)
    return form.filter_out(dw if form.is_last else dw.swapaxes(2, 3))


def _axes(layout: Layout) -> str:
    return layout.filter_axes("C", "K / groups") if layout.is_last else layout.filter_axes("K / groups", "C")


def _channels(w: Array, layout: Layout) -> int:
    return w.shape[2] if layout.is_last else w.shape[0]


def _filter(name: str, w: Array, groups: Any, layout: Layout) -> tuple[Pair, int, int]:
    """((R, S), groups, K) of a filter (C, K / groups, R, S) or (R, S, C, K / groups)."""
    kernel, second, first = filter_sizes(name, w, layout, _axes(layout))
    groups = integer(name, "groups", groups, 1)
    k = groups * (first if layout.is_last else second)
    check_groups(name, groups, _channels(w, layout), k)
    return kernel, groups, k


def _in(w: Array, layout: Layout) -> Array:
    """The filter as the kernels take it, (R, S, C, K / groups)."""
    return w if layout.is_last else layout.filter_in(w.swapaxes(0, 1))


def _first_windows(name: str, dy: Array, window: Window, size: Pair, layout: Layout) -> tuple[Window, Array]:
    """The window, and the part of dy (as a map of the kernels), that give exactly x's pixels.

    An output padding of a stride or more makes room for windows that belong to no pixel of x.
    """
    _, whole, _ = layout.sizes(dy.shape)
    least = window.input_size(size)
    most = [low + max(s, d) - 1 for low, s, d in zip(least, window.stride, window.dilation, strict=True)]
    if min(whole) < 1 or not all(low <= found <= high for low, found, high in zip(least, whole, most, strict=True)):
        raise ValueError(f"{name}: dy: got size {whole}, expected from {least} to {tuple(most)} for x of size {size}")
    window, part = window.first_outputs(whole, size)
    return window, layout.map_in(dy)[:, : part[0], : part[1]]
