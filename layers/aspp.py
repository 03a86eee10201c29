"""Mini-ASPP: parallel dilated convolutions with rates that suit a small map."""

from __future__ import annotations

from collections.abc import Sequence

from autograd import Tensor, ops
from layers.conv import Conv2d, ConvNorm
from layers.module import Module


class MiniASPP(Module):
    """y = CBR1x1(concat(CBR1x1(x), CBR3x3 of each rate, image pooling)) (+ x).  x (N, H, W, C) -> (N, H, W,
    out_channels).

    Each branch has C / 4 channels. Rates 1, 2, 4: on an 8 x 16 map more than half of the taps still fall inside (with
    rate 6 a third does). Image pooling is relu(1x1(mean)) without a norm (N values per channel are too few), repeated
    over the map.
    Source: DeepLabv3's ASPP, arXiv 1706.05587, at the scale of MarsSeg's, arXiv 2404.04155.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        rates: Sequence[int] = (1, 2, 4),
        pooling: bool = True,
        residual: bool = False,
    ) -> None:
        out = channels if out_channels is None else out_channels
        if residual and out != channels:
            raise ValueError(
                f"MiniASPP: the residual form needs as many output as input channels, got {out} and {channels}"
            )
        branch = max(1, channels // 4)
        self.point = ConvNorm(channels, branch, 1)
        self.dilated = [ConvNorm(channels, branch, 3, dilation=rate) for rate in rates]
        self.pool = Conv2d(channels, branch, 1) if pooling else None
        self.fuse = ConvNorm(branch * (1 + len(rates) + pooling), out, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.point(x), *(branch(x) for branch in self.dilated)]
        if self.pool:
            mean = ops.relu(self.pool(ops.adaptive_avg_pool2d(x, 1)))
            branches.append(ops.broadcast_to(mean, (*x.shape[:3], mean.shape[3])))
        y = self.fuse(ops.concat(branches))
        return y + x if self.residual else y
