"""The gradients of a dense layer of stride 1 and of its batch norm by Winograd; the mathematics stand in strip.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.fused_norm_backward.strip import Gradient, Strip, equal_chunks, make_gradient_pixels
from kernels.conv.cpu.winograd.backward_filter import finished
from kernels.conv.cpu.winograd.filter_transform import transformed
from kernels.conv.cpu.winograd.forward import AHEAD
from kernels.conv.cpu.winograd.plan import LEAST, PAD, plan_of, tiles_prefetch, two
from kernels.conv.cpu.winograd.tiles import PATCH, Map, Place, Tiling, make_tile_reader, make_tile_writer
from kernels.conv.cpu.winograd.transforms import (
    Form,
    Pixels,
    Points,
    TileEpilogue,
    cotangent_matrix,
    input_matrix,
    make_read,
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
    panel_vectors,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.prefetch import enqueue, share, with_list
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear, copy
from kernels.core.geometry import Window

# floats: up to here the L2 cache holds the filter, its sums and a few tiles; beyond, more tiles share each read of the
# filter from memory
_FEW_SUMS = 100_000


class Work(NamedTuple):
    """Channels, padded (cp, kp) and given, the walk of a launch over the tiles, the layout of its scratch memory."""

    c: int
    c2: int  # of a second map
    cp: int
    panels: int  # of dx
    k: int
    pitch: int  # floats between pixels of a strip
    kp: int
    units: int  # rows of tiles
    per_chunk: int
    rows: int  # rows of tiles per block
    patch: int
    relu: int  # whether g is masked by the sign of y
    adds: int  # whether dx is added to
    lines: int  # the prefetch list; 0: there is none


@inline()
def _enqueue_rows(lines, at, one, other, unit, units, m, rows):
    """Put the pixels of two equal maps under so many rows of tiles from `unit` on, of which an image has `rows`, on the
    prefetch list.
    """
    pixels = one.w * one.c
    start = (unit // rows * one.h + unit % rows * m) * pixels
    length = max(0, units) * m * pixels
    return enqueue(lines, enqueue(lines, at, one.array, start, length), other.array, start, length)


@cache
def _make_strip_row() -> Any:
    """strip_row(gradient: Gradient, image, y, t: Tiling, k, strip: Strip, wide): row y of dz of an image to `wide`
    floats of the strip, with zeros around it; nothing but zeros outside the image.
    """
    gradient_pixels = make_gradient_pixels()

    @inline()
    def strip_row(gradient, image, y, t, k, strip, wide):
        if y < 0 or y >= t.h:
            clear(strip.array, strip.start, wide)
            return
        inside = t.left * strip.pitch
        end = (t.left + t.w) * strip.pitch
        clear(strip.array, strip.start, inside)
        to = Strip(strip.array, strip.start + inside, strip.pitch)
        gradient_pixels(gradient, (image * t.h + y) * t.w, t.w, k, to)
        clear(strip.array, strip.start + end, wide - end)

    return strip_row


@lru_cache(maxsize=16)
def winograd_kernel(form: Form, vectors: int, gradient_vectors: int) -> Kernel:
    """The kernel of F(m x m, r x r), dense and of stride 1; panels as for 1x1. A strip is the n rows of dz under a row
    of tiles, padded with zeros; a row of tiles below another takes over its last rows.
    """
    m = form[0]
    n = points(form)
    count_of_points = n * n
    read = make_read(input_matrix(form), n)
    read_x = make_tile_reader(cotangent_matrix(form), m)
    write_tile = make_tile_writer(form, False)
    strip_row = _make_strip_row()
    data_gemm = make_prefetching_gemm(vectors, ahead=AHEAD)
    width = vectors * target().lanes
    filter_gemm = make_prefetching_gemm(gradient_vectors, accumulates=True, unit_rows=True)
    gradient_width = gradient_vectors * target().lanes

    @cpu_kernel(f"F{form} x{vectors} x{gradient_vectors}")
    def norm_gradient_winograd(start, stop, scratch, g: F32, z: F32, rows: F32, x: F32, x2: F32, u: F32, dx: F32,
                               dx2: F32, partial: F32, zeros: F32, t: Tiling, work: Work):  # fmt: skip
        c = work.c + work.c2
        k = work.k
        kp = work.kp
        pitch = work.pitch
        lines = work.lines
        gradient = Gradient(g, z, rows, work.relu)
        first_map = Map(x, t.p, t.q, work.c)
        second_map = Map(x2, t.p, t.q, work.c2)
        first_out = Map(dx, t.p, t.q, work.c)
        second_out = Map(dx2, t.p, t.q, work.c2)
        end = TileEpilogue(zeros, 0, dx, work.adds, scratch, 0, 0, 0, 0)
        end2 = TileEpilogue(zeros, 0, dx2, work.adds, scratch, 0, 0, 0, 0)
        wide = (t.columns * m + n - m) * pitch
        v_step = work.rows * t.columns * kp + PAD
        second_step = work.rows * t.columns * work.cp + PAD
        second = count_of_points * v_step  # the products for dx, then the transforms of x
        strip = second + count_of_points * second_step
        panels_of_dw = kp // gradient_width
        for chunk in range(start, stop):
            sums = chunk * count_of_points * (c * kp + PAD)
            at = chunk * work.per_chunk
            first = at
            last = min((chunk + 1) * work.per_chunk, work.units)
            known = False  # whether the strip holds the row of tiles above
            while at < last:
                count = min(work.rows, last - at)
                for s in range(count):
                    image = (at + s) // t.rows
                    row = (at + s) % t.rows
                    done = 0
                    if known and row:
                        copy(scratch, strip + m * wide, scratch, strip, (n - m) * wide)
                        done = n - m
                    known = True
                    for i in range(done, n):
                        to = Strip(scratch, strip + i * wide, pitch)
                        strip_row(gradient, image, row * m - t.top + i, t, k, to, wide)
                    transforms = Points(scratch, s * t.columns * kp, v_step, kp)
                    read(Pixels(scratch, strip, wide, pitch, pitch), transforms, t.columns, m * pitch)
                tiles = count * t.columns
                last_line = lines
                if lines:  # the lines that the transforms after these products read and write
                    last_line = _enqueue_rows(scratch, last_line, first_map, first_out, at, count, m, t.rows)
                    last_line = _enqueue_rows(scratch, last_line, second_map, second_out, at, count, m, t.rows)
                for point in range(count_of_points):
                    for i in range(work.panels):
                        low, some = share(last_line - lines, point * work.panels + i, count_of_points * work.panels)
                        data_gemm(
                            Rows(scratch, point * v_step, kp, 1),
                            Panel(u, point * (work.panels * k * width + PAD) + i * k * width, width),
                            one_tap(k),
                            Results(scratch, second + point * second_step + i * width, work.cp, tiles, width),
                            Initial(zeros, 0, 0),
                            Prefetch(scratch, lines + low, some),
                        )
                for s in range(tiles):
                    unit = at + s // t.columns
                    place = Place(unit // t.rows, unit % t.rows * m, s % t.columns * m)
                    p0 = second + s * work.cp
                    own = Points(scratch, p0, second_step, 0)
                    other = Points(scratch, p0 + work.c, second_step, 0)
                    write_tile(own, first_out, t, place, 0, work.c, end)
                    if work.c2:
                        write_tile(other, second_out, t, place, 0, work.c2, end2)
                    read_x(first_map, t, place, own, work.patch)
                    if work.c2:
                        read_x(second_map, t, place, other, work.patch)
                last_line = lines
                if lines:  # the rows under the next tiles
                    following = min(count, last - at - count)
                    of_g, of_z = Map(g, t.h, t.w, k), Map(z, t.h, t.w, k)
                    last_line = _enqueue_rows(scratch, last_line, of_g, of_z, at + count, following, m, t.rows)
                for point in range(count_of_points):
                    for i in range(panels_of_dw):
                        low, some = share(last_line - lines, point * panels_of_dw + i, count_of_points * panels_of_dw)
                        c0 = sums + point * (c * kp + PAD) + i * gradient_width
                        filter_gemm(
                            Rows(scratch, second + point * second_step, 1, work.cp),
                            Panel(scratch, point * v_step + i * gradient_width, kp),
                            one_tap(tiles),
                            Results(partial, c0, kp, c, gradient_width),
                            Initial(zeros, 0, at > first),
                            Prefetch(scratch, lines + low, some),
                        )
                at += count

    return norm_gradient_winograd


class WinogradPlan:
    """The plan of a dense layer of stride 1 by F(m x m, r x r): z (N, P, Q, K), maps with so many channels, the data
    gradient's window.
    """

    most = 2

    def __init__(self, form: Form, shape: tuple[int, ...], channels: tuple[int, ...], back: Window) -> None:
        self.form = form
        lanes = target().lanes
        k = shape[3]
        self.both = sum(channels)
        self.data = plan_of(form, shape[0], (shape[1], shape[2]), k, self.both, back)
        self.gradient_vectors, side = panel_vectors(k), points(form)
        width = self.data.width
        count_of_points = self.data.points
        columns = self.data.tiling.columns
        units = self.data.units
        # the last vector of a second map must not reach the next tile
        reach = self.both - channels[-1] + -(-channels[-1] // lanes) * lanes
        self.cp = -(-reach // width) * width
        self.kp = -(-k // (self.gradient_vectors * lanes)) * self.gradient_vectors * lanes
        self.pitch = -(-k // lanes) * lanes
        self.floats = count_of_points * (self.both * self.kp + PAD)
        self.per_chunk = equal_chunks(units, self.floats, max(1, LEAST // columns))
        self.chunks = -(-units // self.per_chunk)
        least = LEAST // 2 if self.floats <= _FEW_SUMS else LEAST
        self.rows = -(-self.per_chunk // max(1, round(self.per_chunk * columns / least)))  # rows of tiles per block
        strip = side * (columns * form[0] + side - form[0]) * self.pitch
        self.patch = count_of_points * (self.rows * columns * (self.cp + self.kp) + 2 * PAD) + strip
        h, w, p, q = self.data.tiling[:4]
        lines = self.rows * form[0] * 2 * max(w * k, q * self.both) // 16 + 4  # of x and dx, then g and z
        lines *= tiles_prefetch(2 * shape[0] * (h * w * k + p * q * self.both), lines)
        self.scratch, self.lines_at = with_list(self.patch + count_of_points * PATCH, lines)

    def run(self, g: np.ndarray, z: np.ndarray, rows: np.ndarray, relu: bool, maps: Sequence[np.ndarray], w: np.ndarray,
            dxs: Sequence[np.ndarray], adds: Sequence[bool]) -> np.ndarray:  # fmt: skip
        """As PointwisePlan.run, where all dxs are added to or none; returns dw (r, r, C, K)."""
        x, x2, c, c2 = two(maps)
        dx, dx2, _, _ = two(dxs)
        k = z.shape[3]
        u = transformed(self.data, filters.flipped(w, 1), self.form)
        partial = buffer_pool.empty((self.chunks * self.floats,), np.float32)
        kernel = winograd_kernel(self.form, self.data.vectors, self.gradient_vectors)
        flat = g.reshape(-1), z.reshape(-1), rows, x, x2, u, dx, dx2, partial, filters.zeros(self.cp + self.kp)
        work = Work(
            c,
            c2,
            self.cp,
            self.data.kp // self.data.width,
            k,
            self.pitch,
            self.kp,
            self.data.units,
            self.per_chunk,
            self.rows,
            self.patch,
            relu,
            all(adds),
            self.lines_at,
        )
        parallel(kernel, self.chunks, *flat, self.data.tiling, work, scratch=self.scratch)
        return finished(partial, self.form, c + c2, k, self.kp, self.chunks, reverse=True)


winograd_plan = lru_cache(maxsize=1024)(WinogradPlan)
