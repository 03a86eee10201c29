"""Fast activations: one vector program each over the flat array, by all threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.thread_pool import flat, parallel
from kernels.core.cpu.vector_ops import vector_loop

_CHUNK = 65_536

Body = Callable[..., Vec]  # (code, input vectors ...) -> output vector


def erf(code: Code, x: Vec) -> Vec:
    """The error function, to 2e-7: erf |x| = 1 - t P(t) e^(-x^2) with t = 1 / (1 + |x| / 2); P interpolates at
    Chebyshev nodes of t.
    """
    size = code.maximum(x, -x)
    t = 1 / code.fma(size, 0.5, 1)
    total = code.vec(_ERF[-1])
    for coefficient in reversed(_ERF[:-1]):
        total = code.fma(total, t, coefficient)
    result = 1 - t * total * code.exp(-size * size)
    return code.select(x > 0, result, -result)


def _erf_coefficients(degree: int = 9) -> list[float]:
    """The coefficients of P(t) = erfc(x) e^(x^2) / t, x = 2 (1 / t - 1), on 0.2 <= t <= 1 (beyond, e^(-x^2) is 0 in
    float32).
    """
    nodes = 0.6 + 0.4 * np.cos((np.arange(degree + 1) + 0.5) * math.pi / (degree + 1))
    values = [math.erfc(x) * math.exp(x * x) / t for t, x in zip(nodes, 2 * (1 / nodes - 1), strict=True)]
    return [float(c) for c in np.polynomial.Polynomial.fit(nodes, values, degree, domain=[-1, 1]).coef]


_ERF = _erf_coefficients()


def _phi(code: Code, x: Vec) -> Vec:
    return code.fma(erf(code, x * math.sqrt(0.5)), 0.5, 0.5)


BODIES: dict[str, Body] = {
    "relu_forward": lambda code, x: code.relu(x),
    "add_relu_forward": lambda code, x, other: code.relu(x + other),
    "relu_backward": lambda code, dy, y: code.select(code.relu_open(y), dy, 0),
    "sigmoid_forward": lambda code, x: code.sigmoid(x),
    "sigmoid_backward": lambda code, dy, y: dy * y * (1 - y),
    "tanh_forward": lambda code, x: _tanh(code, x),
    "tanh_backward": lambda code, dy, y: dy * (1 - y * y),
    "silu_forward": lambda code, x: x * code.sigmoid(x),
    "silu_backward": lambda code, dy, x: _silu_gradient(code, dy, x),
    "gelu_forward": lambda code, x: x * _phi(code, x),
    "gelu_backward": lambda code, dy, x: (
        dy * code.fma(x * (1 / math.sqrt(2 * math.pi)), code.exp(x * x * -0.5), _phi(code, x))
    ),
}


def _tanh(code: Code, x: Vec) -> Vec:
    """(1 - e) / (1 + e) with e = e^(-2 |x|); where |x| < 0.5 that would cancel, so the series x - x^3 / 3 + ... serves,
    to x^13.
    """
    size = code.maximum(x, -x)
    e = code.exp(size * -2)
    far = (1 - e) / (1 + e)
    square = x * x
    total = code.vec(_TANH[-1])
    for coefficient in reversed(_TANH[:-1]):
        total = code.fma(total, square, coefficient)
    return code.select(code.vec(0.5) > size, x * total, code.select(x > 0, far, -far))


_TANH = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875)


def _silu_gradient(code: Code, dy: Vec, x: Vec) -> Vec:
    s = code.sigmoid(x)
    return dy * s * code.fma(x, 1 - s, 1)


@lru_cache(maxsize=32)
def _map_kernel(name: str) -> Kernel:
    body = BODIES[name]
    inputs = BODIES[name].__code__.co_argcount - 1

    @program
    def apply(code: Code, a: Pointer, b: Pointer, y: Pointer, at: Int, length: Int) -> None:
        def one(i: Int, rest: Any) -> None:
            vectors = [code.load(p, at + i, rest) for p in (a, b)[:inputs]]
            code.store(body(code, *vectors), y, at + i, rest)

        vector_loop(code, length, one)

    @cpu_kernel(name)
    def pointwise_map(start, stop, scratch, a: F32, b: F32, y: F32, n: int):
        for chunk in range(start, stop):
            apply(a, b, y, chunk * _CHUNK, min(_CHUNK, n - chunk * _CHUNK))

    return pointwise_map


def _mapped(name: str, *arrays: np.ndarray) -> Any:
    first = arrays[0]
    if not first.size or any(a.dtype != np.float32 or a.shape != first.shape for a in arrays):
        return NotImplemented
    inputs = flat(*arrays)
    y = buffer_pool.empty(first.shape, np.float32)
    parallel(_map_kernel(name), -(-first.size // _CHUNK), inputs[0], inputs[-1], y.reshape(-1), first.size)
    return y


def relu_forward(x: np.ndarray) -> Any:
    """As kernels.pointwise.reference.relu_forward; likewise all functions below."""
    return _mapped("relu_forward", x)


def add_relu_forward(x: np.ndarray, other: np.ndarray) -> Any:
    """y = max(x + other, 0)."""
    return _mapped("add_relu_forward", x, other)


def relu_backward(dy: np.ndarray, y: np.ndarray) -> Any:
    """dx = 0 where y <= 0, else dy."""
    return _mapped("relu_backward", dy, y)


def sigmoid_forward(x: np.ndarray) -> Any:
    """y = 1 / (1 + e^-x)."""
    return _mapped("sigmoid_forward", x)


def sigmoid_backward(dy: np.ndarray, y: np.ndarray) -> Any:
    """dx = dy y (1 - y)."""
    return _mapped("sigmoid_backward", dy, y)


def tanh_forward(x: np.ndarray) -> Any:
    """y = tanh x."""
    return _mapped("tanh_forward", x)


def tanh_backward(dy: np.ndarray, y: np.ndarray) -> Any:
    """dx = dy (1 - y^2)."""
    return _mapped("tanh_backward", dy, y)


def silu_forward(x: np.ndarray) -> Any:
    """y = x sigmoid(x)."""
    return _mapped("silu_forward", x)


def silu_backward(dy: np.ndarray, x: np.ndarray) -> Any:
    """dx = dy s (1 + x (1 - s))."""
    return _mapped("silu_backward", dy, x)


def gelu_forward(x: np.ndarray) -> Any:
    """y = x Phi(x)."""
    return _mapped("gelu_forward", x)


def gelu_backward(dy: np.ndarray, x: np.ndarray) -> Any:
    """dx = dy (Phi(x) + x phi(x))."""
    return _mapped("gelu_backward", dy, x)
