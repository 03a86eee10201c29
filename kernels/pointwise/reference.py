"""Activations, softmax and dropout. Each backward reads the input x or the output y, whichever is cheaper."""

from __future__ import annotations

import math

from kernels.core import random
from kernels.core.device import Array, array_module
from kernels.core.reduction import halves_in_float32


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x) without overflow: e = exp(-|x|), then 1 / (1 + e) or e / (1 + e)."""
    xp = array_module(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1, e) / (1 + e)


def erf(x: Array) -> Array:
    """The error function by its series with positive terms only, so nothing cancels:

    erf(x) = 2 x / sqrt(pi) exp(-x^2) sum_n (2 x^2)^n / (1 3 5 ... (2n + 1)),   |x| <= 6;  +-1 beyond, exact in float64.
    """
    xp = array_module(x)
    sign = array_module(x).sign(x)
    x = x.clip(-6, 6)
    term = total = xp.ones_like(x)
    for n in range(1, 130):
        term = term * (2 * x * x) / (2 * n + 1)
        total = total + term
    return xp.where(xp.abs(x) < 6, 2 / math.sqrt(math.pi) * x * xp.exp(-x * x) * total, sign)


def relu_forward(x: Array) -> Array:
    """y = max(x, 0); NaN stays NaN."""
    return x.clip(0, None)


def add_relu_forward(x: Array, other: Array) -> Array:
    """y = max(x + other, 0), equal shapes."""
    return relu_forward(x + other)


def relu_backward(dy: Array, y: Array) -> Array:
    """dx = 0 where y <= 0, else dy: at x = 0 the gradient is 0, and a NaN passes it, as in PyTorch."""
    xp = array_module(dy)
    return xp.where(y <= 0, xp.zeros((), dy.dtype), dy)


def leaky_relu_forward(x: Array, slope: float) -> Array:
    """y = x where x > 0, slope x elsewhere."""
    return array_module(x).where(x > 0, x, slope * x)


def leaky_relu_backward(dy: Array, x: Array, slope: float) -> Array:
    """dx = dy where x > 0, slope dy elsewhere."""
    return array_module(dy).where(x > 0, dy, slope * dy)


@halves_in_float32
def sigmoid_forward(x: Array) -> Array:
    """y = 1 / (1 + e^-x)."""
    return sigmoid(x)


@halves_in_float32
def sigmoid_backward(dy: Array, y: Array) -> Array:
    """dx = dy y (1 - y)."""
    return dy * y * (1 - y)


def tanh_forward(x: Array) -> Array:
    """y = tanh x."""
    return array_module(x).tanh(x)


@halves_in_float32
def tanh_backward(dy: Array, y: Array) -> Array:
    """dx = dy (1 - y^2)."""
    return dy * (1 - y * y)


@halves_in_float32
def silu_forward(x: Array) -> Array:
    """y = x sigmoid(x).  (Elfwing et al., arXiv 1702.03118)"""
    return x * sigmoid(x)


@halves_in_float32
def silu_backward(dy: Array, x: Array) -> Array:
    """dx = dy s (1 + x (1 - s)), s = sigmoid(x)."""
    s = sigmoid(x)
    return dy * s * (1 + x * (1 - s))


@halves_in_float32
def gelu_forward(x: Array) -> Array:
    """y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2.  (Hendrycks & Gimpel, arXiv 1606.08415)"""
    return x * (0.5 + 0.5 * erf(x * math.sqrt(0.5)))


@halves_in_float32
def gelu_backward(dy: Array, x: Array) -> Array:
    """dx = dy (Phi(x) + x phi(x)), phi the normal density."""
    density = array_module(x).exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return dy * (0.5 + 0.5 * erf(x * math.sqrt(0.5)) + x * density)


@halves_in_float32
def softmax_forward(x: Array, axis: int) -> Array:
    """y = e^(x - max) / sum e^(x - max) along `axis`."""
    if not x.size:
        return x.copy()
    e = array_module(x).exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@halves_in_float32
def softmax_backward(dy: Array, y: Array, axis: int) -> Array:
    """dx = y (dy - sum(dy y))."""
    return y * (dy - (dy * y).sum(axis, keepdims=True))


@halves_in_float32
def log_softmax_forward(x: Array, axis: int) -> Array:
    """y = x - max - log sum e^(x - max) along `axis`."""
    xp = array_module(x)
    if not x.size:
        return x.copy()
    x = x - x.max(axis, keepdims=True)
    return x - xp.log(xp.exp(x).sum(axis, keepdims=True))


@halves_in_float32
def log_softmax_backward(dy: Array, y: Array, axis: int) -> Array:
    """dx = dy - e^y sum(dy)."""
    return dy - array_module(y).exp(y) * dy.sum(axis, keepdims=True)


def dropout_forward(x: Array, p: float, seed: int, offset: int) -> Array:
    """y = x m, m = keep / (1 - p), keep = [u >= p] with u the uniform numbers of the Philox stream (seed, offset). 0
    times NaN or infinity is NaN.

    It is its own backward: the mask is made again from (seed, offset), never stored.  (Srivastava et al., JMLR 15,
        2014)
    """
    xp = array_module(x)
    keep = random.uniform(seed, offset, x.shape, xp) >= p
    return x * xp.where(keep, xp.asarray(1 / (1 - p), x.dtype), xp.zeros((), x.dtype))
