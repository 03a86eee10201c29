"""Forward of one input channel: a tile of pixels times output channels; sums start from bias (+ residual)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.direct.params import padded_rows
from kernels.conv.cpu.single_channel.params import PIECE, SingleChannelParams, meetings, plan
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, F64
from kernels.core.cpu.gemm_microkernel import panel_vectors
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear
from kernels.core.geometry import Pair, Window

# vectors of a panel -> pixels of a tile: at least 8 sums in flight, and registers for a filter row
_TILE = {1: 8, 2: 4, 4: 4}


class _Form(NamedTuple):
    """The part of a forward kernel that is compiled in."""

    kernel: Pair
    vectors: int  # of a panel
    masked: bool  # the last panel is not full
    relu: bool
    residual: bool  # the residual is added
    summing: bool  # no bias; out[chunk] (2, K) = sums over pixels of y and of y^2


class StripArrays(NamedTuple):
    """Padded rows, panels, initial sums, the residual and y."""

    own: Any
    panels: Any
    start: Any
    residual: Any
    y: Any


def _forward_tile(
    code: Code, form: _Form, arrays: tuple[Pointer, ...], wide: Int, place: Int, pixels: int, k: Int, panel: Int
) -> None:
    """`pixels` output pixels from y[place] on, channels panel ...; arrays: padded rows at the first one's, panels,
    bias, residual, y, sums.
    """
    rows, panels, start, residual, y, sums = arrays
    r, s = form.kernel
    vectors = form.vectors
    columns = [panel + v * code.lanes for v in range(vectors)]
    rests = [k - column if form.masked else None for column in columns]
    outputs = [[(v, place + t * k + column) for v, column in enumerate(columns)] for t in range(pixels)]
    total = [[code.load(start, column) for column in columns] for _ in range(pixels)]
    if form.residual:
        total = [
            [code.load(residual, at, rests[v]) + line[v] for v, at in places]
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
            added = code.load(sums, column)
            squares = code.load(sums, squares0 + column)
            for line in total:
                added = added + line[v]
                squares = code.fma(line[v], line[v], squares)
            code.store(added, sums, column)
            code.store(squares, sums, squares0 + column)


@lru_cache(maxsize=64)
def _forward_kernel(form: _Form) -> Kernel:
    r, s = form.kernel
    pixels = _TILE[form.vectors]
    width = form.vectors * target().lanes
    summing = form.summing

    @program
    def strip(
        code: Code, arrays: StripArrays, y0: Int, own0: Int, wide: Int, k: Int, rows: Int, many: Int, sums0: Int
    ) -> None:
        """`rows` rows of `many` pixels: the first output is at y[y0], its first input at own[own0] of rows `wide`
        apart. Whole pixels are written.
        """
        own, panels, start, residual, y = arrays
        whole = code.rounded_to(many, code.int(pixels))
        with code.loop(0, rows) as row:
            line = own + own0 + row * wide
            to = y0 + row * (wide - (s - 1)) * k
            for begin, end, count in ((0, whole, pixels), (whole, many, 1)):
                with code.loop(begin, end, count) as at, code.loop(0, k, width) as panel:
                    given = line + at, panels, start, residual, y, own + sums0
                    _forward_tile(code, form, given, wide, to + at * k, count, k, panel)

    names = "masked", "relu", "residual", "sums"
    variant = " ".join(
        [f"{form.kernel} x{form.vectors}", *(name for name, there in zip(names, form[2:], strict=True) if there)]
    )

    @cpu_kernel(variant)
    def forward(start, stop, scratch, x: F32, panels: F32, bias: F32, residual: F32, y: F32, out: F64,
                layer: SingleChannelParams):  # fmt: skip
        p = layer.p
        q = layer.q
        k = layer.k
        wide = q + s - 1
        channels = -(-k // width) * width
        sums = (layer.rows + r - 1) * wide
        # float32 sums are short: float64 adds those of blocks of pixels
        block_rows, block = (max(1, PIECE // q), PIECE) if summing else (layer.rows, q)
        arrays = StripArrays(scratch, panels, bias, residual, y)
        for chunk in range(start, stop):
            image = chunk // layer.blocks
            first = chunk % layer.blocks * layer.rows
            count = min(layer.rows, p - first)
            out0 = chunk * 2 * k
            lines = count + r - 1
            padded_rows(x, image, layer.h, layer.w, 1, first - layer.top, lines, layer.left, wide, scratch)
            if summing:
                for i in range(2 * k):
                    out[out0 + i] = 0.0
            for row in range(0, count, block_rows):
                for done in range(0, q, block):
                    if summing:
                        clear(scratch, sums, 2 * channels)
                    y0 = ((image * p + first + row) * q + done) * k
                    rows = min(block_rows, count - row)
                    strip(arrays, y0, row * wide + done, wide, k, rows, min(block, q - done), sums)
                    if summing:
                        for i in range(k):
                            out[out0 + i] += scratch[sums + i]
                            out[out0 + k + i] += scratch[sums + channels + i]

    return forward


def single_channel_forward(
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
    n, h, wd, _ = x.shape
    k = w.shape[3]
    r, s = window.kernel
    out = window.output_size((h, wd))
    layer, chunks = plan(n, (h, wd), out, k, window, True)
    vectors = panel_vectors(k)
    width = vectors * target().lanes
    y = buffer_pool.empty((n, *out, k), np.float32)
    sums = np.empty((chunks, 2, k if summing else 0))
    arrays = (
        x.reshape(-1),
        filters.packed(w, 1, width),
        filters.padded_bias(b, 1, k, width),
        (y if residual is None else residual).reshape(-1),
        y.reshape(-1),
        sums.reshape(-1),
    )
    kernel = _forward_kernel(
        _Form(window.kernel, vectors, k % target().lanes != 0, relu, residual is not None, summing)
    )
    scratch = (layer.rows + r - 1) * (layer.q + s - 1) + 2 * (k + width)
    parallel(kernel, chunks, *arrays, layer, scratch=scratch)
    return y, sums
