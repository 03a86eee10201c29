"""Activations and dropout as modules, for use in `Sequential`."""

from __future__ import annotations

from autograd import Tensor, ops
from kernels.core.device import array_module
from layers.module import Module


class ReLU(Module):
    """ops.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class GELU(Module):
    """ops.gelu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class LeakyReLU(Module):
    """ops.leaky_relu."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"{self.negative_slope}"


class Sigmoid(Module):
    """ops.sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Tanh(Module):
    """ops.tanh."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class SiLU(Module):
    """ops.silu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(x)


class Softplus(Module):
    """ops.softplus."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta, self.threshold = beta, threshold

    def forward(self, x: Tensor) -> Tensor:
        return ops.softplus(x, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class Dropout(Module):
    """ops.dropout in training, the identity in evaluation."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}, expected 0 <= p < 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"{self.p}"


class Dropout2d(Dropout):
    """In training whole channels of an image are zero with probability p, and the others scaled by 1 / (1 - p); the
    identity in evaluation.

    x (N, H, W, C) -> the same shape, as PyTorch's, channels last: ops.dropout of a one per image and channel, times x.
    (Tompson et al., arXiv 1411.4280)
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"Dropout2d: x has shape {x.shape}, expected (N, H, W, C)")
        if not (self.training and self.p):
            return x
        ones = array_module(x.data).ones((len(x), 1, 1, x.shape[-1]), x.dtype)
        return x * ops.dropout(Tensor(ones), self.p)
