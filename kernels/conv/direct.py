"""Direct convolution on the register tile: any kernel size, stride, dilation, padding and groups; forward, data and filter gradient.

A chunk is a strip of output rows of one image. The input rows it needs are copied into a padded strip in the cache (unless there is no
padding: then they are read in place), and the filter walks over the strip: for dilation 1 a filter row meets S C contiguous floats, so no
im2col exists. A 1x1 convolution is the same with all pixels in one row: a matrix product.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from kernels.conv import filters
from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel, inline
from kernels.core.contract import make_column, panel_vectors
from kernels.core.dispatch import by_numpy
from kernels.core.geometry import Pair, Window
from kernels.core.prepared import prepared
from kernels.core.runs import clear, copy, make_start_rows
from kernels.core.simd import target
from kernels.core.threads import parallel

_STRIP = 32_768  # floats of a padded strip: 128 KB, well inside an L2 cache
CHUNKS = filters.CHUNKS


class Layer(NamedTuple):
    """A convolution as the kernels see it: image (h, w, c), output (p, q), window, groups, and where output pixels are stored."""

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
    groups: int
    k: int  # output channels of one group
    out_pixel: int  # floats between output pixels, rows and images
    out_row: int
    out_image: int
    rows: int  # output rows per chunk
    blocks: int  # chunks per image


@lru_cache(maxsize=4096)
def _layer(shape: tuple[int, ...], window: Window, groups: int, k: int, out: tuple[int, int, int] | None = None, size: Pair | None = None) -> Layer:
    _, h, w, c = shape
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
    rows = -(-p // blocks)
    pixel, out_row, image = out or (groups * k, q * groups * k, p * q * groups * k)
    return Layer(h, w, c, p, q, r, s, sh, sw, dh, dw, top, left, padded, groups, k, pixel, out_row, image, rows, blocks)


@lru_cache(maxsize=4096)
def _numbers(layer: Layer) -> np.ndarray:
    return np.array(layer, np.int64)


@inline()
def _strip(x, scratch, layer, image, first_row, count):  # type: ignore[no-untyped-def]
    """Copy the input rows under output rows first_row .. first_row + count, padded, to scratch."""
    h, w, c, _p, _q, r, _s, sh, _sw, dh, _dw, top, left, width = layer[:14]
    y0 = first_row * sh - top
    lines = (count - 1) * sh + (r - 1) * dh + 1
    before = min(max(0, left), width)
    inside = max(0, min(w + min(0, left), width - before))  # columns of x that the strip holds: none where it lies beside the image
    for line in range(lines):
        y, o = y0 + line, line * width * c
        if y < 0 or y >= h:
            clear(scratch, o, width * c)
            continue
        clear(scratch, o, before * c)
        copy(x, ((image * h + y) * w + max(0, -left)) * c, scratch, o + before * c, inside * c)
        clear(scratch, o + (before + inside) * c, (width - before - inside) * c)


_PIECE = 512  # pixels whose results are summed in float32


_STARTED = 64  # pixels that get residual + bias before the products are added to them: a share of the L1 cache


@lru_cache(maxsize=64)
def forward_kernel(vectors: int, masked: bool, relu: bool, add: bool, summing: bool, residual: bool = False) -> Kernel:
    """The kernel for panels of `vectors` vectors; masked: the last one is not full; add: the result is added to y; residual: to `more`.

    summing: no bias; per chunk (counted from chunk0) out[chunk] (2, G K) = sums over its pixels of y and of y^2.
    """
    start_rows = make_start_rows(vectors)
    column = make_column(vectors, accumulate=add or residual, mask_c=masked, relu=relu, ahead="rows", sums=summing)
    width = vectors * target().lanes

    @cpu_kernel("pppppdg21iiii", f"x{vectors}{' masked' * masked}{' relu' * relu}{' add' * add}{' sums' * summing}{' residual' * residual}")
    def direct_forward(start, stop, scratch, x, panels, bias, y, more, out, layer, y0, chunk0, sums, piece):  # type: ignore[no-untyped-def]
        h, w, c, p, q, r, s, sh, sw, dh, dw, top, left, padded, groups, k, pixel, out_row, out_image, rows, blocks = layer
        cg, per_group = c // groups, -(-k // width)
        steps, taps = (s * cg, 1) if dw == 1 and groups == 1 else (cg, s)
        for chunk in range(start, stop):
            image, first = chunk // blocks, chunk % blocks * rows
            count = min(rows, p - first)
            out0 = (chunk0 + chunk) * 2 * groups * k
            if summing:
                for i in range(2 * groups * k):
                    out[out0 + i] = 0.0
            if count <= 0:
                continue
            if padded:
                _strip(x, scratch, layer, image, first, count)
                source, base, wide = scratch, 0, padded
            else:
                source, base, wide = x, ((image * h + first * sh - top) * w - left) * c, w
            for group in range(groups):
                for panel in range(per_group):
                    b0 = (group * per_group + panel) * r * s * cg * width
                    columns, channel = min(width, k - panel * width), group * k + panel * width
                    bias0 = (group * per_group + panel) * width
                    extra, e0 = (scratch, sums) if summing else (bias, bias0)
                    for row in range(count):
                        for done in range(0, q, piece):  # float32 sums are short: pieces of a row, added in float64
                            at = y0 + image * out_image + (first + row) * out_row + done * pixel + channel
                            a0 = base + row * sh * wide * c + done * sw * c + group * cg
                            if summing:
                                clear(scratch, sums, 2 * width)
                            if residual:
                                start_rows(y, more, at, bias, bias0, columns, pixel, min(piece, q - done))
                            column(source, a0, sw * c, 1, panels, b0, width, steps, r, dh * wide * c, s * cg * width, taps, dw * c, cg * width,
                                   y, at, pixel, min(piece, q - done), columns, extra, e0)  # fmt: skip
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
    Returns the sums of y and y^2 over pixels, chunk by chunk, if `summing` (no bias), else nothing of use: (chunks, 2, f K) float64, of f pixels
    in a row where these are computed together.
    """
    p, q = size or window.output_size((x.shape[1], x.shape[2]))
    f = _widening(window, groups, w.shape[3], q)
    if f > 1 and out is None:
        wide = y.reshape(y.shape[0], p, q // f, f * w.shape[3])
        bias = None if b is None else filters.repeated_bias(b, f)
        wider = prepared(w, ("widened", f), lambda: filters.widened(w, f), filter=True)
        return run_forward(x, wider, bias, wide, _widened(window, f), groups, None, (p, q // f), relu, add, summing, residual)
    k = w.shape[3] // groups
    layer = _layer(x.shape, window, groups, k, out[1:] if out else None, size)
    images = x.shape[0]
    flat = window.kernel == (1, 1) and window.stride == (1, 1) and not layer.padded_width and out is None and size is None
    if flat and window.padding == ((0, 0), (0, 0)):  # all pixels in one row, in chunks of rows of pixels
        pixels = images * layer.h * layer.w
        per = max(64, -(-pixels // (64 * CHUNKS)) * 64)
        layer = layer._replace(h=1, w=per, p=1, q=per, rows=1, blocks=1, out_row=0, out_image=per * layer.out_pixel)
        whole = pixels // per
        rest = pixels - whole * per
        sums = np.empty((whole + (rest > 0), 2, groups * k if summing else 0))
        if whole:
            _launch(x, w, b, y, layer, whole, 0, groups, k, relu, add, summing, sums, 0, residual)
        if rest:
            offset = whole * per
            tail = layer._replace(w=rest, q=rest, out_image=0)
            _launch(x.reshape(-1, layer.c)[offset:], w, b, y, tail, 1, offset * layer.out_pixel, groups, k, relu, add, summing, sums, whole, residual)
        return sums
    sums = np.empty((images * layer.blocks, 2, groups * k if summing else 0))
    _launch(x, w, b, y, layer, images * layer.blocks, out[0] if out else 0, groups, k, relu, add, summing, sums, 0, residual)
    return sums


# A vector of 16 lanes is half empty for 8 output channels. But two neighbouring pixels of 8 channels are one run of 16 floats, and computing
# them together is a convolution too: of stride 2, with a filter one tap wider that holds the filter twice, the second time shifted.


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
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    y: np.ndarray,
    layer: Layer,
    chunks: int,
    y0: int,
    groups: int,
    k: int,
    relu: bool,
    add: bool,
    summing: bool,
    sums: np.ndarray,
    chunk0: int,
    residual: np.ndarray | None,
) -> None:
    lanes, vectors = target().lanes, panel_vectors(k)
    width = vectors * lanes
    bias = filters.padded_bias(b, groups, k, width)
    kernel = forward_kernel(vectors, k % lanes != 0, relu, add, summing, residual is not None)
    lines = (layer.rows - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
    strip = lines * layer.padded_width * layer.c
    more = y if residual is None else residual
    arrays = x.reshape(-1), filters.packed(w, groups, width), bias.reshape(-1), y.reshape(-1), more.reshape(-1), sums.reshape(-1), _numbers(layer)
    piece = _PIECE if summing else max(layer.q, 1) if residual is None else _STARTED
    parallel(kernel, chunks, *arrays, y0, chunk0, strip, piece, scratch=strip + 2 * width)


# -- data gradient --------------------------------------------------------------------------------------------------------------


def backward_data(
    dy: np.ndarray, w: np.ndarray, size: Pair, window: Window, groups: int = 1, bias: np.ndarray | None = None, into: np.ndarray | None = None
) -> np.ndarray:
    """dx (N, H, W, C) (+ bias, or added to `into`): for every phase of the stride a stride-1 convolution of dy with the taps that reach it."""
    n, c = dy.shape[0], w.shape[2] * groups
    (h, wd), (sh, sw) = size, window.stride
    if sw > 1 and groups == 1 and window.kernel[1] == sw and window.dilation[1] == 1 and window.padding[1] == (0, 0) and wd == sw * dy.shape[2]:
        # Pixels of one row do not overlap: sw neighbours with their channels are one pixel of sw C channels.
        across = Window((window.kernel[0], 1), (sh, 1), (window.padding[0], (0, 0)), (window.dilation[0], 1))
        if not w.flags.c_contiguous:
            by_numpy()
        wide = prepared(w, ("wide", sw), lambda: w.reshape(w.shape[0], 1, sw * c, -1), filter=True)
        tiled = None if bias is None else filters.repeated_bias(bias, sw)
        total = None if into is None else into.reshape(n, h, -1, sw * c)
        dx = backward_data(dy, wide, (h, dy.shape[2]), across, 1, tiled, total)
        return dx.reshape(n, h, wd, c) if into is None else into
    dx, add = (memory.empty((n, h, wd, c), np.float32), False) if into is None else (into, True)
    if (sh, sw) == (1, 1):
        all_taps = tuple((0, k, 1) for k in window.kernel)
        run_forward(dy, filters.flipped(w, groups), bias, dx, _data_window(window, (0, 0), all_taps), groups, size=size, add=add)
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
    """The taps r with (i + pad - r dilation) divisible by the stride, as (first, stop, step): they reach input pixels of phase i."""
    step = stride // math.gcd(stride, dilation)
    first = next((r for r in range(min(k, step)) if (i + pad - r * dilation) % stride == 0), k)
    return first, k, step


def _data_window(window: Window, start: Pair, taps: tuple[tuple[int, int, int], ...]) -> Window:
    """The stride-1 window over dy that gives the input pixels start, start + stride, ...: with u the pixel's index in its phase, tap r reads
    p = (start + stride u + pad - r dilation) / stride. The reversed taps are `dilation' apart in p, the last one comes first.
    """
    padding, dilation, kernel = [], [], []
    for i, (first, stop, step), s, d, pad in zip(start, taps, window.stride, window.dilation, window.padding, strict=True):
        count = len(range(first, stop, step))
        last = first + (count - 1) * step
        kernel.append(count)
        dilation.append(step * d // s if count > 1 else 1)
        padding.append((-((i + pad[0] - last * d) // s), 0))  # may be negative: the window then starts inside; its far end follows from the size
    return Window((kernel[0], kernel[1]), (1, 1), (padding[0], padding[1]), (dilation[0], dilation[1]))


# -- filter gradient ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def filter_gradient_kernel(vectors: int, masked: bool, stream: bool) -> Kernel:
    """The kernel that sums x^T dy over the strips of a chunk: partial[chunk] (R, S, C/G, G K)."""
    column_of_tiles = make_column(vectors, accumulate=True, mask_b=masked, mask_c=masked, ahead="steps" if stream else "")
    width = vectors * target().lanes

    @cpu_kernel("ppppg21iii", f"x{vectors}{' masked' * masked}{' stream' * stream}")
    def direct_filter_gradient(start, stop, scratch, x, dy, partial, zeros, layer, strips, per_chunk, floats):  # type: ignore[no-untyped-def]
        h, w, c, p, q, r, s, sh, sw, dh, dw, top, left, padded, groups, k, pixel, out_row, out_image, rows, blocks = layer
        cg = c // groups
        flat = dw == 1 and groups == 1  # the taps of a filter row and their channels are one run of memory
        lines, line_rows = (1, s * cg) if flat else (s, cg)
        for chunk in range(start, stop):
            sums = chunk * floats
            clear(partial, sums, floats)
            for strip in range(chunk * per_chunk, min((chunk + 1) * per_chunk, strips)):
                image, first = strip // blocks, strip % blocks * rows
                count = min(rows, p - first)
                if count <= 0:
                    continue
                if padded:
                    _strip(x, scratch, layer, image, first, count)
                    source, base, wide = scratch, 0, padded
                else:
                    source, base, wide = x, ((image * h + first * sh - top) * w - left) * c, w
                d0 = image * out_image + first * out_row
                for group in range(groups):
                    for i in range(r):
                        for j in range(lines):
                            a0, c0 = base + (i * dh * wide + j * dw) * c + group * cg, sums + ((i * s + j) * cg) * groups * k + group * k
                            for column in range(0, k, width):
                                column_of_tiles(source, a0, 1, sw * c, dy, d0 + group * k + column, pixel, q, count, sh * wide * c, out_row, 1, 0, 0,
                                                partial, c0 + column, groups * k, line_rows, min(width, k - column), zeros, 0)  # fmt: skip

    return direct_filter_gradient


def backward_filter(x: np.ndarray, dy: np.ndarray, window: Window, groups: int = 1) -> np.ndarray:
    """dw (R, S, C/groups, K) of contiguous float32 x (N, H, W, C) and dy (N, P, Q, K)."""
    n, p, q, channels = dy.shape
    f = _widening(window, groups, channels, q)
    if f > 1:
        return filters.narrowed(backward_filter(x, dy.reshape(n, p, q // f, f * channels), _widened(window, f)), f)
    k, (r, s), lanes = channels // groups, window.kernel, target().lanes
    layer = _layer(x.shape, window, groups, k, None, (p, q))
    images, stream = n, False
    if window.kernel == (1, 1) and window.stride == (1, 1) and not layer.padded_width and window.padding == ((0, 0), (0, 0)):
        stream = layer.c + channels <= 256
        per = 64 if stream else 512  # pixels of a strip
        images = -(-n * p * q // per)
        if n * p * q % per == 0:
            layer = layer._replace(h=1, w=per, p=1, q=per, rows=1, blocks=1, out_row=0, out_image=per * channels)
        else:
            images = n
    cg = layer.c // groups
    floats = r * s * cg * channels
    strips = images * layer.blocks
    chunks = max(1, min(CHUNKS, strips, max(2, 4_000_000 // floats)))
    per_chunk = -(-strips // chunks)
    chunks = -(-strips // per_chunk)
    partial = memory.empty((chunks * floats,), np.float32)
    vectors = panel_vectors(k)
    kernel = filter_gradient_kernel(vectors, k % lanes != 0, stream)
    lines = (layer.rows - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
    scratch = max(16, lines * layer.padded_width * layer.c)
    arrays = x.reshape(-1), dy.reshape(-1), partial, filters.zeros(vectors * lanes), _numbers(layer)
    parallel(kernel, chunks, *arrays, strips, per_chunk, floats, scratch=scratch)
    return filters.added_chunks(partial, chunks, r * s * cg, channels, channels).reshape(r, s, cg, channels)
