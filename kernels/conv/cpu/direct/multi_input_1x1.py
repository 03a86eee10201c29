"""1x1 convolutions of several maps, as if concatenated: the kernel gathers the pixels' channels block by block, in the
cache, as it needs them.

Concatenation would write and read all maps once more: 8 bytes per input value. A pass for each map would read and write
the result again. On an AMD processor steps of width 16 took 342 instead of 369 ms with it and the kernels of polarized
attention (bench/RESULTS.md, "What paid"); alone it is lost in the noise of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.conv.cpu.filters import CHUNKS, packed, padded_bias
from kernels.core.cpu.arguments import F32, F64, Arrays, Ints
from kernels.core.cpu.gemm_microkernel import (
    ADD,
    RELU,
    Epilogue,
    Initial,
    Panel,
    Prefetch,
    Results,
    Rows,
    make_epilogue_gemm,
    one_tap,
    panel_vectors,
    prefetch_pays,
    tile_rows,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import enqueue, share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear, copy_rows, make_start_rows
from kernels.core.geometry import Window

MOST = 8  # maps
MAPS, CHANNELS = Arrays(MOST), Ints(MOST)
_BLOCK = 64  # pixels, about
_PAD = 16  # floats between gathered pixels: rows a cache line off a power of two


class Work(NamedTuple):
    """The layer, and the walk of a launch over it."""

    maps: int  # how many
    c: int  # their channels together
    k: int
    pixels: int
    per_chunk: int
    prefetch: int  # whether the next block's pixels and results are prefetched meanwhile
    operations: int  # ADD: the residual is added;   RELU: max(y, 0), not with sums


@lru_cache(maxsize=32)
def forward_kernel(vectors: int, masked: bool, summing: bool) -> Kernel:
    """The kernel for panels of `vectors` vectors, of which the last one is not full if `masked`: y = conv + bias.

    summing: per chunk out[chunk] (2, K) = sums over its pixels of y and of y^2.
    """
    gemm = make_epilogue_gemm(vectors, masked, summing)
    start_rows = make_start_rows(vectors)
    width = vectors * target().lanes
    block = max(1, _BLOCK // tile_rows(vectors)) * tile_rows(vectors)

    @cpu_kernel(f"x{vectors}{' masked' * masked}{' sums' * summing}")
    def multi_input_forward(start, stop, scratch, maps: MAPS, panels: F32, bias: F32, y: F32, residual: F32, out: F64,
                            channels: CHANNELS, work: Work):  # fmt: skip
        c = work.c
        k = work.k
        row = c + _PAD
        sums = block * row
        lines = (sums + 2 * width + 1) // 2
        for chunk in range(start, stop):
            if summing:
                for i in range(2 * k):
                    out[chunk * 2 * k + i] = 0.0
            stop_pixel = min((chunk + 1) * work.per_chunk, work.pixels)
            for first in range(chunk * work.per_chunk, stop_pixel, block):
                n = min(block, stop_pixel - first)
                place = 0
                for i in range(work.maps):
                    copy_rows(maps[i], first * channels[i], channels[i], scratch, place, row, channels[i], n)
                    place += channels[i]
                end = lines
                following = min(n, stop_pixel - first - n)
                if work.prefetch:  # the pixels that are gathered next, and their results
                    for i in range(work.maps):
                        end = enqueue(scratch, end, maps[i], (first + n) * channels[i], following * channels[i])
                    end = enqueue(scratch, end, y, (first + n) * k, following * k)
                for channel in range(0, k, width):
                    columns = min(width, k - channel)
                    at = first * k + channel
                    if work.operations & ADD:
                        start_rows(y, residual, at, bias, channel, columns, k, n)
                    if summing:
                        clear(scratch, sums, 2 * width)
                    low, some = share(end - lines, channel // width, -(-k // width))
                    gemm(
                        Rows(scratch, 0, row, 1),
                        Panel(panels, channel * c, width),
                        one_tap(c),
                        Results(y, at, k, n, columns),
                        Initial(bias, channel, 0),
                        Prefetch(scratch, lines + low, some),
                        Epilogue(scratch, sums, work.operations),
                    )
                    if summing:
                        for i in range(columns):
                            out[chunk * 2 * k + channel + i] += scratch[sums + i]
                            out[(chunk * 2 + 1) * k + channel + i] += scratch[sums + width + i]

    return multi_input_forward


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
    """y = conv(the maps concatenated, w) + b + residual, then ReLU: maps (N, H, W, C_i) and y, residual (N, H, W, K),
    contiguous float32.

    Returns the sums of y and y^2 over pixels, chunk by chunk: (chunks, 2, K) float64, if `summing` (nothing added);
    otherwise the result means nothing.
    """
    c, k = w.shape[2:]
    vectors = panel_vectors(k)
    width = vectors * target().lanes
    bias = padded_bias(b, 1, k, width)
    pixels = y.size // k
    unused = MOST - len(maps)
    per_chunk = max(_BLOCK, -(-pixels // (_BLOCK * CHUNKS)) * _BLOCK)
    chunks = -(-pixels // per_chunk)
    sums = np.empty((chunks, 2, k if summing else 0))
    operations = ADD * (residual is not None) + RELU * relu
    arrays = (packed(w, 1, width), bias, y, y if residual is None else residual, sums)
    parallel(
        forward_kernel(vectors, k % target().lanes != 0, summing),
        chunks,
        [m.reshape(-1) for m in (*maps, *[maps[0]] * unused)],
        *(a.reshape(-1) for a in arrays),
        (*(m.shape[3] for m in maps), *[0] * unused),
        Work(len(maps), c, k, pixels, per_chunk, prefetch_pays(c * k), operations),
        scratch=2 * _BLOCK * (c + _PAD) + 2 * width + 2 * (_BLOCK * (c + k) // 16 + 2 * MOST),
    )
    return sums
