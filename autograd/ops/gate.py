"""Sigmoid gates."""

from __future__ import annotations

from autograd.checks import check_floats
from autograd.function import Function
from autograd.tensor import Tensor
from kernels import gate as kernels
from kernels.core.device import Array

__all__ = ["blend", "gate"]


class Gate(Function):
    """y = x s, s = sigmoid(z), one gate per pixel or per value;  dx = dy s, dz = sum(dy x) s (1 - s)."""

    def forward(self, x: Array, z: Array) -> Array:
        self.save(x, z)
        return kernels.gate_forward(x, z)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return kernels.gate_backward(dy, *self.saved)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return outputs[0].size + 4 * inputs[1].size


class Blend(Function):
    """y = s x + (1 - s) other, s = sigmoid(z);  dx = s dy, dother = (1 - s) dy, dz = sum(dy (x - other)) s (1 - s)."""

    def forward(self, x: Array, other: Array, z: Array) -> Array:
        self.save(x, other, z)
        return kernels.blend_forward(x, other, z)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return kernels.blend_backward(dy, *self.saved)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 3 * outputs[0].size + 4 * inputs[2].size


def gate(x: Tensor, z: Tensor) -> Tensor:
    """x sigmoid(z): x (N, H, W, C), z one gate per pixel (N, H, W, 1) or per value (N, H, W, C) -> (N, H, W, C)."""
    _check("gate", x, z)
    return Gate()(x, z)


def blend(x: Tensor, other: Tensor, z: Tensor) -> Tensor:
    """sigmoid(z) x + (1 - sigmoid(z)) other: x, other (N, H, W, C), z (N, H, W, 1) or (N, H, W, C) -> (N, H, W, C)."""
    _check("blend", x, z)
    if other.shape != x.shape:
        raise ValueError(f"blend: x has shape {x.shape} but other has {other.shape}")
    check_floats("blend", other.dtype, "other")
    return Blend()(x, other, z)


def _check(name: str, x: Tensor, z: Tensor) -> None:
    check_floats(name, x.dtype)
    check_floats(name, z.dtype, "z")
    if z.shape not in (x.shape, (*x.shape[:-1], 1)):
        raise ValueError(f"{name}: z has shape {z.shape}, expected {(*x.shape[:-1], 1)} or {x.shape} for x {x.shape}")
