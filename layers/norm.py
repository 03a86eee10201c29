"""Normalisation layers."""

from __future__ import annotations

import numpy as np

from autograd import Tensor, ops
from autograd.operands import as_tensor
from layers.module import Buffer, Module, Parameter


class BatchNorm2d(Module):
    """`ops.batch_norm` over (N, H, W) with gain, offset and running statistics: x (N, H, W, C) -> (N, H, W, C).

    `forward(x, residual)` adds a residual of x's shape before the activation (None or 'relu'). zero_gain: the gain
    starts at 0.
    momentum .1 and eps 1e-5 as PyTorch's (Keras would write the momentum .9). Raises ValueError in training for one
    value per channel.
    """

    def __init__(
        self,
        channels: int,
        momentum: float = 0.1,
        eps: float = 1e-5,
        activation: str | None = None,
        zero_gain: bool = False,
    ) -> None:
        start = np.zeros if zero_gain else np.ones
        self.weight = Parameter(start(channels, np.float32), decay=False)
        self.bias = Parameter(np.zeros(channels, np.float32), decay=False)
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))
        self.momentum, self.eps, self.activation = momentum, eps, activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        vectors = self.weight, self.bias, self.running_mean, self.running_var
        return ops.batch_norm(x, *vectors, self.training, self.momentum, self.eps, residual, self.activation)

    def extra_repr(self) -> str:
        return f"{self.weight.size}" + (f", activation={self.activation!r}" if self.activation else "")


class LayerNorm(Module):
    """`ops.layer_norm` over the last axis with gain and offset, as torch.nn.LayerNorm: x (..., channels) -> (...,
    channels).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        self.weight = Parameter(np.ones(channels, np.float32), decay=False)
        self.bias = Parameter(np.zeros(channels, np.float32), decay=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.size}"


class GroupNorm(Module):
    """`ops.group_norm` over groups of channels and all pixels, with gain and offset if `affine`: x (N, ..., C) -> (N,
    ..., C), as torch.nn.GroupNorm.

    Raises ValueError unless num_groups divides num_channels.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_groups is {num_groups}, expected a divisor of the {num_channels} channels"
            )
        self.weight = Parameter(np.ones(num_channels, np.float32), decay=False) if affine else None
        self.bias = Parameter(np.zeros(num_channels, np.float32), decay=False) if affine else None
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}"


class InstanceNorm2d(Module):
    """`ops.instance_norm` of every channel of every image: x (N, ..., C) -> (N, ..., C), as torch.nn.InstanceNorm2d
    without running statistics.

    affine: with gain and offset (by default not, as PyTorch's). Raises ValueError for images of one pixel.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = False) -> None:
        self.weight = Parameter(np.ones(num_features, np.float32), decay=False) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32), decay=False) if affine else None
        self.num_features, self.eps = num_features, eps

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("InstanceNorm2d: x", x)
        if x.shape[-1:] != (self.num_features,):
            raise ValueError(f"InstanceNorm2d: x has shape {x.shape}, expected {self.num_features} channels")
        return ops.instance_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}"


class RMSNorm(Module):
    """`ops.rms_norm` over the last axis with a gain: x (..., channels) -> (..., channels), as torch.nn.RMSNorm.

    eps: None means the machine epsilon of x's dtype, of float32 for float16.
    """

    def __init__(self, channels: int, eps: float | None = None) -> None:
        self.weight = Parameter(np.ones(channels, np.float32), decay=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.size}"
