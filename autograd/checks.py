"""What operators ask of their inputs, where two of them ask the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autograd.tensor import Tensor
from kernels.core.geometry import Window

_MOST = 8  # maps of a 1x1 convolution


def checked_conv2d(
    input: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    several: bool = False,
) -> tuple[Window, tuple[Tensor, ...]]:
    """The window and the maps of a convolution; ValueError or TypeError, naming the numbers, where they do not fit. several: as conv2d_relu's."""
    maps = tuple(input) if isinstance(input, (list, tuple)) else (input,)
    most = _MOST if several and weight.shape[:2] == (1, 1) else 2
    if not 1 <= len(maps) <= most:
        raise ValueError(f"conv2d: got {len(maps)} maps, expected one or two{f', or up to {_MOST} of a 1x1 convolution' * several}")
    for m in maps:
        window = checked_window("conv2d", m, weight, stride, padding, dilation)
    if len(maps) > 2 and window != Window((1, 1)):
        raise ValueError(f"conv2d: {len(maps)} maps need a 1x1 convolution without stride and padding, got {window}")
    x, w = maps[0].shape, weight.shape
    for m in maps[1:]:
        if m.shape[:3] != x[:3] or groups != 1:
            raise ValueError(f"conv2d: two maps {x} and {m.shape} must agree in N, H, W and need groups 1, got groups {groups}")
    x = (*x[:3], sum(m.shape[3] for m in maps))
    check_groups("conv2d", groups, x[3], w[3])
    if x[3] != w[2] * groups:
        expects = f"{w[2]}" + (f" x {groups} groups" if groups > 1 else "")
        raise ValueError(f"conv2d: x has {x[3]} channels but the filter expects {expects} (x: {x}, w: {w})")
    check_bias("conv2d", bias, w[3])
    window.checked_output_size("conv2d", (x[1], x[2]))
    return window, maps


def checked_window(name: str, x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any) -> Window:
    """The window of a filter (R, S, ...) over x (N, H, W, C)."""
    if x.ndim != 4:
        raise ValueError(f"{name}: x has shape {x.shape}, expected 4 axes (N, H, W, C)")
    if w.ndim != 4:
        raise ValueError(f"{name}: the filter has shape {w.shape}, expected 4 axes (R, S, C, K)")
    if x.dtype != w.dtype:
        raise TypeError(f"{name}: x is {x.dtype} but the filter is {w.dtype}")
    return Window.of(name, w.shape[:2], stride, padding, dilation)


def checked_image(name: str, x: Tensor) -> tuple[int, int]:
    """(H, W) of x (N, H, W, C), which must hold at least one pixel and one channel; the batch may be empty."""
    if x.ndim != 4:
        raise ValueError(f"{name}: x has shape {x.shape}, expected 4 axes (N, H, W, C)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: x has shape {x.shape}, expected at least one row, column and channel")
    return x.shape[1], x.shape[2]


def pooling_window(
    name: str, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Window, tuple[int, int]]:
    """The window of a pooling, with the padding that ceil_mode adds to it, and the padding that was asked for; ValueError as PyTorch's pooling."""
    size = checked_image(name, x)
    window = Window.of(name, kernel_size, kernel_size if stride is None else stride, padding, dilation)
    for (before, after), extent in zip(window.padding, window.extent, strict=True):
        if max(before, after) > extent // 2:
            raise ValueError(f"{name}: padding {window.padding} must be at most half the kernel {window.kernel}, dilation {window.dilation}")
    whole = window.with_ceil_mode(size) if ceil_mode else window
    whole.checked_output_size(name, size)
    return whole, (window.padding[0][1], window.padding[1][1])


def check_groups(name: str, groups: int, c: int, k: int) -> None:
    """ValueError unless the groups divide the channels."""
    if groups < 1 or c % groups or k % groups:
        raise ValueError(f"{name}: groups = {groups} must divide the {c} input and the {k} output channels")


def check_bias(name: str, bias: Tensor | None, k: int) -> None:
    """ValueError unless a bias has k values."""
    if bias is not None and bias.shape != (k,):
        raise ValueError(f"{name}: the bias has shape {bias.shape}, expected ({k},)")


def check_batch_norm(
    shape: tuple[int, ...],
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    activation: str | None,
    training: bool,
) -> None:
    """ValueError unless all this fits a map of `shape`."""
    channels = shape[-1:]
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in vectors.items():
        if vector.shape != channels:
            raise ValueError(f"batch_norm: {name} has shape {vector.shape}, expected {channels} for x {shape}")
    if residual is not None and residual.shape != shape:
        raise ValueError(f"batch_norm: the residual has shape {residual.shape} but x has {shape}")
    if activation not in (None, "relu"):
        raise ValueError(f"batch_norm: activation is {activation!r}, expected None or 'relu'")
    if training and math.prod(shape[:-1]) < 2:
        raise ValueError(f"batch_norm: training needs more than one value per channel, got x {shape}")


def along(name: str, axis: int, ndim: int) -> int:
    """The axis counted from the front; IndexError if there is none."""
    if not -ndim <= axis < ndim:
        raise IndexError(f"{name}: axis is {axis}, expected {-ndim} to {ndim - 1} for {ndim} axes")
    return axis % ndim
