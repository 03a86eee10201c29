"""Winograd convolution, 3x3 and 5x5, stride 1 (any padding, any dilation): forward, and the filter gradient in the
transformed domain.

A block of tiles goes through three steps while it stays in the cache: read and transform the input, n^2 small matrix
products, transform and write the output. Tiles are counted along image rows; a dilation d makes d x d interleaved dense
problems ("phases") of every image. Point panels are padded by one cache line: 36 panels a power of two apart would all
fall into one set of the L1 cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.winograd import transforms as programs
from kernels.conv.cpu.winograd.filter_transform import transformed
from kernels.conv.cpu.winograd.plan import PAD, ZEROS, plan_of, two
from kernels.conv.cpu.winograd.tiles import (
    PATCH,
    make_tile_writer,
    make_tiles_reader,
    note_inputs,
    note_outputs,
    row_of_tiles,
)
from kernels.conv.cpu.winograd.transforms import Form
from kernels.core.cpu.gemm_microkernel import make_asking_column
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear
from kernels.core.geometry import Window

AHEAD = 256  # steps: 16 KB of panels


@lru_cache(maxsize=16)
def forward_kernel(form: Form, vectors: int) -> Kernel:
    """The kernel of F(m x m, r x r) whose matrix products use panels of `vectors` vectors: y = conv + bias.

    added: `more` (for a second y: what it holds) is added.   relu: max(y, 0).   summing: per chunk out[chunk] (2, K) =
    sums over the pixels of y and of y^2.
    A chunk is rows of tiles and one of `parts` parts of the panels (threads share few tiles); chunks of one part are
    neighbours: few panels a core.
    """
    m, n, points = form[0], programs.points(form), programs.points(form) ** 2
    read_tiles = make_tiles_reader(programs.input_matrix(form), n, m)
    write_tile = make_tile_writer(form, True)
    column_of_tiles, width = make_asking_column(vectors, ahead=AHEAD), vectors * target().lanes

    @cpu_kernel("ppppppppdg10iiiiiiiiiiiiii", f"F{form} x{vectors}")
    def winograd_forward(start, stop, scratch, x, x2, u, y, y2, more, zeros, bias, out, t, c, c2, cp, k, k2, kp,
                         units, per_chunk, block, parts, added, summing, relu, noted):  # fmt: skip  # type: ignore[no-untyped-def]
        h, w, p, q, columns, dh, dw, above, before = t[0], t[1], t[2], t[3], t[5], t[6], t[7], t[8], t[9]
        v_step, product_step = block * cp + PAD, block * kp + PAD
        product = points * v_step
        patch = product + points * product_step
        sums = patch + points * PATCH
        regions, panels = -(-units // per_chunk), kp // width
        for chunk in range(start, stop):
            region, part = chunk % regions, chunk // regions
            first_panel, last_panel = part * panels // parts, (part + 1) * panels // parts
            k_first, k_last = min(k, first_panel * width), min(k, last_panel * width)
            first, end = region * per_chunk * columns, min((region + 1) * per_chunk, units) * columns
            at, products = first, points * (last_panel - first_panel)
            for i in range(2 * k * summing):
                out[chunk * 2 * k + i] = 0.0
            while at < end:
                count = min(block, end - at)
                read_tiles(x, at, count, t, above, before, h, w, c, scratch, 0, cp, v_step, patch)
                if c2:  # behind the first map's channels (whose padding this overwrites)
                    read_tiles(x2, at, count, t, above, before, h, w, c2, scratch, c, cp, v_step, patch)
                until = noted
                if noted:
                    until = note_inputs(
                        scratch, until, x, x2, first, at + count, min(at + 2 * count, end), m, n, t, c, c2
                    )
                    if parts == 1:  # else other chunks write to the same lines
                        until = note_outputs(scratch, until, y, y2, more, first, at, at + count, m, t, k, k2, added)
                for i in range(products):
                    point, panel = i // (last_panel - first_panel), first_panel + i % (last_panel - first_panel)
                    b0 = point * (kp * (c + c2) + PAD) + panel * (c + c2) * width
                    a0, c0 = point * v_step, product + point * product_step + panel * width
                    low, some = share(until - noted, i, products)
                    column_of_tiles(scratch, a0, cp, 1, u, b0, width, c + c2, 1, 0, 0, 1, 0, 0, scratch, c0, kp,
                                    count, width, zeros, 0, scratch, noted + low, some)  # fmt: skip
                if summing:
                    clear(scratch, sums, 2 * kp)
                unit, column = at // columns, at % columns
                image, oy, ox = row_of_tiles(unit, m, t)
                for s in range(count):
                    x_out, p0 = ox + column * m * dw, product + s * kp
                    write_tile(scratch, p0, product_step, y, image, oy, x_out, p, q, k, k_first, k_last, dh, dw,
                               bias, 0, more, scratch, sums, kp, added, summing, relu)  # fmt: skip
                    if k2:
                        write_tile(scratch, p0 + k, product_step, y2, image, oy, x_out, p, q, k2, 0, k2, dh, dw,
                                   bias, k, y2, scratch, sums, kp, added, summing, relu)  # fmt: skip
                    column += 1
                    if column == columns:
                        column, unit = 0, unit + 1
                        image, oy, ox = row_of_tiles(unit, m, t)
                for i in range(k_first, k_last if summing else k_first):
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
    else nothing of use.
    """
    n, h, wd, _ = maps[0].shape
    (x, x2, c, c2), (y, y2, k, k2) = two(maps), two(outs)
    plan = plan_of(form, n, (h, wd), w.shape[2], w.shape[3], window, c2)
    u = transformed(plan, w, form)
    parts = plan.parts if len(outs) == 1 else 1
    adding, side = add or residual is not None, programs.points(form)
    lines = plan.lines(plan.block, ((h, wd), c + c2, side), (plan.tiling[2:4], (k + k2) * (1 + adding), form[0]))
    chunks, (scratch, noted) = -(-plan.units // plan.per) * parts, plan.scratch(plan.block, lines)
    numbers = (c, c2, plan.cp, k, k2, plan.kp, plan.units, plan.per, plan.block, parts, adding, summing, relu, noted)
    out = np.empty((chunks, 2, k if summing else 0))
    added, bias = y if residual is None else residual.reshape(-1), filters.zeros(k + k2) if bias is None else bias
    arrays = x, x2, u, y, y2, added, ZEROS, bias, out.reshape(-1)
    parallel(forward_kernel(form, plan.vectors), chunks, *arrays, plan.geometry, *numbers, scratch=scratch)
    return out
