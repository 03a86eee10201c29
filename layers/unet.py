"""The report's network: a U-Net with residual + inception encoder, attention bottleneck and gated skips."""

from __future__ import annotations

from autograd import Tensor, ops
from autograd.operands import as_tensor
from layers.bottleneck import bottleneck as make_bottleneck
from layers.conv import Conv2d, ConvNorm, ConvTranspose2d
from layers.gate import AttentionGate
from layers.inception import InceptionBlock
from layers.initialisers import seeded
from layers.module import Module, Sequential
from layers.pointwise import Dropout
from layers.pyramid import FeaturePyramidPooling
from layers.residual import PreActivationBlock, ResidualBlock

ENCODERS = ("residual+inception", "residual", "plain")
SKIPS = ("gated", "plain")


def encoder_stage(
    kind: str, in_channels: int, out_channels: int, five: str = "5x5", preactivation: bool = False
) -> Module:
    """Two blocks at one resolution: residual then inception, two residual blocks, or two convolutions. (N, H, W,
    in_channels) -> (N, H, W, out_channels).

    kind: 'residual+inception', 'residual' or 'plain'. five: see `InceptionBlock`. preactivation: `PreActivationBlock`
    in place of `ResidualBlock`. Raises ValueError for another kind.
    """
    if kind not in ENCODERS:
        raise ValueError(f"UNet: encoder is {kind!r}, expected one of {', '.join(ENCODERS)}")
    if kind == "plain":
        return Sequential(ConvNorm(in_channels, out_channels, 3), ConvNorm(out_channels, out_channels, 3))
    residual = PreActivationBlock if preactivation else ResidualBlock
    second = (
        InceptionBlock(out_channels, out_channels, five)
        if kind == "residual+inception"
        else residual(out_channels, out_channels)
    )
    return Sequential(residual(in_channels, out_channels), second)


class DecoderStage(Module):
    """Up by 2 (transposed convolution k2 s2), gate the skip, residual block of both: d (N, H, W, C), e (N, 2H, 2W, K)
    -> (N, 2H, 2W, K).

    skips: 'gated' or anything else for plain.  gate: the kind of `AttentionGate`.
    """

    def __init__(self, in_channels: int, skip_channels: int, skips: str, gate: str) -> None:
        self.up = ConvTranspose2d(in_channels, skip_channels, 2, 2)
        self.gate = AttentionGate(skip_channels, skip_channels, gate) if skips == "gated" else None
        self.block = ResidualBlock(2 * skip_channels, skip_channels)

    def forward(self, d: Tensor, e: Tensor) -> Tensor:
        d = self.up(d)
        return self.block((d, self.gate(e, d) if self.gate else e))


class UNet(Module):
    """Logits (N, H, W, classes) from images (N, H, W, in_channels); H and W multiples of 8.

    classes: with 1 the head gives one logit z of a binary problem; the result is (N, H, W, 2), 0 and z, whose softmax
        is z's sigmoid.
    width: channels of the first stage; stages have width, 2 width, 4 width channels and the bottleneck 8 width at 1/8
        of the size.
    bottleneck: 'aspp+psa+spp', 'aspp+psa', 'psa', 'mhsa' or 'none'.   skips: 'gated' or 'plain'.
    encoder: 'residual+inception', 'residual' or 'plain'.   gate: 'attn1', 'attnC', 'blend' or 'gau'.
    order: strips after the attention ('serial') or in parallel with it ('parallel').   psa_mode: 'sequential' or
    'parallel'.
    five: '5x5' or '3x3+3x3' in the inception blocks.   preactivation: the residual blocks' variant.
    fppm: feature pyramid pooling after the encoder's last two stages.   dropout: after the bottleneck.
    seed: of the initial weights (None: the current generator).   size: of the images (only multi-head attention needs
        it).
    """

    def __init__(
        self,
        width: int = 32,
        bottleneck: str = "aspp+psa+spp",
        skips: str = "gated",
        encoder: str = "residual+inception",
        classes: int = 5,
        in_channels: int = 1,
        gate: str = "attn1",
        order: str = "serial",
        psa_mode: str = "sequential",
        five: str = "5x5",
        preactivation: bool = False,
        fppm: bool = False,
        dropout: float = 0.1,
        seed: int | None = None,
        size: tuple[int, int] = (64, 128),
    ) -> None:
        if width < 4 or width % 4:
            raise ValueError(
                f"UNet: width is {width}, expected a positive multiple of 4 (the inception block has four branches)"
            )
        if skips not in SKIPS:
            raise ValueError(f"UNet: skips is {skips!r}, expected one of {', '.join(SKIPS)}")
        if classes < 1:
            raise ValueError(f"UNet: classes is {classes}, expected at least 1")
        widths = [width, 2 * width, 4 * width]
        deep = 8 * width
        with seeded(seed):
            self.encoders = [
                encoder_stage(encoder, i, o, five, preactivation)
                for i, o in zip([in_channels, *widths], widths, strict=False)
            ]
            self.pyramids = [FeaturePyramidPooling(c) for c in widths[1:]] if fppm else []
            self.middle = Sequential(ConvNorm(widths[-1], deep, 3), ConvNorm(deep, deep, 3))
            self.bottleneck = make_bottleneck(bottleneck, deep, (size[0] // 8, size[1] // 8), order, psa_mode)
            self.dropout = Dropout(dropout)
            pairs = zip([deep, *reversed(widths)], reversed(widths), strict=False)
            self.decoders = [DecoderStage(i, o, skips, gate) for i, o in pairs]
            self.head = Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("UNet: x", x)
        if x.ndim != 4 or x.shape[1] % 8 or x.shape[2] % 8:
            raise ValueError(
                f"UNet: x has shape {x.shape}, expected (N, H, W, C) with H and W multiples of 8 (three poolings)"
            )
        skips = []
        for k, stage in enumerate(self.encoders):
            x = stage(x)
            if self.pyramids and k > 0:
                x = self.pyramids[k - 1](x)
            skips.append(x)
            x = ops.max_pool2d(x, 2)
        x = self.dropout(self.bottleneck(self.middle(x)))
        for stage, skip in zip(self.decoders, reversed(skips), strict=True):
            x = stage(x, skip)
        logits = self.head(x)
        return ops.pad(logits, ((0, 0), (0, 0), (0, 0), (1, 0))) if logits.shape[-1] == 1 else logits
