"""Maximum and mean over windows of images, forward and backward.

Arrays are NumPy's or CuPy's, of float16, float32 or float64, and results have their dtype, device and layout. Settings
are an int, or a pair for rows and columns, and padding also ((top, bottom), (left, right)). stride defaults to
kernel_size, padding is at most half of the kernel, and ceil_mode rounds the number of windows up instead of down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels import pool, resample
from kernels.core.device import Array
from kernels.core.geometry import Pair, pooling_window
from kernels.core.reduction import wide_type
from kernels.nn.checks import check_array, check_arrays, check_device, check_shape, flag, map_sizes, place_pair
from kernels.nn.layout import Layout, layout_of


def max_pool2d(
    x: Array,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    """(y, places): the maximum over every window, and where in the window it was.

    y[n,c,p,q] = max_{r,s} x[n, c, p stride - top + r dilation, q stride - left + s dilation]; padding counts as -inf

    x (N, C, H, W) -> y (N, C, P, Q), P = floor((H + top + bottom - dilation (R - 1) - 1) / stride) + 1; or channels
    last in the layout "NHWC". places, of y's shape, is r S + s of the first maximum in scan order, or of the last NaN:
    uint8, and int32 for windows of more than 256 pixels. max_pool2d_backward takes it.
    x is of float16, float32 or float64, and so is y. kernel_size, stride, dilation: an int, or a pair for rows and
    columns; stride defaults to kernel_size. padding: as conv2d's, at most half of the kernel. ceil_mode: round P up.
    A NaN in a window is its maximum. Raises TypeError for no floats, ValueError for settings that do not fit.
    Replaces cupyx.cudnn.pooling_forward with CUDNN_POOLING_MAX, which did not hand NaN on.
    """
    name = "nn.max_pool2d"
    form = layout_of(name, layout)
    check_arrays(name, x=x)
    _, size, _ = map_sizes(name, "x", x, form)
    window, _ = pooling_window(name, size, kernel_size, stride, padding, dilation, flag(name, "ceil_mode", ceil_mode))
    y, places = pool.max_pool2d_forward(form.map_in(x), window)
    return form.map_out(y), form.map_out(places)


def max_pool2d_backward(
    dy: Array,
    places: Array,
    size: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    layout: str = "NCHW",
) -> Array:
    """The gradient of max_pool2d by x.

    dx[n,c,h,w] = the sum of dy over the windows whose maximum was x[n,c,h,w]

    dy and places of the shape of max_pool2d's results, size (H, W) of x -> dx of x's shape and dy's dtype. Settings are
    max_pool2d's. Raises TypeError for no floats, for other places and for arrays on two devices, ValueError for shapes
    that do not fit.
    Replaces cupyx.cudnn.pooling_backward with CUDNN_POOLING_MAX, which took x and y instead of places.
    """
    name = "nn.max_pool2d_backward"
    form = layout_of(name, layout)
    check_arrays(name, dy=dy)
    check_array(name, "places", places, ("uint8", "int32"))
    check_device(name, "places", places, "dy", dy)
    n, _, c = map_sizes(name, "dy", dy, form)
    size = place_pair(name, "size", size, form)
    window, _ = pooling_window(name, size, kernel_size, stride, padding, dilation, flag(name, "ceil_mode", ceil_mode))
    shape = form.shape(n, window.output_size(size), c)
    for argument, array in (("dy", dy), ("places", places)):
        check_shape(name, argument, array, shape, f"size {size} and kernel_size {kernel_size}")
    return form.map_out(pool.max_pool2d_backward(form.map_in(dy), form.map_in(places), size, window))


def avg_pool2d(
    x: Array,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> Array:
    """The mean over every window.

    y[n,c,p,q] = sum_{r,s} x[n, c, p stride - top + r, q stride - left + s] / the number of pixels in the window

    x (N, C, H, W) -> y (N, C, P, Q), P = floor((H + top + bottom - R) / stride) + 1; or channels last in the layout
    "NHWC". x is of float16, float32 or float64, and so is y. Settings are max_pool2d's. count_include_pad: padding
    counts as zeros, else only pixels of x count.
    Raises TypeError for no floats, ValueError for settings that do not fit.
    Replaces cupyx.cudnn.pooling_forward with CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING, or with
    CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING for count_include_pad=False.
    """
    name = "nn.avg_pool2d"
    form = layout_of(name, layout)
    check_arrays(name, x=x)
    _, size, _ = map_sizes(name, "x", x, form)
    rows, columns = _matrices(name, size, (kernel_size, stride, padding), ceil_mode, count_include_pad)
    return _resampled(resample.resample2d_forward, x, rows, columns, form)


def avg_pool2d_backward(
    dy: Array,
    size: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> Array:
    """The gradient of avg_pool2d by x.

    dx[n,c,h,w] = the sum, over the windows that hold the pixel, of dy / the number of pixels in the window

    dy of avg_pool2d's result's shape, size (H, W) of x -> dx of x's shape and dy's dtype. Settings are avg_pool2d's.
    Raises TypeError for no floats, ValueError for shapes that do not fit.
    Replaces cupyx.cudnn.pooling_backward with the two modes of avg_pool2d.
    """
    name = "nn.avg_pool2d_backward"
    form = layout_of(name, layout)
    check_arrays(name, dy=dy)
    n, _, c = map_sizes(name, "dy", dy, form)
    size = place_pair(name, "size", size, form)
    rows, columns = _matrices(name, size, (kernel_size, stride, padding), ceil_mode, count_include_pad)
    shape = form.shape(n, (len(rows), len(columns)), c)
    check_shape(name, "dy", dy, shape, f"size {size} and kernel_size {kernel_size}")
    return _resampled(resample.resample2d_backward, dy, rows, columns, form)


def _resampled(kernel: Callable[..., Array], x: Array, rows: Any, columns: Any, layout: Layout) -> Array:
    """float16 goes to the kernels of float32: its definition looks for infinities, for which a GPU would be waited."""
    wide = x.astype(wide_type(x.dtype), copy=False)
    y = kernel(layout.map_in(wide), rows, columns)
    return layout.map_out(y.astype(x.dtype.newbyteorder("="), copy=False))


def _matrices(name: str, size: Pair, settings: tuple[Any, Any, Any], ceil_mode: Any, count_include_pad: Any) -> Any:
    """The means along rows and along columns, as matrices on the host: they depend on sizes alone."""
    ceil_mode = flag(name, "ceil_mode", ceil_mode)
    count_include_pad = flag(name, "count_include_pad", count_include_pad)
    window, after = pooling_window(name, size, *settings, 1, ceil_mode)
    axes = zip(size, window.kernel, window.stride, window.padding, after, strict=True)
    return [
        resample.average_matrix(n, kernel, stride, before, behind, count_include_pad, ceil_mode)
        for n, kernel, stride, (before, _), behind in axes
    ]
