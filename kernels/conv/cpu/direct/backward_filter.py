"""Filter gradient on the GEMM micro-kernel: sums of x^T dy over the strips of a chunk, then over the chunks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.direct import patch_backward_filter
from kernels.conv.cpu.direct.params import (
    CHUNKS,
    as_array,
    fused_window,
    is_patchify,
    padded_rows,
    params_of,
    pixel_fusion,
)
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.gemm_microkernel import (
    make_column,
    panel_vectors,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.geometry import Window


@lru_cache(maxsize=32)
def filter_gradient_kernel(vectors: int, masked: bool) -> Kernel:
    """The kernel that sums x^T dy over the strips of a chunk: partial[chunk] (R, S, C/G, G K)."""
    column_of_tiles = make_column(vectors, blocks=True, mask_b=masked, mask_c=masked, beside=True)
    width = vectors * target().lanes

    @cpu_kernel("ppppg24iii", f"x{vectors}{' masked' * masked}")
    def direct_filter_gradient(start, stop, scratch, x, dy, partial, zeros, layer, strips, per_chunk, floats):  # type: ignore[no-untyped-def]
        (
            h,
            w,
            c,
            p,
            q,
            r,
            s,
            sh,
            sw,
            dh,
            dw,
            top,
            left,
            padded,
            groups,
            cg,
            _group_in,
            _group_out,
            k,
            pixel,
            out_row,
            out_image,
            rows,
            blocks,
        ) = layer
        flat = dw == 1 and groups == 1  # the taps of a filter row and their channels are one run of memory
        lines, line_rows = (1, s * cg) if flat else (s, cg)
        for chunk in range(start, stop):
            sums = chunk * floats
            for strip in range(chunk * per_chunk, min((chunk + 1) * per_chunk, strips)):
                image, first = strip // blocks, strip % blocks * rows
                count, known = min(rows, p - first), strip > chunk * per_chunk
                if padded:
                    padded_rows(
                        x, image, h, w, c, first * sh - top, (count - 1) * sh + (r - 1) * dh + 1, left, padded, scratch
                    )
                    source, base, wide = scratch, 0, padded
                else:
                    source, base, wide = x, ((image * h + first * sh - top) * w - left) * c, w
                d0 = image * out_image + first * out_row
                for group in range(groups):
                    for i in range(r):
                        for j in range(lines):
                            a0, c0 = (
                                base + (i * dh * wide + j * dw) * c + group * cg,
                                sums + ((i * s + j) * cg) * groups * k + group * k,
                            )
                            for column in range(0, k, width):
                                column_of_tiles(source, a0, 1, sw * c, dy, d0 + group * k + column, pixel, q, count,
                                                sh * wide * c, out_row, 1, 0, 0, partial, c0 + column, groups * k,
                                                line_rows, min(width, k - column), zeros, known)  # fmt: skip

    return direct_filter_gradient


def direct_backward_filter(x: np.ndarray, dy: np.ndarray, window: Window, groups: int = 1) -> np.ndarray:
    """dw (R, S, C/groups, K) of contiguous float32 x (N, H, W, C) and dy (N, P, Q, K)."""
    n, p, q, channels = dy.shape
    f = pixel_fusion(window, groups, channels, q)
    if f > 1:
        return filters.narrowed(
            direct_backward_filter(x, dy.reshape(n, p, q // f, f * channels), fused_window(window, f)), f
        )
    if groups == 1 and is_patchify(window, (x.shape[1], x.shape[2]), dy.shape):
        return patch_backward_filter.backward_filter(x, dy, window.kernel)
    k, (r, s), lanes = channels // groups, window.kernel, target().lanes
    layer = params_of(x.shape, window, groups, k, None, (p, q))
    vectors, floats = panel_vectors(k), r * s * layer.cg * channels
    strips = n * layer.blocks
    chunks = max(1, min(CHUNKS, strips, max(2, filters.MOST_SUMS // floats)))
    per_chunk = -(-strips // chunks)
    chunks = -(-strips // per_chunk)
    partial = buffer_pool.empty((chunks * floats,), np.float32)
    kernel = filter_gradient_kernel(vectors, k % lanes != 0)
    lines = (layer.rows - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
    scratch = max(16, lines * layer.padded_width * layer.c)
    arrays = x.reshape(-1), dy.reshape(-1), partial, filters.zeros(vectors * lanes), as_array(layer)
    parallel(kernel, chunks, *arrays, strips, per_chunk, floats, scratch=scratch)
    return filters.added_chunks(partial, chunks, r * s * layer.cg, channels, channels).reshape(r, s, layer.cg, channels)
