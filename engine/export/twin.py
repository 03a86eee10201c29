"""The network in PyTorch, as a PyTorch user would write it, with the attribute names of `layers.UNet`.

Its state dict has our names and, but for the order of four axes, our shapes (`engine.export.channels`). Inside it uses
PyTorch's own layout (NCHW, or channels_last). It imports nothing but PyTorch, so that this file can be copied to where
Areograd is not installed; import it only where PyTorch is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class ConvNorm(nn.Module):
    """act(BN(conv(x)) + residual), stride 1: x (N, i, H, W) -> (N, o, H, W)."""

    def __init__(self, i: int, o: int, k: Any, dilation: int = 1, activation: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, padding="same", dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(o)
        self.activation = activation

    def forward(self, x: Any, residual: Any = None) -> Any:
        y = self.norm(self.conv(x))
        if residual is not None:
            y = y + residual
        return F.relu(y, inplace=True) if self.activation else y


class Steps(nn.Module):
    """Sequential under our name for its list."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(modules)

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: x (N, i, H, W) -> (N, o, H, W)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(i, o, 3), ConvNorm(o, o, 3)
        self.shortcut = nn.Identity() if i == o else ConvNorm(i, o, 1, activation=False)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x), self.shortcut(x))


class PreActivationBlock(nn.Module):
    """The same with norm and ReLU before each convolution."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(i), nn.BatchNorm2d(o)
        self.conv1 = nn.Conv2d(i, o, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(o, o, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if i == o else nn.Conv2d(i, o, 1, bias=False)

    def forward(self, x: Any) -> Any:
        y = self.conv1(F.relu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.relu(self.norm2(y)))


class InceptionBlock(nn.Module):
    """1x1, 3x3, wide and max-pool branches of c / 4 channels each, around the identity. five: '5x5' or '3x3+3x3'."""

    def __init__(self, c: int, five: str = "5x5") -> None:
        super().__init__()
        b = c // 4
        self.entry = ConvNorm(c, 3 * b, 1)
        self.branch3 = ConvNorm(b, b, 3)
        self.branch5 = ConvNorm(b, b, 5) if five == "5x5" else Steps(ConvNorm(b, b, 3), ConvNorm(b, b, 3))
        self.branch_pool = ConvNorm(c, b, 1)
        self.fuse = ConvNorm(c, c, 1)

    def forward(self, x: Any) -> Any:
        pooled = self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        one, three, five = self.entry(x).chunk(3, 1)
        return self.fuse(torch.cat([one, self.branch3(three), self.branch5(five), pooled], 1), x)


class FeaturePyramidPooling(nn.Module):
    """Global, medium and fine context merged: x (N, c, H, W) -> (N, c, H, W)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        b = c // 4
        self.whole = ConvNorm(c, b, 1)
        self.medium, self.fine = ConvNorm(c, b, 3), ConvNorm(c, b, 3)
        self.fuse = ConvNorm(c + 3 * b, c, 1)

    def forward(self, x: Any) -> Any:
        h, w = x.shape[2:]
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, h, w)
        medium = self.medium(F.adaptive_avg_pool2d(x, (max(1, h // 4), max(1, w // 4))))
        return self.fuse(torch.cat([x, whole, F.interpolate(medium, (h, w), mode="bilinear"), self.fine(x)], 1))


class MiniASPP(nn.Module):
    """1x1, three dilated 3x3 and the mean of the map: x (N, c, H, W) -> (N, c, H, W)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        b = c // 4
        self.point = ConvNorm(c, b, 1)
        self.dilated = nn.ModuleList([ConvNorm(c, b, 3, dilation=r) for r in (1, 2, 4)])
        self.pool = nn.Conv2d(c, b, 1)
        self.fuse = ConvNorm(5 * b, c, 1)

    def forward(self, x: Any) -> Any:
        mean = F.relu(self.pool(x.mean((2, 3), keepdim=True))).expand(-1, -1, *x.shape[2:])
        return self.fuse(torch.cat([self.point(x), *(d(x) for d in self.dilated), mean], 1))


class PolarizedSelfAttention(nn.Module):
    """One gate per channel, then one per pixel, or both side by side: x (N, c, H, W) -> (N, c, H, W)."""

    def __init__(self, c: int, mode: str = "sequential") -> None:
        super().__init__()
        h = c // 2
        shapes = {
            "channel_query": (c,),
            "channel_value": (c, h),
            "channel_value_bias": (h,),
            "channel_out": (h, c),
            "channel_out_bias": (c,),
            "norm_weight": (c,),
            "norm_bias": (c,),
            "spatial_query": (c, h),
            "spatial_query_bias": (h,),
            "spatial_value": (c, h),
            "spatial_value_bias": (h,),
        }
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))
        self.mode = mode

    def forward(self, x: Any) -> Any:
        n, c, h, w = x.shape
        pixels = x.flatten(2).transpose(1, 2)  # (N, L, C)
        if self.mode == "sequential":
            y = self._spatial(self._channel(pixels)) + pixels
        else:
            y = self._channel(pixels) + self._spatial(pixels) + pixels
        return y.transpose(1, 2).reshape(n, c, h, w)

    def _channel(self, x: Any) -> Any:
        a = (x @ self.channel_query).softmax(1)
        u = (a[:, None] @ x)[:, 0] @ self.channel_value + self.channel_value_bias
        o = F.layer_norm(u @ self.channel_out + self.channel_out_bias, (x.shape[2],), self.norm_weight, self.norm_bias)
        return x * o.sigmoid()[:, None]

    def _spatial(self, x: Any) -> Any:
        b = (x.mean(1) @ self.spatial_query + self.spatial_query_bias).softmax(1)
        gates = (x @ (b @ self.spatial_value.T)[:, :, None])[:, :, 0] + (b @ self.spatial_value_bias)[:, None]
        return x * gates.sigmoid()[:, :, None]


class MultiHeadSelfAttention(nn.Module):
    """Attention between all pixels, around the identity: x (N, c, H, W) -> (N, c, H, W). size: of the positions."""

    def __init__(self, c: int, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(c)
        self.project, self.out = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)
        self.register_buffer("positions", torch.zeros(1, c, *size))

    def forward(self, x: Any) -> Any:
        n, c, h, w = x.shape
        places = self.positions
        if places.shape[2:] != (h, w):
            places = F.interpolate(places, (h, w), mode="bilinear")
        u = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + places
        q, k, v = self.project(u).reshape(n, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)  # (N, heads, L, c / heads)
        return x + self.out(y.transpose(2, 3).reshape(n, c, h, w))


class StripPyramidPooling(nn.Module):
    """Means over 1, 2 and 4 bands of rows and of columns beside the map: x (N, c, H, W) -> (N, c, H, W)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        b = c // 4
        self.rows = nn.ModuleList([ConvNorm(c, b, 1) for _ in range(3)])
        self.columns = nn.ModuleList([ConvNorm(c, b, 1) for _ in range(3)])
        self.fuse = ConvNorm(c + 6 * b, c, 1)

    def forward(self, x: Any) -> Any:
        size = x.shape[2:]
        parts = [x]
        for k, rows, columns in zip((1, 2, 4), self.rows, self.columns, strict=True):
            parts.append(F.interpolate(rows(F.adaptive_avg_pool2d(x, (k, None))), size, mode="bilinear"))
            parts.append(F.interpolate(columns(F.adaptive_avg_pool2d(x, (None, k))), size, mode="bilinear"))
        return self.fuse(torch.cat(parts, 1))


class AttentionAndStrips(nn.Module):
    """Polarized attention, strips of it ('serial') or of x ('parallel'), and both fused."""

    def __init__(self, c: int, order: str = "serial", psa_mode: str = "sequential") -> None:
        super().__init__()
        self.attention = PolarizedSelfAttention(c, psa_mode)
        self.strips = StripPyramidPooling(c)
        self.fuse = ConvNorm(2 * c, c, 1)
        self.order = order

    def forward(self, x: Any) -> Any:
        s = self.attention(x)
        return self.fuse(torch.cat([s, self.strips(s if self.order == "serial" else x)], 1))


class AttentionGate(nn.Module):
    """Encoder features e weighed by decoder features d, both (N, c, H, W). kind: 'attn1', 'attnC', 'blend' or 'gau'."""

    def __init__(self, c: int, kind: str = "attn1") -> None:
        super().__init__()
        self.kind = kind
        if kind == "gau":
            self.low, self.high = ConvNorm(c, c, 3, activation=False), ConvNorm(c, c, 1)
            return
        self.theta = ConvNorm(c, c // 2, 1)
        self.phi = ConvNorm(c, c // 2, 1, activation=False)
        self.psi = nn.Conv2d(c // 2, c if kind == "attnC" else 1, 1)

    def forward(self, e: Any, d: Any) -> Any:
        if self.kind == "gau":
            return self.low(e) * self.high(d.mean((2, 3), keepdim=True))
        gate = self.psi(self.theta(e, self.phi(d))).sigmoid()
        return e * gate + d * (1 - gate) if self.kind == "blend" else e * gate


class DecoderStage(nn.Module):
    """Up by two, join the skip, residual block: d (N, i, H, W), e (N, o, 2H, 2W) -> (N, o, 2H, 2W)."""

    def __init__(self, i: int, o: int, skips: str = "gated", gate: str = "attn1") -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(i, o, 2, 2)
        self.gate = AttentionGate(o, gate) if skips == "gated" else None
        self.block = ResidualBlock(2 * o, o)

    def forward(self, d: Any, e: Any) -> Any:
        d = self.up(d)
        return self.block(torch.cat([d, e if self.gate is None else self.gate(e, d)], 1))


class TwinUNet(nn.Module):
    """layers.UNet with the same options: x (N, in_channels, H, W), standardised -> logits (N, classes, H, W).

    H and W are multiples of 8. classes: with 1 the result is (N, 2, H, W), 0 and the logit. size: of the images (only
    multi-head attention needs it). The weights are PyTorch's initial ones: load a state dict.
    """

    def __init__(
        self,
        width: int = 32,
        classes: int = 5,
        dropout: float = 0.0,
        in_channels: int = 1,
        encoder: str = "residual+inception",
        bottleneck: str = "aspp+psa+spp",
        skips: str = "gated",
        gate: str = "attn1",
        order: str = "serial",
        psa_mode: str = "sequential",
        five: str = "5x5",
        preactivation: bool = False,
        fppm: bool = False,
        size: tuple[int, int] = (64, 128),
    ) -> None:
        super().__init__()
        w = [width, 2 * width, 4 * width, 8 * width]

        def stage(i: int, o: int) -> Steps:
            if encoder == "plain":
                return Steps(ConvNorm(i, o, 3), ConvNorm(o, o, 3))
            residual = PreActivationBlock if preactivation else ResidualBlock
            second = InceptionBlock(o, five) if encoder == "residual+inception" else residual(o, o)
            return Steps(residual(i, o), second)

        parts = {
            "aspp": lambda: MiniASPP(w[3]),
            "psa": lambda: PolarizedSelfAttention(w[3], psa_mode),
            "psa+spp": lambda: AttentionAndStrips(w[3], order, psa_mode),
            "mhsa": lambda: MultiHeadSelfAttention(w[3], 4, (size[0] // 8, size[1] // 8)),
            "none": nn.Identity,
        }
        first, _, rest = bottleneck.partition("+")
        self.encoders = nn.ModuleList([stage(i, o) for i, o in zip([in_channels, *w], w[:3], strict=False)])
        self.pyramids = nn.ModuleList([FeaturePyramidPooling(c) for c in w[1:3]] if fppm else [])
        self.middle = Steps(ConvNorm(w[2], w[3], 3), ConvNorm(w[3], w[3], 3))
        self.bottleneck = Steps(parts[first](), parts[rest]()) if rest else parts[first]()
        self.decoders = nn.ModuleList(
            [DecoderStage(i, o, skips, gate) for i, o in ((w[3], w[2]), (w[2], w[1]), (w[1], w[0]))]
        )
        self.head = nn.Conv2d(width, classes, 1)
        self.dropout = dropout

    def forward(self, x: Any) -> Any:
        skips = []
        for k, stage in enumerate(self.encoders):
            x = stage(x)
            if k and self.pyramids:
                x = self.pyramids[k - 1](x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = F.dropout(self.bottleneck(self.middle(x)), self.dropout, self.training)
        for stage, skip in zip(self.decoders, reversed(skips), strict=True):
            x = stage(x, skip)
        logits = self.head(x)
        return F.pad(logits, (0, 0, 0, 0, 1, 0)) if logits.shape[1] == 1 else logits
