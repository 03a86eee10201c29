"""Winograd convolution of few tiles, forward: a deep layer of one or two small images.

There a filter is used only a few times, and its transform, four times as large for F(4x4, 3x3), would come from memory:
9.4 MB for 256 -> 256 channels, of which eight tiles make 38 MFLOP. So the kernel reads the filter itself and transforms
it on the fly, block by block into the cache, as its products need it. Four such layers of one image take 0.72 instead
of 0.90 ms of nine (bench/RESULTS.md, "What paid").
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.winograd.plan import PAD, ZEROS, plan_of
from kernels.conv.cpu.winograd.tiles import PATCH, Map, Place, Tiling, make_tile_writer, make_tiles_reader, row_of_tiles
from kernels.conv.cpu.winograd.transforms import Form, Points, TileEpilogue, input_matrix, make_filter, points
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.gemm_microkernel import Initial, Panel, Results, Rows, make_gemm, one_tap
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import prefetch_run
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.geometry import Window

_MOST_TILES = 16
_LEAST = 8192  # floats of one tap of the filter: smaller transforms stay in the cache
_PARTS = 4  # of the output channels; each transforms all input tiles
_BLOCK = 64  # input channels whose filters are transformed at a time: 147 KB
_AHEAD = 16  # such channels that are prefetched


class Work(NamedTuple):
    """Channels, padded (cp, kp) and given, and the walk of a launch over the panels."""

    c: int
    cp: int
    k: int
    kp: int
    tiles: int
    per_chunk: int  # panels
    block: int  # input channels
    adds: int  # whether the residual is added
    relu: int


@lru_cache(maxsize=16)
def forward_kernel(form: Form, vectors: int) -> Kernel:
    """The kernel of F(m x m, r x r) for micro-panels of `vectors` vectors: y = conv + bias.

    A chunk is `per_chunk` panels (filters.packed_channels) of output channels and all tiles.
    """
    m = form[0]
    n = points(form)
    taps = form[1] ** 2
    count_of_points = n * n
    read_tiles = make_tiles_reader(input_matrix(form), n, m)
    write_tile = make_tile_writer(form, False)
    filter_ = make_filter(form)
    gemm = make_gemm(vectors, accumulates=True)
    width = vectors * target().lanes

    @cpu_kernel(f"F{form} x{vectors}")
    def winograd_few_tiles(start, stop, scratch, x: F32, panels: F32, y: F32, residual: F32, zeros: F32, bias: F32,
                           t: Tiling, work: Work):  # fmt: skip
        c = work.c
        tiles = work.tiles
        v_step = tiles * work.cp + PAD
        u_step = work.block * width + PAD
        product_step = tiles * width + PAD
        u = count_of_points * v_step
        product = u + count_of_points * u_step
        patch = product + count_of_points * product_step
        end = TileEpilogue(bias, 0, residual, work.adds, scratch, 0, work.kp, 0, work.relu)
        for chunk in range(start, stop):
            to = Points(scratch, 0, v_step, work.cp)
            read_tiles(Map(x, t.h, t.w, c), t, 0, tiles, t.top, t.left, to, patch)
            for panel in range(chunk * work.per_chunk, min((chunk + 1) * work.per_chunk, work.kp // width)):
                for first in range(0, c, work.block):
                    some = min(work.block, c - first)
                    for i in range(some):
                        at = (panel * c + first + i) * taps * width
                        prefetch_run(panels, at + _AHEAD * taps * width, taps * width)
                        filter_(panels, at, width, width, scratch, u + i * width, u_step)
                    for point in range(count_of_points):
                        gemm(
                            Rows(scratch, point * v_step + first, work.cp, 1),
                            Panel(scratch, u + point * u_step, width),
                            one_tap(some),
                            Results(scratch, product + point * product_step, width, tiles, width),
                            Initial(zeros, 0, first),
                        )
                channel = panel * width
                for s in range(tiles):
                    image, oy, ox = row_of_tiles(s // t.columns, m, t)
                    place = Place(image, oy, ox + s % t.columns * m * t.dw)
                    products = Points(scratch, product + s * width - channel, product_step, 0)
                    last = min(work.k, channel + width)
                    write_tile(products, Map(y, t.p, t.q, work.k), t, place, channel, last, end)

    return winograd_few_tiles


def serves(x: np.ndarray, w: np.ndarray, window: Window, form: Form) -> bool:
    """Whether a dense layer of stride 1 of one map x (N, H, W, C) has few enough tiles and a large enough filter w (r,
    r, C, K).
    """
    n, h, wd, c = x.shape
    plan = plan_of(form, n, (h, wd), c, w.shape[3], window)
    return w.shape[2] == c and c * w.shape[3] >= _LEAST and plan.units * plan.tiling.columns <= _MOST_TILES


def forward(
    x: np.ndarray,
    w: np.ndarray,
    window: Window,
    form: Form,
    y: np.ndarray,
    b: np.ndarray | None = None,
    relu: bool = False,
    residual: np.ndarray | None = None,
) -> None:
    """y = conv(x, w) + b + residual by F(m x m, r x r), then ReLU: as winograd.forward of one map and one result."""
    n, h, wd, c = x.shape
    k = w.shape[3]
    plan = plan_of(form, n, (h, wd), c, k, window)
    tiles = plan.units * plan.tiling.columns
    width = plan.width
    panels = plan.kp // plan.width
    per_chunk = -(-panels // _PARTS)
    block = min(c, _BLOCK)
    work = Work(c, plan.cp, k, plan.kp, tiles, per_chunk, block, residual is not None, relu)
    arrays = x, filters.packed_channels(w, width), y, y if residual is None else residual
    parallel(
        forward_kernel(form, plan.vectors),
        -(-panels // per_chunk),
        *(a.reshape(-1) for a in arrays),
        ZEROS,
        filters.zeros(k) if b is None else b,
        plan.tiling,
        work,
        scratch=plan.points * (tiles * (plan.cp + width) + block * width + 3 * PAD + PATCH),
    )
