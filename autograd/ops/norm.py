"""Batch norm, with the addition and the ReLU that follow it fused in, and layer norm."""

from __future__ import annotations

from autograd.checks import check_batch_norm, check_floats
from autograd.function import Function
from autograd.tensor import Tensor
from kernels import norm as kernels
from kernels.core.device import Array
from kernels.norm.records import SavedBatchNorm
from kernels.shape import evaluate

__all__ = ["batch_norm", "layer_norm"]


class BatchNorm(Function):
    """y = act(xhat weight + bias + residual), xhat = (x - mean) / sqrt(var + eps), per channel over N, H, W.

    With g = dy where the ReLU was open, not y <= 0 (or dy, without ReLU), and M values per channel, in training:
        dbias = sum g    dweight = sum g xhat    dx = weight / sqrt(var + eps) (g - (dbias + xhat dweight) / M)
        dresidual = g
    In evaluation mean and var are constants: dx = weight / sqrt(var + eps) g.
    """

    def __init__(self, mean: Array, variance: Array, eps: float, training: bool, activation: str | None) -> None:
        super().__init__()
        self.mean = mean
        self.inverse = kernels.batch_norm_inverse(variance, eps)
        self.training, self.activation = training, activation

    def forward(self, x: Array, weight: Array, bias: Array, residual: Array | None) -> Array:
        y, mask = kernels.batch_norm_forward(x, weight, bias, self.mean, self.inverse, residual, self.activation)
        self.save(x, weight, bias, mask)
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, weight, bias, mask = self.saved
        norm = SavedBatchNorm(mask, weight, bias, self.mean, self.inverse, self.activation)
        return kernels.batch_norm_backward(dy, x, norm, self.training, self.needs[3], any(self.donated))

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 4 * outputs[0].size


class LayerNorm(Function):
    """y = xhat weight + bias over the last axis;  with g = dy weight:
    dx = inverse (g - mean(g) - xhat mean(g xhat)).
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        self.save(x, weight)
        return kernels.layer_norm_forward(x, weight, bias, self.eps)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return kernels.layer_norm_backward(dy, *self.saved, self.eps)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 8 * outputs[0].size


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) weight + bias per channel, over all axes but the last, as PyTorch's batch_norm: x
    (N, H, W, C), the vectors (C,) -> (N, H, W, C).

    In training mean and variance are the batch's, and the running ones move towards them in place by `momentum` (with
    the unbiased variance, as PyTorch's); else they are the running ones. residual (of x's shape) is added before the
    activation (None or 'relu').
    Raises ValueError when shapes do not fit, or when training has a single value per channel.
    Source: Ioffe & Szegedy, arXiv 1502.03167.
    """
    check_floats("batch_norm", x.dtype)
    check_batch_norm(x.shape, weight, bias, running_mean, running_var, residual, activation, training)
    if training:
        mean, variance = kernels.batch_norm_statistics(x.data)
        running_mean.will_change()
        running_var.will_change()
        kernels.batch_norm_running(running_mean.data, running_var.data, mean, variance, x.size // x.shape[-1], momentum)
    else:
        mean = evaluate(_widened, running_mean.data)
        variance = evaluate(_widened, running_var.data)
    return BatchNorm(mean, variance, eps, training, activation)(x, weight, bias, residual)


def _widened(a: Array) -> Array:
    return a.astype("float64")


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) weight + bias, mean and var over the last axis: x (..., C), weight and bias (C,) ->
    (..., C), as PyTorch's layer_norm.

    Raises ValueError when the vectors do not fit; TypeError when their dtype is not that of x (or both are float32 and
    x is float16).
    Source: Ba et al., arXiv 1607.06450.
    """
    check_floats("layer_norm", x.dtype)
    expected = weight.dtype if (x.dtype, weight.dtype) == ("float16", "float32") else x.dtype
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm: {name} has shape {vector.shape}, expected {x.shape[-1:]} for x {x.shape}")
        if vector.dtype != expected:
            raise TypeError(f"layer_norm: {name} is {vector.dtype}, expected {expected} for x of {x.dtype}")
    return LayerNorm(eps)(x, weight, bias)
