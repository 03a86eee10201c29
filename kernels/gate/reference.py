"""Sigmoid gates: features scaled by a gate, and two feature maps blended by one.

z has one channel (one gate per pixel) or as many as the features. Bytes per element, ideally: forward 1 read, 1 write.
Source: attention gates, Oktay et al., arXiv 1804.03999.
"""

from __future__ import annotations

from kernels.core.device import Array
from kernels.core.reduction import halves_in_float32
from kernels.pointwise.reference import sigmoid


@halves_in_float32
def gate_forward(x: Array, z: Array) -> Array:
    """y = x sigmoid(z).  x (N, H, W, C), z (N, H, W, 1 or C) -> y (N, H, W, C)."""
    return x * sigmoid(z)


@halves_in_float32
def gate_backward(dy: Array, x: Array, z: Array) -> tuple[Array, Array]:
    """dx = dy s,  dz = (dy x) s (1 - s), summed over the channels a gate serves;  s = sigmoid(z)."""
    s = sigmoid(z)
    return dy * s, _per_gate(dy * x, z) * s * (1 - s)


@halves_in_float32
def blend_forward(x: Array, other: Array, z: Array) -> Array:
    """y = s x + (1 - s) other,  s = sigmoid(z)."""
    s = sigmoid(z)
    return s * x + (1 - s) * other


@halves_in_float32
def blend_backward(dy: Array, x: Array, other: Array, z: Array) -> tuple[Array, Array, Array]:
    """dx = s dy,  dother = (1 - s) dy,  dz = <dy, x - other> s (1 - s)."""
    s = sigmoid(z)
    return s * dy, (1 - s) * dy, _per_gate(dy * (x - other), z) * s * (1 - s)


def _per_gate(products: Array, z: Array) -> Array:
    return products.sum(-1, keepdims=True) if z.shape[-1] == 1 else products
