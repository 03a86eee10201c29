"""Broadcasting arithmetic, `where`, and elementary functions. Each forward is one array expression, so it needs no kernel."""

from __future__ import annotations

import operator
from typing import Any

from autograd.function import Function, unbroadcast
from autograd.tensor import Tensor, as_array
from kernels.core.device import Array, array_module
from kernels.shape import added, evaluate


def _pair(x: Any, y: Any) -> tuple[Any, Any]:
    """Two operands; a Python number takes the other operand's dtype."""
    like = as_array(x if isinstance(x, Tensor) or hasattr(x, "__array__") else y)
    return (x if isinstance(x, Tensor) else as_array(x, like)), (y if isinstance(y, Tensor) else as_array(y, like))


class _Binary(Function):
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return outputs[0].size

    def _reduced(self, *grads: Any) -> tuple[Array | None, ...]:
        """Undo broadcasting for the gradients that are wanted; each is given as a callable so that no other is computed."""
        return tuple(unbroadcast(g(), s) if need else None for g, s, need in zip(grads, self.shapes, self.needs, strict=True))


class Add(_Binary):
    """z = x + y;  dx = dz, dy = dz, summed over broadcast axes."""

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        return added(x, y)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        return self._reduced(lambda: dz, lambda: dz)


class Sub(_Binary):
    """z = x - y;  dx = dz, dy = -dz."""

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        return evaluate(operator.sub, x, y)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        return self._reduced(lambda: dz, lambda: evaluate(operator.neg, dz))


class Mul(_Binary):
    """z = x y;  dx = dz y, dy = dz x."""

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        self.save(x, y)
        return evaluate(operator.mul, x, y)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        x, y = self.saved
        return self._reduced(lambda: evaluate(operator.mul, dz, y), lambda: evaluate(operator.mul, dz, x))


def _quotient_gradient(dz: Array, x: Array, y: Array) -> Array:
    return -dz * x / (y * y)


class Div(_Binary):
    """z = x / y;  dx = dz / y, dy = -dz x / y^2."""

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        self.save(x, y)
        return evaluate(operator.truediv, x, y)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        x, y = self.saved
        return self._reduced(lambda: evaluate(operator.truediv, dz, y), lambda: evaluate(_quotient_gradient, dz, x, y))


class Where(_Binary):
    """z = x where condition, else y;  dx = dz where condition, dy = dz elsewhere."""

    def __init__(self, condition: Array) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        return array_module(x).where(self.condition, x, y)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        xp = array_module(dz)
        zero = xp.zeros((), dz.dtype)
        return self._reduced(lambda: xp.where(self.condition, dz, zero), lambda: xp.where(self.condition, zero, dz))


class Power(Function):
    """y = x^n for a number n;  dx = n x^(n-1) dy."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Array) -> Array:
        self.save(x)
        return x**self.exponent

    def backward(self, dy: Array) -> Array:
        (x,) = self.saved
        return dy * (self.exponent * x ** (self.exponent - 1))


class Exp(Function):
    """y = e^x;  dx = dy y."""

    def forward(self, x: Array) -> Array:
        y = array_module(x).exp(x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return dy * self.saved[0]


class Log(Function):
    """y = log x;  dx = dy / x."""

    def forward(self, x: Array) -> Array:
        self.save(x)
        return array_module(x).log(x)

    def backward(self, dy: Array) -> Array:
        return dy / self.saved[0]


class Sqrt(Function):
    """y = sqrt x;  dx = dy / (2 y)."""

    def forward(self, x: Array) -> Array:
        y = array_module(x).sqrt(x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return dy / (2 * self.saved[0])


def add(x: Any, y: Any) -> Tensor:
    """x + y with broadcasting."""
    return Add()(*_pair(x, y))


def sub(x: Any, y: Any) -> Tensor:
    """x - y with broadcasting."""
    return Sub()(*_pair(x, y))


def mul(x: Any, y: Any) -> Tensor:
    """x * y with broadcasting."""
    return Mul()(*_pair(x, y))


def div(x: Any, y: Any) -> Tensor:
    """x / y with broadcasting."""
    return Div()(*_pair(x, y))


def neg(x: Tensor) -> Tensor:
    """-x."""
    return mul(x, -1)


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for a Python number."""
    if isinstance(exponent, Tensor) or not isinstance(exponent, (int, float)):
        raise TypeError(f"power: the exponent is {type(exponent).__name__}, expected a Python number")
    return Power(exponent)(x)


def exp(x: Tensor) -> Tensor:
    """e ** x."""
    return Exp()(x)


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return Log()(x)


def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    return Sqrt()(x)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where condition (a boolean array), else y; all broadcast. The condition gets no gradient."""
    return Where(as_array(condition))(*_pair(x, y))
