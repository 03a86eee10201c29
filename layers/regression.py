"""Losses between arrays of one shape, as modules: reduction is 'mean', 'sum' or 'none'."""

from __future__ import annotations

from typing import Any

from autograd import Tensor, ops
from layers.module import Module


class _Reduced(Module):
    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"{type(self).__name__}: reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
        self.reduction = reduction

    def extra_repr(self) -> str:
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


class MSELoss(_Reduced):
    """(input - target)^2, two arrays that broadcast: `ops.mse_loss`, as torch.nn.MSELoss.

    reduction: 'mean', 'sum' or 'none', else ValueError.
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return ops.mse_loss(input, target, self.reduction)


class L1Loss(_Reduced):
    """|input - target|, two arrays that broadcast: `ops.l1_loss`, as torch.nn.L1Loss.

    reduction: 'mean', 'sum' or 'none', else ValueError.
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return ops.l1_loss(input, target, self.reduction)


class SmoothL1Loss(_Reduced):
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, d = input - target, two arrays that broadcast:
    `ops.smooth_l1_loss`, as torch.nn.SmoothL1Loss.

    reduction: 'mean', 'sum' or 'none', else ValueError; beta: at least 0, else ValueError.
    """

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        if beta < 0:
            raise ValueError(f"SmoothL1Loss: beta is {beta}, expected at least 0")
        self.beta = beta

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return ops.smooth_l1_loss(input, target, self.reduction, self.beta)


class BCEWithLogitsLoss(_Reduced):
    """`ops.binary_cross_entropy_with_logits` of input and target of one shape, as torch.nn.BCEWithLogitsLoss.

    weight, pos_weight: arrays that broadcast to the input.  reduction: 'mean', 'sum' or 'none', else ValueError.
    """

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.weight, self.pos_weight = weight, pos_weight

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return ops.binary_cross_entropy_with_logits(input, target, self.weight, self.reduction, self.pos_weight)
