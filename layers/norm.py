"""Normalisation layers."""

from __future__ import annotations

import numpy as np

from autograd import Tensor, ops
from layers.module import Buffer, Module, Parameter


class BatchNorm2d(Module):
    """ops.batch_norm over (N, H, W) with gain, offset and running statistics; adds a residual and applies ReLU if asked to.

    momentum .1 and eps 1e-5 as PyTorch's (Keras would write the momentum .9).
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5, activation: str | None = None, zero_gain: bool = False) -> None:
        start = np.zeros if zero_gain else np.ones
        self.weight = Parameter(start(channels, np.float32), decay=False)
        self.bias = Parameter(np.zeros(channels, np.float32), decay=False)
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))
        self.momentum, self.eps, self.activation = momentum, eps, activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        running = self.running_mean, self.running_var
        settings = self.training, self.momentum, self.eps, residual, self.activation
        return ops.batch_norm(x, self.weight, self.bias, *running, *settings)


class LayerNorm(Module):
    """ops.layer_norm over the last axis with gain and offset."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        self.weight = Parameter(np.ones(channels, np.float32), decay=False)
        self.bias = Parameter(np.zeros(channels, np.float32), decay=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)
