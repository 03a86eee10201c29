"""What a device has no kernel of its own for, by the operators that it has."""

from __future__ import annotations

from typing import Any

from kernels import conv, norm, shape
from kernels.conv import reference
from kernels.core.geometry import Pair, Window


def conv2d_norm_forward(*arguments: Any) -> Any:
    """As kernels.conv.reference.conv2d_norm_forward: the convolution, statistics of its result, batch norm."""
    steps = (
        conv.conv2d_forward,
        norm.batch_norm_statistics,
        norm.batch_norm_running,
        norm.batch_norm_inverse,
        norm.batch_norm_forward,
    )
    return reference.conv2d_norm_forward(*arguments, steps=steps)


def conv2d_norm_backward(*arguments: Any) -> Any:
    """As kernels.conv.reference.conv2d_norm_backward: batch norm's gradient, then the filter's, then the map's."""
    steps = norm.batch_norm_backward, _backward_filter, _backward_data
    return reference.conv2d_norm_backward(*arguments, steps=steps)


def _backward_filter(x: Any, dz: Any, window: Window, groups: int) -> Any:
    several = isinstance(x, tuple) and len(x) > 2
    return conv.conv2d_backward_filter(shape.concat_channels(x) if several else x, dz, window, groups)


def _backward_data(
    dz: Any, w: Any, size: Pair, window: Window, groups: int, parts: tuple[int, ...], into: tuple[Any, ...]
) -> Any:
    if len(parts) < 3:
        return conv.conv2d_backward_data(dz, w, size, window, groups, parts, into)
    (whole,) = conv.conv2d_backward_data(dz, w, size, window, groups)
    dxs = shape.split_channels(whole, parts)
    for dx, total in zip(dxs, into, strict=True):
        if total is not None:
            shape.accumulate(total, dx)
    return tuple(dx if total is None else total for dx, total in zip(dxs, into, strict=True))


def backward_bias(dy: Any) -> Any:
    """As kernels.conv.reference.backward_bias."""
    return norm.sum_pixels(dy).astype(dy.dtype)
