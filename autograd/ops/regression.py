"""Losses between two arrays of one shape, with torch.nn.functional's arguments: squared and absolute errors, and
cross-entropy of yes or no.
"""

from __future__ import annotations

import operator
from typing import Any

from autograd.checks import together
from autograd.function import Function, unbroadcast
from autograd.operands import Operand
from autograd.ops.elementary import sign
from autograd.ops.reduction import mean, sum
from autograd.promotion import promoted
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module
from kernels.pointwise import reference as pointwise
from kernels.shape import evaluate

__all__ = ["binary_cross_entropy_with_logits", "l1_loss", "mse_loss", "smooth_l1_loss"]


class _OfDifference(Function):
    """l = f(x - t);  dx = dl f'(x - t), dt = -dx."""

    def forward(self, x: Array, t: Array) -> Array:
        self.shapes = x.shape, t.shape
        difference = evaluate(operator.sub, x, t)
        self.save(difference)
        return evaluate(self.value, difference)

    def backward(self, dl: Array) -> tuple[Array | None, ...]:
        dx = evaluate(self.gradient, dl, *self.saved)
        signed = dx, evaluate(operator.neg, dx) if self.needs[1] else None
        return tuple(
            unbroadcast(g, s) if need else None for g, s, need in zip(signed, self.shapes, self.needs, strict=True)
        )

    def value(self, d: Array) -> Array:
        """f(d)."""
        raise NotImplementedError

    def gradient(self, dl: Array, d: Array) -> Array:
        """dl f'(d)."""
        raise NotImplementedError

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 2 * outputs[0].size


class SquaredError(_OfDifference):
    """l = (x - t)^2;  dx = 2 dl (x - t), dt = -dx."""

    def value(self, d: Array) -> Array:
        return d * d

    def gradient(self, dl: Array, d: Array) -> Array:
        return 2 * dl * d


class AbsoluteError(_OfDifference):
    """l = |x - t|;  dx = dl sign(x - t), 0 where they are equal; dt = -dx."""

    def value(self, d: Array) -> Array:
        return array_module(d).abs(d)

    def gradient(self, dl: Array, d: Array) -> Array:
        return dl * sign(d)


