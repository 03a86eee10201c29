"""Winograd's filter gradient, in the transformed domain: dg = G^T [sum over tiles of (A dy A^T) * (B^T d B)] G."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kernels.conv.cpu.winograd import transforms as programs
from kernels.conv.cpu.winograd.plan import CHUNKS, PAD, ZEROS, plan_of, two
from kernels.conv.cpu.winograd.tiles import (
    make_tiles_reader,
    note_inputs,
    note_tiles,
)
from kernels.conv.cpu.winograd.transforms import Form
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.gemm_microkernel import make_asking_column
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import add
from kernels.core.geometry import Window


@lru_cache(maxsize=16)
def gradient_kernel(form: Form, vectors: int) -> Kernel:
    """The kernel that sums (A dy A^T)^T (B^T d B) over the tiles of a chunk: partial[chunk] (points, C, K padded)."""
    m, n = form[0], programs.points(form)
    points = n * n
    read_x = make_tiles_reader(programs.input_matrix(form), n, m)
    read_dy = make_tiles_reader(programs.cotangent_matrix(form), m, m)
    column_of_tiles, width = make_asking_column(vectors, blocks=True, beside=True), vectors * target().lanes

    @cpu_kernel("pppppg10iiiiiiiii", f"F{form} x{vectors}")
    def winograd_gradient(
        start, stop, scratch, x, x2, dy, partial, zeros, t, c1, c2, cp, k, kp, units, per_chunk, block, noted
    ):  # type: ignore[no-untyped-def]
        c = c1 + c2
        h, w, p, q, columns, above, before = t[0], t[1], t[2], t[3], t[5], t[8], t[9]
        v_step, z_step = block * cp + PAD, block * kp + PAD
        z = points * v_step
        patch = z + points * z_step
        for chunk in range(start, stop):
            first, end = chunk * per_chunk * columns, min((chunk + 1) * per_chunk, units) * columns
            at, sums = first, chunk * points * (c * kp + PAD)
            while at < end:
                count = min(block, end - at)
                read_x(x, at, count, t, above, before, h, w, c1, scratch, 0, cp, v_step, patch)
                if c2:
                    read_x(x2, at, count, t, above, before, h, w, c2, scratch, c1, cp, v_step, patch)
                read_dy(dy, at, count, t, 0, 0, p, q, k, scratch, z, kp, z_step, patch)
                until = noted
                if noted:
                    following, last = at + count, min(at + 2 * count, end)
                    until = note_inputs(scratch, until, x, x2, first, following, last, m, n, t, c1, c2)
                    until = note_tiles(scratch, until, dy, first, following, last, m, t, 0, 0, m, p, q, k)
                for point in range(points):
                    for panel in range(kp // width):
                        a0, b0 = point * v_step, z + point * z_step + panel * width
                        c0, known = sums + point * (c * kp + PAD) + panel * width, at > first
                        low, some = share(until - noted, point * (kp // width) + panel, points * (kp // width))
                        column_of_tiles(scratch, a0, 1, cp, scratch, b0, kp, count, 1, 0, 0, 1, 0, 0, partial, c0,
                                        kp, c, width, zeros, known, scratch, noted + low, some)  # fmt: skip
                at += count

    return winograd_gradient


@lru_cache(maxsize=4)
def gradient_finish_kernel(form: Form) -> Kernel:
    """Adds the chunks' sums, in order, and transforms them to dw (r, r, C, K); `tap` floats between taps, the first at
    `first`.
    """
    points, finish = programs.points(form) ** 2, programs.make_filter_gradient(form)

    @cpu_kernel("ppiiiiiii", f"F{form}")
    def winograd_gradient_finish(start, stop, _scratch, partial, dw, c, k, kp, chunks, per, first, tap):  # type: ignore[no-untyped-def]
        step = c * kp + PAD
        for i in range(start * per, min(stop * per, c)):
            for chunk in range(1, chunks):
                for point in range(points):
                    add(partial, point * step + i * kp, partial, (chunk * points + point) * step + i * kp, kp)
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
    lines = plan.lines(plan.gradient_block, ((h, wd), c + c2, programs.points(form)), (dy.shape[1:3], k, form[0]))
    scratch, noted = plan.scratch(plan.gradient_block, lines)
    numbers = (c, c2, plan.cp, k, plan.kp, plan.units, plan.gradient_per, plan.gradient_block, noted)
    parallel(
        gradient_kernel(form, plan.vectors),
        chunks,
        x,
        x2,
        dy.reshape(-1),
        partial,
        ZEROS,
        plan.geometry,
        *numbers,
        scratch=scratch,
    )
    return finished(partial, form, c + c2, k, plan.kp, chunks)
