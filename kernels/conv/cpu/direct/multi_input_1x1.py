"""1x1 convolutions of several maps as if concatenated: the pixels' channels are gathered piece by piece, in the cache,
as they are needed.

Concatenation would write and read all of them once more: 8 bytes per input value. A pass per map would read and write
the result again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kernels.conv.cpu.filters import CHUNKS, packed, padded_bias
from kernels.core.cpu.gemm_microkernel import ADDED, RELU, make_finishing_column, panel_vectors, tile_rows, worth_asking
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import note, share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear, copy_rows, make_start_rows
from kernels.core.geometry import Window

MOST = 8  # maps
_PIECE = 64  # pixels, about
_PAD = 16  # floats between gathered pixels: rows a cache line off a power of two


@lru_cache(maxsize=32)
def forward_kernel(vectors: int, masked: bool, summing: bool) -> Kernel:
    """The kernel for panels of `vectors` vectors, of which the last one is not full if `masked`: y = conv + bias.

    finish: ADDED: `more` is added;   RELU: max(y, 0), not with sums.
    summing: per chunk out[chunk] (2, K) = sums over its pixels of y and of y^2.
    """
    column, start_rows = make_finishing_column(vectors, masked, summing), make_start_rows(vectors)
    width, piece = vectors * target().lanes, max(1, _PIECE // tile_rows(vectors)) * tile_rows(vectors)

    @cpu_kernel("p" * (MOST + 4) + f"dg{MOST}iiiiiii", f"x{vectors}{' masked' * masked}{' sums' * summing}")
    def gathered_forward(start, stop, scratch, m0, m1, m2, m3, m4, m5, m6, m7, panels, bias, y, more, out, sizes,
                         count, c, k, pixels, per, asked, finish):  # fmt: skip  # type: ignore[no-untyped-def]
        maps, row = (m0, m1, m2, m3, m4, m5, m6, m7), c + _PAD
        sums = piece * row
        noted = (sums + 2 * width + 1) // 2
        for chunk in range(start, stop):
            if summing:
                for i in range(2 * k):
                    out[chunk * 2 * k + i] = 0.0
            end = min((chunk + 1) * per, pixels)
            for first in range(chunk * per, end, piece):
                n, place = min(piece, end - first), 0
                for i in range(count):
                    copy_rows(maps[i], first * sizes[i], sizes[i], scratch, place, row, sizes[i], n)
                    place += sizes[i]
                until, following = noted, min(n, end - first - n)
                if asked:  # for the pixels that are gathered next, and their results
                    for i in range(count):
                        until = note(scratch, until, maps[i], (first + n) * sizes[i], following * sizes[i])
                    until = note(scratch, until, y, (first + n) * k, following * k)
                for channel in range(0, k, width):
                    columns, at = min(width, k - channel), first * k + channel
                    if finish & ADDED:
                        start_rows(y, more, at, bias, channel, columns, k, n)
                    if summing:
                        clear(scratch, sums, 2 * width)
                    low, some = share(until - noted, channel // width, -(-k // width))
                    column(scratch, 0, row, 1, panels, channel * c, width, c, 1, 0, 0, 1, 0, 0, y, at, k, n, columns,
                           bias, channel, scratch, noted + low, some, scratch, sums, finish)  # fmt: skip
                    if summing:
                        for i in range(columns):
                            out[chunk * 2 * k + channel + i] += scratch[sums + i]
                            out[(chunk * 2 + 1) * k + channel + i] += scratch[sums + width + i]

    return gathered_forward


def serves(maps: Sequence[np.ndarray], window: Window, groups: int) -> bool:
    """Whether this is a 1x1 convolution of a few maps, without stride or padding."""
    return 1 < len(maps) <= MOST and groups == 1 and window == Window((1, 1))


def forward(
    maps: Sequence[np.ndarray],
    w: np.ndarray,
    b: np.ndarray | None,
    y: np.ndarray,
    relu: bool = False,
    residual: np.ndarray | None = None,
    summing: bool = False,
) -> np.ndarray:
    """y = conv(maps side by side, w) + b + residual, then ReLU: maps (N, H, W, C_i) and y, residual (N, H, W, K),
    contiguous float32.

    Returns the sums of y and y^2 over pixels, chunk by chunk: (chunks, 2, K) float64, if `summing` (nothing added),
    else nothing of use.
    """
    c, k = w.shape[2:]
    vectors = panel_vectors(k)
    width = vectors * target().lanes
    bias = padded_bias(b, 1, k, width)
    pixels, unused = y.size // k, MOST - len(maps)
    per = max(_PIECE, -(-pixels // (_PIECE * CHUNKS)) * _PIECE)
    flat = [m.reshape(-1) for m in maps] + [maps[0].reshape(-1)] * unused
    sizes = np.array([m.shape[3] for m in maps] + [0] * unused, np.int64)
    chunks, finish = -(-pixels // per), ADDED * (residual is not None) + RELU * relu
    sums = np.empty((chunks, 2, k if summing else 0))
    arrays = (
        packed(w, 1, width),
        bias,
        y.reshape(-1),
        (y if residual is None else residual).reshape(-1),
        sums.reshape(-1),
        sizes,
    )
    lines = _PIECE * (c + k) // 16 + 2 * MOST
    scratch = 2 * _PIECE * (c + _PAD) + 2 * width + 2 * lines
    numbers = len(maps), c, k, pixels, per, worth_asking(c * k), finish
    parallel(
        forward_kernel(vectors, k % target().lanes != 0, summing), chunks, *flat, *arrays, *numbers, scratch=scratch
    )
    return sums
