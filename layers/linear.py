"""Dense layers, and tables of vectors."""

from __future__ import annotations

import math
from typing import Any

from autograd import Tensor, ops
from layers.initialisers import normal, uniform
from layers.module import Module, Parameter, changed


class Linear(Module):
    """ops.linear with its weight (out_features, in_features) and bias (out_features,): x (..., in_features) -> (...,
    out_features).

    Both start uniform within 1 / sqrt(in_features), as PyTorch's do; PyTorch's weights can be used unchanged.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        if min(in_features, out_features) < 1:
            raise ValueError(f"Linear: got {in_features} input and {out_features} output features, expected at least 1")
        bound = 1 / math.sqrt(in_features)
        self.weight = Parameter(uniform((out_features, in_features), bound))
        self.bias = Parameter(uniform((out_features,), bound), decay=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}" + (", bias=False" if self.bias is None else "")


class Embedding(Module):
    """`ops.embedding` with its table (num_embeddings, embedding_dim): integers (...) -> (..., embedding_dim). It starts
    as N(0, 1), as torch.nn.Embedding.

    padding_idx: a row that starts as 0 and gets no gradient. Raises ValueError for one that the table does not have,
    IndexError for an integer outside the table.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        self.weight = Parameter(normal((num_embeddings, embedding_dim), 1.0))
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(
                    f"Embedding: padding_idx is {padding_idx}, expected {-num_embeddings} to {num_embeddings - 1}"
                )
            self.weight.data[padding_idx] = 0
        self.padding_idx = padding_idx

    def forward(self, index: Any) -> Tensor:
        return ops.embedding(index, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}" + (
            "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        )


class Flatten(Module):
    """ops.flatten: the axes start_dim to end_dim as one: x (N, H, W, C) -> (N, H W C).

    Channels come last: a weight of PyTorch's for the layer after it needs reordering.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return ops.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return ", ".join(changed(self, start_dim=1, end_dim=-1))
