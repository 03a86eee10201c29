"""Winograd's filter gradient, in the transformed domain: dg = G^T [sum over tiles of (A dy A^T) * (B^T d B)] G."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.conv.cpu.winograd.plan import CHUNKS, PAD, ZEROS, plan_of, two
from kernels.conv.cpu.winograd.tiles import Map, Span, Tiling, enqueue_inputs, enqueue_tiles, make_tiles_reader
from kernels.conv.cpu.winograd.transforms import (
    Form,
    Points,
    cotangent_matrix,
    input_matrix,
    make_filter_gradient,
    points,
)
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
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
from kernels.core.cpu.vector_ops import add
from kernels.core.geometry import Window


class Work(NamedTuple):
    """Channels, padded (cp, kp) and given, and the walk of a launch over the tiles; see forward.Work."""

    c: int
    c2: int
    cp: int
    k: int
    kp: int
    units: int
    per_chunk: int
    block: int
    lines: int


@lru_cache(maxsize=16)
def gradient_kernel(form: Form, vectors: int) -> Kernel:
    """The kernel that sums (A dy A^T)^T (B^T d B) over the tiles of a chunk: partial[chunk] (points, C, K padded)."""
    m = form[0]
    n = points(form)
    count_of_points = n * n
    read_x = make_tiles_reader(input_matrix(form), n, m)
    read_dy = make_tiles_reader(cotangent_matrix(form), m, m)
    gemm = make_prefetching_gemm(vectors, accumulates=True, unit_rows=True)
    width = vectors * target().lanes

    @cpu_kernel(f"F{form} x{vectors}")
    def winograd_gradient(start, stop, scratch, x: F32, x2: F32, dy: F32, partial: F32, zeros: F32, t: Tiling,
                          work: Work):  # fmt: skip
        c = work.c + work.c2
        kp = work.kp
        lines = work.lines
        first_map = Map(x, t.h, t.w, work.c)
        second_map = Map(x2, t.h, t.w, work.c2)
        cotangent = Map(dy, t.p, t.q, work.k)
        v_step = work.block * work.cp + PAD
        z_step = work.block * kp + PAD
        z = count_of_points * v_step
        patch = z + count_of_points * z_step
        for chunk in range(start, stop):
            first = chunk * work.per_chunk * t.columns
            last = min((chunk + 1) * work.per_chunk, work.units) * t.columns
            at = first
            sums = chunk * count_of_points * (c * kp + PAD)
            while at < last:
                count = min(work.block, last - at)
                read_x(first_map, t, at, count, t.top, t.left, Points(scratch, 0, v_step, work.cp), patch)
                if work.c2:
                    to = Points(scratch, work.c, v_step, work.cp)
                    read_x(second_map, t, at, count, t.top, t.left, to, patch)
                read_dy(cotangent, t, at, count, 0, 0, Points(scratch, z, z_step, kp), patch)
                last_line = lines
                if lines:
                    following = Span(first, at + count, min(at + 2 * count, last))
                    last_line = enqueue_inputs(scratch, last_line, first_map, second_map, t, following, m, n)
                    last_line = enqueue_tiles(scratch, last_line, cotangent, t, following, m, m, 0, 0)
                for point in range(count_of_points):
                    for panel in range(kp // width):
                        number = point * (kp // width) + panel
                        low, some = share(last_line - lines, number, count_of_points * (kp // width))
                        gemm(
                            Rows(scratch, point * v_step, 1, work.cp),
                            Panel(scratch, z + point * z_step + panel * width, kp),
                            one_tap(count),
                            Results(partial, sums + point * (c * kp + PAD) + panel * width, kp, c, width),
                            Initial(zeros, 0, at > first),
                            Prefetch(scratch, lines + low, some),
                        )
                at += count

    return winograd_gradient


@lru_cache(maxsize=4)
def gradient_finish_kernel(form: Form) -> Kernel:
    """Adds the chunks' sums, in order, and transforms them to dw (r, r, C, K); `tap` floats between taps, the first at
    `first`.
    """
    count_of_points = points(form) ** 2
    finish = make_filter_gradient(form)

    @cpu_kernel(f"F{form}")
    def winograd_gradient_finish(
        start,
        stop,
        _scratch,
        partial: F32,
        dw: F32,
        c: int,
        k: int,
        kp: int,
        chunks: int,
        per: int,
        first: int,
        tap: int,
    ):
        step = c * kp + PAD
        for i in range(start * per, min(stop * per, c)):
            for chunk in range(1, chunks):
                for point in range(count_of_points):
                    add(partial, point * step + i * kp, partial, (chunk * count_of_points + point) * step + i * kp, kp)
            finish(partial, i * kp, step, dw, first + i * k, tap, k)

    return winograd_gradient_finish


def finished(
    partial: np.ndarray, form: Form, c: int, k: int, kp: int, chunks: int, reverse: bool = False
) -> np.ndarray:
    """dw (r, r, C, K) of the chunks' sums (chunks, points, C, K padded; a cache line more between points); reverse: its
    taps in reverse order.
    """
    r = form[1]
    dw = buffer_pool.empty((r, r, c, k), np.float32)
    per = -(-c // CHUNKS)
    first, tap = ((r * r - 1) * c * k, -c * k) if reverse else (0, c * k)
    parallel(gradient_finish_kernel(form), -(-c // per), partial, dw.reshape(-1), c, k, kp, chunks, per, first, tap)
    return dw


def winograd_backward_filter(maps: Sequence[np.ndarray], dy: np.ndarray, window: Window, form: Form) -> np.ndarray:
    """dw (r, r, C, K) of a stride-1 convolution of one or two maps (N, H, W, C), dy (N, P, Q, K),
    contiguous float32.
    """
    n, h, wd, _ = maps[0].shape
    x, x2, c, c2 = two(maps)
    k = dy.shape[3]
    plan = plan_of(form, n, (h, wd), c + c2, k, window, c2)
    chunks = -(-plan.units // plan.gradient_per)
    partial = buffer_pool.empty((chunks * plan.points * ((c + c2) * plan.kp + PAD),), np.float32)
    lines = plan.lines(plan.gradient_block, ((h, wd), c + c2, points(form)), (dy.shape[1:3], k, form[0]))
    scratch, place = plan.scratch(plan.gradient_block, lines)
    work = Work(c, c2, plan.cp, k, plan.kp, plan.units, plan.gradient_per, plan.gradient_block, place)
    kernel = gradient_kernel(form, plan.vectors)
    parallel(kernel, chunks, x, x2, dy.reshape(-1), partial, ZEROS, plan.tiling, work, scratch=scratch)
    return finished(partial, form, c + c2, k, plan.kp, chunks)
