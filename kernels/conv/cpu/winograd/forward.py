"""Winograd convolution, 3x3 and 5x5, stride 1 (any padding, any dilation): forward.

A block of tiles goes through three steps while it stays in the cache: read and transform the input, n^2 small matrix
products, transform and write the output. Tiles are counted along image rows; a dilation d makes d x d interleaved dense
problems ("phases") of every image. Point panels are padded by one cache line: 36 panels a power of two apart would all
map to one set of the L1 cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.winograd.filter_transform import transformed
from kernels.conv.cpu.winograd.plan import PAD, ZEROS, plan_of, two
from kernels.conv.cpu.winograd.tiles import (
    PATCH,
    Map,
    Place,
    Span,
    Tiling,
    enqueue_inputs,
    enqueue_outputs,
    make_tile_writer,
    make_tiles_reader,
    row_of_tiles,
)
from kernels.conv.cpu.winograd.transforms import Form, Points, TileEpilogue, input_matrix, points
from kernels.core.cpu.arguments import F32, F64
from kernels.core.cpu.gemm_microkernel import (
    Initial,
    Panel,
    Prefetch,
    Results,
    Rows,
    make_prefetching_gemm,
    one_tap,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear
from kernels.core.geometry import Window

AHEAD = 256  # steps: 16 KB of panels


class Work(NamedTuple):
    """Channels of the maps and results, padded (cp, kp) and given, and the walk of a launch over the tiles."""

    c: int
    c2: int  # of a second map
    cp: int
    k: int
    k2: int  # of a second result
    kp: int
    units: int  # rows of tiles
    per_chunk: int  # of these
    block: int  # tiles
    parts: int  # parts of the panels: threads share the few tiles of a deep layer
    adds: int  # whether `residual` (for a second result: what it holds) is added
    summing: int  # per chunk out[chunk] (2, K) = sums over the pixels of y and of y^2
    relu: int
    lines: int  # where in scratch the prefetch list lies; 0: there is none


@lru_cache(maxsize=16)
def forward_kernel(form: Form, vectors: int) -> Kernel:
    """The kernel of F(m x m, r x r) whose matrix products use micro-panels of `vectors` vectors: y = conv + bias.

    A chunk is rows of tiles and one of `parts` parts of the panels; chunks of one part are neighbours, so each core
    reads few panels.
    """
    m = form[0]
    n = points(form)
    count_of_points = n * n
    read_tiles = make_tiles_reader(input_matrix(form), n, m)
    write_tile = make_tile_writer(form, True)
    gemm = make_prefetching_gemm(vectors, ahead=AHEAD)
    width = vectors * target().lanes

    @cpu_kernel(f"F{form} x{vectors}")
    def winograd_forward(start, stop, scratch, x: F32, x2: F32, u: F32, y: F32, y2: F32, residual: F32, zeros: F32,
                         bias: F32, out: F64, t: Tiling, work: Work):  # fmt: skip
        c = work.c + work.c2
        k = work.k
        kp = work.kp
        lines = work.lines
        first_map = Map(x, t.h, t.w, work.c)
        second_map = Map(x2, t.h, t.w, work.c2)
        first_out = Map(y, t.p, t.q, k)
        second_out = Map(y2, t.p, t.q, work.k2)
        v_step = work.block * work.cp + PAD
        product_step = work.block * kp + PAD
        product = count_of_points * v_step
        patch = product + count_of_points * product_step
        sums = patch + count_of_points * PATCH
        regions = -(-work.units // work.per_chunk)
        panels = kp // width
        end = TileEpilogue(bias, 0, residual, work.adds, scratch, sums, kp, work.summing, work.relu)
        end2 = TileEpilogue(bias, k, y2, work.adds, scratch, sums, kp, work.summing, work.relu)
        for chunk in range(start, stop):
            region = chunk % regions
            part = chunk // regions
            first_panel = part * panels // work.parts
            last_panel = (part + 1) * panels // work.parts
            k_first = min(k, first_panel * width)
            k_last = min(k, last_panel * width)
            first = region * work.per_chunk * t.columns
            last = min((region + 1) * work.per_chunk, work.units) * t.columns
            at = first
            products = count_of_points * (last_panel - first_panel)
            for i in range(2 * k * work.summing):
                out[chunk * 2 * k + i] = 0.0
            while at < last:
                count = min(work.block, last - at)
                read_tiles(first_map, t, at, count, t.top, t.left, Points(scratch, 0, v_step, work.cp), patch)
                if work.c2:  # after the first map's channels (whose padding this overwrites)
                    to = Points(scratch, work.c, v_step, work.cp)
                    read_tiles(second_map, t, at, count, t.top, t.left, to, patch)
                last_line = lines
                if lines:
                    following = Span(first, at + count, min(at + 2 * count, last))
                    last_line = enqueue_inputs(scratch, last_line, first_map, second_map, t, following, m, n)
                    if work.parts == 1:  # else other chunks write to the same lines
                        now = Span(first, at, at + count)
                        last_line = enqueue_outputs(
                            scratch, last_line, first_out, second_out, residual, t, now, m, work.adds
                        )
                for i in range(products):
                    point = i // (last_panel - first_panel)
                    panel = first_panel + i % (last_panel - first_panel)
                    low, some = share(last_line - lines, i, products)
                    gemm(
                        Rows(scratch, point * v_step, work.cp, 1),
                        Panel(u, point * (kp * c + PAD) + panel * c * width, width),
                        one_tap(c),
                        Results(scratch, product + point * product_step + panel * width, kp, count, width),
                        Initial(zeros, 0, 0),
                        Prefetch(scratch, lines + low, some),
                    )
                if work.summing:
                    clear(scratch, sums, 2 * kp)
                unit = at // t.columns
                column = at % t.columns
                image, oy, ox = row_of_tiles(unit, m, t)
                for s in range(count):
                    place = Place(image, oy, ox + column * m * t.dw)
                    p0 = product + s * kp
                    write_tile(Points(scratch, p0, product_step, 0), first_out, t, place, k_first, k_last, end)
                    if work.k2:
                        of_second = Points(scratch, p0 + k, product_step, 0)
                        write_tile(of_second, second_out, t, place, 0, work.k2, end2)
                    column += 1
                    if column == t.columns:
                        column = 0
                        unit = unit + 1
                        image, oy, ox = row_of_tiles(unit, m, t)
                for i in range(k_first, k_last if work.summing else k_first):
                    out[chunk * 2 * k + i] += scratch[sums + i]
                    out[(chunk * 2 + 1) * k + i] += scratch[sums + kp + i]
                at += count

    return winograd_forward


def winograd_forward(
    maps: Sequence[np.ndarray],
    w: np.ndarray,
    window: Window,
    form: Form,
    outs: Sequence[np.ndarray],
    add: bool = False,
    bias: np.ndarray | None = None,
    relu: bool = False,
    summing: bool = False,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """A stride-1 convolution by F(m x m, r x r): the channels of one or two maps (N, H, W, C), contiguous float32, to
    those of one or two `outs`, with w (r, r, C, K) for all of them. add: added to what the outs hold, or to a
    `residual` (N, P, Q, K), of one out.

    Returns the sums of y and y^2 over pixels, chunk by chunk: (chunks, 2, K) float64, if `summing` (one out, no bias),
    otherwise the result means nothing.
    """
    n, h, wd, _ = maps[0].shape
    (x, x2, c, c2), (y, y2, k, k2) = two(maps), two(outs)
    plan = plan_of(form, n, (h, wd), w.shape[2], w.shape[3], window, c2)
    u = transformed(plan, w, form)
    parts = plan.parts if len(outs) == 1 else 1
    adding = add or residual is not None
    side = points(form)
    lines = plan.lines(plan.block, ((h, wd), c + c2, side), (plan.tiling[2:4], (k + k2) * (1 + adding), form[0]))
    chunks = -(-plan.units // plan.per) * parts
    scratch, place = plan.scratch(plan.block, lines)
    work = Work(c, c2, plan.cp, k, k2, plan.kp, plan.units, plan.per, plan.block, parts, adding, summing, relu, place)
    out = np.empty((chunks, 2, k if summing else 0))
    added = y if residual is None else residual.reshape(-1)
    bias = filters.zeros(k + k2) if bias is None else bias
    arrays = x, x2, u, y, y2, added, ZEROS, bias, out.reshape(-1)
    parallel(forward_kernel(form, plan.vectors), chunks, *arrays, plan.tiling, work, scratch=scratch)
    return out
