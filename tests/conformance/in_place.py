"""Rows: changes in place of a Tensor that needs no gradient, by methods and by augmented assignments."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from autograd import Tensor

from .arithmetic import MINUS_TRUE, RANGE, as_seen
from .choices import Choices
from .operands import Case, array, broadcastable, case, dtype, number, other_dtype, palette, shape, tensor
from .table import Difference, Row


def _two(d: Choices) -> Case:
    """What is changed, and a Tensor, an array or a number of any dtype."""
    name, dims = dtype(d, integers=25), shape(d)
    x = tensor(d, dims, name, palette(d, 20), grad=False)
    which = d.integer(0, 9)
    if which < 6:
        y = tensor(
            d, broadcastable(d, dims), dtype(d, integers=30) if d.chance(25) else name, palette(d, 20), grad=False
        )
    elif which < 8:
        y = array(d, broadcastable(d, dims), dtype(d, integers=30))
        as_seen(x, y)
    else:
        y = number(d)
    return case(d, [x, y])


def _masks(d: Choices) -> Case:
    name, dims = d.pick(("bool", "bool", "int64", "uint8")), shape(d)
    return case(d, [tensor(d, dims, name, grad=False), tensor(d, broadcastable(d, dims), name, grad=False)])


def _square(d: Choices) -> Case:
    n, name = d.integer(1, 4), dtype(d, 0, 6)
    x = tensor(d, (*shape(d, 0, 2), d.integer(1, 4), n), name, grad=False)
    return case(d, [x, tensor(d, (n, n + d.chance(5)), other_dtype(d, name, 3), grad=False)])


def _ours(rule: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda x, y: rule(Tensor(x.data.copy()), y)


def _theirs(rule: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda x, y: rule(x.clone(), y)


def _matmul(x: Any, y: Any) -> Any:
    """PyTorch's Tensors have no @=: the product, which must fit into x."""
    return x.copy_(x @ y) if (x @ y).shape == x.shape else _refused()


def _refused() -> Any:
    raise ValueError("does not fit")


def _row(name: str, rule: Callable[[Any, Any], Any], draw: Callable[[Choices], Case] = _two, **settings: Any) -> Row:
    theirs = settings.pop("theirs", rule)
    return Row(name, draw, _ours(rule), _theirs(theirs), settings.pop("scale", "element"), words=(name,), **settings)


def _integers(c: Case, holds: Callable[[np.ndarray], Any]) -> bool:
    """Whether both are integers or booleans, and a value of the second one is such."""
    x, y = (np.asarray(o.values) for o in c.operands)
    return x.dtype.kind in "iub" and y.dtype.kind in "iub" and bool(np.any(holds(y)))


def _is_no_integer(c: Case) -> bool:
    x, y = (np.asarray(o.values) for o in c.operands)
    return (
        x.dtype.kind in "iu"
        and y.dtype.kind == "f"
        and not bool(((np.iinfo(x.dtype).min <= y) & (y <= np.iinfo(x.dtype).max)).all())
    )


BY_ZERO = Difference(
    "integers divided by 0 and rounded down",
    "0 and a warning, as in NumPy; PyTorch raises",
    "allow",
    lambda c: _integers(c, lambda y: y == 0),
)
FRACTIONS = Difference(
    "negative powers of integers",
    "they are fractions, which integers do not hold; PyTorch rounds them to 0",
    "refuse",
    lambda c: _integers(c, lambda y: y < 0),
)
NO_INTEGER = Difference(
    "copying NaN, infinity or a large float into integers",
    "a number is refused, and the processor converts values of an array; in PyTorch it converts numbers, too",
    "any",
    _is_no_integer,
)
ROWS = [
    _row("add_", lambda x, y: x.add_(y), differences=(RANGE,)),
    _row("mul_", lambda x, y: x.mul_(y), differences=(RANGE,)),
    _row(
        "copy_",
        lambda x, y: x.copy_(y),
        theirs=lambda x, y: x.copy_(
            y if isinstance(y, torch.Tensor) else torch.tensor(y, dtype=torch.float64 if isinstance(y, float) else None)
        ),
        differences=(RANGE, NO_INTEGER),
    ),
    _row("+=", operator.iadd, differences=(RANGE,)),
    _row("-=", operator.isub, differences=(RANGE, MINUS_TRUE)),
    _row("*=", operator.imul, differences=(RANGE,)),
    _row("/=", operator.itruediv, differences=(RANGE,)),
    _row("//=", operator.ifloordiv, smooth=False, differences=(RANGE, BY_ZERO)),
    _row("%=", operator.imod, smooth=False, differences=(RANGE, BY_ZERO)),
    _row("**=", operator.ipow, differences=(RANGE, FRACTIONS)),
    _row("@=", operator.imatmul, _square, theirs=_matmul, scale="largest"),
    _row("&=", operator.iand, _masks),
    _row("|=", operator.ior, _masks),
    _row("^=", operator.ixor, _masks),
]
