"""Convolutions of one input channel, stride 1: a network's first layer. Every tap of a filter is one multiply-add per
vector of outputs.

The image is small and the result large, so writing the result bounds the time. With one channel a row of the filter is
only S steps long, so all taps are unrolled; a pixel of the padded image is broadcast once and serves the S neighbouring
outputs that it reaches.

    forward            a tile of pixels x output channels; sums start from bias (+ residual)
    filter gradient    a sum per tap for one vector of channels, over a row of pixels
    data gradient      in backward_data.py: the reverse, from many channels to one
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from kernels.core.cpu.target import target
from kernels.core.geometry import Pair, Window

_MOST = 9  # taps: as many sums or factors stay in registers
PIECE = 512  # pixels whose results are summed in float32
_CHUNKS = 64  # about as many, of PIECE pixels at least


def is_single_channel(window: Window, inputs: int, outputs: int, groups: int) -> bool:
    """Whether there is one input channel, and a small filter moves pixel by pixel. Less than half a vector of outputs:
    the direct kernel is faster.
    """
    r, s = window.kernel
    dense = groups == 1 and window.stride == window.dilation == (1, 1)
    return dense and inputs == 1 and 2 * outputs >= target().lanes and 1 < r * s <= _MOST


class SingleChannelParams(NamedTuple):
    """A convolution as kernels and programs see it: image (h, w, 1), output (p, q, k), padding, rows of a chunk, chunks
    of an image.
    """

    h: int
    w: int
    p: int
    q: int
    k: int
    top: int
    left: int
    rows: int
    blocks: int


@lru_cache(maxsize=256)
def plan(
    images: int, size: Pair, out: Pair, k: int, window: Window, by_output: bool
) -> tuple[SingleChannelParams, int]:
    """The layer, and how many chunks: strips of the output's rows, or of the image's."""
    height = out[0] if by_output else size[0]
    # a strip of few pixels is not worth its overhead
    rows = max(-(-height // max(1, _CHUNKS // images)), -(-PIECE // size[1]))
    blocks = -(-height // rows)
    layer = SingleChannelParams(*size, *out, k, window.padding[0][0], window.padding[1][0], rows, blocks)
    return layer, images * blocks


def meetings(pixels: int, taps: int) -> list[list[Pair]]:
    """By input column of a tile: the pairs (output pixel, tap) that meet there."""
    return [[(u - j, j) for j in range(taps) if 0 <= u - j < pixels] for u in range(pixels + taps - 1)]
