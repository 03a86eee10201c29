"""Self-attention layers: polarized (one gate per channel, one per pixel) and multi-head."""

from __future__ import annotations

import numpy as np

from autograd import Tensor, ops
from autograd.checks import checked_image
from autograd.operands import as_tensor
from layers.conv import Conv2d
from layers.initialisers import he_normal, xavier_normal
from layers.module import Buffer, Module, Parameter
from layers.norm import LayerNorm


class PolarizedSelfAttention(Module):
    """Channel gates, then pixel gates: x (N, H, W, C) -> (N, H, W, C).

    sequential: y = spatial(channel(x)); parallel: y = channel(x) + spatial(x). The gates start near .5 and would halve
    the signal, so by default x is added (residual).  Source: Liu et al., arXiv 2107.00782 (the paper's form; inner
    width C / 2).
    """

    def __init__(self, channels: int, mode: str = "sequential", residual: bool = True, eps: float = 1e-5) -> None:
        if mode not in ("sequential", "parallel"):
            raise ValueError(f"PolarizedSelfAttention: mode is {mode!r}, expected 'sequential' or 'parallel'")
        inner = max(1, channels // 2)
        self.channel_query = Parameter(he_normal((channels,), channels))
        self.channel_value = Parameter(he_normal((channels, inner), channels))
        self.channel_value_bias = Parameter(np.zeros(inner, np.float32), decay=False)
        self.channel_out = Parameter(he_normal((inner, channels), inner))
        self.channel_out_bias = Parameter(np.zeros(channels, np.float32), decay=False)
        self.norm_weight = Parameter(np.ones(channels, np.float32), decay=False)
        self.norm_bias = Parameter(np.zeros(channels, np.float32), decay=False)
        self.spatial_query = Parameter(he_normal((channels, inner), channels))
        self.spatial_query_bias = Parameter(np.zeros(inner, np.float32), decay=False)
        self.spatial_value = Parameter(he_normal((channels, inner), channels))
        self.spatial_value_bias = Parameter(np.zeros(inner, np.float32), decay=False)
        self.mode, self.residual, self.eps = mode, residual, eps

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("PolarizedSelfAttention: x", x)
        h, w = checked_image("PolarizedSelfAttention", x)
        n = len(x)
        c = x.shape[3]
        pixels = ops.reshape(x, (n, h * w, c))
        if self.mode == "sequential":
            y = self._spatial(self._channel(pixels))
        else:
            y = self._channel(pixels) + self._spatial(pixels)
        if self.residual:
            y = y + pixels
        return ops.reshape(y, (n, h, w, c))

    def _channel(self, x: Tensor) -> Tensor:
        return ops.polarized_channel(
            x,
            self.channel_query,
            self.channel_value,
            self.channel_value_bias,
            self.channel_out,
            self.channel_out_bias,
            self.norm_weight,
            self.norm_bias,
            self.eps,
        )

    def _spatial(self, x: Tensor) -> Tensor:
        return ops.polarized_spatial(
            x, self.spatial_query, self.spatial_query_bias, self.spatial_value, self.spatial_value_bias
        )


class MultiHeadSelfAttention(Module):
    """y = x + Wo attention(Wq u, Wk u, Wv u), u = LN(x) + positions, over the T = H W pixels.  x (N, H, W, C) -> (N, H,
    W, C).

    Positions are fixed 2-D sines and cosines for a map of `size` (resized for other maps). Wo starts at 0: the block
    starts as the identity.
    Source: Vaswani et al., arXiv 1706.03762.
    """

    def __init__(self, channels: int, heads: int = 4, size: tuple[int, int] = (8, 16)) -> None:
        if channels % heads:
            raise ValueError(f"MultiHeadSelfAttention: heads = {heads} must divide the {channels} channels")
        self.heads = heads
        self.norm = LayerNorm(channels)
        self.project = Conv2d(channels, 3 * channels, 1)
        self.project.weight = Parameter(xavier_normal((1, 1, channels, 3 * channels), channels, channels))
        self.out = Conv2d(channels, channels, 1)
        self.out.weight.data[...] = 0
        self.positions = Buffer(sine_positions(*size, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("MultiHeadSelfAttention: x", x)
        h, w = checked_image("MultiHeadSelfAttention", x)
        n = len(x)
        c = x.shape[3]
        places = self.positions if self.positions.shape[1:3] == (h, w) else ops.resize_bilinear(self.positions, (h, w))
        qkv = self.project(self.norm(x) + places)
        # (N, H, W, 3C) -> (3, N, heads, T, d)
        qkv = ops.transpose(ops.reshape(qkv, (n, h * w, 3, self.heads, c // self.heads)), (2, 0, 3, 1, 4))
        y = ops.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y = ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (n, h, w, c))
        return x + self.out(y)


def sine_positions(h: int, w: int, channels: int) -> np.ndarray:
    """(1, H, W, C) float32: a quarter of the channels each for sin and cos of the row and of the column, wavelengths 2
    pi to 20000 pi.
    """
    quarter = max(1, -(-channels // 4))
    rate = 1 / 10000 ** (np.arange(quarter) / quarter)
    rows = np.arange(h)[:, None, None] * rate + np.zeros((1, w, 1))
    columns = np.arange(w)[None, :, None] * rate + np.zeros((h, 1, 1))
    table = np.concatenate([np.sin(rows), np.cos(rows), np.sin(columns), np.cos(columns)], axis=2)
    return table[None, :, :, :channels].astype(np.float32)
