"""Direct convolution on the register tile: any kernel size, stride, dilation, padding and groups; forward, data and
filter gradient.

A chunk is a strip of output rows of one image. The input rows it needs are copied into a padded strip in the cache
(unless there is no
padding: then they are read in place), and the filter walks over the strip: for dilation 1 a filter row meets S C
contiguous floats, so no im2col exists. A 1x1 convolution is the same with all pixels in one row: a matrix product.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.direct.params import (
    CHUNKS,
    DirectParams,
    as_array,
    fused_window,
    padded_rows,
    params_of,
    pixel_fusion,
)
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.gemm_microkernel import (
    ADDED,
    RELU,
    make_finishing_column,
    panel_vectors,
    worth_asking,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import note, share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear, make_start_rows
from kernels.core.cpu.weight_cache import prepared
from kernels.core.geometry import Pair, Window

_PIECE = 512  # pixels whose results are summed in float32
_TOGETHER = (
    96  # pixels, about, that meet all panels in turn: they stay in the L1 cache, the panels in the second one ...
)

_KEPT = 1 << 17  # ... if the filter has no more floats than this; else every panel meets all pixels of a chunk
_MOST_LINES = 2048  # of the next rows that are asked for meanwhile
_STARTED = 64  # pixels that get residual + bias before the products are added to them: a share of the L1 cache


@lru_cache(maxsize=32)
def forward_kernel(vectors: int, masked: bool, summing: bool) -> Kernel:
    """The kernel for panels of `vectors` vectors, of which the last one is not full if `masked`: y = conv + bias.

    finish: ADDED: conv is added to y, of which `residual` makes more + bias first;   RELU: max(y, 0), not with sums.
    summing: per chunk (counted from chunk0) out[chunk] (2, G K) = sums over its pixels of y and of y^2.
    """
    start_rows, column, width = (
        make_start_rows(vectors),
        make_finishing_column(vectors, masked, summing),
        vectors * target().lanes,
    )

    @cpu_kernel("pppppdg24iiiiiiii", f"x{vectors}{' masked' * masked}{' sums' * summing}")
    def direct_forward(start, stop, scratch, x, panels, bias, y, more, out, layer, y0, chunk0, sums, piece, together,
                       asked, residual, finish):  # fmt: skip  # type: ignore[no-untyped-def]
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
            group_in,
            group_out,
            k,
            pixel,
            out_row,
            out_image,
            rows,
            blocks,
        ) = layer
        per_group, noted = -(-k // width), (sums + 2 * width + 1) // 2
        steps, taps = (s * cg, 1) if dw == 1 and groups == 1 else (cg, s)
        for chunk in range(start, stop):
            image, first = chunk // blocks, chunk % blocks * rows
            count = min(rows, p - first)
            out0 = (chunk0 + chunk) * 2 * groups * k
            if summing:
                for i in range(2 * groups * k):
                    out[out0 + i] = 0.0
            if padded:
                padded_rows(
                    x, image, h, w, c, first * sh - top, (count - 1) * sh + (r - 1) * dh + 1, left, padded, scratch
                )
                source, base, wide = scratch, 0, padded
            else:
                source, base, wide = x, ((image * h + first * sh - top) * w - left) * c, w
            for part in range(0, count, together):  # rows that all panels meet while they are in the cache
                following, until, met = min(together, count - part - together), noted, 0
                if asked and following > 0:
                    until = note(scratch, until, x, base + (part + together) * sh * w * c, following * sh * w * c)
                    until = note(
                        scratch,
                        until,
                        y,
                        y0 + image * out_image + (first + part + together) * out_row,
                        following * out_row,
                    )
                products = groups * per_group * min(together, count - part) * -(-q // piece)
                for group in range(groups):
                    for panel in range(per_group):
                        b0 = (group * per_group + panel) * r * s * cg * width
                        columns, channel = min(width, k - panel * width), group * k + panel * width
                        bias0 = (group * per_group + panel) * width
                        for row in range(part, min(part + together, count)):
                            for done in range(0, q, piece):  # float32 sums are short: pieces of a row, added in float64
                                at = (
                                    y0
                                    + image * out_image
                                    + (first + row) * out_row
                                    + done * pixel
                                    + group * group_out
                                    + panel * width
                                )
                                a0 = base + row * sh * wide * c + done * sw * c + group * group_in
                                if summing:
                                    clear(scratch, sums, 2 * width)
                                low, some = share(until - noted, met, products)
                                if residual:
                                    start_rows(y, more, at, bias, bias0, columns, pixel, min(piece, q - done))
                                column(source, a0, sw * c, 1, panels, b0, width, steps, r, dh * wide * c,
                                       s * cg * width, taps, dw * c, cg * width, y, at, pixel, min(piece, q - done),
                                       columns, bias, bias0, scratch, noted + low, some,
                                       scratch, sums, finish)  # fmt: skip
                                met += 1
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
    Returns the sums of y and y^2 over pixels, chunk by chunk, if `summing` (no bias), else nothing of use: (chunks, 2,
    f K) float64, of f pixels in a row where these are computed together.
    """
    p, q = size or window.output_size((x.shape[1], x.shape[2]))
    f = pixel_fusion(window, groups, w.shape[3], q)
    if f > 1 and out is None:
        wide = y.reshape(y.shape[0], p, q // f, f * w.shape[3])
        bias = None if b is None else filters.repeated_bias(b, f)
        wider = prepared(w, ("widened", f), lambda: filters.widened(w, f), filter=True)
        return direct_forward(
            x, wider, bias, wide, fused_window(window, f), groups, None, (p, q // f), relu, add, summing, residual
        )
    k = w.shape[3] // groups
    layer = params_of(x.shape, window, groups, k, out[1:] if out else None, size)
    images = x.shape[0]
    vectors = panel_vectors(k)
    width = vectors * target().lanes
    launch = partial(
        _launch,
        filters.packed(w, groups, width),
        filters.padded_bias(b, groups, k, width),
        y,
        vectors,
        relu,
        add,
        summing,
    )
    flat = (
        window.kernel == (1, 1) and window.stride == (1, 1) and not layer.padded_width and out is None and size is None
    )
    if flat and window.padding == ((0, 0), (0, 0)):  # chunks of pixels, in rows of some that meet all panels in turn
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
            launch(x, layer, whole, sums, residual=residual)
        if rest:
            offset = whole * row * rows
            tail = layer._replace(h=1, w=rest, p=1, q=rest, rows=1)
            launch(x.reshape(-1, layer.c)[offset:], tail, 1, sums, offset * groups * k, whole, residual)
        return sums
    sums = np.empty((images * layer.blocks, 2, groups * k if summing else 0))
    launch(x, layer, images * layer.blocks, sums, out[0] if out else 0, residual=residual)
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
    width, out_row = vectors * target().lanes, s * q * k
    layer = params_of(x.shape, Window((1, 1)), 1, s * k, (s * k, r * out_row, r * p * out_row))
    layer = layer._replace(groups=r, group_in=0, group_out=out_row)
    panels = filters.packed_rows(w, width)
    bias = filters.padded_bias(b if b is None else filters.repeated_bias(b, r * s), r, s * k, width)
    _launch(panels, bias, y, vectors, False, False, False, x, layer, n * layer.blocks, np.empty(0))
    return y


def _launch(
    panels: np.ndarray,
    bias: np.ndarray,
    y: np.ndarray,
    vectors: int,
    relu: bool,
    add: bool,
    summing: bool,
    x: np.ndarray,
    layer: DirectParams,
    chunks: int,
    sums: np.ndarray,
    y0: int = 0,
    chunk0: int = 0,
    residual: np.ndarray | None = None,
) -> None:
    """Run a kernel over so many chunks of x: the first output is float y0 of y, the first chunk's sums are those of
    chunk0.
    """
    finish = ADDED * (add or residual is not None) + RELU * relu
    lines = (layer.rows - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
    strip = lines * layer.padded_width * layer.c
    more = y if residual is None else residual
    arrays = (
        x.reshape(-1),
        panels.reshape(-1),
        bias.reshape(-1),
        y.reshape(-1),
        more.reshape(-1),
        sums.reshape(-1),
        as_array(layer),
    )
    piece = _PIECE if summing else max(layer.q, 1) if residual is None else _STARTED
    together = max(1, _TOGETHER // layer.q) if panels.size <= _KEPT else layer.rows
    lines = together * (layer.sh * layer.w * layer.c + layer.out_row) // 16 + 2
    beside = layer.r <= layer.sh and layer.s <= layer.sw  # windows that do not overlap
    asked = worth_asking(panels.size) and not layer.padded_width and beside and lines <= _MOST_LINES
    scratch = strip + 2 * vectors * target().lanes + asked * 2 * lines
    numbers = y0, chunk0, strip, piece, together, asked, residual is not None, finish
    parallel(
        forward_kernel(vectors, layer.k % target().lanes != 0, summing), chunks, *arrays, *numbers, scratch=scratch
    )
