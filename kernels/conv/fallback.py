"""Unfused fallbacks: convolution and batch norm one operator after the other, for devices and layers without a fused
kernel. The public operators are arguments here, so nothing below them is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.core.geometry import Pair, Window
from kernels.norm.records import BatchNorm, SavedBatchNorm

Call = Callable[..., Any]


def unfused_norm_forward(convolve: Call, statistics: Call, move: Call, invert: Call, normalise: Call) -> Call:
    """kernels.conv.reference.conv2d_norm_forward by conv2d_forward, batch_norm_statistics, batch_norm_running,
    batch_norm_inverse and batch_norm_forward.
    """

    def conv2d_norm_forward(
        maps: tuple[Any, ...],
        w: Any,
        norm: BatchNorm,
        residual: Any,
        activation: str | None,
        window: Window,
        groups: int = 1,
    ) -> Any:
        z = convolve(maps, w, None, window, groups)
        mean, variance = statistics(z)
        move(norm.running_mean, norm.running_var, mean, variance, z.size // z.shape[3], norm.momentum)
        inverse = invert(variance, norm.eps)
        y, mask = normalise(z, norm.weight, norm.bias, mean, inverse, residual, activation)
        return y, z, mask, mean, inverse

    return conv2d_norm_forward


def unfused_norm_backward(
    norm_backward: Call, backward_filter: Call, backward_data: Call, concat: Call, split: Call, accumulate: Call
) -> Call:
    """kernels.conv.reference.conv2d_norm_backward by batch_norm_backward, conv2d_backward_filter, conv2d_backward_data,
    concat_channels, split_channels and accumulate: kernels for one or two maps serve more maps as one concatenated map.
    """

    def of_maps(
        dz: Any,
        w: Any,
        size: Pair,
        window: Window,
        groups: int,
        parts: tuple[int, ...],
        accumulate_into: tuple[Any, ...],
    ) -> Any:
        if len(parts) < 3:
            return backward_data(dz, w, size, window, groups, parts, accumulate_into)
        (whole,) = backward_data(dz, w, size, window, groups)
        dxs = split(whole, parts)
        for dx, total in zip(dxs, accumulate_into, strict=True):
            if total is not None:
                accumulate(total, dx)
        return tuple(dx if total is None else total for dx, total in zip(dxs, accumulate_into, strict=True))

    def conv2d_norm_backward(
        dy: Any,
        maps: tuple[Any, ...],
        w: Any,
        z: Any,
        norm: SavedBatchNorm,
        with_residual: bool,
        window: Window,
        groups: int = 1,
        accumulate_into: tuple[Any, ...] | None = (None,),
        donated: bool = False,
    ) -> Any:
        dz, dweight, dbias, dresidual = norm_backward(dy, z, norm, True, with_residual, donated)
        dw = backward_filter((concat(maps),) if len(maps) > 2 else maps, dz, window, groups)
        dxs: tuple[Any, ...] = (None,) * len(maps)
        if accumulate_into is not None:
            dxs = of_maps(dz, w, maps[0].shape[1:3], window, groups, tuple(m.shape[3] for m in maps), accumulate_into)
        return dw, dweight, dbias, dresidual, dxs

    return conv2d_norm_backward
