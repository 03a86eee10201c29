"""Rows: convolutions, pooling and resizing, NHWC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from autograd import no_grad, ops

from .choices import Choices
from .operands import Case, case, dtype, length, other_dtype, palette, tensor
from .table import Difference, Row

F = torch.nn.functional


def nchw(x: Any) -> Any:
    """(N, H, W, C) -> (N, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    """(N, C, H, W) -> (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def pair(d: Choices, low: int, high: int, wrong: int = 2) -> Any:
    """A number, a pair, a list, or, rarely, something that is too small or too long."""
    if d.chance(wrong):
        return d.pick((low - 1, (low, low - 1), (low, low, low)))
    k = d.integer(0, 3)
    if k < 2:
        return d.integer(low, high)
    return d.pick((tuple, tuple, list))([d.integer(low, high), d.integer(low, high)])


def as_pair(value: Any) -> tuple[int, int]:
    """A pair of a number or a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def padding(d: Choices) -> Any:
    """All forms of a convolution's padding."""
    k = d.integer(0, 9)
    if k < 6:
        return pair(d, 0, 3)
    if k < 8:
        return (d.integer(0, 3), d.integer(0, 3)), (d.integer(0, 3), d.integer(0, 3))
    return d.pick(("same", "valid"))


def image(d: Choices, channels: int, name: str, room: tuple[int, int] = (1, 1)) -> Any:
    """x (N, H, W, C) with sizes around `room`, rarely another number of axes."""
    sizes = [max(0, r - 1 + d.integer(0, 6) - d.chance(10) * r) for r in room]
    dims = (length(d, 3), *sizes, channels)
    return tensor(d, dims[1:] if d.chance(1) else dims, name, palette(d, 12))


def conv_arguments(d: Choices) -> tuple[list[Any], dict[str, Any]]:
    """x, filter, bias and settings of a convolution."""
    name = dtype(d, 2, 5)
    groups = d.pick((1, 1, 1, 1, 2, 3, 4))
    deep = d.chance(20)
    c, k = (d.pick((8, 16, 17, 24)), d.pick((8, 16, 20, 32))) if deep else (d.integer(1, 4), d.integer(1, 4))
    if d.chance(12):
        groups, c, k = max(c * groups, 2), 1, 1 + d.chance(30)  # depthwise
    kernel = (3, 3) if d.chance(35) else (1, 1) if d.chance(25) else (d.integer(1, 5), d.integer(1, 4))
    settings = {
        "stride": pair(d, 1, 3) if d.chance(50) else 1,
        "padding": padding(d),
        "dilation": pair(d, 1, 3) if d.chance(30) else 1,
        "groups": groups,
    }
    dilation = as_pair(settings["dilation"])
    x = image(
        d, c * groups + d.chance(2), name, tuple(max(1, a * (b - 1)) for a, b in zip(dilation, kernel, strict=True))
    )
    w = tensor(d, (*kernel, c, k * groups), other_dtype(d, name, 2), palette(d, 6))
    b = None if d.chance(30) else tensor(d, (k * groups + d.chance(2),), other_dtype(d, name, 2), palette(d, 6))
    return [x, w, b], settings


def conv2d(x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """PyTorch's, NHWC, with padding that may differ from side to side."""
    x = nchw(x)
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        x, padding = F.pad(x, [*padding[1], *padding[0]]), 0
    return nhwc(F.conv2d(x, w.permute(3, 2, 0, 1).contiguous(), b, stride, padding, dilation, groups))


def _conv(d: Choices) -> Case:
    operands, settings = conv_arguments(d)
    return case(d, operands, **settings)


def _conv_relu(d: Choices) -> Case:
    operands, settings = conv_arguments(d)
    for o in operands:
        if o is not None:
            o.grad = False
    return case(d, operands, **settings)


def _our_conv_relu(x: Any, w: Any, b: Any, **settings: Any) -> Any:
    with no_grad():
        return ops.conv2d_relu(x, w, b, **settings)


def _transposed(d: Choices) -> Case:
    (x, w, b), settings = conv_arguments(d)
    padding = settings.pop("padding")
    if (
        isinstance(padding, (str, tuple))
        and not isinstance(padding, int)
        and (isinstance(padding, str) or isinstance(padding[0], tuple))
    ):
        padding = pair(d, 0, 2)
    kernel, groups, name = w.values.shape[:2], settings["groups"], w.values.dtype.name
    c = x.values.shape[-1] if x.values.ndim else 1
    k = d.integer(1, 4)
    x = image(d, c, x.values.dtype.name)
    w = tensor(d, (*kernel, c, k), name, palette(d, 6))
    b = None if b is None else tensor(d, (k * groups + d.chance(2),), name, palette(d, 6))
    return case(d, [x, w, b], padding=padding, output_padding=pair(d, 0, 2) if d.chance(40) else 0, **settings)


def conv_transpose2d(x: Any, w: Any, b: Any, **settings: Any) -> Any:
    """PyTorch's, NHWC."""
    return nhwc(F.conv_transpose2d(nchw(x), w.permute(2, 3, 0, 1).contiguous(), b, **settings))


def _pool_arguments(d: Choices) -> tuple[Any, dict[str, Any]]:
    name = dtype(d, 4)
    kernel = pair(d, 1, 4)
    settings = {"kernel_size": kernel, "stride": None if d.chance(30) else pair(d, 1, 4), "ceil_mode": d.chance(40)}
    half = max(1, min(as_pair(kernel)) // 2)
    settings["padding"] = pair(d, 0, half) if d.chance(60) else 0
    return image(d, d.pick((1, 2, 3, 5, 8, 17)), name, as_pair(kernel)), settings


def _max_pool(d: Choices) -> Case:
    x, settings = _pool_arguments(d)
    return case(d, [x], dilation=pair(d, 1, 3) if d.chance(30) else 1, **settings)


def _avg_pool(d: Choices) -> Case:
    x, settings = _pool_arguments(d)
    return case(d, [x], count_include_pad=d.chance(50), **settings)


def _torch_max_pool(x: Any, **settings: Any) -> Any:
    """PyTorch's; where windows hold nothing but padding, its backward writes outside of its array, and the gradient is
    taken by hand.
    """
    x = nchw(x)
    real = F.max_pool2d(torch.zeros(1, 1, *x.shape[2:]), **settings) == 0
    if bool(real.all()):
        return nhwc(F.max_pool2d(x, **settings))
    y, place = F.max_pool2d(x.detach(), return_indices=True, **settings)
    taken = x.flatten(2).gather(2, (place * real).flatten(2)).reshape(y.shape)
    return nhwc(torch.where(real, taken, y))


def _inside(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, **settings: nhwc(f(nchw(x), **settings))


def _adaptive(d: Choices) -> Case:
    size = d.pick((pair(d, 1, 6), (None, d.integer(1, 6)), (d.integer(1, 6), None), 1, 0 if d.chance(10) else 2))
    return case(d, [image(d, d.pick((1, 2, 3, 8)), dtype(d, 2))], output_size=size)


def _strip(d: Choices) -> Case:
    return case(d, [image(d, d.pick((1, 2, 3, 8)), dtype(d, 2))], strips=d.integer(1, 4), axis=d.pick((1, 2)))


def _torch_strip(x: Any, strips: int, axis: int) -> Any:
    return nhwc(F.adaptive_avg_pool2d(nchw(x), (strips, None) if axis == 1 else (None, strips)))


def _bilinear(d: Choices) -> Case:
    return case(d, [image(d, d.pick((1, 2, 3, 8)), dtype(d, 2))], size=pair(d, 1, 9), align_corners=d.chance(40))


def _nearest(d: Choices) -> Case:
    return case(d, [image(d, d.pick((1, 2, 3, 8)), dtype(d, 2))], size=pair(d, 1, 9))


def _torch_bilinear(x: Any, size: Any, align_corners: bool) -> Any:
    return nhwc(F.interpolate(nchw(x), size, mode="bilinear", align_corners=align_corners))


def _torch_nearest(x: Any, size: Any) -> Any:
    return nhwc(F.interpolate(nchw(x), size, mode="nearest"))


def _transposed_size(c: Case) -> tuple[int, ...]:
    """(P, Q) of a transposed convolution."""
    x, w = (o.values.shape for o in c.operands[:2])
    s, d, p, e = (as_pair(c.settings[key]) for key in ("stride", "dilation", "padding", "output_padding"))
    return tuple((x[k + 1] - 1) * s[k] - 2 * p[k] + d[k] * (w[k] - 1) + 1 + e[k] for k in range(2) if len(x) == 4)


def _sizes(c: Case) -> tuple[Any, ...]:
    size = c.settings.get("output_size")
    return tuple(size) if isinstance(size, (tuple, list)) else (size,)


EMPTY_MEAN = Difference(
    "adaptive pooling of or to an empty map",
    (
        "there is nothing to average; PyTorch gives NaN for output_size 1, raises for others, and in backward for "
        "output_size 0"
    ),
    "refuse",
    lambda c: 0 in c.operands[0].values.shape[1:] or 0 in _sizes(c),
)
INTEGER_MEAN = Difference(
    "averaging and resizing integers",
    "the fractions would be lost; PyTorch does so in some of these operators and refuses in others",
    "refuse",
    lambda c: c.operands[0].values.dtype.kind != "f",
)
NO_PIXELS = Difference(
    "convolving an image without rows or columns",
    (
        "there is nothing to convolve; PyTorch raises too, but for an empty batch, or where padding makes room for the "
        "filter"
    ),
    "refuse",
    lambda c: 0 in c.operands[0].values.shape[1:-1],
)
EMPTY_BATCH = Difference(
    "settings that do not fit, with an empty batch",
    "we check them all the same; PyTorch does not",
    "may refuse",
    lambda c: 0 in c.operands[0].values.shape,
)
INTEGER_MAPS = Difference(
    "convolving integers and booleans",
    "only floats can be convolved; PyTorch allows integers in some convolutions",
    "refuse",
    lambda c: any(o.values.dtype.kind != "f" for o in c.operands[:2]),
)
EMPTY_RESULT = Difference(
    "a transposed convolution whose padding leaves no rows or columns",
    "there is no such image; PyTorch gives one where the size is just 0",
    "refuse",
    lambda c: 0 in _transposed_size(c),
)
OTHER_BIAS = Difference(
    "convolving with a bias of another dtype than the filter's",
    "one dtype is required; PyTorch allows others with padding 'same' of one axis",
    "refuse",
    lambda c: c.operands[2] is not None and c.operands[2].values.dtype != c.operands[1].values.dtype,
)
NOT_FINITE = Difference(
    "convolving with NaN or infinity",
    "padding counts as zeros, of which such a weight makes NaN, in gradients too, and a tile of Winograd's (4x4 "
    "outputs of a 3x3 filter) shares its"
    " sums; PyTorch leaves padding out of gradients",
    "more",
    lambda c: c.special_cotangent or not all(np.isfinite(o.values.astype(np.float64)).all() for o in c.operands[:2]),
)
MAPS = NO_PIXELS, EMPTY_BATCH, INTEGER_MAPS
CONVOLUTIONS = *MAPS, OTHER_BIAS, NOT_FINITE
NO_WEIGHT = Difference(
    "resizing NaN or infinity",
    "a neighbour of weight 0 counts nothing; PyTorch multiplies it by 0, which gives NaN",
    "other",
    lambda c: bool((~np.isfinite(c.operands[0].values)).any()) or c.special_cotangent,
)


def winograd_bound(c: Case) -> float:
    """Winograd's stated largest error, where it may serve: filters of 3x3 and 5x5, with stride 1, in float32."""
    w = c.operands[1].values
    return (
        2e-5
        if w.dtype == np.float32 and w.shape[:2] in ((3, 3), (5, 5)) and as_pair(c.settings["stride"]) == (1, 1)
        else 0.0
    )


ROWS = [
    Row("conv2d", _conv, ops.conv2d, conv2d, differences=CONVOLUTIONS, bound=winograd_bound),
    Row(
        "conv2d_relu",
        _conv_relu,
        _our_conv_relu,
        lambda *a, **k: conv2d(*a, **k).relu(),
        words=("conv2d",),
        differences=CONVOLUTIONS,
        bound=winograd_bound,
    ),
    Row(
        "conv_transpose2d",
        _transposed,
        ops.conv_transpose2d,
        conv_transpose2d,
        differences=(*MAPS, OTHER_BIAS, EMPTY_RESULT, NOT_FINITE),
        bound=winograd_bound,
    ),
    Row("max_pool2d", _max_pool, ops.max_pool2d, _torch_max_pool, smooth=False),
    Row("avg_pool2d", _avg_pool, ops.avg_pool2d, _inside(F.avg_pool2d), differences=(INTEGER_MEAN,)),
    Row(
        "adaptive_avg_pool2d",
        _adaptive,
        ops.adaptive_avg_pool2d,
        _inside(F.adaptive_avg_pool2d),
        differences=(EMPTY_MEAN, INTEGER_MEAN),
    ),
    Row(
        "strip_pool2d",
        _strip,
        ops.strip_pool2d,
        _torch_strip,
        words=("strip_pool2d", "adaptive_avg_pool2d"),
        differences=(EMPTY_MEAN, INTEGER_MEAN),
    ),
    Row("resize_bilinear", _bilinear, ops.resize_bilinear, _torch_bilinear, differences=(INTEGER_MEAN, NO_WEIGHT)),
    Row("resize_nearest", _nearest, ops.resize_nearest, _torch_nearest, differences=(INTEGER_MEAN,)),
]
