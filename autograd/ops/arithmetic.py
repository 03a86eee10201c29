"""Broadcasting arithmetic, `where`, and elementary functions. Each forward is one array expression, so it needs no
kernel.

Operands are Tensors, arrays and numbers; `autograd.promotion` decides the common dtype.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import numpy as np

from autograd.checks import together
from autograd.function import Function, unbroadcast
from autograd.operands import Operand
from autograd.promotion import promoted, real
from autograd.tensor import Tensor, as_array
from kernels.core.device import Array, array_module
from kernels.shape import added, evaluate

__all__ = ["add", "div", "exp", "floor_divide", "log", "mul", "neg", "power", "remainder", "sqrt", "sub", "where"]


class _Binary(Function):
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    def explain(self, error: Exception, x: Array, y: Array) -> None:
        together(self.name.lower(), x=x.shape, y=y.shape)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return outputs[0].size

    def _reduced(self, *grads: Any) -> tuple[Array | None, ...]:
        """Undo broadcasting for the gradients that are wanted; each is given as a callable so that no other is
        computed.
        """
        return tuple(
            unbroadcast(g(), s) if need else None for g, s, need in zip(grads, self.shapes, self.needs, strict=True)
        )


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
    return -dz * (x / y / y)  # y^2 would underflow for |y| below 1e-19


class Div(_Binary):
    """z = x / y;  dx = dz / y, dy = -dz x / y^2."""

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        self.save(x, y)
        return evaluate(operator.truediv, x, y)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        x, y = self.saved
        return self._reduced(lambda: evaluate(operator.truediv, dz, y), lambda: evaluate(_quotient_gradient, dz, x, y))


class Remainder(_Binary):
    """z = x - y floor(x / y), which has the sign of y;  dx = dz, dy = -dz floor(x / y)."""

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        self.save(x, y)
        return evaluate(_remainder, x, y)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        x, y = self.saved
        return self._reduced(lambda: dz, lambda: evaluate(_remainder_gradient, dz, x, y))


def _remainder(x: Array, y: Array) -> Array:
    """By fmod, which is exact: CuPy's x % y is x - y floor(x / y) in the dtype, off by the rounding of its terms."""
    xp = array_module(x, y)
    if xp is np or x.dtype.kind != "f":
        return x % y
    rest = xp.fmod(x, y)
    return xp.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)


