"""Sums, means and maxima over axes."""

from __future__ import annotations

import math
import operator
from functools import partial

from autograd.function import Function
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module
from kernels.shape import evaluate

Axis = int | tuple[int, ...] | None


class _Reduction(Function):
    def __init__(self, axis: Axis, keepdims: bool) -> None:
        super().__init__()
        self.axis, self.keepdims = axis, keepdims

    def _reduced(self, x: Array, method: str) -> Array:
        return getattr(x, method)(self.axis, keepdims=self.keepdims)

    def _spread(self, dy: Array, shape: tuple[int, ...]) -> Array:
        """dy with its reduced axes back as length 1, ready to broadcast against `shape`."""
        if self.axis is None or self.keepdims:
            return dy.reshape((1,) * len(shape)) if self.axis is None else dy
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        gone = {a % len(shape) for a in axes}
        return dy.reshape(tuple(1 if i in gone else n for i, n in enumerate(shape)))


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
        return super().backward(evaluate(partial(operator.mul, 1 / count), dy))


class Max(_Reduction):
    """y = max of x over the axes;  dx = dy where x is the maximum, shared equally among ties (PyTorch's amax)."""

    def forward(self, x: Array) -> Array:
        y = evaluate(partial(self._reduced, method="max"), x)
        self.save(x, y)
        return y

    def backward(self, dy: Array) -> Array:
        return evaluate(self._shared, dy, *self.saved)

    def _shared(self, dy: Array, x: Array, y: Array) -> Array:
        hit = (x == self._spread(y, x.shape)).astype(x.dtype)
        return hit * (self._spread(dy, x.shape) / hit.sum(self.axis, keepdims=True))


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over `axis` (None: all)."""
    return Sum(axis, keepdims)(x)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis` (None: all)."""
    return Mean(axis, keepdims)(x)


def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Maximum over `axis` (None: all); ties share the gradient."""
    return Max(axis, keepdims)(x)
