"""Rows: logic, whole division and its remainder, and changes of the dtype."""

from __future__ import annotations

import operator

import numpy as np
import torch

from autograd import ops

from .arithmetic import BROADCAST, RANGE, of_numbers, two_operands
from .choices import Choices
from .in_place import BY_ZERO
from .operands import FLOATS, INTEGERS, Case, Operand, broadcastable, case, dtype, palette, shape, tensor
from .table import Difference, Row


def _bits(d: Choices) -> Case:
    """Two Tensors of booleans and integers, or one and a number; rarely one of floats."""
    dims = shape(d)
    name = "float32" if d.chance(4) else d.pick(("bool", "bool", "int64", "uint8", "int8"))
    x = tensor(d, dims, name, grad=False)
    if d.chance(20):
        value = d.pick((0, 1, 3, True, False, 5))
        y = Operand(value, value, "number", False)
    else:
        y = tensor(d, broadcastable(d, dims), dtype(d, 100) if d.chance(25) else name, grad=False)
    return case(d, [y, x] if d.chance(30) else [x, y])


def _inverted(d: Choices) -> Case:
    return case(d, [tensor(d, shape(d), dtype(d, 90), grad=False)])


def _constant(d: Choices) -> Case:
    made = two_operands(d)
    for o in made.operands:
        o.grad = False
    return made


def _cast(d: Choices) -> Case:
    return case(d, [tensor(d, shape(d), dtype(d, 30), palette(d, 20))], dtype=d.pick((*FLOATS, *INTEGERS, "bool")))


def _holds(c: Case) -> bool:
    """Whether the integers of the new dtype hold all values of a float array."""
    x, to = c.operands[0].values, np.dtype(c.settings["dtype"])
    if x.dtype.kind != "f" or to.kind not in "iu":
        return True
    info = np.iinfo(to)
    with np.errstate(all="ignore"):
        whole = np.trunc(x.astype(np.float64))
        return bool(((whole >= info.min) & (whole < float(info.max) + 1)).all())


UNDEFINED = Difference(
    "casting floats to integers that do not hold them",
    "the result is what the processor makes of them, in NumPy as in PyTorch",
    "any",
    lambda c: not _holds(c),
)

ROWS = [
    Row("bitwise_and", _bits, ops.bitwise_and, operator.and_, "element", differences=(RANGE,)),
    Row("bitwise_or", _bits, ops.bitwise_or, operator.or_, "element", differences=(RANGE,)),
    Row("bitwise_xor", _bits, ops.bitwise_xor, operator.xor, "element", differences=(RANGE,)),
    Row("bitwise_not", _inverted, ops.bitwise_not, torch.bitwise_not, "element"),
    Row(
        "floor_divide",
        _constant,
        ops.floor_divide,
        of_numbers(torch.floor_divide),
        "element",
        smooth=False,
        differences=(RANGE, BY_ZERO),
    ),
    Row(
        "remainder",
        two_operands,
        ops.remainder,
        of_numbers(torch.remainder),
        "element",
        smooth=False,
        cancels=BROADCAST,
        differences=(RANGE, BY_ZERO),
    ),
    Row(
        "cast",
        _cast,
        ops.cast,
        lambda x, dtype: x.to(getattr(torch, dtype)),
        "element",
        smooth=False,
        differences=(UNDEFINED,),
    ),
]
