"""Activations, softmax and dropout. Those of integers and booleans compute in float32, but for ReLU, which keeps
integers.
"""

from __future__ import annotations

from collections.abc import Callable

from autograd import random
from autograd.checks import along
from autograd.function import Function
from autograd.promotion import promoted, real
from autograd.tensor import Tensor
from kernels import pointwise as kernels
from kernels.core.device import Array

__all__ = ["add_relu", "dropout", "gelu", "leaky_relu", "log_softmax", "relu", "sigmoid", "silu", "softmax", "tanh"]


class _Activation(Function):
    operations = 1  # per element, for the summary

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return self.operations * outputs[0].size


class ReLU(_Activation):
    """y = max(x, 0);  dx = 0 where y <= 0, else dy (a NaN passes it). It saves y, which is kept anyway."""

    def forward(self, x: Array) -> Array:
        y = kernels.relu_forward(x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return kernels.relu_backward(dy, *self.saved)


class AddReLU(Function):
    """y = max(x + other, 0);  dx = dother = dy where y > 0."""

    def forward(self, x: Array, other: Array) -> Array:
        y = kernels.add_relu_forward(x, other)
        self.save(y)
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        gradient = kernels.relu_backward(dy, *self.saved)
        return tuple(gradient if need else None for need in self.needs)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 2 * outputs[0].size


class LeakyReLU(_Activation):
    """y = x where x > 0, else slope x;  dx = dy or slope dy."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Array) -> Array:
        self.save(x)
        return kernels.leaky_relu_forward(x, self.slope)

    def backward(self, dy: Array) -> Array:
        return kernels.leaky_relu_backward(dy, *self.saved, self.slope)


class Sigmoid(_Activation):
    """y = 1 / (1 + e^-x);  dx = dy y (1 - y)."""

    operations = 4

    def forward(self, x: Array) -> Array:
        y = kernels.sigmoid_forward(x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return kernels.sigmoid_backward(dy, *self.saved)


class Tanh(_Activation):
    """y = tanh x;  dx = dy (1 - y^2)."""

    operations = 5

    def forward(self, x: Array) -> Array:
        y = kernels.tanh_forward(x)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return kernels.tanh_backward(dy, *self.saved)


class SiLU(_Activation):
    """y = x s, s = sigmoid(x);  dx = dy s (1 + x (1 - s))."""

    operations = 5

    def forward(self, x: Array) -> Array:
        self.save(x)
        return kernels.silu_forward(x)

    def backward(self, dy: Array) -> Array:
        return kernels.silu_backward(dy, *self.saved)


class GELU(_Activation):
    """y = x Phi(x);  dx = dy (Phi(x) + x phi(x))."""

    operations = 8

    def forward(self, x: Array) -> Array:
        self.save(x)
        return kernels.gelu_forward(x)

    def backward(self, dy: Array) -> Array:
        return kernels.gelu_backward(dy, *self.saved)


def _along(kernel: Callable[..., Array], *arrays: Array, axis: int) -> Array:
    """kernel(*arrays, axis), also of nothing, and of a single number, which has the axes 0 and -1 as in PyTorch."""
    if not arrays[0].size:
        return arrays[0].copy()
    return kernel(*arrays, axis) if arrays[0].ndim else kernel(*(a.reshape(1) for a in arrays), axis).reshape(())


class Softmax(_Activation):
    """y = e^x / sum e^x;  dx = y (dy - sum(dy y))."""

    operations = 4

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Array) -> Array:
        y = _along(kernels.softmax_forward, x, axis=self.axis)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return _along(kernels.softmax_backward, dy, *self.saved, axis=self.axis)


class LogSoftmax(Softmax):
    """y = x - log sum e^x;  dx = dy - e^y sum(dy)."""

    def forward(self, x: Array) -> Array:
        y = _along(kernels.log_softmax_forward, x, axis=self.axis)
        self.save(y)
        return y

    def backward(self, dy: Array) -> Array:
        return _along(kernels.log_softmax_backward, dy, *self.saved, axis=self.axis)


class Dropout(_Activation):
    """y = x keep / (1 - p);  dx = dy keep / (1 - p), with the same random mask, drawn again from (seed, offset)."""

    def __init__(self, p: float, draw: tuple[int, int]) -> None:
        super().__init__()
        self.p, self.draw = p, draw

    def forward(self, x: Array) -> Array:
        return kernels.dropout_forward(x, self.p, *self.draw)

    def backward(self, dy: Array) -> Array:
        return kernels.dropout_forward(dy, self.p, *self.draw)


def relu(x: Tensor) -> Tensor:
    """max(x, 0), as torch.relu; the gradient at 0 is 0. Integers stay integers, and booleans become int64."""
    return ReLU()(x)


def add_relu(x: Tensor, other: Tensor) -> Tensor:
    """max(x + other, 0) in one pass: the end of a residual block.

    Raises ValueError unless x and other have one shape.
    """
    if x.shape != other.shape:
        raise ValueError(f"add_relu: x has shape {x.shape} but the other map has {other.shape}")
    return AddReLU()(*promoted(x, other))


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope x, as PyTorch's leaky_relu."""
    return LeakyReLU(negative_slope)(real(x))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), as torch.sigmoid, without overflow."""
    return Sigmoid()(real(x))


def tanh(x: Tensor) -> Tensor:
    """(e^x - e^-x) / (e^x + e^-x), as torch.tanh."""
    return Tanh()(real(x))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), as PyTorch's silu (also called swish).  (Elfwing et al., arXiv 1702.03118)"""
    return SiLU()(real(x))


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), Phi the normal distribution function, as PyTorch's gelu: the exact form, not the tanh approximation.
    (Hendrycks & Gimpel, arXiv 1606.08415)
    """
    return GELU()(real(x))


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """e^x / sum e^x along `axis`, as torch.softmax, without overflow."""
    return Softmax(along("softmax", axis, x.ndim))(real(x))


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - log sum e^x along `axis`, as torch.log_softmax: accurate where softmax(x) underflows."""
    return LogSoftmax(along("log_softmax", axis, x.ndim))(real(x))


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Each value 0 with probability p, the others x / (1 - p), as PyTorch's dropout; x itself when not training.

    The mask comes from `autograd.random`: one draw per call. Raises ValueError unless 0 <= p < 1.  (Srivastava et al.,
    JMLR 2014)
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}, expected 0 <= p < 1")
    return Dropout(p, random.stream.next())(real(x)) if training and p > 0 else x
