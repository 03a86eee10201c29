"""Gated skip connections: how much of the encoder's detail the decoder lets through, pixel by pixel."""

from __future__ import annotations

import numpy as np

from autograd import Tensor, ops
from autograd.operands import as_tensor
from layers.conv import Conv2d, ConvNorm
from layers.module import Module

KINDS = ("attn1", "attnC", "blend", "gau")


class AttentionGate(Module):
    """Combine encoder features e with decoder features d of the same size; both (N, H, W, C).

    s = relu(BN(1x1 e) + BN(1x1 d)), z = psi(s) (1x1, bias +2 so that skips start open):
        attn1   e sigmoid(z), one gate per pixel          (Oktay et al., arXiv 1804.03999, same-size form)
        attnC   e sigmoid(z), one gate per pixel and channel
        blend   e sigmoid(z) + d (1 - sigmoid(z))
        gau     w BN(3x3 e), w = relu(BN(1x1(mean d)))    (PAN's global attention upsample, arXiv 1805.10180)
    """

    def __init__(
        self, encoder_channels: int, decoder_channels: int | None = None, kind: str = "attn1", inner: int | None = None
    ) -> None:
        decoder_channels = encoder_channels if decoder_channels is None else decoder_channels
        if kind not in KINDS:
            raise ValueError(f"AttentionGate: kind is {kind!r}, expected one of {', '.join(KINDS)}")
        if kind == "blend" and encoder_channels != decoder_channels:
            raise ValueError(
                f"AttentionGate: blend needs as many encoder as decoder channels, got {encoder_channels} and "
                f"{decoder_channels}"
            )
        self.kind = kind
        if kind == "gau":
            self.low = ConvNorm(encoder_channels, encoder_channels, 3, activation=None)
            self.high = ConvNorm(decoder_channels, encoder_channels, 1)
            return
        inner = max(1, encoder_channels // 2) if inner is None else inner
        self.theta = ConvNorm(encoder_channels, inner, 1)
        self.phi = ConvNorm(decoder_channels, inner, 1, activation=None)
        self.psi = Conv2d(inner, encoder_channels if kind == "attnC" else 1, 1)
        if self.psi.bias is not None:
            self.psi.bias.data[...] = np.float32(2)

    def forward(self, e: Tensor, d: Tensor) -> Tensor:
        e = as_tensor("AttentionGate: e", e)
        d = as_tensor("AttentionGate: d", d)
        if e.shape[:3] != d.shape[:3]:
            raise ValueError(f"AttentionGate: encoder features are {e.shape} but decoder features are {d.shape}")
        if self.kind == "gau":
            return self.low(e) * self.high(ops.adaptive_avg_pool2d(d, 1))
        z = self.psi(self.theta(e, self.phi(d)))
        return ops.blend(e, d, z) if self.kind == "blend" else ops.gate(e, z)
