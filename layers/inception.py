"""The inception block: several kernel sizes and a max-pool branch, in parallel."""

from __future__ import annotations

from autograd import Tensor, ops
from layers.conv import ConvNorm
from layers.module import Identity, Module, Sequential


class InceptionBlock(Module):
    """y = relu(BN(1x1(concat(b1, b3, b5, bp))) + s(x)): x (N, H, W, in_channels) -> (N, H, W, out_channels).

    b1 = 1x1(x)    b3 = 3x3(1x1(x))    b5 = 5x5(1x1(x)) or 3x3(3x3(1x1(x)))    bp = 1x1(max-pool 3x3, stride 1)

    Each branch has out_channels / 4 channels, and every convolution is followed by batch norm and ReLU. The fusing
    norm's gain starts at 0, so the block starts as its shortcut; residual=False leaves out s(x).
    five: '5x5' or '3x3+3x3'. Raises ValueError for another, and unless 4 divides out_channels.
    Source: GoogLeNet, arXiv 1409.4842; residual form, arXiv 1602.07261.
    """

    def __init__(self, in_channels: int, out_channels: int, five: str = "5x5", residual: bool = True) -> None:
        if out_channels % 4:
            raise ValueError(
                f"InceptionBlock: out_channels is {out_channels}, expected a multiple of 4 (four branches)"
            )
        if five not in ("5x5", "3x3+3x3"):
            raise ValueError(f"InceptionBlock: five is {five!r}, expected '5x5' or '3x3+3x3'")
        branch = out_channels // 4
        # The three 1x1 convolutions of x are one with three times the outputs: x is read once, and its gradient written
        # once.
        self.entry = ConvNorm(in_channels, 3 * branch, 1)
        self.branch3 = ConvNorm(branch, branch, 3)
        self.branch5 = (
            ConvNorm(branch, branch, 5)
            if five == "5x5"
            else Sequential(ConvNorm(branch, branch, 3), ConvNorm(branch, branch, 3))
        )
        self.branch_pool = ConvNorm(in_channels, branch, 1)
        self.fuse = ConvNorm(out_channels, out_channels, 1, zero_gain=residual)
        self.shortcut: Module | None = None
        if residual:
            self.shortcut = (
                Identity() if in_channels == out_channels else ConvNorm(in_channels, out_channels, 1, activation=None)
            )

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.branch_pool(ops.max_pool2d(x, 3, 1, 1))
        entry = self.entry(x)
        one, three, five = ops.split(entry, [entry.shape[3] // 3] * 3)
        branches = one, self.branch3(three), self.branch5(five), pooled
        return self.fuse(branches, self.shortcut(x) if self.shortcut else None)
