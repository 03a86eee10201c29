"""Group, instance and RMS norm, channels last. The first two are layer norm over groups of channels and all pixels."""

from __future__ import annotations

import math

import numpy as np

from autograd.checks import check_floats
from autograd.function import Function, unbroadcast
from autograd.ops.arithmetic import add, mul
from autograd.ops.norm import layer_norm
from autograd.ops.shape import reshape, transpose
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module
from kernels.core.reduction import halves_in_float32, wide_type
from kernels.shape import evaluate

__all__ = ["group_norm", "instance_norm", "rms_norm"]


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalisation over groups of consecutive channels and all pixels of an image, as PyTorch's group_norm, channels
    last.

    x (N, ..., C), weight and bias (C,) or None -> (N, ..., C).  Source: Wu & He, arXiv 1803.08494.
    Raises ValueError when the groups do not divide the channels, or shapes do not fit.
    """
    return _grouped("group_norm", x, num_groups, weight, bias, eps)


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalisation of every channel of every image over its pixels: x (N, ..., C), weight and bias (C,) or None -> (N,
    ..., C).

    PyTorch's instance_norm without running statistics, channels last: group norm with a group per channel.  (Ulyanov et
    al., arXiv 1607.08022) Raises ValueError when the vectors do not fit, or for images of one pixel.
    """
    if x.ndim > 1 and math.prod(x.shape[1:-1]) == 1:
        raise ValueError(f"instance_norm: x {x.shape} has 1 pixel, expected at least 2")
    return _grouped("instance_norm", x, x.shape[-1] if x.ndim else 0, weight, bias, eps)


def _grouped(name: str, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if x.ndim < 2:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (N, ..., C)")
    check_floats(name, x.dtype)
    n = x.shape[0]
    c = x.shape[-1]
    pixels = math.prod(x.shape[1:-1])
    if groups < 1 or c % groups:
        raise ValueError(f"{name}: num_groups is {groups}, expected a divisor of the {c} channels of x {x.shape}")
    _check_vectors(name, x, weight, bias)
    width = c // groups
    if x.size and pixels * width < 2:
        raise ValueError(f"{name}: a group of x {x.shape} has {pixels * width} values, expected at least 2")
    # (N, P, G, C/G) -> (N, G, P C/G): the values of a group as a row
    rows = reshape(transpose(reshape(x, (n, pixels, groups, width)), (0, 2, 1, 3)), (n, groups, pixels * width))
    xp = array_module(x.data)
    y = layer_norm(rows, Tensor(xp.ones(pixels * width, x.dtype)), Tensor(xp.zeros(pixels * width, x.dtype)), eps)
    y = reshape(transpose(reshape(y, (n, groups, pixels, width)), (0, 2, 1, 3)), x.shape)
    y = y if weight is None else mul(y, weight)
    return y if bias is None else add(y, bias)


class RMSNorm(Function):
    """y = x r w over the last axis, r = 1 / sqrt(mean(x^2) + eps);  with g = dy w: dx = r (g - x r^2 mean(g x)), dw =
    sum of dy x r.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Array, w: Array | None) -> Array:
        self.save(x, w)
        return evaluate(halves_in_float32(self._value), x, *self._weight)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        x, w = self.saved
        dx = evaluate(halves_in_float32(self._of_input), dy, x, *self._weight) if self.needs[0] else None
        return dx, unbroadcast(evaluate(halves_in_float32(self._of_weight), dy, x), w.shape) if self.needs[1] else None

    @property
    def _weight(self) -> tuple[Array, ...]:
        w = self.saved[1]
        return () if w is None else (w,)

    def _value(self, x: Array, *w: Array) -> Array:
        y = x * self._rate(x)
        return y * w[0] if w else y

    def _of_input(self, dy: Array, x: Array, *w: Array) -> Array:
        g = dy * w[0] if w else dy
        r = self._rate(x)
        return r * (g - x * (r * r * (g * x).mean(-1, keepdims=True)))

    def _of_weight(self, dy: Array, x: Array) -> Array:
        return dy * x * self._rate(x)

    def _rate(self, x: Array) -> Array:
        """r, with one number per row."""
        return 1 / array_module(x).sqrt((x * x).mean(-1, keepdims=True) + self.eps)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 5 * outputs[0].size


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Division by the root mean square over the last axis: x (..., C), weight (C,) or None -> (..., C), as PyTorch's
    rms_norm.

    eps: None means the machine epsilon of x's dtype, of float32 for float16.   Raises ValueError when the weight does
    not fit.
    Source: Zhang & Sennrich, arXiv 1910.07467.
    """
    check_floats("rms_norm", x.dtype)
    _check_vectors("rms_norm", x, weight, None)
    return RMSNorm(float(np.finfo(wide_type(x.dtype)).eps) if eps is None else eps)(x, weight)


def _check_vectors(name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    for what, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(f"{name}: {what} has shape {vector.shape}, expected {x.shape[-1:]} for x {x.shape}")
