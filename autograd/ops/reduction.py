"""Sums, means, extremes, variances and products over axes."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from autograd.checks import along, check_filled, over
from autograd.function import Function
from autograd.promotion import cast, real
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module
from kernels.core.reduction import halves_in_float32, wide_type
from kernels.shape import evaluate

__all__ = ["cumsum", "logsumexp", "max", "mean", "min", "prod", "std", "sum", "var"]

Axis = int | Sequence[int] | None
Axes = tuple[int, ...] | None


class _Reduction(Function):
    """axis: numbers from 0 to ndim - 1, or None for all."""

    def __init__(self, axis: Axes, keepdims: bool) -> None:
        super().__init__()
        self.axis, self.keepdims = axis, keepdims

    def _reduced(self, x: Array, method: str) -> Array:
        wide = x.astype(wide_type(x.dtype), copy=False) if method in ("sum", "mean") else x
        return getattr(wide, method)(self.axis, keepdims=self.keepdims).astype(x.dtype, copy=False)

    def _spread(self, dy: Array, shape: tuple[int, ...]) -> Array:
        """dy with its reduced axes back as length 1, ready to broadcast against `shape`."""
        if self.axis is None or self.keepdims:
            return dy.reshape((1,) * len(shape)) if self.axis is None else dy
        return dy.reshape(tuple(1 if i in self.axis else n for i, n in enumerate(shape)))

    def _axes(self, ndim: int) -> tuple[int, ...]:
        """The axes over which is reduced."""
        return tuple(range(ndim)) if self.axis is None else self.axis


class Sum(_Reduction):
    """y = sum of x over the axes;  dx = dy, repeated."""

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return evaluate(partial(self._reduced, method="sum"), x)

    def backward(self, dy: Array) -> Array:
        return array_module(dy).broadcast_to(self._spread(dy, self.shape), self.shape)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return inputs[0].size


class Mean(Sum):
    """y = mean of x over the axes (n values each);  dx = dy / n, repeated."""

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return evaluate(partial(self._reduced, method="mean"), x)

    def backward(self, dy: Array) -> Array:
        count = math.prod(self.shape) // (dy.size or 1)
        # of no values: NaN
        return super().backward(evaluate(partial(operator.mul, 1 / count if count else math.nan), dy))


class Max(_Reduction):
    """y = max of x over the axes;  dx = dy where x is the maximum, shared equally among ties (PyTorch's amax)."""

    method = "max"

    def forward(self, x: Array) -> Array:
        y = evaluate(partial(self._reduced, method=self.method), x)
        self.save(x, y)
        return y

    def backward(self, dy: Array) -> Array:
        return evaluate(halves_in_float32(self._shared), dy, *self.saved)

    def _shared(self, dy: Array, x: Array, y: Array) -> Array:
        hit = (x == self._spread(y, x.shape)).astype(x.dtype)
        return hit * (self._spread(dy, x.shape) / hit.sum(self.axis, keepdims=True))


class Min(Max):
    """y = min of x over the axes;  dx = dy where x is the minimum, shared equally among ties (PyTorch's amin)."""

    method = "min"


class Var(_Reduction):
    """y = sum (x - mean)^2 / (n - correction) over the axes (n values each);
    dx = dy 2 (x - mean) / (n - correction).
    """

    def __init__(self, axis: Axes, keepdims: bool, correction: float) -> None:
        super().__init__(axis, keepdims)
        self.correction = correction

    def forward(self, x: Array) -> Array:
        self.save(x)
        return evaluate(self._value, x)

    def backward(self, dy: Array) -> Array:
        return evaluate(self._gradient, dy, *self.saved)

    def _value(self, x: Array) -> Array:
        return self._variance(x).astype(x.dtype)

    def _variance(self, x: Array) -> Array:
        deviation = self._deviation(x)
        total = (deviation * deviation).sum(self.axis, keepdims=self.keepdims)
        degrees = x.size // (total.size or 1) - self.correction
        return array_module(x).asarray(total / _divisor(degrees if degrees > 0 else 0, x))

    def _deviation(self, x: Array) -> Array:
        """x - mean in float64: squares of small float32 numbers would underflow."""
        wide = x.astype("float64")
        return wide - wide.mean(self.axis, keepdims=True)

    def _gradient(self, dy: Array, x: Array) -> Array:
        divisor = _divisor(x.size // (dy.size or 1) - self.correction, x)
        return (self._spread(dy, x.shape) * self._deviation(x) * (2 / divisor)).astype(x.dtype)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 4 * inputs[0].size


def _total(x: Array) -> Any:
    """The dtype to add up and multiply in: of integers and booleans int64, which the result keeps, as in PyTorch."""
    return wide_type(x.dtype) if x.dtype.kind == "f" else "int64"


def _divisor(degrees: float, x: Array) -> Array:
    """n - correction as an array, so that 0 gives NaN and infinity, as in PyTorch, and no error."""
    return array_module(x).asarray(degrees, "float64")


class Std(Var):
    """y = sqrt(var x);  dx = dy (x - mean) / ((n - correction) y), 0 where y = 0."""

    def forward(self, x: Array) -> Array:
        y = evaluate(self._root, x)
        self.save(x, y)
        return y

    def backward(self, dy: Array) -> Array:
        return evaluate(self._root_gradient, dy, *self.saved)

    def _root(self, x: Array) -> Array:
        return array_module(x).sqrt(self._variance(x)).astype(x.dtype)

    def _root_gradient(self, dy: Array, x: Array, y: Array) -> Array:
        xp = array_module(x)
        wide = y.astype("float64")
        # 0 whatever dy, as in PyTorch
        return self._gradient(xp.where(y == 0, 0, dy / (2 * xp.where(y == 0, 1, wide))), x)


class Prod(_Reduction):
    """y = product of x over the axes;  dx_i = dy times the product of all others, so that zeros do no harm."""

    def forward(self, x: Array) -> Array:
        self.save(x)
        return evaluate(self._product, x)

    def backward(self, dy: Array) -> Array:
        return evaluate(halves_in_float32(self._gradient), dy, *self.saved)

    def _product(self, x: Array) -> Array:
        product = x.prod(self.axis, keepdims=self.keepdims, dtype=_total(x))
        return product.astype(x.dtype) if x.dtype.kind == "f" else product

    def _gradient(self, dy: Array, x: Array) -> Array:
        if not x.size:
            return x.copy()
        xp = array_module(x)
        axes = self._axes(x.ndim)
        last = tuple(range(x.ndim - len(axes), x.ndim))
        moved = xp.moveaxis(x, axes, last)
        rows = moved.reshape(-1, math.prod(moved.shape[x.ndim - len(axes) :]))  # (kept values, multiplied values)
        ones = xp.ones((len(rows), 1), x.dtype)
        before = xp.cumprod(xp.concatenate([ones, rows[:, :-1]], 1), 1)
        after = xp.cumprod(xp.concatenate([ones, rows[:, :0:-1]], 1), 1)[:, ::-1]
        return self._spread(dy, x.shape) * xp.moveaxis((before * after).reshape(moved.shape), last, axes)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return inputs[0].size


class LogSumExp(_Reduction):
    """y = log sum e^x over the axes, without overflow;  dx = dy e^(x - y)."""

    def forward(self, x: Array) -> Array:
        y = evaluate(self._value, x)
        self.save(x, y)  # in float32 where x is float16: its exponential needs all digits
        return y if y.dtype == x.dtype else evaluate(lambda value: value.astype(x.dtype), y)

    def backward(self, dy: Array) -> Array:
        return evaluate(self._gradient, dy, *self.saved)

    def _value(self, x: Array) -> Array:
        xp = array_module(x)
        wide = x.astype(wide_type(x.dtype), copy=False)
        zero = xp.zeros((), wide.dtype)
        top = wide.max(self.axis, keepdims=True) if x.size else zero
        top = xp.where(xp.isinf(top), zero, top)
        with np.errstate(divide="ignore"):  # log 0 = -inf is the value
            total = xp.log(xp.exp(wide - top).sum(self.axis, keepdims=True)) + top
        return (total if self.keepdims else total.squeeze(self._axes(x.ndim))).astype(wide.dtype, copy=False)

    def _gradient(self, dy: Array, x: Array, y: Array) -> Array:
        return (self._spread(dy, x.shape) * array_module(x).exp(x - self._spread(y, x.shape))).astype(
            x.dtype, copy=False
        )

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 4 * inputs[0].size


class CumSum(Function):
    """y_i = x_0 + ... + x_i along an axis;  dx_i = dy_i + ... + dy_n."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Array) -> Array:
        return evaluate(self._sums, x)

    def backward(self, dy: Array) -> Array:
        return evaluate(halves_in_float32(self._sums_from_behind), dy)

    def _sums(self, x: Array) -> Array:
        sums = x.cumsum(self.axis, dtype=_total(x)).reshape(x.shape)
        return sums.astype(x.dtype, copy=False) if x.dtype.kind == "f" else sums

    def _sums_from_behind(self, dy: Array) -> Array:
        xp = array_module(dy)
        return xp.flip(xp.flip(dy, self.axis).cumsum(self.axis), self.axis) if dy.ndim else dy.copy()

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return inputs[0].size


def _floating(name: str, x: Tensor) -> Tensor:
    if x.dtype.kind != "f":
        raise TypeError(f"{name}: x is {x.dtype}, expected floating point")
    return x


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over `axis` (None: all), as torch.sum; of integers and booleans in int64, of nothing 0."""
    return Sum(over("sum", axis, x.ndim), keepdims)(cast(x, np.int64) if x.dtype.kind in "biu" else x)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis` (None: all), as torch.mean; of integers and booleans in float32, of nothing NaN."""
    return Mean(over("mean", axis, x.ndim), keepdims)(real(x))


def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Maximum over `axis` (None: all), as torch.amax; NaN where a value is. Ties share the gradient equally."""
    return _extreme("max", Max, x, axis, keepdims)


def min(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Minimum over `axis` (None: all), as torch.amin; NaN where a value is. Ties share the gradient equally."""
    return _extreme("min", Min, x, axis, keepdims)


def _extreme(name: str, of: type[Max], x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    axes = over(name, axis, x.ndim)
    if not x.size:
        check_filled(name, x.shape, axes)
    return of(axes, keepdims)(x)


def var(x: Tensor, axis: Axis = None, keepdims: bool = False, correction: float = 1) -> Tensor:
    """Variance over `axis` (None: all), as torch.var: sum (x - mean)^2 / (n - correction).

    correction is 1, as in PyTorch: the unbiased estimate, NumPy's ddof=1 (NumPy's own default is 0). NaN for a single
    value. Raises TypeError unless x is floating point.
    """
    return Var(over("var", axis, x.ndim), keepdims, correction)(_floating("var", x))


def std(x: Tensor, axis: Axis = None, keepdims: bool = False, correction: float = 1) -> Tensor:
    """Standard deviation over `axis` (None: all), as torch.std: the square root of `var`. Where it is 0 the gradient is
    0.

    Raises TypeError unless x is floating point.
    """
    return Std(over("std", axis, x.ndim), keepdims, correction)(_floating("std", x))


def prod(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Product over `axis` (None: all), as torch.prod; of integers and booleans in int64, of nothing 1. Its gradient is
    right where factors are 0, too.
    """
    return Prod(over("prod", axis, x.ndim), keepdims)(x)


def logsumexp(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log sum e^x over `axis` (None: all), as torch.logsumexp, without overflow; -inf where all values are, and of
    nothing.
    """
    return LogSumExp(over("logsumexp", axis, x.ndim), keepdims)(real(x))


def cumsum(x: Tensor, axis: int) -> Tensor:
    """y_i = x_0 + ... + x_i along `axis`, as torch.cumsum; of integers and booleans in int64."""
    return CumSum(along("cumsum", axis, x.ndim))(x)
