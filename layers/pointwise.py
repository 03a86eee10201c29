"""Activations and dropout as modules, for use in `Sequential`."""

from __future__ import annotations

from autograd import Tensor, ops
from layers.module import Module


class ReLU(Module):
    """ops.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class GELU(Module):
    """ops.gelu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class Dropout(Module):
    """ops.dropout in training, the identity in evaluation."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}, expected 0 <= p < 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)
