"""Direct convolution on the register tile: any kernel size, stride, dilation, padding and groups; forward, data and
filter gradient.

A chunk is a strip of output rows of one image. The input rows it needs are copied into a padded strip in the cache
(unless there is no
padding: then they are read in place), and the filter walks over the strip: for dilation 1 a filter row meets S C
contiguous floats, so no im2col exists. A 1x1 convolution is the same with all pixels in one row: a matrix product.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from kernels.conv import filters, window_gradient
from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel, inline
from kernels.core.contract import ADDED, RELU, make_column, make_finishing_column, panel_vectors, worth_asking
from kernels.core.dispatch import by_numpy
from kernels.core.geometry import Pair, Window
from kernels.core.prepared import prepared
from kernels.core.runs import clear, copy, make_start_rows, note, share
from kernels.core.simd import target
from kernels.core.threads import parallel

_STRIP = 32_768  # floats of a padded strip: 128 KB, well inside an L2 cache
CHUNKS = filters.CHUNKS


class Layer(NamedTuple):
    """A convolution as the kernels see it: image (h, w, c), output (p, q), window, groups, and where output pixels are
    stored.
    """

    h: int
    w: int
    c: int
    p: int
    q: int
    r: int
    s: int
    sh: int
    sw: int
    dh: int
    dw: int
    top: int
    left: int
    padded_width: int  # of a strip; 0: read x in place
    # parts of the output channels, of k each; each reads cg input channels, group_in floats after the part before
    groups: int
    cg: int
    group_in: int
    group_out: int  # floats between the groups' first outputs
    k: int
    out_pixel: int  # floats between output pixels, rows and images
    out_row: int
    out_image: int
    rows: int  # output rows per chunk
    blocks: int  # chunks per image


@lru_cache(maxsize=4096)
def _layer(
    shape: tuple[int, ...],
    window: Window,
    groups: int,
    k: int,
    out: tuple[int, int, int] | None = None,
    size: Pair | None = None,
) -> Layer:
    _, h, w, c = shape
    cg = c // groups
    p, q = size or window.output_size((h, w))
    (r, s), (sh, sw), (dh, dw) = window.kernel, window.stride, window.dilation
    (top, _), (left, _) = window.padding
    reach = (q - 1) * sw + (s - 1) * dw + 1  # columns of a strip that are read
    inside = top <= 0 and left <= 0 and (p - 1) * sh + (r - 1) * dh + 1 - top <= h and reach - left <= w
    padded = 0 if inside else reach
    row = (padded or w) * c * sh
    rows = max(1, min(p, (_STRIP - (r - 1) * dh * (padded or w) * c) // row))
    rows = min(rows, -(-shape[0] * p // CHUNKS))  # few images: chunks for all threads
    rows = min(p, max(rows, -(-64 // q)))  # a strip of few pixels is not worth its overhead
    blocks = -(-p // rows)
    rows = -(-p // blocks)  # at most as many: no block is empty
    pixel, out_row, image = out or (groups * k, q * groups * k, p * q * groups * k)
    return Layer(h, w, c, p, q, r, s, sh, sw, dh, dw, top, left, padded, groups, cg, cg, k, k, pixel, out_row, image,
                 rows, blocks)  # fmt: skip


@lru_cache(maxsize=4096)
def _numbers(layer: Layer) -> np.ndarray:
    return np.array(layer, np.int64)


@inline()
def padded_rows(x, image, h, w, c, first, lines, left, width, out):  # type: ignore[no-untyped-def]
    """out (lines, width, C) = rows first .. first + lines of an image of x (N, H, W, C), from column -left on: zeros
    where it has none.
    """
    before = min(max(0, left), width)
    # columns of x that the strip holds: none where it lies beside the image
    inside = max(0, min(w + min(0, left), width - before))
    for line in range(lines):
        y, o = first + line, line * width * c
        if y < 0 or y >= h:
            clear(out, o, width * c)
            continue
        clear(out, o, before * c)
        copy(x, ((image * h + y) * w + max(0, -left)) * c, out, o + before * c, inside * c)
        clear(out, o + (before + inside) * c, (width - before - inside) * c)


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


def run_forward(
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
    f = _widening(window, groups, w.shape[3], q)
    if f > 1 and out is None:
        wide = y.reshape(y.shape[0], p, q // f, f * w.shape[3])
        bias = None if b is None else filters.repeated_bias(b, f)
        wider = prepared(w, ("widened", f), lambda: filters.widened(w, f), filter=True)
        return run_forward(
            x, wider, bias, wide, _widened(window, f), groups, None, (p, q // f), relu, add, summing, residual
        )
    k = w.shape[3] // groups
    layer = _layer(x.shape, window, groups, k, out[1:] if out else None, size)
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


def side_by_side(window: Window, size: Pair, small: tuple[int, ...]) -> bool:
    """Whether a map of `size` consists of windows without gaps or overlaps, one for each pixel of a map of shape
    `small`.
    """
    (r, s), (_, p, q, _) = window.kernel, small
    return window == Window((r, s), (r, s)) and size == (r * p, s * q)


def run_transposed(x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """y (N, R P, S Q, K) = the transposed convolution of x (N, P, Q, C) with w (R, S, C, K) for stride (R, S), plus b:
    windows do not overlap.

    A row of x times the filter's row a is a row of y, every R-th: groups that share their input, of S neighbouring
    pixels each.
    """
    (n, p, q, _), (r, s, _, k) = x.shape, w.shape
    y = memory.empty((n, r * p, s * q, k), np.float32)
    vectors = panel_vectors(s * k)
    width, out_row = vectors * target().lanes, s * q * k
    layer = _layer(x.shape, Window((1, 1)), 1, s * k, (s * k, r * out_row, r * p * out_row))
    layer = layer._replace(groups=r, group_in=0, group_out=out_row)
    panels = filters.packed_rows(w, width)
    bias = filters.padded_bias(b if b is None else filters.repeated_bias(b, r * s), r, s * k, width)
    _launch(panels, bias, y, vectors, False, False, False, x, layer, n * layer.blocks, np.empty(0))
    return y


# A vector of 16 lanes is half empty for 8 output channels. But two neighbouring pixels of 8 channels are one run of 16
# floats, and computing them together is a convolution too: of stride 2, with a filter one tap wider that holds the
# filter twice, the second time shifted.


def _widening(window: Window, groups: int, k: int, q: int) -> int:
    """How many neighbouring output pixels are computed together."""
    f = max(1, target().lanes // k)
    (_, s), stride, dilation = window.kernel, window.stride[1], window.dilation[1]
    worth = f * s > 1.2 * (s + f - 1)
    return f if groups == stride == dilation == 1 and target().lanes % k == 0 and q % f == 0 and worth else 1


def _widened(window: Window, f: int) -> Window:
    (r, s), (sh, _) = window.kernel, window.stride
    return Window((r, s + f - 1), (sh, f), window.padding, window.dilation)


def _launch(
    panels: np.ndarray,
    bias: np.ndarray,
    y: np.ndarray,
    vectors: int,
    relu: bool,
    add: bool,
    summing: bool,
    x: np.ndarray,
    layer: Layer,
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
        _numbers(layer),
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


# -- data gradient -----------------------------------------------------------------------------------------------------


def backward_data(
    dy: np.ndarray,
    w: np.ndarray,
    size: Pair,
    window: Window,
    groups: int = 1,
    bias: np.ndarray | None = None,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """dx (N, H, W, C) (+ bias, or added to `into`): for every phase of the stride a stride-1 convolution of dy with the
    taps that reach it.
    """
    n, c = dy.shape[0], w.shape[2] * groups
    (h, wd), (sh, sw) = size, window.stride
    if into is None and groups == 1 and side_by_side(window, size, dy.shape):
        return run_transposed(dy, filters.swapped(w), bias)
    dx, add = (memory.empty((n, h, wd, c), np.float32), False) if into is None else (into, True)
    if (sh, sw) == (1, 1):
        all_taps = tuple((0, k, 1) for k in window.kernel)
        run_forward(
            dy, filters.flipped(w, groups), bias, dx, _data_window(window, (0, 0), all_taps), groups, size=size, add=add
        )
        return dx
    for a in range(min(sh, h)):
        for b in range(min(sw, wd)):
            geometry = zip((a, b), window.kernel, window.stride, window.dilation, window.padding, strict=True)
            taps = tuple(_taps(i, k, s, d, pad[0]) for i, k, s, d, pad in geometry)
            if not all(len(range(*t)) for t in taps):  # no tap reaches this phase
                if not add:
                    dx[:, a::sh, b::sw] = 0 if bias is None else bias
                continue
            if groups > 1 or window.kernel[0] > sh or window.kernel[1] > sw:
                by_numpy()  # a copy of some of the taps
            part = w[taps[0][0] : taps[0][1] : taps[0][2], taps[1][0] : taps[1][1] : taps[1][2]]
            phase = -(-(h - a) // sh), -(-(wd - b) // sw)
            out = ((a * wd + b) * c, sw * c, sh * wd * c, h * wd * c)
            filter_ = prepared(part, ("flipped", groups), partial(filters.flipped, part, groups), filter=True)
            run_forward(dy, filter_, bias, dx, _data_window(window, (a, b), taps), groups, out, phase, add=add)
    return dx


def _taps(i: int, k: int, stride: int, dilation: int, pad: int) -> tuple[int, int, int]:
    """The taps r with (i + pad - r dilation) divisible by the stride, as (first, stop, step): they reach input pixels
    of phase i.
    """
    step = stride // math.gcd(stride, dilation)
    first = next((r for r in range(min(k, step)) if (i + pad - r * dilation) % stride == 0), k)
    return first, k, step


def _data_window(window: Window, start: Pair, taps: tuple[tuple[int, int, int], ...]) -> Window:
    """The stride-1 window over dy that gives the input pixels start, start + stride, ...: with u the pixel's index in
    its phase, tap r reads p = (start + stride u + pad - r dilation) / stride. The reversed taps are
    `dilation' apart in p, the last one comes first.
    """
    padding, dilation, kernel = [], [], []
    for i, (first, stop, step), s, d, pad in zip(
        start, taps, window.stride, window.dilation, window.padding, strict=True
    ):
        count = len(range(first, stop, step))
        last = first + (count - 1) * step
        kernel.append(count)
        dilation.append(step * d // s if count > 1 else 1)
        # may be negative: the window then starts inside; its far end follows from the size
        padding.append((-((i + pad[0] - last * d) // s), 0))
    return Window((kernel[0], kernel[1]), (1, 1), (padding[0], padding[1]), (dilation[0], dilation[1]))


# -- filter gradient ---------------------------------------------------------------------------------------------------


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


def backward_filter(x: np.ndarray, dy: np.ndarray, window: Window, groups: int = 1) -> np.ndarray:
    """dw (R, S, C/groups, K) of contiguous float32 x (N, H, W, C) and dy (N, P, Q, K)."""
    n, p, q, channels = dy.shape
    f = _widening(window, groups, channels, q)
    if f > 1:
        return filters.narrowed(backward_filter(x, dy.reshape(n, p, q // f, f * channels), _widened(window, f)), f)
    if groups == 1 and side_by_side(window, (x.shape[1], x.shape[2]), dy.shape):
        return window_gradient.backward_filter(x, dy, window.kernel)
    k, (r, s), lanes = channels // groups, window.kernel, target().lanes
    layer = _layer(x.shape, window, groups, k, None, (p, q))
    vectors, floats = panel_vectors(k), r * s * layer.cg * channels
    strips = n * layer.blocks
    chunks = max(1, min(CHUNKS, strips, max(2, filters.MOST_SUMS // floats)))
    per_chunk = -(-strips // chunks)
    chunks = -(-strips // per_chunk)
    partial = memory.empty((chunks * floats,), np.float32)
    kernel = filter_gradient_kernel(vectors, k % lanes != 0)
    lines = (layer.rows - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
    scratch = max(16, lines * layer.padded_width * layer.c)
    arrays = x.reshape(-1), dy.reshape(-1), partial, filters.zeros(vectors * lanes), _numbers(layer)
    parallel(kernel, chunks, *arrays, strips, per_chunk, floats, scratch=scratch)
    return filters.added_chunks(partial, chunks, r * s * layer.cg, channels, channels).reshape(r, s, layer.cg, channels)
