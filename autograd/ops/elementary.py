"""Functions of single values: |x|, clipping, sine and cosine, the error function, softplus; and the smaller or larger
of two values.
"""

from __future__ import annotations

import math

from autograd.checks import together
from autograd.function import Function, unbroadcast
from autograd.operands import Operand
from autograd.promotion import promoted, real
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module
from kernels.pointwise import reference as pointwise
from kernels.shape import evaluate

__all__ = ["abs", "clip", "cos", "erf", "maximum", "minimum", "sin", "softplus"]


class _Elementary(Function):
    """y_i = f(x_i);  dx_i = dy_i f'(x_i)."""

    operations = 1  # per value, for the summary

    def forward(self, x: Array) -> Array:
        self.save(x)
        return evaluate(self.value, x)

    def backward(self, dy: Array) -> Array:
        return evaluate(self.gradient, dy, *self.saved)

    def value(self, x: Array) -> Array:
        """f(x)."""
        raise NotImplementedError

    def gradient(self, dy: Array, x: Array) -> Array:
        """dy f'(x)."""
        raise NotImplementedError

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return self.operations * outputs[0].size


class Abs(_Elementary):
    """y = |x|;  dx = dy sign(x), which is 0 at 0."""

    def value(self, x: Array) -> Array:
        return array_module(x).abs(x)

    def gradient(self, dy: Array, x: Array) -> Array:
        return dy * sign(x)


def sign(x: Array) -> Array:
    """1, 0 or -1, and 0 for NaN, in the dtype of x, as PyTorch's gradients need it."""
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


class Clip(_Elementary):
    """y = min(max(x, low), high);  dx = dy where low <= x <= high, else 0."""

    operations = 2

    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def value(self, x: Array) -> Array:
        return x.clip(self.low, self.high)

    def gradient(self, dy: Array, x: Array) -> Array:
        xp = array_module(x)
        inside = xp.ones(x.shape, bool) if self.low is None else x >= self.low
        if self.high is not None:
            inside &= x <= self.high
        return xp.where(inside, dy, xp.zeros((), dy.dtype))


class ClipBetween(Function):
    """y = min(max(x, low), high) with broadcasting, NaN where one of them is;  dx = dy where low <= x <= high, dlow =
    dy where x < low < high, dhigh = dy where x > high or low > high; 0 elsewhere, as PyTorch's clamp: on a bound the
    gradient is x's. low or high may be None.
    """

    def forward(self, x: Array, low: Array | None, high: Array | None) -> Array:
        self.save(x, low, high)
        self.given = low is not None, high is not None
        return evaluate(self._value, *(a for a in (x, low, high) if a is not None))

    def explain(self, error: Exception, x: Array, low: Array | None, high: Array | None) -> None:
        bounds = {name: bound.shape for name, bound in (("min", low), ("max", high)) if bound is not None}
        together("clip", x=x.shape, **bounds)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        arrays = self.saved
        present = [a for a in arrays if a is not None]
        rules = self._of_x, self._of_low, self._of_high
        return tuple(
            unbroadcast(evaluate(rule, dy, *present), array.shape) if need else None
            for rule, array, need in zip(rules, arrays, self.needs, strict=True)
        )

    def _bounds(self, arrays: tuple[Array, ...]) -> tuple[Array | None, Array | None]:
        return arrays[1] if self.given[0] else None, arrays[-1] if self.given[1] else None

    def _value(self, *arrays: Array) -> Array:
        xp = array_module(*arrays)
        y = arrays[0]
        low, high = self._bounds(arrays)
        y = y if low is None else xp.maximum(y, low)
        return y if high is None else xp.minimum(y, high)

    def _of_x(self, dy: Array, *arrays: Array) -> Array:
        x = arrays[0]
        low, high = self._bounds(arrays)
        inside = True if low is None else x >= low
        return self._where(inside if high is None else inside & (x <= high), dy)

    def _of_low(self, dy: Array, *arrays: Array) -> Array:
        x = arrays[0]
        low, high = self._bounds(arrays)
        return self._where(x < low if high is None else (x < low) & (low < high), dy)

    def _of_high(self, dy: Array, *arrays: Array) -> Array:
        x = arrays[0]
        low, high = self._bounds(arrays)
        return self._where(x > high if low is None else (x > high) | (low > high), dy)

    def _where(self, reached: Array, dy: Array) -> Array:
        xp = array_module(dy)
        return xp.where(reached, dy, xp.zeros((), dy.dtype))

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 2 * outputs[0].size


class Sin(_Elementary):
    """y = sin x;  dx = dy cos x."""

    operations = 10

    def value(self, x: Array) -> Array:
        return array_module(x).sin(x)

    def gradient(self, dy: Array, x: Array) -> Array:
        return dy * array_module(x).cos(x)


class Cos(_Elementary):
    """y = cos x;  dx = -dy sin x."""

    operations = 10

    def value(self, x: Array) -> Array:
        return array_module(x).cos(x)

    def gradient(self, dy: Array, x: Array) -> Array:
        return -dy * array_module(x).sin(x)


