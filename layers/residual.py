"""Residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

from autograd import Tensor
from autograd.operands import as_tensor
from layers.conv import Conv2d, ConvNorm
from layers.module import Identity, Module
from layers.norm import BatchNorm2d


class ResidualBlock(Module):
    """y = relu(BN2(3x3(relu(BN1(3x3(x))))) + s(x)): x (N, H, W, in_channels) -> (N, H, W, out_channels).

    s is the identity, or BN(1x1) where the numbers of channels differ; then x may be two maps, as if concatenated. The
    branch starts silent (gain 0). Raises TypeError for two maps where s is the identity.
    Source: He et al., arXiv 1512.03385.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        self.first = ConvNorm(in_channels, out_channels, 3)
        self.second = ConvNorm(out_channels, out_channels, 3, zero_gain=True)
        self.shortcut = (
            Identity() if in_channels == out_channels else ConvNorm(in_channels, out_channels, 1, activation=None)
        )

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        if isinstance(self.shortcut, Identity):
            x = as_tensor("ResidualBlock: x", x)
        return self.second(self.first(x), self.shortcut(x))


class PreActivationBlock(Module):
    """y = s(x) + 3x3(relu(BN2(3x3(relu(BN1(x)))))): x (N, H, W, in_channels) -> (N, H, W, out_channels).

    s is the identity, or a 1x1 convolution where the numbers of channels differ: the shortcut is clean, without norm
    and ReLU.
    Source: He et al., arXiv 1603.05027.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        self.norm1 = BatchNorm2d(in_channels, activation="relu")
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding="same", bias=False)
        self.norm2 = BatchNorm2d(out_channels, activation="relu")
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding="same", bias=False)
        self.shortcut = Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))
