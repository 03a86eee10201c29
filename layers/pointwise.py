"""Activations and dropout as modules, for use in `Sequential`."""

from __future__ import annotations

from autograd import Tensor, ops
from autograd.operands import as_tensor
from kernels.core.device import array_module
from layers.module import Module


class ReLU(Module):
    """max(x, 0), x of any shape: `ops.relu`, as torch.nn.ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class GELU(Module):
    """x Phi(x), Phi the normal distribution function, x of any shape: `ops.gelu`, as torch.nn.GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class LeakyReLU(Module):
    """x where x > 0, else negative_slope x, x of any shape: `ops.leaky_relu`, as torch.nn.LeakyReLU."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"{self.negative_slope}"


class Sigmoid(Module):
    """1 / (1 + e^-x), x of any shape: `ops.sigmoid`, as torch.nn.Sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent of x of any shape: `ops.tanh`, as torch.nn.Tanh."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class SiLU(Module):
    """x sigmoid(x), x of any shape: `ops.silu`, as torch.nn.SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(x)


class Softplus(Module):
    """log(1 + e^(beta x)) / beta, and x where beta x > threshold: `ops.softplus`, as torch.nn.Softplus."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta, self.threshold = beta, threshold

    def forward(self, x: Tensor) -> Tensor:
        return ops.softplus(x, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class Dropout(Module):
    """Each value 0 with probability p in training, the others x / (1 - p); x itself in evaluation: `ops.dropout`, as
    torch.nn.Dropout.

    Raises ValueError unless 0 <= p < 1.
    """

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

    x (N, H, W, C) -> the same shape, as torch.nn.Dropout2d, channels last: ops.dropout of a one per image and channel,
    times x. Raises ValueError for other axes and unless 0 <= p < 1.
    Source: Tompson et al., arXiv 1411.4280.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("Dropout2d: x", x)
        if x.ndim != 4:
            raise ValueError(f"Dropout2d: x has shape {x.shape}, expected (N, H, W, C)")
        if not (self.training and self.p):
            return x
        ones = array_module(x.data).ones((len(x), 1, 1, x.shape[-1]), x.dtype)
        return x * ops.dropout(Tensor(ones), self.p)
