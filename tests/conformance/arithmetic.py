"""Rows: broadcasting arithmetic and functions of single values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from autograd import Tensor, ops, random
from engine.gradcheck.catalogue import Entry

from .choices import Choices
from .operands import (
    NUMBERS,
    Case,
    Operand,
    array,
    broadcastable,
    case,
    dtype,
    number,
    other_dtype,
    palette,
    shape,
    tensor,
)
from .table import Difference, Row

F = torch.nn.functional
BROADCAST = "sums over broadcast axes, in the gradient"


def as_seen(x: Operand, y: Operand) -> None:
    """A plain array without axes is a number; one with axes takes the dtype of a floating Tensor."""
    for plain, other in ((x, y), (y, x)):
        if plain.form == "array" and plain.values.ndim == 0:
            plain.values, plain.form = plain.values.item(), "scalar"
        elif plain.form == "array" and other.form == "tensor" and other.values.dtype.kind == "f":
            plain.values = plain.values.astype(other.values.dtype)


def two_operands(d: Choices) -> Case:
    """Two Tensors that broadcast, or a Tensor and an array or a number, in either order."""
    name = dtype(d, integers=15)
    dims = shape(d)
    x = tensor(d, dims, name)
    which = d.integer(0, 9)
    if which < 6:
        y = tensor(d, broadcastable(d, dims), dtype(d, integers=30) if d.chance(15) else name)
    elif which < 8:
        y = array(d, broadcastable(d, dims), dtype(d, integers=30))
        as_seen(x, y)
    else:
        y = number(d)
    return case(d, (y, x) if d.chance(40) else (x, y))


def one_operand(integers: int = 12, half: int = 10, rare: int = 30) -> Callable[[Choices], Case]:
    """One Tensor of any shape."""

    def draw(d: Choices) -> Case:
        return case(d, [tensor(d, shape(d), dtype(d, integers, half), palette(d, rare))])

    return draw


def _power(d: Choices) -> Case:
    return case(d, [tensor(d, shape(d), dtype(d, integers=12))], exponent=d.pick((*NUMBERS, -1.5, 1.5, -3, 4, 0.25, 5)))


def _where(d: Choices) -> Case:
    made = two_operands(d)
    dims = max((o.values.shape for o in made.operands if isinstance(o.values, np.ndarray)), key=len)
    condition = array(d, broadcastable(d, dims), "bool")
    made.operands = [condition, *made.operands]
    return made


def _leaky(d: Choices) -> Case:
    return case(
        d,
        [tensor(d, shape(d), dtype(d))],
        negative_slope=d.pick((0.01, 0.2, 0.0, 1.0, -0.5, 2, float("nan"), float("inf"))),
    )


def _add_relu(d: Choices) -> Case:
    name, dims = dtype(d), shape(d)
    return case(d, [tensor(d, dims, name), tensor(d, dims, other_dtype(d, name))])


def _gate(d: Choices) -> Case:
    name, dims = dtype(d), (*shape(d, 0, 3), 1 + d.integer(0, 4))
    z = dims if d.chance(30) else (*dims[:-1], 1)
    return case(d, [tensor(d, dims, name), tensor(d, z, name)])


def _blend(d: Choices) -> Case:
    made = _gate(d)
    x, z = made.operands
    made.operands = [x, tensor(d, x.values.shape, x.values.dtype.name), z]
    made.special_cotangent = False  # dy x - dy other or dy (x - other): with an infinite dy these are not the same
    return made


def _torch_blend(x: Any, other: Any, z: Any) -> Any:
    return z.sigmoid() * x + (1 - z.sigmoid()) * other


def _out_of_range(c: Case) -> bool:
    """Whether a number does not fit the dtype of the Tensor that it meets."""
    given = [o for o in c.operands if o is not None]
    numbers = [o.values for o in given if not isinstance(o.values, np.ndarray)] + [
        v for v in c.settings.values() if isinstance(v, (int, float))
    ]
    kinds = [o.values.dtype for o in given if isinstance(o.values, np.ndarray) and o.values.dtype.kind in "iuf"]
    return any(_outside(n, k) for n in numbers for k in kinds)


def _outside(n: Any, kind: np.dtype) -> bool:
    if kind.kind == "f":
        return bool(np.isfinite(n)) and abs(n) > np.finfo(kind).max
    return isinstance(n, int) and not np.iinfo(kind).min <= n <= np.iinfo(kind).max


RANGE = Difference(
    "a number that the dtype of the Tensor it meets does not hold",
    (
        "integers are refused and floats become infinite; PyTorch wraps integers in some operators and refuses floats "
        "in "
        "others"
    ),
    "any",
    _out_of_range,
)
MINUS_TRUE = Difference(
    "subtracting True or False",
    "they count as 1 and 0, as in Python; PyTorch refuses",
    "allow",
    lambda c: any(
        isinstance(o.values, bool) or getattr(o.values, "dtype", np.dtype(int)).kind == "b" for o in c.operands
    ),
)


ROOT = Difference(
    "the gradient of x ** 0.5 at -0",
    "infinity, the limit from the right; PyTorch takes the root of -0, which is -0, and has -infinity",
    "infinite",
    lambda c: (
        c.settings["exponent"] == 0.5 and bool((np.signbit(c.operands[0].values) & (c.operands[0].values == 0)).any())
    ),
)
TWO_BOOLEANS = Difference(
    "a boolean to the power of True or False",
    "refused, as sums of booleans are; PyTorch gives a boolean",
    "refuse",
    lambda c: c.operands[0].values.dtype == bool and isinstance(c.settings["exponent"], bool),
)


def of_numbers(f: Callable[..., Any]) -> Callable[..., Any]:
    """Some of PyTorch's functions take Tensors only; numbers become Tensors of the dtype in which they meet x."""

    def call(x: Any, y: Any) -> Any:
        kind = torch.result_type(x, y)
        return f(*(t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=kind) for t in (x, y)))

    return call


