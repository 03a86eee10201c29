"""The gradients of a convolution and of the batch norm behind it, in one pass: the gradient dz between them is never
written to memory.

In turn, batch norm reads its input z and the cotangent g and writes dz, the data gradient reads dz and writes dx, the
filter gradient reads
dz and x: five maps read, two written. Here a strip of dz is made in the cache from g and z, and both gradients are
taken of it there: three maps read, one written. The sums over all pixels that dz needs come first, in a pass of their
    own.

    dz = scale g + slope (z - mean) + constant           per channel; kernels/norm/cpu.py gives these `rows`

Two kernels. 1x1: a strip is some pixels, both gradients are matrix products. Winograd: a strip is the rows under a row
of tiles. The tiles' transforms B^T dz B serve both gradients:

    dx = A^T [ (G w' G^T) * (B^T dz B) ] A      w' the filter of the data gradient: taps reversed, channels swapped
    dw' = G^T [ sum over tiles of (A x A^T) * (B^T dz B) ] G

The second is the usual filter gradient with x and dz in each other's place, so its taps come out reversed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from kernels.conv import filters, winograd
from kernels.conv import winograd_programs as programs
from kernels.conv.gathered import MOST
from kernels.conv.winograd_programs import Form
from kernels.conv.winograd_tiles import PATCH, make_tile_reader, make_tile_writer
from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel, inline
from kernels.core.contract import make_asking_column, panel_vectors, tile_heights, tile_rows, worth_asking
from kernels.core.geometry import Window
from kernels.core.packing import GAP, make_pack_panels, make_pack_rows
from kernels.core.runs import add_rows, clear, copy, copy_rows, note, over_run, share
from kernels.core.simd import Code, Int, Pointer, program, target
from kernels.core.threads import parallel
from kernels.norm.cpu import open_gradient

_PAD = winograd.PAD
_LEAST_CHUNKS, _MOST_SUMS = 2, 2_600_000  # chunks have sums of their own: fewer chunks for large filters
# floats: the second cache holds the filter and its sums beside few tiles; else more tiles share the way from memory
_FEW_SUMS = 100_000
_STRIDED = 4096  # floats of a filter gradient up to which packing its factors costs more than it saves
ROOM = 1_500_000  # floats of scratch memory from which on a layer is not worth it


@cache
def _make_gradient_pixels(relu: bool) -> Any:
    @program("ppiiippii")
    def gradient_pixels(
        code: Code,
        g: Pointer,
        z: Pointer,
        at: Int,
        pixels: Int,
        channels: Int,
        rows: Pointer,
        out: Pointer,
        o0: Int,
        pitch: Int,
    ) -> None:
        """dz of so many pixels to out[o0 + pixel pitch], channels padded with zeros to whole vectors. relu: g is masked
        by the sign of y.
        """

        def body(j: Int, rest: Any) -> None:
            i = at + pixel * channels + j
            opened = open_gradient(code, g, z, i, j, rest, "computed" if relu else "none", rows, channels, g)
            mean, scale, slope, constant = (code.load(rows, j + channels * k, rest) for k in (0, 1, 3, 4))
            value = code.fma(scale, opened, code.fma(code.load(z, i, rest) - mean, slope, constant))
            code.store(value, out, o0 + pixel * pitch + j)

        with code.loop(0, pixels) as pixel:
            over_run(code, channels, body)

    return gradient_pixels


def _equal_chunks(count: int, floats: int, least: int) -> int:
    """`count` pieces of work are cut into chunks that each sum `floats` floats: how many pieces each has."""
    chunks = max(_LEAST_CHUNKS, min(winograd.CHUNKS, count // least, _MOST_SUMS // floats))
    return -(-count // chunks)


# -- 1x1 ---------------------------------------------------------------------------------------------------------------


@inline()
def _note_strip(scratch, at, g, z, maps, gradients, sizes, count, k, first, n):  # type: ignore[no-untyped-def]
    """Note what a strip of n pixels reads and writes; returns the number behind its last line."""
    at = note(scratch, note(scratch, at, g, first * k, n * k), z, first * k, n * k)
    for i in range(count):
        at = note(scratch, at, maps[i], first * sizes[i], n * sizes[i])
        at = note(scratch, at, gradients[i], first * sizes[i], n * sizes[i])
    return at


@lru_cache(maxsize=32)
def pointwise_kernel(vectors: int, gradient_vectors: int) -> Kernel:
    """The kernel for data gradients in panels of `vectors` vectors and filter gradients in such of `gradient_vectors`,
    of up to MOST maps.

    relu: g is masked by the sign of y.   packed: so are the factors of the filter gradient (kernels/core/packing.py),
        map by map.
    """
    data_column, filter_column = (
        make_asking_column(vectors),
        make_asking_column(gradient_vectors, blocks=True, beside=True),
    )
    pack_rows, pack_panels = make_pack_rows(gradient_vectors), make_pack_panels(gradient_vectors)
    width, gradient_width, low_rows = (
        vectors * target().lanes,
        gradient_vectors * target().lanes,
        tile_heights(gradient_vectors)[1],
    )
    masked_pixels, plain_pixels = _make_gradient_pixels(True), _make_gradient_pixels(False)

    @cpu_kernel("p" * (2 * MOST + 6) + f"g{MOST}g{MOST}" + "i" * 14, f"x{vectors} x{gradient_vectors}")
    def norm_gradient_1x1(start, stop, scratch, g, z, rows, m0, m1, m2, m3, m4, m5, m6, m7, d0, d1, d2, d3, d4, d5,
                          d6, d7, panels, partial, zeros, sizes, adds, count, c, k, kp, pitch, row, pixels,
                          per_chunk, per_strip, relu, asked, packed, third, noted):  # fmt: skip  # type: ignore[no-untyped-def]
        maps, gradients, second = (m0, m1, m2, m3, m4, m5, m6, m7), (d0, d1, d2, d3, d4, d5, d6, d7), per_strip * pitch
        high, panel = per_strip + GAP, per_strip * gradient_width + _PAD
        data_columns, filter_columns, parts = -(-c // width), kp // gradient_width, count if packed else 1
        for chunk in range(start, stop):
            sums = chunk * c * kp
            first, end = chunk * per_chunk, min((chunk + 1) * per_chunk, pixels)
            while first < end:
                n, place = min(per_strip, end - first), second
                if relu:
                    masked_pixels(g, z, first * k, n, k, rows, scratch, 0, pitch)
                else:
                    plain_pixels(g, z, first * k, n, k, rows, scratch, 0, pitch)
                lines = half = 0
                if asked:
                    lines = (
                        _note_strip(
                            scratch, noted, g, z, maps, gradients, sizes, count, k, first + n, min(n, end - first - n)
                        )
                        - noted
                    )
                    half = lines // 2
                for i in range(data_columns):
                    low, some = share(half, i, data_columns)
                    data_column(scratch, 0, pitch, 1, panels, i * width * k, width, k, 1, 0, 0, 1, 0, 0, scratch,
                                second + i * width, row, n, width, zeros, 0, scratch, noted + low, some)  # fmt: skip
                for i in range(count):
                    if adds[i]:
                        add_rows(scratch, place, row, gradients[i], first * sizes[i], sizes[i], sizes[i], n)
                    else:
                        copy_rows(scratch, place, row, gradients[i], first * sizes[i], sizes[i], sizes[i], n)
                    place += sizes[i]
                place = second  # dx has been moved out: x takes its place
                for i in range(count):
                    if packed:
                        pack_rows(maps[i], first * sizes[i], sizes[i], 0, n, scratch, place, sizes[i], high)
                        place += (sizes[i] + low_rows) * high
                    else:
                        copy_rows(maps[i], first * sizes[i], sizes[i], scratch, place, row, sizes[i], n)
                        place += sizes[i]
                if packed:
                    pack_panels(scratch, 0, pitch, 0, n, scratch, third, kp, panel)
                for product in range(filter_columns * parts):
                    i, part = product // parts, product % parts
                    low, some = share(lines - half, product, filter_columns * parts)
                    if part == 0:
                        place, before = second, 0
                    c0, begun = sums + before * kp + i * gradient_width, first > chunk * per_chunk
                    if packed:
                        filter_column(scratch, place, high, 0, scratch, third + i * panel, gradient_width, n, 1, 0,
                                      0, 1, 0, 0, partial, c0, kp, sizes[part], gradient_width, zeros, begun,
                                      scratch, noted + half + low, some)  # fmt: skip
                        place, before = place + (sizes[part] + low_rows) * high, before + sizes[part]
                    else:
                        filter_column(scratch, second, 1, row, scratch, i * gradient_width, pitch, n, 1, 0, 0, 1, 0,
                                      0, partial, c0, kp, c, gradient_width, zeros, begun, scratch,
                                      noted + half + low, some)  # fmt: skip
                first += n

    return norm_gradient_1x1


class Pointwise:
    """The plan of a 1x1 layer: z (N, H, W, K) of maps with so many channels."""

    most = MOST

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
        lanes, k, self.c = target().lanes, shape[3], sum(channels)
        self.vectors, self.gradient_vectors = panel_vectors(self.c), panel_vectors(k)
        self.width, gradient_width = self.vectors * lanes, self.gradient_vectors * lanes
        self.kp = -(-k // gradient_width) * gradient_width
        self.floats = self.c * self.kp
        # powers of two would meet in one set of the L1 cache
        self.pitch, self.row = self.kp + _PAD, -(-self.c // self.width) * self.width + _PAD
        self.pixels, self.per_strip = math.prod(shape[:3]), 64 if self.floats <= 8192 else 128
        self.per_chunk = _equal_chunks(-(-self.pixels // self.per_strip), self.floats, 4) * self.per_strip
        self.chunks = -(-self.pixels // self.per_chunk)
        self.packed = self.floats > _STRIDED and min(channels) >= tile_rows(self.gradient_vectors)
        # In scratch memory: a strip of dz; dx, then x or its packed rows; packed panels of dz; the list of lines, of 8
        # bytes each.
        rows = (self.c + len(channels) * tile_heights(self.gradient_vectors)[1]) * (self.per_strip + GAP) * self.packed
        self.third = self.per_strip * self.pitch + max(self.per_strip * self.row, rows)
        panels = self.kp // gradient_width * (self.per_strip * gradient_width + _PAD) * self.packed
        self.noted = (self.third + panels + 1) // 2
        lines = self.per_strip * (k + self.c) // 8 + 2 * len(channels) + 4  # of g, z, maps and their gradients
        self.scratch = 2 * (self.noted + lines)
        self.sizes, self.asked = _eight(channels, 0), worth_asking(self.c * k)

    def run(self, g: np.ndarray, z: np.ndarray, rows: np.ndarray, relu: bool, maps: Sequence[np.ndarray], w: np.ndarray,
            dxs: Sequence[np.ndarray], adds: Sequence[bool]) -> np.ndarray:  # fmt: skip
        """Fill the dxs of the maps, or add to them; returns dw (1, 1, C, K). relu: g is masked by the sign of y."""
        k, unused = z.shape[3], MOST - len(maps)
        panels = filters.packed_transposed(w, self.width)
        partial = memory.empty((self.chunks * self.floats,), np.float32)
        kernel = pointwise_kernel(self.vectors, self.gradient_vectors)
        flat = [m.reshape(-1) for m in (*maps, *(maps[0],) * unused, *dxs, *(dxs[0],) * unused)]
        sizes, strips = (
            (len(maps), self.c, k, self.kp, self.pitch, self.row),
            (self.pixels, self.per_chunk, self.per_strip),
        )
        arrays = (
            g.reshape(-1),
            z.reshape(-1),
            rows,
            *flat,
            panels,
            partial,
            winograd.ZEROS,
            self.sizes,
            _eight(tuple(adds), False),
        )
        parallel(kernel, self.chunks, *arrays, *sizes, *strips, relu, self.asked, self.packed, self.third, self.noted,
                 scratch=self.scratch)  # fmt: skip
        return filters.added_chunks(partial, self.chunks, self.c, k, self.kp).reshape(1, 1, self.c, k)


@lru_cache(maxsize=256)
def _eight(values: tuple[int, ...], rest: int) -> np.ndarray:
    return np.array([*values, *[rest] * (MOST - len(values))], np.int64)


# -- Winograd ----------------------------------------------------------------------------------------------------------


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
    masked_pixels, plain_pixels = _make_gradient_pixels(True), _make_gradient_pixels(False)

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
    data_column, width = make_asking_column(vectors, ahead=winograd.AHEAD), vectors * target().lanes
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
        v_step, second_step = lines * columns * kp + _PAD, lines * columns * cp + _PAD
        second = points * v_step  # the products for dx, then the transforms of x
        strip = second + points * second_step
        for chunk in range(start, stop):
            sums, at, end = (
                chunk * points * ((c + c2) * kp + _PAD),
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
                            point * (panels * k * width + _PAD) + i * k * width,
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
                        c0 = sums + point * ((c + c2) * kp + _PAD) + i * gradient_width
                        low, some = share(
                            until - noted, point * (kp // gradient_width) + i, points * (kp // gradient_width)
                        )
                        filter_column(scratch, a0, 1, cp, scratch, b0, kp, tiles, 1, 0, 0, 1, 0, 0, partial, c0, kp,
                                      c + c2, gradient_width, zeros, at > chunk * per_chunk, scratch, noted + low,
                                      some)  # fmt: skip
                at += count

    return norm_gradient_winograd


class Tiles:
    """The plan of a dense layer of stride 1 by F(m x m, r x r): z (N, P, Q, K), maps with so many channels, the data
    gradient's window.
    """

    most = 2

    def __init__(self, form: Form, shape: tuple[int, ...], channels: tuple[int, ...], back: Window) -> None:
        self.form, lanes, k, self.both = form, target().lanes, shape[3], sum(channels)
        self.data = winograd.plan_of(form, shape[0], (shape[1], shape[2]), k, self.both, back)
        self.gradient_vectors, side = panel_vectors(k), programs.points(form)
        width, points, columns, units = self.data.width, self.data.points, self.data.tiling.columns, self.data.units
        # the last vector of a second map must not reach the next tile
        reach = self.both - channels[-1] + -(-channels[-1] // lanes) * lanes
        self.cp = -(-reach // width) * width
        self.kp = -(-k // (self.gradient_vectors * lanes)) * self.gradient_vectors * lanes
        self.pitch, self.floats = -(-k // lanes) * lanes, points * (self.both * self.kp + _PAD)
        self.per_chunk = _equal_chunks(units, self.floats, max(1, winograd.LEAST // columns))
        self.chunks = -(-units // self.per_chunk)
        least = winograd.LEAST // 2 if self.floats <= _FEW_SUMS else winograd.LEAST
        self.lines = -(-self.per_chunk // max(1, round(self.per_chunk * columns / least)))  # rows of tiles per block
        strip = side * (columns * form[0] + side - form[0]) * self.pitch
        self.patch = points * (self.lines * columns * (self.cp + self.kp) + 2 * _PAD) + strip
        h, w, p, q = self.data.tiling[:4]
        lines = self.lines * form[0] * 2 * max(w * k, q * self.both) // 16 + 4  # of x and dx, then g and z
        lines *= winograd.worth_noting(2 * shape[0] * (h * w * k + p * q * self.both), lines)
        self.scratch, self.noted = winograd.with_list(self.patch + points * PATCH, lines)

    def run(self, g: np.ndarray, z: np.ndarray, rows: np.ndarray, relu: bool, maps: Sequence[np.ndarray], w: np.ndarray,
            dxs: Sequence[np.ndarray], adds: Sequence[bool]) -> np.ndarray:  # fmt: skip
        """As Pointwise.run, where all dxs are added to or none; returns dw (r, r, C, K)."""
        (x, x2, c, c2), (dx, dx2, _, _), k = winograd.two(maps), winograd.two(dxs), z.shape[3]
        u = winograd.transformed(self.data, filters.flipped(w, 1), self.form)
        partial = memory.empty((self.chunks * self.floats,), np.float32)
        kernel = winograd_kernel(self.form, self.data.vectors, self.gradient_vectors)
        flat = g.reshape(-1), z.reshape(-1), rows, x, x2, u, dx, dx2, partial, filters.zeros(self.cp + self.kp)
        panels, units = self.data.kp // self.data.width, self.data.units
        numbers = (c, c2, self.cp, panels, k, self.pitch, self.kp, units, self.per_chunk, self.lines, self.patch, relu,
                   all(adds), self.noted)  # fmt: skip
        parallel(kernel, self.chunks, *flat, self.data.geometry, *numbers, scratch=self.scratch)
        return winograd.finished(partial, self.form, c + c2, k, self.kp, self.chunks, reverse=True)


pointwise_plan, tiles_plan = lru_cache(maxsize=1024)(Pointwise), lru_cache(maxsize=1024)(Tiles)
