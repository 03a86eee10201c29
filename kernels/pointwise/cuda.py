"""Activations, softmax and dropout on CUDA; the kernels and what they cost are described in pointwise.cu."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.core.cuda.arrays import ALIGNMENT, group_of, ready, type_of
from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, array_module

THREADS = 256
ACTIVATIONS = {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "silu": "Silu",
    "gelu": "Gelu",
}

MODULE = Module(
    "pointwise/pointwise.cu",
    (
        *(
            f"activation_{way}<{op}, {kind}>"
            for op in ACTIVATIONS.values()
            for way in ("forward", "backward")
            for kind in ("float", "double")
        ),
        "activation_plain<Gelu, float>",
        *(
            f"{name}<{kind}>"
            for name in ("dropout", "softmax_forward", "softmax_backward")
            for kind in ("float", "double")
        ),
    ),
)


def flat_launch(kernel: str, count: int, each: int) -> Launch:
    """A thread per `each` values."""
    return Launch(kernel, (blocks(blocks(count, each), THREADS),), (THREADS,))


def rows_launch(kernel: str, rows: int, group: int) -> Launch:
    """A group of lanes per row."""
    return Launch(kernel, (blocks(rows * group, THREADS),), (THREADS,))


def _activation(name: str, way: str, slope: float, *arrays: Array) -> Any:
    kind = type_of(*arrays)
    first = arrays[0]
    if kind is None or any(a.shape != first.shape for a in arrays):
        return NotImplemented
    out = array_module(first).empty(first.shape, first.dtype)
    launch = flat_launch(f"activation_{way}<{ACTIVATIONS[name]}, {kind}>", first.size, ALIGNMENT // first.itemsize)
    MODULE.run(launch, *map(ready, arrays), out, first.dtype.type(slope), first.size)
    return out


def relu_forward(x: Array) -> Any:
    """As kernels.pointwise.reference.relu_forward; likewise all functions below."""
    return _activation("relu", "forward", 0, x)


def relu_backward(dy: Array, y: Array) -> Any:
    """dx = dy [y > 0]."""
    return _activation("relu", "backward", 0, dy, y)


def leaky_relu_forward(x: Array, slope: float) -> Any:
    """y = x where x > 0, slope x elsewhere."""
    return _activation("leaky_relu", "forward", slope, x)


def leaky_relu_backward(dy: Array, x: Array, slope: float) -> Any:
    """dx = dy where x > 0, slope dy elsewhere."""
    return _activation("leaky_relu", "backward", slope, dy, x)


def sigmoid_forward(x: Array) -> Any:
    """y = 1 / (1 + e^-x)."""
    return _activation("sigmoid", "forward", 0, x)


def sigmoid_backward(dy: Array, y: Array) -> Any:
    """dx = dy y (1 - y)."""
    return _activation("sigmoid", "backward", 0, dy, y)


def tanh_forward(x: Array) -> Any:
    """y = tanh x."""
    return _activation("tanh", "forward", 0, x)


def tanh_backward(dy: Array, y: Array) -> Any:
    """dx = dy (1 - y^2)."""
    return _activation("tanh", "backward", 0, dy, y)


def silu_forward(x: Array) -> Any:
    """y = x sigmoid(x)."""
    return _activation("silu", "forward", 0, x)


def silu_backward(dy: Array, x: Array) -> Any:
    """dx = dy s (1 + x (1 - s))."""
    return _activation("silu", "backward", 0, dy, x)


def gelu_forward(x: Array) -> Any:
    """y = x Phi(x)."""
    return _activation("gelu", "forward", 0, x)


def gelu_backward(dy: Array, x: Array) -> Any:
    """dx = dy (Phi(x) + x phi(x))."""
    return _activation("gelu", "backward", 0, dy, x)


def dropout_forward(x: Array, p: float, seed: int, offset: int) -> Any:
    """The same Philox bits as the reference, computed where they are used."""
    kind = type_of(x)
    if kind is None:
        return NotImplemented
    y = array_module(x).empty(x.shape, x.dtype)
    threshold = math.ceil(float(np.float32(p)) * 2**24)  # u >= p for u = (word >> 8) 2^-24
    words = [np.uint32(value >> shift & 0xFFFFFFFF) for value in (seed, offset) for shift in (0, 32)]
    MODULE.run(
        flat_launch(f"dropout<{kind}>", x.size, 4),
        ready(x),
        y,
        x.dtype.type(1 / (1 - p)),
        np.uint32(threshold),
        *words,
        x.size,
    )
    return y


def _softmax(name: str, log: bool, axis: int, *arrays: Array) -> Any:
    kind = type_of(*arrays)
    first = arrays[0]
    if kind is None or any(a.shape != first.shape for a in arrays):
        return NotImplemented
    length = first.shape[axis]
    inner = math.prod(first.shape[axis % first.ndim + 1 :])
    rows = first.size // length
    group = group_of(length) if inner == 1 else 1
    if rows * group >= 2**31:
        return NotImplemented
    out = array_module(first).empty(first.shape, first.dtype)
    MODULE.run(rows_launch(f"{name}<{kind}>", rows, group), *map(ready, arrays), out, log, rows, length, inner, group)
    return out


def softmax_forward(x: Array, axis: int) -> Any:
    """y = e^(x - max) / sum e^(x - max) along `axis`."""
    return _softmax("softmax_forward", False, axis, x)


def softmax_backward(dy: Array, y: Array, axis: int) -> Any:
    """dx = y (dy - sum(dy y))."""
    return _softmax("softmax_backward", False, axis, dy, y)


def log_softmax_forward(x: Array, axis: int) -> Any:
    """y = x - max - log sum e^(x - max) along `axis`."""
    return _softmax("softmax_forward", True, axis, x)


def log_softmax_backward(dy: Array, y: Array, axis: int) -> Any:
    """dx = dy - e^y sum(dy)."""
    return _softmax("softmax_backward", True, axis, dy, y)
