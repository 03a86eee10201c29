"""Filter gradient on the GEMM micro-kernel: sums of x^T dy over the strips of a chunk, then over the chunks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.direct.params import (
    CHUNKS,
    DirectParams,
    fused_window,
    params_of,
    pixel_fusion,
    strip_of,
)
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.gemm_microkernel import (
    Initial,
    Panel,
    Results,
    Rows,
    Taps,
    make_gemm,
    panel_vectors,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.geometry import Window


@lru_cache(maxsize=32)
def filter_gradient_kernel(vectors: int, masked: bool) -> Kernel:
    """The kernel that sums x^T dy over the strips of a chunk: partial[chunk] (R, S, C/G, G K)."""
    gemm = make_gemm(vectors, accumulates=True, mask_b=masked, mask_c=masked, unit_rows=True)
    width = vectors * target().lanes

    @cpu_kernel(f"x{vectors}{' masked' * masked}")
    def direct_filter_gradient(start, stop, scratch, x: F32, dy: F32, partial: F32, zeros: F32, layer: DirectParams,
                               strips: int, per_chunk: int, floats: int):  # fmt: skip
        s = layer.s
        c = layer.c
        cg = layer.cg
        k = layer.k
        groups = layer.groups
        flat = layer.dw == 1 and groups == 1  # the taps of a filter row and their channels are one run of memory
        runs, run = (1, s * cg) if flat else (s, cg)
        for chunk in range(start, stop):
            sums = chunk * floats
            for strip in range(chunk * per_chunk, min((chunk + 1) * per_chunk, strips)):
                image = strip // layer.blocks
                first = strip % layer.blocks * layer.rows
                count = min(layer.rows, layer.p - first)
                accumulate = strip > chunk * per_chunk
                source, base, row_in = strip_of(x, scratch, layer, image, first, count)
                d0 = image * layer.out_image + first * layer.out_row
                over = Taps(layer.q, count, layer.sh * row_in, layer.out_row, 1, 0, 0)
                for group in range(groups):
                    for i in range(layer.r):
                        for j in range(runs):
                            a0 = base + i * layer.dh * row_in + j * layer.dw * c + group * cg
                            c0 = sums + ((i * s + j) * cg) * groups * k + group * k
                            for column in range(0, k, width):
                                gemm(
                                    Rows(source, a0, 1, layer.sw * c),
                                    Panel(dy, d0 + group * k + column, layer.out_pixel),
                                    over,
                                    Results(partial, c0 + column, groups * k, run, min(width, k - column)),
                                    Initial(zeros, 0, accumulate),
                                )

    return direct_filter_gradient


def direct_backward_filter(x: np.ndarray, dy: np.ndarray, window: Window, groups: int = 1) -> np.ndarray:
    """dw (R, S, C/groups, K) of contiguous float32 x (N, H, W, C) and dy (N, P, Q, K)."""
    n, p, q, channels = dy.shape
    f = pixel_fusion(window, groups, channels, q)
    if f > 1:
        return filters.narrowed(
            direct_backward_filter(x, dy.reshape(n, p, q // f, f * channels), fused_window(window, f)), f
        )
    k = channels // groups
    r, s = window.kernel
    lanes = target().lanes
    layer = params_of(x.shape, window, groups, k, None, (p, q))
    vectors = panel_vectors(k)
    floats = r * s * layer.cg * channels
    strips = n * layer.blocks
    chunks = max(1, min(CHUNKS, strips, max(2, filters.MOST_SUMS // floats)))
    per_chunk = -(-strips // chunks)
    chunks = -(-strips // per_chunk)
    partial = buffer_pool.empty((chunks * floats,), np.float32)
    kernel = filter_gradient_kernel(vectors, k % lanes != 0)
    lines = (layer.rows - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
    scratch = max(16, lines * layer.padded_width * layer.c)
    arrays = x.reshape(-1), dy.reshape(-1), partial, filters.zeros(vectors * lanes), layer
    parallel(kernel, chunks, *arrays, strips, per_chunk, floats, scratch=scratch)
    return filters.added_chunks(partial, chunks, r * s * layer.cg, channels, channels).reshape(r, s, layer.cg, channels)
