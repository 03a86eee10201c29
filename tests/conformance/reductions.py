"""Rows: sums, means, maxima and softmax over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autograd import ops

from .choices import Choices
from .operands import Case, case, dtype, palette, shape, tensor
from .table import Difference, Row

NO_AXES = Difference(
    "axis=() reduces nothing",
    "an empty tuple names no axis, as in NumPy; PyTorch reduces all of them",
    "other",
    lambda c: c.settings.get("axis") == (),
)


INTEGER_SOFTMAX = Difference(
    "softmax of integers",
    "in float32, as all functions that give fractions; PyTorch refuses",
    "other",
    lambda c: c.operands[0].values.dtype.kind != "f",
)
INTEGER_MEAN = Difference(
    "mean of integers and booleans",
    "in float32, so that an accuracy is (a == b).mean(); PyTorch refuses",
    "allow",
    lambda c: c.operands[0].values.dtype.kind != "f",
)


def axis(d: Choices, ndim: int, many: bool = True) -> Any:
    """An axis, several, none, or, rarely, one that x lacks or one given twice."""
    if d.chance(4):
        return ndim + d.integer(0, 1) if d.chance(60) else -ndim - 1 - d.integer(0, 1)
    kind = d.integer(0, 2 if many else 0)
    if not ndim:
        return d.pick((None, 0, -1)) if many else d.pick((-1, 0))
    if kind == 1:
        return None
    if kind == 2:
        chosen = [a - ndim * d.chance(50) for a in range(ndim) if d.chance(50)]
        return tuple(chosen + chosen[:1]) if d.chance(3) else tuple(reversed(chosen)) if d.chance(30) else tuple(chosen)
    return d.integer(-ndim, ndim - 1)


def reduced(integers: int = 15) -> Callable[[Choices], Case]:
    """One Tensor, axes and keepdims."""

    def draw(d: Choices) -> Case:
        x = tensor(d, shape(d), dtype(d, integers), palette(d, 25))
        return case(d, [x], axis=axis(d, x.values.ndim), keepdims=d.chance(40))

    return draw


def along(d: Choices) -> Case:
    """One Tensor and one axis."""
    x = tensor(d, shape(d), dtype(d, 5), palette(d, 30))
    return case(d, [x], axis=axis(d, x.values.ndim, many=False))


def all_or(method: str) -> Callable[..., Any]:
    """PyTorch's method with axis None as all axes."""

    def call(x: Any, axis: Any, keepdims: bool, **settings: Any) -> Any:
        axis = tuple(range(x.ndim)) if axis is None else axis
        return getattr(x, method)(axis, keepdim=keepdims, **settings)

    return call


ROWS = [
    Row("sum", reduced(), ops.sum, all_or("sum"), differences=(NO_AXES,)),
    Row("mean", reduced(), ops.mean, all_or("mean"), differences=(NO_AXES, INTEGER_MEAN)),
    Row("max", reduced(), ops.max, all_or("amax"), "element", smooth=False, differences=(NO_AXES,)),
    Row("softmax", along, ops.softmax, lambda x, axis: torch.softmax(x, axis), differences=(INTEGER_SOFTMAX,)),
    Row(
        "log_softmax",
        along,
        ops.log_softmax,
        lambda x, axis: torch.log_softmax(x, axis),
        differences=(INTEGER_SOFTMAX,),
    ),
]