class Erf(_Elementary):
    """y = 2 / sqrt(pi) integral of e^(-t^2) from 0 to x;  dx = dy 2 / sqrt(pi) e^(-x^2)."""

    operations = 20

    def value(self, x: Array) -> Array:
        return pointwise.erf(x.astype("float32") if x.itemsize < 4 else x).astype(x.dtype)

    def gradient(self, dy: Array, x: Array) -> Array:
        return dy * (2 / math.sqrt(math.pi) * array_module(x).exp(-x * x))


class Softplus(_Elementary):
    """y = log(1 + e^(beta x)) / beta;  dx = dy sigmoid(beta x). Where beta x > threshold: y = x, dx = dy."""

    operations = 6

    def __init__(self, beta: float, threshold: float) -> None:
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def value(self, x: Array) -> Array:
        xp = array_module(x)
        scaled = self.beta * x
        soft = (xp.maximum(scaled, 0) + xp.log1p(xp.exp(-xp.abs(scaled)))) / self.beta
        return xp.where(scaled > self.threshold, x, soft)

    def gradient(self, dy: Array, x: Array) -> Array:
        scaled = self.beta * x
        return array_module(x).where(scaled > self.threshold, dy, dy * pointwise.sigmoid(scaled))


class _Chosen(Function):
    """The smaller or larger of x and y, with broadcasting. Its gradient goes to the chosen one, half to each where they
    are equal.
    """

    def forward(self, x: Array, y: Array) -> Array:
        self.save(x, y)
        return evaluate(self.choose, x, y)

    def explain(self, error: Exception, x: Array, y: Array) -> None:
        together(self.name.lower(), x=x.shape, y=y.shape)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        x, y = self.saved
        both = ((x, y), (y, x))
        return tuple(
            unbroadcast(evaluate(self._share, dz, *pair), pair[0].shape) if need else None
            for pair, need in zip(both, self.needs, strict=True)
        )

    def _share(self, dz: Array, mine: Array, other: Array) -> Array:
        xp = array_module(dz)
        return xp.where(self.loses(mine, other), xp.zeros((), dz.dtype), xp.where(mine == other, dz / 2, dz))

    def choose(self, x: Array, y: Array) -> Array:
        """The values."""
        raise NotImplementedError

    def loses(self, mine: Array, other: Array) -> Array:
        """Where the other one is chosen."""
        raise NotImplementedError

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return outputs[0].size


class Maximum(_Chosen):
    """z = max(x, y), NaN where either is;  dx = dz where x > y, dz / 2 where x = y, 0 where x < y; dy likewise."""

    def loses(self, mine: Array, other: Array) -> Array:
        return mine < other

    def choose(self, x: Array, y: Array) -> Array:
        return array_module(x, y).maximum(x, y)


class Minimum(_Chosen):
    """z = min(x, y), NaN where either is;  dx = dz where x < y, dz / 2 where x = y, 0 where x > y; dy likewise."""

    def loses(self, mine: Array, other: Array) -> Array:
        return mine > other

    def choose(self, x: Array, y: Array) -> Array:
        return array_module(x, y).minimum(x, y)


def abs(x: Tensor) -> Tensor:
    """|x|, as torch.abs, in the dtype of x; the gradient at 0 is 0."""
    return Abs()(x)


def clip(x: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """x limited to [min, max], as PyTorch's clamp: the gradient is 1 within the limits and on them, 0 outside. Where
    min > max all is max.

    min, max: Python numbers, Tensors or arrays that broadcast with x, one of which may be None. A Tensor's gradient is
    that of the values that it replaced. Raises ValueError if both are None, TypeError for anything else.
    """
    if min is None and max is None:
        raise ValueError("clip: got neither min nor max, expected at least one of them")
    bounds = [bound for bound in (min, max) if bound is not None]
    if all(isinstance(bound, (int, float)) for bound in bounds):
        return Clip(min, max)(real(x) if any(isinstance(bound, float) for bound in bounds) else x)
    whole = iter(promoted(x, *bounds))
    return ClipBetween()(next(whole), *(None if bound is None else next(whole) for bound in (min, max)))


def sin(x: Tensor) -> Tensor:
    """The sine of x in radians, as torch.sin."""
    return Sin()(real(x))


def cos(x: Tensor) -> Tensor:
    """The cosine of x in radians, as torch.cos."""
    return Cos()(real(x))


def erf(x: Tensor) -> Tensor:
    """The error function, as torch.erf: 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x."""
    return Erf()(real(x))


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta, and x itself where beta x > threshold, as PyTorch's softplus."""
    return Softplus(beta, threshold)(real(x))


def maximum(x: Operand, y: Operand) -> Tensor:
    """max(x, y), value by value, as torch.maximum; NaN where either is. Equal values share the gradient."""
    return Maximum()(*promoted(x, y))


def minimum(x: Operand, y: Operand) -> Tensor:
    """min(x, y), value by value, as torch.minimum; NaN where either is. Equal values share the gradient."""
    return Minimum()(*promoted(x, y))
