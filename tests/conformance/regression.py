"""Rows: losses between two arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from autograd import ops

from .arithmetic import BROADCAST, RANGE, as_seen
from .choices import Choices
from .operands import Case, array, broadcastable, case, dtype, number, tensor
from .operands import shape as drawn_shape
from .table import Difference, Row

F = torch.nn.functional
REDUCTIONS = ("mean", "sum", "none")


def _errors(**more: Sequence[Any]) -> Callable[[Choices], Case]:
    """Predictions and what they should be: Tensors, or a Tensor and an array or a number; of one dtype, or of several;
    integers and booleans too.
    """

    def draw(d: Choices) -> Case:
        name, dims = dtype(d, 12), drawn_shape(d)
        x = tensor(d, dims, name)
        other = broadcastable(d, dims) if d.chance(20) else dims
        which = d.integer(0, 9)
        if which < 7:
            y = tensor(d, other, dtype(d, 30) if d.chance(20) else name)
        elif which < 9:
            y = array(d, other, dtype(d, 30))
            as_seen(x, y)
        else:
            y = number(d)
        return case(d, [x, y], reduction=d.pick(REDUCTIONS), **{k: d.pick(v) for k, v in more.items()})

    return draw


def _bce(d: Choices) -> Case:
    name, dims = dtype(d, 6), drawn_shape(d)
    x = tensor(d, dims, name)
    t = tensor(
        d,
        dims,
        d.pick(("int64", "bool", "uint8")) if d.chance(15) else name,
        d.pick(("positive", "integers", "normal")),
    )
    weights = [
        tensor(d, broadcastable(d, dims), name, "positive", grad=False) if d.chance(25) else None for _ in range(2)
    ]
    return case(d, [x, t, *weights], reduction=d.pick(REDUCTIONS))


def _our_bce(x: Any, t: Any, weight: Any, pos_weight: Any, reduction: str) -> Any:
    return ops.binary_cross_entropy_with_logits(x, t, weight, reduction, pos_weight)


def _torch_bce(x: Any, t: Any, weight: Any, pos_weight: Any, reduction: str) -> Any:
    x, t, *weights = _real(x, t, *(w for w in (weight, pos_weight) if w is not None))
    weight, pos_weight = (None if w is None else weights.pop(0) for w in (weight, pos_weight))
    return F.binary_cross_entropy_with_logits(x, t, weight, reduction=reduction, pos_weight=pos_weight)


def _real(*xs: Any) -> list[Any]:
    """Tensors of the floating dtype in which the operands meet; float32 where that is none."""
    first = xs[0]
    kind = first.dtype
    for x in xs[1:]:
        kind = (
            torch.result_type(first, x)
            if kind == first.dtype
            else torch.promote_types(kind, torch.result_type(first, x))
        )
    kind = kind if kind.is_floating_point else torch.float32
    return [x.to(kind) if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=kind) for x in xs]


def _promoted(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y, **settings: f(*_real(x, y), **settings)


def _dtypes(c: Case) -> set[Any]:
    return {getattr(o.values, "dtype", None) for o in c.operands if o is not None}


PROMOTED = Difference(
    "losses between integers, or between Tensors of different dtypes",
    (
        "the operands meet as in x - y, and integers and booleans in float32; PyTorch does so in some of these losses "
        "and "
        "refuses in others"
    ),
    "allow",
    lambda c: len(_dtypes(c)) > 1 or next(iter(_dtypes(c))).kind != "f",
)

ROWS = [
    Row("mse_loss", _errors(), ops.mse_loss, _promoted(F.mse_loss), cancels=BROADCAST, differences=(PROMOTED, RANGE)),
    Row(
        "l1_loss",
        _errors(),
        ops.l1_loss,
        _promoted(F.l1_loss),
        cancels=BROADCAST,
        smooth=False,
        differences=(PROMOTED, RANGE),
    ),
    Row(
        "smooth_l1_loss",
        _errors(beta=(1.0, 0.5, 2.0, 0.0)),
        ops.smooth_l1_loss,
        _promoted(F.smooth_l1_loss),
        cancels=BROADCAST,
        smooth=False,
        differences=(PROMOTED, RANGE),
    ),
    Row(
        "binary_cross_entropy_with_logits",
        _bce,
        _our_bce,
        _torch_bce,
        cancels="(1 - t) x - log s",
        differences=(PROMOTED,),
    ),
]
