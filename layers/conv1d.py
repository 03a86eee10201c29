"""Convolution along one axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import Tensor, ops
from layers.initialisers import he_normal
from layers.module import Module, Parameter, changed


class Conv1d(Module):
    """`ops.conv1d` with its filter (R, C/groups, K) and bias (K,): x (N, L, C), channels last -> (N, P, K).

    Settings as torch.nn.Conv1d's. Raises ValueError unless groups divides both numbers of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Any = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv1d: groups = {groups} must divide in_channels {in_channels} and out_channels {out_channels}"
            )
        shape = (kernel_size, in_channels // groups, out_channels)
        self.weight = Parameter(he_normal(shape, shape[0] * shape[1]))
        self.bias = Parameter(np.zeros(out_channels, np.float32), decay=False) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        size, channels, filters = self.weight.shape
        others = changed(self, stride=1, padding=0, dilation=1, groups=1)
        return ", ".join(
            [
                f"{channels * self.groups}, {filters}, kernel_size={size}",
                *others,
                *(["bias=False"] if self.bias is None else []),
            ]
        )
