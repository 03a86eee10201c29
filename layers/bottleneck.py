"""The bottleneck of the report and its ablations."""

from __future__ import annotations

from autograd import Tensor
from layers.aspp import MiniASPP
from layers.attention import MultiHeadSelfAttention, PolarizedSelfAttention
from layers.conv import ConvNorm
from layers.module import Identity, Module, Sequential
from layers.strip import StripPyramidPooling

KINDS = ("aspp+psa+spp", "aspp+psa", "psa", "mhsa", "none")


class AttentionAndStrips(Module):
    """y = CBR1x1(concat(s, p)): s = PSA(x), p = SPP(s) (order 'serial') or SPP(x) ('parallel'), x (N, H, W, C) -> (N,
    H, W, C).

    PSA is `PolarizedSelfAttention` with psa_mode, SPP `StripPyramidPooling`. Raises ValueError for another order or
    mode.
    The report: "processed through PSA, and refined using SPP - concatenating the attention and pooling features".
    """

    def __init__(self, channels: int, order: str = "serial", psa_mode: str = "sequential") -> None:
        if order not in ("serial", "parallel"):
            raise ValueError(f"AttentionAndStrips: order is {order!r}, expected 'serial' or 'parallel'")
        self.attention = PolarizedSelfAttention(channels, psa_mode)
        self.strips = StripPyramidPooling(channels)
        self.fuse = ConvNorm(2 * channels, channels, 1)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        s = self.attention(x)
        p = self.strips(s if self.order == "serial" else x)
        return self.fuse((s, p))


def bottleneck(
    kind: str, channels: int, size: tuple[int, int], order: str = "serial", psa_mode: str = "sequential"
) -> Module:
    """The bottleneck of one of KINDS for maps of `size` (only multi-head attention needs it): (N, H, W, C) -> (N, H, W,
    C).
    """
    if kind not in KINDS:
        raise ValueError(f"UNet: bottleneck is {kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "aspp+psa+spp":
        return Sequential(MiniASPP(channels), AttentionAndStrips(channels, order, psa_mode))
    if kind == "aspp+psa":
        return Sequential(MiniASPP(channels), PolarizedSelfAttention(channels, psa_mode))
    if kind == "psa":
        return PolarizedSelfAttention(channels, psa_mode)
    if kind == "mhsa":
        return MultiHeadSelfAttention(channels, 4, size)
    return Identity()
