"""Convolutions of one input channel, stride 1: a network's first layer. Every tap of a filter is one multiply-add per
vector of outputs.

The image is as small as its filter's result is large: bytes of the result decide. With one channel a row of the filter
is only S steps long, so all taps are written out; a pixel of the padded image is broadcast once and serves the S
neighbouring outputs that it reaches.

    forward            a tile of pixels x output channels; sums start from bias (+ residual)
    filter gradient    a sum per tap for one vector of channels, over a row of pixels
    data gradient      in stem_data.py: the other way round, from many channels to one
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.conv import filters
from kernels.conv.direct import padded_rows
from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel
from kernels.core.contract import panel_vectors
from kernels.core.geometry import Pair, Window
from kernels.core.runs import clear, copy, over_run
from kernels.core.simd import Code, Int, Pointer, program, target
from kernels.core.threads import parallel

_MOST = 9  # taps: as many sums or factors stay in registers
# vectors of a panel -> pixels of a tile: at least 8 sums in flight, and registers for a filter row
_TILE = {1: 8, 2: 4, 4: 4}
_PIECE = 512  # pixels whose results are summed in float32
_CHUNKS = 64  # about as many, of _PIECE pixels at least
# filter gradient: pixels of a row whose dy stays in the L1 cache for all vectors of channels; pixels side by side
_SPAN, _TOGETHER = 64, 4


def serves(window: Window, inputs: int, outputs: int, groups: int) -> bool:
    """Whether there is one input channel, and a small filter moves pixel by pixel. Less than half a vector of outputs:
    direct.py is faster.
    """
    r, s = window.kernel
    dense = groups == 1 and window.stride == window.dilation == (1, 1)
    return dense and inputs == 1 and 2 * outputs >= target().lanes and 1 < r * s <= _MOST


class Layer(NamedTuple):
    """A convolution as kernels and programs see it: image (h, w, 1), output (p, q, k), padding, rows of a chunk, chunks
    of an image.
    """

    h: Any
    w: Any
    p: Any
    q: Any
    k: Any
    top: Any
    left: Any
    rows: Any
    blocks: Any


NUMBERS = len(Layer._fields)


@lru_cache(maxsize=256)
def plan(images: int, size: Pair, out: Pair, k: int, window: Window, by_output: bool) -> tuple[Layer, np.ndarray, int]:
    """The layer, its numbers as an array, and how many chunks: strips of the output's rows, or of the image's."""
    height = out[0] if by_output else size[0]
    # a strip of few pixels is not worth its overhead
    rows = max(-(-height // max(1, _CHUNKS // images)), -(-_PIECE // size[1]))
    blocks = -(-height // rows)
    layer = Layer(*size, *out, k, window.padding[0][0], window.padding[1][0], rows, blocks)
    return layer, np.array(layer, np.int64), images * blocks


def meetings(pixels: int, taps: int) -> list[list[Pair]]:
    """By input column of a tile: the pairs (output pixel, tap) that meet there."""
    return [[(u - j, j) for j in range(taps) if 0 <= u - j < pixels] for u in range(pixels + taps - 1)]


# -- forward -----------------------------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """What of a forward kernel is compiled in."""

    kernel: Pair
    vectors: int  # of a panel
    masked: bool  # the last panel is not full
    relu: bool
    residual: bool  # `more` is added
    summing: bool  # no bias; out[chunk] (2, K) = sums over pixels of y and of y^2


def _forward_tile(
    code: Code, form: _Form, arrays: tuple[Pointer, ...], wide: Int, place: Int, pixels: int, k: Int, panel: Int
) -> None:
    """`pixels` output pixels from y[place] on, channels panel ...; arrays: padded rows at the first one's, panels,
    bias, more, y, sums.
    """
    rows, panels, start, more, y, sums = arrays
    (r, s), vectors = form.kernel, form.vectors
    columns = [panel + v * code.lanes for v in range(vectors)]
    rests = [k - column if form.masked else None for column in columns]
    outputs = [[(v, place + t * k + column) for v, column in enumerate(columns)] for t in range(pixels)]
    total = [[code.load(start, column) for column in columns] for _ in range(pixels)]
    if form.residual:
        total = [
            [code.load(more, at, rests[v]) + line[v] for v, at in places]
            for line, places in zip(total, outputs, strict=True)
        ]
    for i in range(r):
        taps = [panel * (r * s) + (i * s + j) * (vectors * code.lanes) for j in range(s)]
        factors = [[code.load(panels, tap + v * code.lanes) for v in range(vectors)] for tap in taps]
        for u, pairs in enumerate(meetings(pixels, s)):
            value = code.broadcast(rows, wide * i + u)
            for t, j in pairs:
                total[t] = [
                    code.fma(value, factor, so_far) for factor, so_far in zip(factors[j], total[t], strict=True)
                ]
    if form.relu:
        total = [[code.relu(value) for value in line] for line in total]
    for line, places in zip(total, outputs, strict=True):
        for v, at in places:
            code.store(line[v], y, at, rests[v])
    if form.summing:
        squares0 = code.rounded_to(k + (vectors * code.lanes - 1), code.int(vectors * code.lanes))
        for v, column in enumerate(columns):
            added, squares = code.load(sums, column), code.load(sums, squares0 + column)
            for line in total:
                added, squares = added + line[v], code.fma(line[v], line[v], squares)
            code.store(added, sums, column)
            code.store(squares, sums, squares0 + column)


@lru_cache(maxsize=64)
def _forward_kernel(form: _Form) -> Kernel:
    (r, s), pixels, width, summing = form.kernel, _TILE[form.vectors], form.vectors * target().lanes, form.summing

    @program("pppppiiiiiii")
    def strip(
        code: Code, own: Pointer, panels: Pointer, start: Pointer, more: Pointer, y: Pointer, *numbers: Int
    ) -> None:
        """`rows` rows of `many` pixels: the first output is at y[y0], its first input at own[own0] of rows `wide`
        apart. Whole pixels are written.
        """
        own0, wide, y0, k, rows, many, sums0 = numbers
        whole = code.rounded_to(many, code.int(pixels))
        with code.loop(0, rows) as row:
            line, to = own + own0 + row * wide, y0 + row * (wide - (s - 1)) * k
            for begin, end, count in ((0, whole, pixels), (whole, many, 1)):
                with code.loop(begin, end, count) as at, code.loop(0, k, width) as panel:
                    _forward_tile(
                        code, form, (line + at, panels, start, more, y, own + sums0), wide, to + at * k, count, k, panel
                    )

    names = "masked", "relu", "residual", "sums"
    variant = " ".join(
        [f"{form.kernel} x{form.vectors}", *(name for name, there in zip(names, form[2:], strict=True) if there)]
    )

    @cpu_kernel(f"pppppdg{NUMBERS}", variant)
    def stem_forward(start, stop, scratch, x, panels, bias, more, y, out, layer):  # type: ignore[no-untyped-def]
        h, w, p, q, k, top, left, rows, blocks = layer
        wide, channels = q + s - 1, -(-k // width) * width
        sums = (rows + r - 1) * wide
        # float32 sums are short: pieces, added in float64
        together, piece = (max(1, _PIECE // q), _PIECE) if summing else (rows, q)
        for chunk in range(start, stop):
            image, first = chunk // blocks, chunk % blocks * rows
            count, out0 = min(rows, p - first), chunk * 2 * k
            padded_rows(x, image, h, w, 1, first - top, count + r - 1, left, wide, scratch)
            if summing:
                for i in range(2 * k):
                    out[out0 + i] = 0.0
            for row in range(0, count, together):
                for done in range(0, q, piece):
                    if summing:
                        clear(scratch, sums, 2 * channels)
                    strip(scratch, panels, bias, more, y, row * wide + done, wide,
                          ((image * p + first + row) * q + done) * k, k, min(together, count - row), min(piece,
                          q - done), sums)  # fmt: skip
                    if summing:
                        for i in range(k):
                            out[out0 + i] += scratch[sums + i]
                            out[out0 + k + i] += scratch[sums + channels + i]

    return stem_forward


def forward(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    window: Window,
    relu: bool = False,
    residual: np.ndarray | None = None,
    summing: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """y (N, P, Q, K) of contiguous float32 x (N, H, W, 1) and w (R, S, 1, K), and the sums of y and y^2 if `summing`
    (no bias): (chunks, 2, K).
    """
    (n, h, wd, _), k, (r, s) = x.shape, w.shape[3], window.kernel
    out = window.output_size((h, wd))
    layer, numbers, chunks = plan(n, (h, wd), out, k, window, True)
    vectors = panel_vectors(k)
    width = vectors * target().lanes
    y, sums = memory.empty((n, *out, k), np.float32), np.empty((chunks, 2, k if summing else 0))
    more = y if residual is None else residual
    arrays = (
        x.reshape(-1),
        filters.packed(w, 1, width),
        filters.padded_bias(b, 1, k, width),
        more.reshape(-1),
        y.reshape(-1),
        sums.reshape(-1),
    )
    kernel = _forward_kernel(
        _Form(window.kernel, vectors, k % target().lanes != 0, relu, residual is not None, summing)
    )
    scratch = (layer.rows + r - 1) * (layer.q + s - 1) + 2 * (k + width)
    parallel(kernel, chunks, *arrays, numbers, scratch=scratch)
    return y, sums


# -- filter gradient ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _filter_kernel(kernel: Pair) -> Kernel:
    r, s = kernel
    taps = [(i, j) for i in range(r) for j in range(s)]

    @program("ppiiiiii")
    def strip(
        code: Code, own: Pointer, dy: Pointer, wide: Int, sums0: Int, dy0: Int, k: Int, count: Int, q: Int
    ) -> None:
        """own[sums0 ...] (R, S, K) += sums of x dy over `count` rows of q pixels, the first at dy[dy0], from the padded
        rows `own`.
        """
        with code.loop(0, count) as row, code.loop(0, q, _SPAN) as begin:
            end = code.lesser(begin + _SPAN, q)
            line, given = own + row * wide, dy + dy0 + row * q * k

            def channels(c: Int, rest: Any) -> None:
                places = {tap: sums0 + k * n + c for n, tap in enumerate(taps)}
                sums = {tap: code.variable(code.load(own, at, rest)) for tap, at in places.items()}

                def products(at: Int, many: int) -> None:
                    factors = [code.load(given, (at + t) * k + c, rest) for t in range(many)]
                    for i in range(r):
                        for u, pairs in enumerate(meetings(many, s)):
                            value = code.broadcast(line, wide * i + at + u)
                            for t, j in pairs:
                                sums[i, j].set(code.fma(value, factors[t], sums[i, j].get()))

                whole = begin + code.rounded_to(end - begin, code.int(_TOGETHER))
                for start, stop, many in ((begin, whole, _TOGETHER), (whole, end, 1)):
                    with code.loop(start, stop, many) as at:
                        products(at, many)
                for tap, total in sums.items():
                    code.store(total.get(), own, places[tap], rest)

            over_run(code, k, channels)

    @cpu_kernel(f"pppg{NUMBERS}", f"{kernel}")
    def stem_filter_gradient(start, stop, scratch, x, dy, partial, layer):  # type: ignore[no-untyped-def]
        h, w, p, q, k, top, left, rows, blocks = layer
        wide, floats = q + s - 1, r * s * k
        sums = (rows + r - 1) * wide
        for chunk in range(start, stop):
            image, first = chunk // blocks, chunk % blocks * rows
            count = min(rows, p - first)
            padded_rows(x, image, h, w, 1, first - top, count + r - 1, left, wide, scratch)
            # the sums grow in memory of the thread's own: no other writes to their cache lines
            clear(scratch, sums, floats)
            strip(scratch, dy, wide, sums, (image * p + first) * q * k, k, count, q)
            copy(scratch, sums, partial, chunk * floats, floats)

    return stem_filter_gradient


def backward_filter(x: np.ndarray, dy: np.ndarray, window: Window) -> np.ndarray:
    """dw (R, S, 1, K) of contiguous float32 x (N, H, W, 1) and dy (N, P, Q, K)."""
    (n, h, wd, _), (_, p, q, k), (r, s) = x.shape, dy.shape, window.kernel
    layer, numbers, chunks = plan(n, (h, wd), (p, q), k, window, True)
    partial = memory.empty((chunks * r * s * k,), np.float32)
    scratch = (layer.rows + r - 1) * (q + s - 1) + r * s * k
    parallel(_filter_kernel(window.kernel), chunks, x.reshape(-1), dy.reshape(-1), partial, numbers, scratch=scratch)
    return filters.added_chunks(partial, chunks, r * s, k, k).reshape(r, s, 1, k)
