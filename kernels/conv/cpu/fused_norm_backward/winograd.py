"""The gradients of a dense layer of stride 1 and of its batch norm by Winograd; the mathematics stand in strip.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.fused_norm_backward.strip import equal_chunks, make_gradient_pixels
from kernels.conv.cpu.winograd import transforms as programs
from kernels.conv.cpu.winograd.backward_filter import finished
from kernels.conv.cpu.winograd.filter_transform import transformed
from kernels.conv.cpu.winograd.forward import AHEAD
from kernels.conv.cpu.winograd.plan import LEAST, PAD, plan_of, two, with_list, worth_noting
from kernels.conv.cpu.winograd.tiles import PATCH, make_tile_reader, make_tile_writer
from kernels.conv.cpu.winograd.transforms import Form
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.gemm_microkernel import make_asking_column, panel_vectors
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.prefetch import note, share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear, copy
from kernels.core.geometry import Window

# floats: the second cache holds the filter and its sums beside few tiles; else more tiles share the way from memory
_FEW_SUMS = 100_000


@inline()
def _note_rows(noted, at, one, other, unit, units, m, rows, h, w, c):  # type: ignore[no-untyped-def]
    """Note the pixels of two maps (N, h, w, c) under so many rows of tiles from `unit` on, of which an image has
    `rows`.
    """
    start, length = (unit // rows * h + unit % rows * m) * w * c, max(0, units) * m * w * c
    return note(noted, note(noted, at, one, start, length), other, start, length)


@cache
def _make_strip_row() -> Any:
    """strip_row(...): row y of dz of an image (h, w, k) to `wide` floats at scratch[o], zeros around it, or nothing but
    zeros outside.
    """
    masked_pixels, plain_pixels = make_gradient_pixels(True), make_gradient_pixels(False)

    @inline()
    def strip_row(g, z, rows, relu, image, y, h, w, k, scratch, o, wide, before, pitch):  # type: ignore[no-untyped-def]
        if y < 0 or y >= h:
            clear(scratch, o, wide)
            return
        clear(scratch, o, before * pitch)
        if relu:
            masked_pixels(g, z, (image * h + y) * w * k, w, k, rows, scratch, o + before * pitch, pitch)
        else:
            plain_pixels(g, z, (image * h + y) * w * k, w, k, rows, scratch, o + before * pitch, pitch)
        clear(scratch, o + (before + w) * pitch, wide - (before + w) * pitch)

    return strip_row


@lru_cache(maxsize=16)
def winograd_kernel(form: Form, vectors: int, gradient_vectors: int) -> Kernel:
    """The kernel of F(m x m, r x r), dense and of stride 1; panels as for 1x1. A strip is the n rows of dz under a row
    of tiles, padded with zeros; a row of tiles below another takes over its last rows.
    """
    m, n = form[0], programs.points(form)
    points = n * n
    read = programs.make_read(programs.input_matrix(form), n)
    read_x = make_tile_reader(programs.cotangent_matrix(form), m)
    write_tile = make_tile_writer(form, False)
    data_column, width = make_asking_column(vectors, ahead=AHEAD), vectors * target().lanes
    filter_column, gradient_width = (
        make_asking_column(gradient_vectors, blocks=True, beside=True),
        gradient_vectors * target().lanes,
    )
    strip_row = _make_strip_row()

    @cpu_kernel("ppppppppppg10" + "i" * 14, f"F{form} x{vectors} x{gradient_vectors}")
    def norm_gradient_winograd(start, stop, scratch, g, z, rows, x, x2, u, dx, dx2, partial, zeros,
                               t, c, c2, cp, panels, k, pitch, kp, units, per_chunk,
                               lines, patch, relu, added, noted):  # fmt: skip  # type: ignore[no-untyped-def]
        h, w, p, q, columns, above, before = t[0], t[1], t[2], t[3], t[5], t[8], t[9]
        wide = (columns * m + n - m) * pitch
        v_step, second_step = lines * columns * kp + PAD, lines * columns * cp + PAD
        second = points * v_step  # the products for dx, then the transforms of x
        strip = second + points * second_step
        for chunk in range(start, stop):
            sums, at, end = (
                chunk * points * ((c + c2) * kp + PAD),
                chunk * per_chunk,
                min((chunk + 1) * per_chunk, units),
            )
            known = False  # whether the strip holds the row of tiles above
            while at < end:
                count = min(lines, end - at)
                for s in range(count):
                    image, row = (at + s) // t[4], (at + s) % t[4]
                    done = 0
                    if known and row:
                        copy(scratch, strip + m * wide, scratch, strip, (n - m) * wide)
                        done = n - m
                    known = True
                    for i in range(done, n):
                        strip_row(g, z, rows, relu, image, row * m - above + i, h, w, k, scratch, strip + i * wide,
                                  wide, before, pitch)  # fmt: skip
                    read(scratch, strip, wide, pitch, pitch, scratch, s * columns * kp, v_step, columns, m * pitch, kp)
                tiles = count * columns
                until = noted
                if noted:  # for what the transforms behind these products read and write
                    until = _note_rows(scratch, until, x, dx, at, count, m, t[4], p, q, c)
                    until = _note_rows(scratch, until, x2, dx2, at, count, m, t[4], p, q, c2)
                for point in range(points):
                    for i in range(panels):
                        b0, c0 = (
                            point * (panels * k * width + PAD) + i * k * width,
                            second + point * second_step + i * width,
                        )
                        low, some = share(until - noted, point * panels + i, points * panels)
                        data_column(scratch, point * v_step, kp, 1, u, b0, width, k, 1, 0, 0, 1, 0, 0, scratch, c0,
                                    cp, tiles, width, zeros, 0, scratch, noted + low, some)  # fmt: skip
                for s in range(tiles):
                    unit, ox = at + s // columns, s % columns * m
                    image, oy, p0 = unit // t[4], unit % t[4] * m, second + s * cp
                    write_tile(scratch, p0, second_step, dx, image, oy, ox, p, q, c, 0, c, 1, 1, zeros, 0, dx, scratch,
                               0, 0, added, 0, 0)  # fmt: skip
                    if c2:
                        write_tile(scratch, p0 + c, second_step, dx2, image, oy, ox, p, q, c2, 0, c2, 1, 1,
                                   zeros, 0, dx2, scratch, 0, 0, added, 0, 0)  # fmt: skip
                    read_x(x, image, oy, ox, p, q, c, 1, 1, scratch, p0, second_step, scratch, patch)
                    if c2:
                        read_x(x2, image, oy, ox, p, q, c2, 1, 1, scratch, p0 + c, second_step, scratch, patch)
                until = noted
                if noted:  # for the rows under the next tiles
                    until = _note_rows(scratch, until, g, z, at + count, min(count, end - at - count), m, t[4], h, w, k)
                for point in range(points):
                    for i in range(kp // gradient_width):
                        a0, b0 = second + point * second_step, point * v_step + i * gradient_width
                        c0 = sums + point * ((c + c2) * kp + PAD) + i * gradient_width
                        low, some = share(
                            until - noted, point * (kp // gradient_width) + i, points * (kp // gradient_width)
                        )
                        filter_column(scratch, a0, 1, cp, scratch, b0, kp, tiles, 1, 0, 0, 1, 0, 0, partial, c0, kp,
                                      c + c2, gradient_width, zeros, at > chunk * per_chunk, scratch, noted + low,
                                      some)  # fmt: skip
                at += count

    return norm_gradient_winograd


class WinogradPlan:
    """The plan of a dense layer of stride 1 by F(m x m, r x r): z (N, P, Q, K), maps with so many channels, the data
    gradient's window.
    """

    most = 2

    def __init__(self, form: Form, shape: tuple[int, ...], channels: tuple[int, ...], back: Window) -> None:
        self.form, lanes, k, self.both = form, target().lanes, shape[3], sum(channels)
        self.data = plan_of(form, shape[0], (shape[1], shape[2]), k, self.both, back)
        self.gradient_vectors, side = panel_vectors(k), programs.points(form)
        width, points, columns, units = self.data.width, self.data.points, self.data.tiling.columns, self.data.units
        # the last vector of a second map must not reach the next tile
        reach = self.both - channels[-1] + -(-channels[-1] // lanes) * lanes
        self.cp = -(-reach // width) * width
        self.kp = -(-k // (self.gradient_vectors * lanes)) * self.gradient_vectors * lanes
        self.pitch, self.floats = -(-k // lanes) * lanes, points * (self.both * self.kp + PAD)
        self.per_chunk = equal_chunks(units, self.floats, max(1, LEAST // columns))
        self.chunks = -(-units // self.per_chunk)
        least = LEAST // 2 if self.floats <= _FEW_SUMS else LEAST
        self.lines = -(-self.per_chunk // max(1, round(self.per_chunk * columns / least)))  # rows of tiles per block
        strip = side * (columns * form[0] + side - form[0]) * self.pitch
        self.patch = points * (self.lines * columns * (self.cp + self.kp) + 2 * PAD) + strip
        h, w, p, q = self.data.tiling[:4]
        lines = self.lines * form[0] * 2 * max(w * k, q * self.both) // 16 + 4  # of x and dx, then g and z
        lines *= worth_noting(2 * shape[0] * (h * w * k + p * q * self.both), lines)
        self.scratch, self.noted = with_list(self.patch + points * PATCH, lines)

    def run(self, g: np.ndarray, z: np.ndarray, rows: np.ndarray, relu: bool, maps: Sequence[np.ndarray], w: np.ndarray,
            dxs: Sequence[np.ndarray], adds: Sequence[bool]) -> np.ndarray:  # fmt: skip
        """As PointwisePlan.run, where all dxs are added to or none; returns dw (r, r, C, K)."""
        (x, x2, c, c2), (dx, dx2, _, _), k = two(maps), two(dxs), z.shape[3]
        u = transformed(self.data, filters.flipped(w, 1), self.form)
        partial = buffer_pool.empty((self.chunks * self.floats,), np.float32)
        kernel = winograd_kernel(self.form, self.data.vectors, self.gradient_vectors)
        flat = g.reshape(-1), z.reshape(-1), rows, x, x2, u, dx, dx2, partial, filters.zeros(self.cp + self.kp)
        panels, units = self.data.kp // self.data.width, self.data.units
        numbers = (c, c2, self.cp, panels, k, self.pitch, self.kp, units, self.per_chunk, self.lines, self.patch, relu,
                   all(adds), self.noted)  # fmt: skip
        parallel(kernel, self.chunks, *flat, self.data.geometry, *numbers, scratch=self.scratch)
        return finished(partial, self.form, c + c2, k, self.kp, self.chunks, reverse=True)


winograd_plan = lru_cache(maxsize=1024)(WinogradPlan)
