"""Convolution along one axis: the 2-D convolution of an image that is one row high."""

from __future__ import annotations

from typing import Any

from autograd.checks import checked_conv2d
from autograd.ops.conv import Conv2d
from autograd.ops.shape import reshape
from autograd.tensor import Tensor
from kernels.core.geometry import row_settings

__all__ = ["conv1d"]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Any = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """1-D cross-correlation, as PyTorch's conv1d, channels last: a `conv2d` of one row.

    input (N, L, C), weight (R, C/groups, K), bias (K,) -> (N, P, K), P = floor((L + before + after - dilation (R - 1) -
    1) / stride) + 1.
    padding: an int, (before, after), 'same' (stride 1) or 'valid'. Raises ValueError where conv2d does, and for other
        numbers of axes.
    """
    for name, array, axes in (("input", input, "(N, L, C)"), ("weight", weight, "(R, C/groups, K)")):
        if array.ndim != 3:
            raise ValueError(f"conv1d: {name} has shape {array.shape}, expected 3 axes {axes}")
    n, length, c = input.shape
    row = reshape(input, (n, 1, length, c))
    filter = reshape(weight, (1, *weight.shape))
    settings = row_settings("conv1d", stride, padding, dilation)
    window, maps = checked_conv2d(row, filter, bias, *settings, groups, name="conv1d")
    y = Conv2d(window, groups)(filter, bias, *maps)
    return reshape(y, (n, y.shape[2], y.shape[3]))