class SmoothL1(_OfDifference):
    """With d = x - t: l = d^2 / (2 beta) where |d| < beta, else |d| - beta / 2;  dx = dl d / beta, or dl sign(d); dt =
    -dx.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def value(self, d: Array) -> Array:
        xp = array_module(d)
        size = xp.abs(d)
        return size if self.beta == 0 else xp.where(size < self.beta, d * d * (0.5 / self.beta), size - 0.5 * self.beta)

    def gradient(self, dl: Array, d: Array) -> Array:
        if self.beta == 0:
            return dl * sign(d)
        return dl * (d / self.beta).clip(-1, 1)


class LogitCrossEntropy(Function):
    """l = w ((1 - t) x - (1 + (p - 1) t) log s),  s = sigmoid(x), p the weight of positives and w that of values, both
    constants, 1 if absent.

    dx = dl w ((1 + (p - 1) t) s - p t).      dt = dl w (log sigmoid(-x) - p log s), which is -dl x without weights.
    """

    def __init__(self, weighted: tuple[bool, bool]) -> None:
        super().__init__()
        self.weighted = weighted

    def forward(self, x: Array, t: Array, *weights: Array) -> Array:
        self.save(x, t, *weights)
        return evaluate(self._value, *self.saved)

    def backward(self, dl: Array) -> tuple[Array | None, ...]:
        dx = evaluate(self._of_input, dl, *self.saved) if self.needs[0] else None
        dt = evaluate(self._of_target, dl, *self.saved) if self.needs[1] else None
        return dx, dt, *(None for _ in self.needs[2:])

    def _weights(self, weights: tuple[Array, ...]) -> tuple[Any, Any]:
        """w and p."""
        given = iter(weights)
        w, p = (next(given) if present else 1 for present in self.weighted)
        return w, p

    def _value(self, x: Array, t: Array, *weights: Array) -> Array:
        w, p = self._weights(weights)
        return w * ((1 - t) * x - (1 + (p - 1) * t) * _log_sigmoid(x))

    def _of_input(self, dl: Array, x: Array, t: Array, *weights: Array) -> Array:
        w, p = self._weights(weights)
        return dl * w * ((1 + (p - 1) * t) * pointwise.sigmoid(x) - p * t)

    def _of_target(self, dl: Array, x: Array, t: Array, *weights: Array) -> Array:
        w, p = self._weights(weights)
        return dl * w * (_log_sigmoid(-x) - p * _log_sigmoid(x) if self.weighted[1] else -x)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 10 * outputs[0].size


def _log_sigmoid(x: Array) -> Array:
    xp = array_module(x)
    return xp.minimum(x, 0) - xp.log1p(xp.exp(-xp.abs(x)))


def mse_loss(input: Operand, target: Operand, reduction: str = "mean") -> Tensor:
    """(input - target)^2, as PyTorch's mse_loss: its mean, its sum, or one per value ('none'). Both may require
    gradients, and are broadcast.

    Raises ValueError for another reduction.
    """
    return _reduced("mse_loss", SquaredError()(*_pair("mse_loss", input, target)), reduction)


def l1_loss(input: Operand, target: Operand, reduction: str = "mean") -> Tensor:
    """|input - target|, as PyTorch's l1_loss: its mean, its sum, or one per value ('none'). Both may require gradients,
    and are broadcast.

    Raises ValueError for another reduction.
    """
    return _reduced("l1_loss", AbsoluteError()(*_pair("l1_loss", input, target)), reduction)


def smooth_l1_loss(input: Operand, target: Operand, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """The squared error near 0 and the absolute error elsewhere: d^2 / (2 beta) where |d| < beta, else |d| - beta / 2,
    d = input - target.

    Its mean, its sum, or one per value ('none').  (Huber's loss divided by beta; Girshick, arXiv 1504.08083.)
    Raises ValueError for a negative beta.
    """
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta is {beta}, expected at least 0")
    return _reduced("smooth_l1_loss", SmoothL1(beta)(*_pair("smooth_l1_loss", input, target)), reduction)


def binary_cross_entropy_with_logits(
    input: Operand,
    target: Operand,
    weight: Operand | None = None,
    reduction: str = "mean",
    pos_weight: Operand | None = None,
) -> Tensor:
    """-w (p t log s + (1 - t) log(1 - s)), s = sigmoid(input), t = target: its mean, its sum, or one per value
    ('none'). Without overflow.

    target: probabilities, or 0 and 1, in the shape of input.   weight: w, per value.   pos_weight: p, that of
    positives. Both are broadcast to input, and constants.   Raises ValueError when the shapes of input and target
    differ.
    """
    given = [value for value in (weight, pos_weight) if value is not None]
    x, t, *constants = promoted(input, target, *given, floating=True)
    if t.shape != x.shape:
        raise ValueError(
            f"binary_cross_entropy_with_logits: target has shape {t.shape}, expected {x.shape} as input has"
        )
    places = weight is not None, pos_weight is not None
    for name, array in zip(
        (name for name, place in zip(("weight", "pos_weight"), places) if place), constants, strict=True
    ):
        if together("binary_cross_entropy_with_logits", **{name: array.shape, "input": x.shape}) != x.shape:
            raise ValueError(
                f"binary_cross_entropy_with_logits: {name} has shape {array.shape}, which does not fit input {x.shape}"
            )
    losses = LogitCrossEntropy(places)(x, t, *constants)
    return _reduced("binary_cross_entropy_with_logits", losses, reduction)


def _pair(name: str, input: Any, target: Any) -> tuple[Any, Any]:
    """Both in their common dtype; ValueError where they do not broadcast."""
    x, t = promoted(input, target, floating=True)
    together(name, input=x.shape, target=t.shape)
    return x, t


def _reduced(name: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
    return mean(losses) if reduction == "mean" else sum(losses) if reduction == "sum" else losses