def _pair(name: str, mine: Callable[..., Any], other: Callable[..., Any], **settings: Any) -> Row:
    return Row(
        name, two_operands, mine, other, "element", differences=(RANGE, *settings.pop("differences", ())), **settings
    )


def _single(
    name: str, other: Callable[..., Any], draw: Callable[[Choices], Case] | None = None, **settings: Any
) -> Row:
    return Row(name, draw or one_operand(), getattr(ops, name), other, "element", **settings)


def _dropout(d: Choices) -> Case:
    p, training = d.pick(
        ((0.5, True), (0.2, True), (0.0, True), (0.5, False), (0.0, False), (1.0, True), (-0.1, True), (1.5, False))
    )
    return case(d, [tensor(d, shape(d), dtype(d), palette(d, 30))], p=p, training=training, seed=d.integer(0, 999))


def drawn_dropout(
    dropout: Callable[..., Any], like: Callable[[Any], Any] = lambda x: x
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The calls of a dropout here and in PyTorch, which gets our draw: what becomes of ones, 0 or 1 / (1 - p).

    like: the draw as it should be, of one where places share their fate.
    """

    def ours(x: Any, p: float, training: bool, seed: int) -> Any:
        random.seed(seed)
        return dropout(x, p, training)

    def theirs(x: Any, p: float, training: bool, seed: int) -> Any:
        if not training or not 0 < p < 1:
            return F.dropout(x, p, training)
        drawn = ours(Tensor(np.ones(x.shape, np.float32)), p, training, seed).data
        kept = torch.from_numpy(np.asarray(drawn != 0))
        if not np.isin(drawn, (0, np.float32(1 / (1 - p)))).all() or not bool((kept == like(kept)).all()):
            raise AssertionError(f"the draw is {drawn}")
        return x * (kept / (1 - p)).to(x.dtype)

    return ours, theirs


ALL_DROPPED = Difference(
    "dropout with p=1",
    "refused, because nothing would be left to learn from; PyTorch gives 0",
    "refuse",
    lambda c: c.settings["p"] == 1,
)
COMPARISONS = {
    "equal": "eq",
    "not_equal": "ne",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
}

ROWS = [
    _pair("add", ops.add, torch.add, words=("add",)),
    _pair("sub", ops.sub, lambda x, y: x - y, differences=(MINUS_TRUE,)),
    _pair("mul", ops.mul, lambda x, y: x * y),
    _pair("div", ops.div, lambda x, y: x / y),
    Row("where", _where, ops.where, torch.where, "element", differences=(RANGE,)),
    _single("neg", torch.neg, words=("neg", "mul")),
    _single("power", lambda x, exponent: x**exponent, _power, differences=(RANGE, TWO_BOOLEANS, ROOT)),
    _single("relu", F.relu, smooth=False),
    _single("leaky_relu", F.leaky_relu, _leaky, smooth=False),
    _single("add_relu", lambda x, other: F.relu(x + other), _add_relu, smooth=False),
    _single("sigmoid", torch.sigmoid),
    _single("tanh", torch.tanh, cancels="1 - y^2, in the gradient"),
    _single("silu", F.silu, cancels="1 + x (1 - s), in the gradient"),
    _single("gelu", F.gelu, cancels="1 + erf far below 0"),
    Row("gate", _gate, ops.gate, lambda x, z: x * z.sigmoid()),
    Row("blend", _blend, ops.blend, _torch_blend),
    *(_pair(name, getattr(ops, name), getattr(operator, method)) for name, method in COMPARISONS.items()),
    Row("dropout", _dropout, *drawn_dropout(ops.dropout), "element", differences=(ALL_DROPPED,)),
]


def of_entry(entry: Entry) -> Row:
    """The row of an operator of one operand that the catalogue of the gradient checker says PyTorch has."""
    return _single(entry.name, operator.attrgetter(entry.torch)(torch))
