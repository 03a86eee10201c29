"""Direct convolution on the GEMM micro-kernel: any kernel size, stride, dilation, padding and groups.

A chunk is a strip of output rows of one image. The input rows that it needs are copied into a padded strip in the cache
(without padding they are read in place), and the filter walks over the strip: for dilation 1 a filter row meets S C
contiguous floats, so no im2col exists. A 1x1 convolution is the same with all pixels in one row: a matrix product.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

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
from kernels.core.cpu.arguments import F32, F64
from kernels.core.cpu.gemm_microkernel import (
    ADD,
    RELU,
    Epilogue,
    Initial,
    Panel,
    Prefetch,
    Results,
    Rows,
    Taps,
    make_epilogue_gemm,
    panel_vectors,
    prefetch_pays,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import enqueue, share, with_list
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear, make_start_rows
from kernels.core.cpu.weight_cache import packed_once
from kernels.core.geometry import Pair, Window

_SUMMED = 512  # pixels whose results are summed in float32
_BLOCK = 96  # pixels, about, of the inner loop over panels: they stay in the L1 cache, the panels in the L2 cache ...
_CACHED = 1 << 17  # ... if the filter has no more floats than this; else the loop over panels is the outer one
_MOST_LINES = 2048  # of the next rows that are prefetched in the meantime
_STARTED = 64  # pixels that get residual + bias before the products are added to them: a share of the L1 cache


class Blocking(NamedTuple):
    """The walk of a launch over its chunks, and its epilogue."""

    y0: int  # the first output is float y0 of y
    chunk0: int  # the first chunk's sums are those of chunk0
    sums: int  # where in scratch the float32 sums lie
    pixels: int  # of a row that are computed at a time
    rows: int  # output rows in the inner loop over all panels
    lines: int  # where in scratch the list of the next rows lies, which are prefetched meanwhile; 0: there is none
    residual: int  # whether y is residual + bias before the products are added
    operations: int  # ADD: y is added to;   RELU: max(y, 0), not with sums


@lru_cache(maxsize=32)
def forward_kernel(vectors: int, masked: bool, summing: bool) -> Kernel:
    """The kernel for panels of `vectors` vectors, of which the last one is not full if `masked`: y = conv + bias.

    summing: per chunk out[chunk] (2, G K) = sums over its pixels of y and of y^2.
    """
    start_rows = make_start_rows(vectors)
    gemm = make_epilogue_gemm(vectors, masked, summing)
    width = vectors * target().lanes

    @cpu_kernel(f"x{vectors}{' masked' * masked}{' sums' * summing}")
    def direct_forward(start, stop, scratch, x: F32, panels: F32, bias: F32, y: F32, residual: F32, out: F64,
                       layer: DirectParams, blocking: Blocking):  # fmt: skip
        q = layer.q
        r = layer.r
        s = layer.s
        c = layer.c
        cg = layer.cg
        k = layer.k
        groups = layer.groups
        sums = blocking.sums
        per_group = -(-k // width)
        lines = blocking.lines
        steps, taps = (s * cg, 1) if layer.dw == 1 and groups == 1 else (cg, s)
        for chunk in range(start, stop):
            image = chunk // layer.blocks
            first = chunk % layer.blocks * layer.rows
            count = min(layer.rows, layer.p - first)
            out0 = (blocking.chunk0 + chunk) * 2 * groups * k
            if summing:
                for i in range(2 * groups * k):
                    out[out0 + i] = 0.0
            source, base, row_in = strip_of(x, scratch, layer, image, first, count)
            y_chunk = blocking.y0 + image * layer.out_image + first * layer.out_row
            for part in range(0, count, blocking.rows):  # rows that stay in the cache for the loop over all panels
                after = part + blocking.rows
                end = lines
                products_done = 0
                following = min(blocking.rows, count - after)
                if lines and following > 0:
                    down = layer.sh * layer.w * c
                    end = enqueue(scratch, end, x, base + after * down, following * down)
                    end = enqueue(scratch, end, y, y_chunk + after * layer.out_row, following * layer.out_row)
                products = groups * per_group * min(blocking.rows, count - part) * -(-q // blocking.pixels)
                for group in range(groups):
                    for panel in range(per_group):
                        number = group * per_group + panel
                        b = Panel(panels, number * r * s * cg * width, width)
                        columns = min(width, k - panel * width)
                        channel = group * k + panel * width
                        over = Taps(steps, r, layer.dh * row_in, s * cg * width, taps, layer.dw * c, cg * width)
                        for row in range(part, min(part + blocking.rows, count)):
                            for done in range(0, q, blocking.pixels):  # float32 sums are short; float64 adds them
                                pixels = min(blocking.pixels, q - done)
                                at = y_chunk + row * layer.out_row + done * layer.out_pixel
                                at += group * layer.group_out + panel * width
                                a0 = base + row * layer.sh * row_in + done * layer.sw * c + group * layer.group_in
                                if summing:
                                    clear(scratch, sums, 2 * width)
                                low, some = share(end - lines, products_done, products)
                                if blocking.residual:
                                    start_rows(y, residual, at, bias, number * width, columns, layer.out_pixel, pixels)
                                gemm(
                                    Rows(source, a0, layer.sw * c, 1),
                                    b,
                                    over,
                                    Results(y, at, layer.out_pixel, pixels, columns),
                                    Initial(bias, number * width, 0),
                                    Prefetch(scratch, lines + low, some),
                                    Epilogue(scratch, sums, blocking.operations),
                                )
                                products_done += 1
                                if summing:
                                    for i in range(columns):
                                        out[out0 + channel + i] += scratch[sums + i]
                                        out[out0 + groups * k + channel + i] += scratch[sums + width + i]

    return direct_forward


def direct_forward(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    y: np.ndarray,
    window: Window,
    groups: int,
    out: tuple[int, int, int, int] | None = None,
    size: Pair | None = None,
    relu: bool = False,
    add: bool = False,
    summing: bool = False,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """y = conv(x, w) + b + residual (add: y += conv(x, w)).

    out: (first float, pixel, row and image strides) of the result in y; by default y is (N, P, Q, K).
    Returns the sums of y and y^2 over pixels, chunk by chunk, if `summing` (no bias), (chunks, 2, f K) float64, for f
    fused pixels; without `summing` the result means nothing.
    """
    p, q = size or window.output_size((x.shape[1], x.shape[2]))
    f = pixel_fusion(window, groups, w.shape[3], q)
    if f > 1 and out is None:
        wide = y.reshape(y.shape[0], p, q // f, f * w.shape[3])
        bias = None if b is None else filters.repeated_bias(b, f)
        wider = packed_once(w, ("widened", f), lambda: filters.widened(w, f), filter=True)
        return direct_forward(
            x, wider, bias, wide, fused_window(window, f), groups, None, (p, q // f), relu, add, summing, residual
        )
    k = w.shape[3] // groups
    layer = params_of(x.shape, window, groups, k, out[1:] if out else None, size)
    images = x.shape[0]
    vectors = panel_vectors(k)
    width = vectors * target().lanes
    panels = filters.packed(w, groups, width)
    bias = filters.padded_bias(b, groups, k, width)
    work = _Work(panels, bias, y, vectors, relu, add, summing)
    flat = (
        window.kernel == (1, 1) and window.stride == (1, 1) and not layer.padded_width and out is None and size is None
    )
    if flat and window.padding == ((0, 0), (0, 0)):  # chunks of pixels, in rows for the inner loop over panels
        pixels = images * layer.h * layer.w
        row = 128 if pixels >= 128 * 2 * CHUNKS else 64
        rows = max(1, -(-pixels // (row * CHUNKS)))
        whole, rest = divmod(pixels, row * rows)
        sums = np.empty((whole + (rest > 0), 2, groups * k if summing else 0))
        layer = layer._replace(
            h=rows,
            w=row,
            p=rows,
            q=row,
            rows=rows,
            blocks=1,
            out_row=row * groups * k,
            out_image=row * rows * groups * k,
        )
        if whole:
            _launch(work, x, layer, whole, sums, residual=residual)
        if rest:
            offset = whole * row * rows
            tail = layer._replace(h=1, w=rest, p=1, q=rest, rows=1)
            _launch(work, x.reshape(-1, layer.c)[offset:], tail, 1, sums, offset * groups * k, whole, residual)
        return sums
    sums = np.empty((images * layer.blocks, 2, groups * k if summing else 0))
    _launch(work, x, layer, images * layer.blocks, sums, out[0] if out else 0, residual=residual)
    return sums


def direct_transposed(x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """y (N, R P, S Q, K) = the transposed convolution of x (N, P, Q, C) with w (R, S, C, K) for stride (R, S), plus b:
    windows do not overlap.

    A row of x times the filter's row a is a row of y, every R-th: groups that share their input, of S neighbouring
    pixels each.
    """
    (n, p, q, _), (r, s, _, k) = x.shape, w.shape
    y = buffer_pool.empty((n, r * p, s * q, k), np.float32)
    vectors = panel_vectors(s * k)
    width = vectors * target().lanes
    out_row = s * q * k
    layer = params_of(x.shape, Window((1, 1)), 1, s * k, (s * k, r * out_row, r * p * out_row))
    layer = layer._replace(groups=r, group_in=0, group_out=out_row)
    panels = filters.packed_rows(w, width)
    bias = filters.padded_bias(b if b is None else filters.repeated_bias(b, r * s), r, s * k, width)
    work = _Work(panels, bias, y, vectors, relu=False, add=False, summing=False)
    _launch(work, x, layer, n * layer.blocks, np.empty(0))
    return y


class _Work(NamedTuple):
    """The arguments that all launches of a convolution share."""

    panels: np.ndarray
    bias: np.ndarray
    y: np.ndarray
    vectors: int
    relu: bool
    add: bool
    summing: bool


def _launch(
    work: _Work,
    x: np.ndarray,
    layer: DirectParams,
    chunks: int,
    sums: np.ndarray,
    y0: int = 0,
    chunk0: int = 0,
    residual: np.ndarray | None = None,
) -> None:
    """Run a kernel over that many chunks of x: the first output is float y0 of y, the first chunk's sums are those of
    chunk0.
    """
    image_rows = (layer.rows - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
    strip = image_rows * layer.padded_width * layer.c
    size = work.panels.size
    pixels = _SUMMED if work.summing else max(layer.q, 1) if residual is None else _STARTED
    rows = max(1, _BLOCK // layer.q) if size <= _CACHED else layer.rows
    lines = rows * (layer.sh * layer.w * layer.c + layer.out_row) // 16 + 2
    apart = layer.r <= layer.sh and layer.s <= layer.sw  # windows do not overlap
    prefetch = prefetch_pays(size) and not layer.padded_width and apart and lines <= _MOST_LINES
    scratch, place = with_list(strip + 2 * work.vectors * target().lanes, lines * prefetch)
    operations = ADD * (work.add or residual is not None) + RELU * work.relu
    blocking = Blocking(y0, chunk0, strip, pixels, rows, place, residual is not None, operations)
    arrays = (x, work.panels, work.bias, work.y, work.y if residual is None else residual, sums)
    parallel(
        forward_kernel(work.vectors, layer.k % target().lanes != 0, work.summing),
        chunks,
        *(a.reshape(-1) for a in arrays),
        layer,
        blocking,
        scratch=scratch,
    )
