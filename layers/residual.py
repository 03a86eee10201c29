"""Residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

from autograd import Tensor
from layers.conv import Conv2d, ConvNorm
from layers.module import Identity, Module
from layers.norm import BatchNorm2d


class ResidualBlock(Module):
    """y = relu(BN2(W2 relu(BN1(W1 x))) + s(x)), s the identity or BN(1x1) where the channels change. The branch starts
    silent (gain 0). x may be two maps, as if concatenated, where the channels change.

    Source: He et al., arXiv 1512.03385.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        self.first = ConvNorm(in_channels, out_channels, 3)
        self.second = ConvNorm(out_channels, out_channels, 3, zero_gain=True)
        self.shortcut = (
            Identity() if in_channels == out_channels else ConvNorm(in_channels, out_channels, 1, activation=None)
        )

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return self.second(self.first(x), self.shortcut(x))


class PreActivationBlock(Module):
    """y = s(x) + W2 relu(BN2(W1 relu(BN1 x))): the variant with a clean shortcut.  Source:
    He et al., arXiv 1603.05027.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        self.norm1 = BatchNorm2d(in_channels, activation="relu")
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding="same", bias=False)
        self.norm2 = BatchNorm2d(out_channels, activation="relu")
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding="same", bias=False)
        self.shortcut = Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))
