"""A convolution and the batch norm after it as one operator: the gradient between the two need not be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autograd.checks import check_batch_norm, checked_conv2d
from autograd.function import Function
from autograd.ops.conv import Conv2d
from autograd.tensor import Tensor
from kernels import conv as kernels
from kernels.core.device import Array
from kernels.core.geometry import Window
from kernels.norm.records import BatchNorm, SavedBatchNorm

__all__ = ["conv2d_batch_norm"]


class ConvBatchNorm(Function):
    """y = act(zhat weight + bias + residual), zhat = (z - mean) / sqrt(var + eps), z = conv(x, filter); mean and var of
    this very z.

    With g = dy where the ReLU was open, not y <= 0 (or dy, without ReLU), and M values per channel:
        dbias = sum g    dweight = sum g zhat    dresidual = g    dz = weight / sqrt(var + eps) (g - (dbias + zhat
        dweight) / M)
    and from dz the filter's and the maps' gradients as in Conv2d.
    """

    def __init__(
        self,
        window: Window,
        groups: int,
        running: tuple[Tensor, Tensor],
        momentum: float,
        eps: float,
        activation: str | None,
    ) -> None:
        super().__init__()
        self.window = window
        self.groups = groups
        self.running = running
        self.momentum = momentum
        self.eps = eps
        self.activation = activation

    def forward(self, w: Array, weight: Array, bias: Array, residual: Array | None, *maps: Array) -> Array:
        for running in self.running:
            running.will_change()
        mean, variance = self.running
        norm = BatchNorm(weight, bias, mean.data, variance.data, self.momentum, self.eps)
        y, z, mask, self.mean, self.inverse = kernels.conv2d_norm_forward(
            maps, w, norm, residual, self.activation, self.window, self.groups
        )
        self.save(w, weight, bias, z, mask, *maps)
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        w, weight, bias, z, mask, *maps = self.saved
        norm = SavedBatchNorm(mask, weight, bias, self.mean, self.inverse, self.activation)
        accumulate_into = (self.accumulators[4:] or (None,) * len(maps)) if any(self.needs[4:]) else None
        dw, dweight, dbias, dresidual, dxs = kernels.conv2d_norm_backward(
            dy,
            tuple(maps),
            w,
            z,
            norm,
            self.needs[3],
            self.window,
            self.groups,
            accumulate_into,
            any(self.donated),
        )
        return (
            dw,
            dweight,
            dbias,
            dresidual,
            *(dx if need else None for dx, need in zip(dxs, self.needs[4:], strict=True)),
        )

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return Conv2d.flops(self, inputs, outputs) + 4 * outputs[0].size  # type: ignore[arg-type]

    def backward_flops(self, forward: int) -> int:
        return forward * (self.needs[0] + any(self.needs[4:]))


def conv2d_batch_norm(
    input: Tensor | Sequence[Tensor],
    filter: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """batch_norm(conv2d(input, filter), ...) in training: input (N, H, W, C), or several maps as conv2d_relu's, filter
    (R, S, C/groups, K), the vectors (K,) -> (N, P, Q, K).

    The convolution's epilogue takes the batch's statistics; the running ones move as in batch_norm.
    residual (N, P, Q, K) is added before the activation (None or 'relu'). Raises ValueError and TypeError as the two
    operators do.
    """
    name = "conv2d_batch_norm"
    window, maps = checked_conv2d(input, filter, None, stride, padding, dilation, groups, several=True, name=name)
    n, h, w, _ = maps[0].shape
    shape = (n, *window.output_size((h, w)), filter.shape[3])
    check_batch_norm(shape, weight, bias, running_mean, running_var, residual, activation, training=True, operator=name)
    return ConvBatchNorm(window, groups, (running_mean, running_var), momentum, eps, activation)(
        filter, weight, bias, residual, *maps
    )
