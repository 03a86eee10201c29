"""Checks of inputs that several operators share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

from autograd.tensor import Tensor
from kernels.core import geometry
from kernels.core.geometry import Pair, Window

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
    name: str = "conv2d",
) -> tuple[Window, tuple[Tensor, ...]]:
    """The window and the maps of a convolution; ValueError or TypeError, naming the numbers, where they do not fit.
    several: as conv2d_relu's.  name: the operator, for the messages.
    """
    maps = tuple(input) if isinstance(input, (list, tuple)) else (input,)
    most = _MOST if several and weight.shape[:2] == (1, 1) else 2
    if not 1 <= len(maps) <= most:
        raise ValueError(
            f"{name}: got {len(maps)} maps, expected one or two{f', or up to {_MOST} of a 1x1 convolution' * several}"
        )
    for m in maps:
        window = checked_window(name, m, weight, stride, padding, dilation)
    if len(maps) > 2 and window != Window((1, 1)):
        raise ValueError(f"{name}: {len(maps)} maps need a 1x1 convolution without stride and padding, got {window}")
    x = maps[0].shape
    w = weight.shape
    for m in maps[1:]:
        if m.shape[:3] != x[:3] or groups != 1:
            raise ValueError(
                f"{name}: two maps {x} and {m.shape} must agree in N, H, W and need groups 1, got groups {groups}"
            )
    x = (*x[:3], sum(m.shape[3] for m in maps))
    check_groups(name, groups, x[3], w[3])
    if x[3] != w[2] * groups:
        expects = f"{w[2]}" + (f" x {groups} groups" if groups > 1 else "")
        raise ValueError(f"{name}: x has {x[3]} channels but the filter expects {expects} (x: {x}, w: {w})")
    check_bias(name, bias, w[3], weight.dtype)
    window.checked_output_size(name, (x[1], x[2]))
    return window, maps


def checked_window(name: str, x: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any) -> Window:
    """The window of a filter (R, S, ...) over x (N, H, W, C)."""
    if x.ndim != 4:
        raise ValueError(f"{name}: x has shape {x.shape}, expected 4 axes (N, H, W, C)")
    if not (x.shape[1] and x.shape[2]):
        raise ValueError(f"{name}: x has shape {x.shape}, expected at least one row and one column")
    if w.ndim != 4:
        raise ValueError(f"{name}: the filter has shape {w.shape}, expected 4 axes (R, S, C, K)")
    if x.dtype != w.dtype:
        raise TypeError(f"{name}: x is {x.dtype} but the filter is {w.dtype}")
    check_floats(name, x.dtype)
    return Window.of(name, w.shape[:2], stride, padding, dilation)


def check_floats(name: str, dtype: np.dtype, what: str = "x") -> None:
    """Raise TypeError for an argument of integers or booleans."""
    if dtype.kind in "biu":
        raise TypeError(f"{name}: {what} is {dtype}, expected floating point")


def checked_image(name: str, x: Tensor) -> tuple[int, int]:
    """(H, W) of x (N, H, W, C), which must hold at least one pixel and one channel; the batch may be empty."""
    if x.ndim != 4:
        raise ValueError(f"{name}: x has shape {x.shape}, expected 4 axes (N, H, W, C)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: x has shape {x.shape}, expected at least one row, column and channel")
    return x.shape[1], x.shape[2]


def pooling_window(
    name: str, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Window, Pair]:
    """The window of a pooling of x (N, H, W, C), and the padding that was given: as in kernels/core/geometry.py."""
    return geometry.pooling_window(name, checked_image(name, x), kernel_size, stride, padding, dilation, ceil_mode)


def check_groups(name: str, groups: int, c: int, k: int) -> None:
    """Raise ValueError unless the groups divide the channels."""
    if groups < 1 or c % groups or k % groups:
        raise ValueError(f"{name}: groups = {groups} must divide the {c} input and the {k} output channels")


def check_bias(name: str, bias: Tensor | None, k: int, dtype: np.dtype) -> None:
    """Raise ValueError unless a bias has k values, TypeError unless they are of the filter's dtype."""
    if bias is not None and bias.dtype != dtype:
        raise TypeError(f"{name}: the bias is {bias.dtype} but the filter is {dtype}")
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
    operator: str = "batch_norm",
) -> None:
    """Raise ValueError unless all arguments fit a map of `shape`."""
    channels = shape[-1:]
    if channels in ((), (0,)):
        raise ValueError(f"{operator}: x has shape {shape}, expected a last axis with at least one channel")
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in vectors.items():
        if vector.shape != channels:
            raise ValueError(f"{operator}: {name} has shape {vector.shape}, expected {channels} for x {shape}")
        check_floats(operator, vector.dtype, name)
    if residual is not None and residual.shape != shape:
        raise ValueError(f"{operator}: the residual has shape {residual.shape} but x has {shape}")
    if residual is not None:
        check_floats(operator, residual.dtype, "residual")
    if activation not in (None, "relu"):
        raise ValueError(f"{operator}: activation is {activation!r}, expected None or 'relu'")
    if training and math.prod(shape[:-1]) < 2:
        raise ValueError(f"{operator}: training needs more than one value per channel, got x {shape}")


def together(name: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that arrays of these shapes, by the names of the operands, broadcast to. ValueError names those that do
    not.
    """
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        *most, last = (f"{operand} {shape}" for operand, shape in shapes.items())
        said = f"{', '.join(most)} and {last}"
        raise ValueError(f"{name}: the shapes of {said} do not broadcast") from None


def along(name: str, axis: int, ndim: int) -> int:
    """The axis counted from the front; AxisError if there is none.
    A single number counts as one axis, as in PyTorch.
    """
    count = max(ndim, 1)
    if not hasattr(axis, "__index__"):
        raise TypeError(f"{name}: axis is {axis!r}, expected an int")
    if not -count <= axis < count:
        raise AxisError(f"{name}: axis is {axis}, expected {-count} to {count - 1} for {ndim} axes")
    return axis % count


def check_filled(name: str, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    """Raise ValueError where an extreme over the axes, or over all, would be one of nothing."""
    if 0 not in (shape if axes is None else [shape[a] for a in axes]):
        return
    where = "" if axes is None else f" along axis {axes[0]}" if len(axes) == 1 else f" along the axes {axes}"
    raise ValueError(f"{name}: x has shape {shape}, expected at least one value{where}")


def over(name: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...] | None:
    """The axes counted from the front, None for all; AxisError for one that is not there, ValueError for one that is
    named twice.
    """
    if axis is None:
        return None
    axes = tuple(along(name, a, ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if len(set(axes)) < len(axes):
        raise ValueError(f"{name}: axis is {axis}, expected different axes")
    return axes if ndim else ()