def _remainder_gradient(dz: Array, x: Array, y: Array) -> Array:
    return -dz * (x // y)


class Where(_Binary):
    """z = x where condition, else y;  dx = dz where condition, dy = dz elsewhere."""

    def __init__(self, condition: Array) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        return evaluate(_chosen, self.condition, x, y)

    def explain(self, error: Exception, x: Array, y: Array) -> None:
        together("where", condition=self.condition.shape, x=x.shape, y=y.shape)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        zero = array_module(dz).zeros((), dz.dtype)
        return self._reduced(
            lambda: evaluate(_chosen, self.condition, dz, zero), lambda: evaluate(_chosen, self.condition, zero, dz)
        )


def _chosen(condition: Array, x: Array, y: Array) -> Array:
    return array_module(condition, x, y).where(condition, x, y)


class Power(Function):
    """y = x^n for a number n;  dx = n x^(n-1) dy, which is 0 for n = 0 whatever x."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Array) -> Array:
        self.save(x)
        return evaluate(partial(_raised, exponent=self.exponent), x)

    def backward(self, dy: Array) -> Array:
        return evaluate(partial(_power_gradient, exponent=self.exponent), dy, *self.saved)


def _raised(x: Array, exponent: float) -> Array:
    return x**exponent


def _power_gradient(dy: Array, x: Array, exponent: float) -> Array:
    return dy * (exponent * x ** (exponent - 1)) if exponent else array_module(dy).zeros_like(dy)


class PowerOf(_Binary):
    """z = x^y;  dx = dz y x^(y-1), which is 0 where y = 0;  dy = dz z log x, which is 0 where x = 0 and y >= 0.

    Over a negative x the gradient of y is NaN, as PyTorch's.
    """

    def forward(self, x: Array, y: Array) -> Array:
        self.shapes = x.shape, y.shape
        z = evaluate(operator.pow, x, y)
        self.save(x, y, z)
        return z

    def explain(self, error: Exception, x: Array, y: Array) -> None:
        together("power", x=x.shape, exponent=y.shape)
        if isinstance(error, ValueError):
            raise ValueError(f"power: {x.dtype} to negative powers: fractions, which integers do not hold") from None

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        x, y, z = self.saved
        return self._reduced(
            lambda: evaluate(_base_gradient, dz, x, y), lambda: evaluate(_exponent_gradient, dz, x, y, z)
        )


def _base_gradient(dz: Array, x: Array, y: Array) -> Array:
    with np.errstate(all="ignore"):
        return array_module(dz).where(y == 0, dz.dtype.type(0), dz * (y * x ** (y - 1)))


def _exponent_gradient(dz: Array, x: Array, y: Array, z: Array) -> Array:
    xp = array_module(dz)
    with np.errstate(all="ignore"):
        return xp.where((x == 0) & (y >= 0), dz.dtype.type(0), dz * (z * xp.log(x)))


class Exp(Function):
    """y = e^x;  dx = dy y."""

    def forward(self, x: Array) -> Array:
        y = evaluate(array_module(x).exp, x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return evaluate(operator.mul, dy, *self.saved)


class Log(Function):
    """y = log x;  dx = dy / x."""

    def forward(self, x: Array) -> Array:
        self.save(x)
        return evaluate(array_module(x).log, x)

    def backward(self, dy: Array) -> Array:
        return evaluate(operator.truediv, dy, *self.saved)


class Sqrt(Function):
    """y = sqrt x;  dx = dy / (2 y)."""

    def forward(self, x: Array) -> Array:
        y = evaluate(array_module(x).sqrt, x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return evaluate(_root_gradient, dy, *self.saved)


def _root_gradient(dy: Array, y: Array) -> Array:
    return dy / (2 * y)


def add(x: Operand, y: Operand) -> Tensor:
    """x + y, value by value, as torch.add."""
    return Add()(*promoted(x, y))


def sub(x: Operand, y: Operand) -> Tensor:
    """x - y, value by value, as torch.sub.

    Raises TypeError for a boolean Tensor or number, as PyTorch does: `1 - mask` is written `~mask`.
    """
    for operand in (x, y):
        if operand.dtype.kind == "b" if isinstance(operand, Tensor) else isinstance(operand, (bool, np.bool_)):
            raise TypeError(
                "sub: an operand is boolean; the complement of a mask is ~mask, and the difference of two mask ^ other"
            )
    return Sub()(*promoted(x, y))


def mul(x: Operand, y: Operand) -> Tensor:
    """x y, value by value, as torch.mul; booleans stay booleans."""
    return Mul()(*promoted(x, y))


def div(x: Operand, y: Operand) -> Tensor:
    """x / y, value by value, as torch.div; of integers and booleans in float32."""
    return Div()(*promoted(x, y, floating=True))


def floor_divide(x: Operand, y: Operand) -> Tensor:
    """The largest whole number up to x / y, value by value, as torch.floor_divide.

    It has no gradient: it is constant but for its jumps. Raises TypeError where both operands are boolean.
    """
    a, b = _numbers("floor_divide", x, y)
    a, b = as_array(a), as_array(b)
    together("floor_divide", x=a.shape, y=b.shape)
    return Tensor(evaluate(operator.floordiv, a, b))


def remainder(x: Operand, y: Operand) -> Tensor:
    """x - y floor(x / y), value by value, as torch.remainder: the sign is y's, as in Python.

    Raises TypeError where both operands are boolean.
    """
    return Remainder()(*_numbers("remainder", x, y))


def neg(x: Tensor) -> Tensor:
    """-x, as torch.neg.

    Raises TypeError for a boolean x, whose complement is `bitwise_not`.
    """
    if x.dtype.kind == "b":
        raise TypeError("neg: x is boolean and has no negative; ~x is its complement")
    return mul(x, -1)


def power(x: Operand, exponent: Operand) -> Tensor:
    """x^exponent, value by value, as torch.pow; one of them may be a number.

    Gradients as PyTorch's: that of a base of 0 to the power 0 is 0, and so is that of an exponent over a base of 0;
    over a negative base it is NaN.
    Raises ValueError where integers are raised to negative integers, TypeError where both operands are boolean.
    """
    base, exponents = _numbers("power", x, exponent)
    if isinstance(x, Tensor) and isinstance(exponent, (int, float)):
        if base.dtype.kind in "iu" and exponent < 0:
            raise ValueError(
                f"power: {base.dtype} to the power {exponent}: negative integer powers are fractions, which integers "
                "do not hold"
            )
        return Power(exponent if isinstance(exponent, int) else float(exponent))(base)  # np.float64 would give float64
    return PowerOf()(base, exponents)


def exp(x: Tensor) -> Tensor:
    """e^x, as torch.exp; of integers and booleans in float32, as all functions of real numbers."""
    return Exp()(real(x))


def log(x: Tensor) -> Tensor:
    """The natural logarithm of x, as torch.log: -inf at 0, NaN below."""
    return Log()(real(x))


def sqrt(x: Tensor) -> Tensor:
    """The square root of x, as torch.sqrt: NaN below 0; the gradient at 0 is infinite."""
    return Sqrt()(real(x))


def where(condition: Operand, x: Operand, y: Operand) -> Tensor:
    """x where the condition holds, else y, as torch.where; all three broadcast.

    condition: a boolean Tensor or array; it gets no gradient. Raises TypeError for a condition of another dtype.
    """
    chosen = as_array(condition)
    if chosen.dtype.kind != "b":
        raise TypeError(f"where: the condition is {chosen.dtype}, expected booleans")
    return Where(chosen)(*promoted(x, y))


def _numbers(name: str, x: Any, y: Any) -> tuple[Any, Any]:
    """Two operands in their common dtype, which must not be boolean."""
    x, y = promoted(x, y)
    if as_array(x).dtype.kind == "b":
        raise TypeError(f"{name}: both operands are boolean; for masks there are &, |, ^ and ~")
    return x, y
