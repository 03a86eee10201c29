"""1x1 convolutions of several maps as if concatenated: the pixels' channels are gathered piece by piece, in the cache, as they are needed.

Concatenation would write and read all of them once more: 8 bytes per input value. A pass per map would read and write the result again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kernels.conv.direct import CHUNKS, packed
from kernels.core.compile import Kernel, cpu_kernel
from kernels.core.contract import make_column, panel_vectors, tile_rows
from kernels.core.geometry import Window
from kernels.core.runs import copy_rows, make_start_rows
from kernels.core.simd import target
from kernels.core.threads import parallel

MOST = 8  # maps
_PIECE = 64  # pixels, about
_PAD = 16  # floats between gathered pixels: rows a cache line off a power of two


@lru_cache(maxsize=16)
def forward_kernel(vectors: int, masked: bool, relu: bool, residual: bool) -> Kernel:
    """The kernel for panels of `vectors` vectors; masked: the last one is not full; residual: `more` is added."""
    column, start_rows = make_column(vectors, accumulate=residual, mask_c=masked, relu=relu, ahead="rows"), make_start_rows(vectors)
    width, piece = vectors * target().lanes, max(1, _PIECE // tile_rows(vectors)) * tile_rows(vectors)

    @cpu_kernel("p" * (MOST + 4) + f"g{MOST}iiiii", f"x{vectors}{' masked' * masked}{' relu' * relu}{' residual' * residual}")
    def gathered_forward(start, stop, scratch, m0, m1, m2, m3, m4, m5, m6, m7, panels, bias, y, more, sizes, count, c, k, pixels, per):  # type: ignore[no-untyped-def]
        maps, row = (m0, m1, m2, m3, m4, m5, m6, m7), c + _PAD
        for chunk in range(start, stop):
            end = min((chunk + 1) * per, pixels)
            for first in range(chunk * per, end, piece):
                n, place = min(piece, end - first), 0
                for i in range(count):
                    copy_rows(maps[i], first * sizes[i], sizes[i], scratch, place, row, sizes[i], n)
                    place += sizes[i]
                for channel in range(0, k, width):
                    columns, at = min(width, k - channel), first * k + channel
                    if residual:
                        start_rows(y, more, at, bias, channel, columns, k, n)
                    column(scratch, 0, row, 1, panels, channel * c, width, c, 1, 0, 0, 1, 0, 0, y, at, k, n, columns, bias, channel)

    return gathered_forward


def serves(maps: Sequence[np.ndarray], window: Window, groups: int) -> bool:
    """Whether this is a 1x1 convolution of a few maps, without stride or padding."""
    return 1 < len(maps) <= MOST and groups == 1 and window == Window((1, 1))


def forward(maps: Sequence[np.ndarray], w: np.ndarray, b: np.ndarray | None, y: np.ndarray, relu: bool, residual: np.ndarray | None) -> None:
    """y = conv(maps side by side, w) + b + residual, then ReLU: maps (N, H, W, C_i) and y, residual (N, H, W, K), contiguous float32."""
    c, k = w.shape[2:]
    lanes, vectors = target().lanes, panel_vectors(k)
    width = vectors * lanes
    bias = np.zeros(-(-k // width) * width, np.float32)
    if b is not None:
        bias[:k] = b
    pixels, unused = y.size // k, MOST - len(maps)
    per = max(_PIECE, -(-pixels // (_PIECE * CHUNKS)) * _PIECE)
    flat = [m.reshape(-1) for m in maps] + [maps[0].reshape(-1)] * unused
    sizes = np.array([m.shape[3] for m in maps] + [0] * unused, np.int64)
    kernel = forward_kernel(vectors, k % lanes != 0, relu, residual is not None)
    arrays = packed(w, 1, width), bias, y.reshape(-1), (y if residual is None else residual).reshape(-1), sizes
    parallel(kernel, -(-pixels // per), *flat, *arrays, len(maps), c, k, pixels, per, scratch=2 * _PIECE * (c + _PAD))
