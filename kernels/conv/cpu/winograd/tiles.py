"""Winograd's tiles in a map: their positions, reading and writing them inside the map and at its border, prefetching
them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from kernels.conv.cpu.winograd.transforms import (
    Form,
    Matrix,
    Pixels,
    Points,
    TileEpilogue,
    make_read,
    make_write,
)
from kernels.core.cpu.jit import inline
from kernels.core.cpu.prefetch import enqueue
from kernels.core.cpu.vector_ops import clear, copy
from kernels.core.geometry import Pair, Window

PATCH = 64  # channels of a border tile that are copied at a time: 9 KB, a share of the L1 cache


class Tiling(NamedTuple):
    """The tiling of a layer: the image (h, w), the output (p, q), tile rows and columns per phase, dilation and
    padding.
    """

    h: int
    w: int
    p: int
    q: int
    rows: int
    columns: int
    dh: int
    dw: int
    top: int
    left: int

    @classmethod
    def of(cls, form: Form, size: Pair, window: Window) -> Tiling:
        """The tiling of a stride-1 window over an image of `size`."""
        m = form[0]
        p, q = window.output_size(size)
        dh, dw = window.dilation
        rows, columns = (-(-n // (d * m)) for n, d in ((p, dh), (q, dw)))  # ceil(ceil(n / d) / m)
        return cls(*size, p, q, rows, columns, dh, dw, window.padding[0][0], window.padding[1][0])

    @property
    def units(self) -> int:
        """Tile rows of one image, over all phases."""
        return self.rows * self.dh * self.dw


class Map(NamedTuple):
    """A map (N, h, w, c). c = 0: there is none."""

    array: Any
    h: Any
    w: Any
    c: Any


class Place(NamedTuple):
    """The position of a tile: its image, its first pixel."""

    image: Any
    y: Any
    x: Any


class Span(NamedTuple):
    """Tiles first .. last of a chunk that begins with tile number `begin`."""

    begin: Any
    first: Any
    last: Any


@inline()
def row_of_tiles(unit: int, m: int, t: Any) -> tuple[int, int, int]:
    """A row of tiles: its image, its first output row, its phase's first output column."""
    phases = t.dh * t.dw
    image = unit // (t.rows * phases)
    rest = unit - image * t.rows * phases
    phase = rest // t.rows
    a = phase // t.dw
    return image, (rest - phase * t.rows) * m * t.dh + a, phase - a * t.dw


@inline()
def _inside(start: int, step: int, count: int, size: int) -> tuple[int, int]:
    """The range of i in [0, count) with 0 <= start + i step < size."""
    first = 0 if start >= 0 else (-start + step - 1) // step
    last = 0 if start >= size else min(count, (size - start + step - 1) // step)
    return min(first, count), last


@cache
def make_tile_reader(matrix: Matrix, size: int) -> Any:
    """read_tile(x: Map, t: Tiling, place: Place, out: Points, patch): a tile that may reach over the image's border.

    `place` may lie outside; pixels outside read as 0. A border tile is first copied to out.array[patch : patch +
    size^2 channels].
    """
    read = make_read(matrix, size)

    @inline(f"{matrix} {size}")
    def read_tile(x, t, place, out, patch):
        c = x.c
        row = t.dh * x.w * x.c
        column = t.dw * x.c
        x0 = ((place.image * x.h + place.y) * x.w + place.x) * c
        below = place.y + (size - 1) * t.dh
        right_of = place.x + (size - 1) * t.dw
        if place.y >= 0 and place.x >= 0 and below < x.h and right_of < x.w:
            read(Pixels(x.array, x0, row, column, c), out, 1, 0)
            return
        top, bottom = _inside(place.y, t.dh, size, x.h)
        left, right = _inside(place.x, t.dw, size, x.w)
        for c0 in range(0, c, PATCH):
            part = min(PATCH, c - c0)
            clear(out.array, patch, size * size * part)
            for i in range(top, bottom):
                if t.dw == 1 and part == c:  # a run of pixels is one run of memory
                    copy(x.array, x0 + i * row + left * c, out.array, patch + (i * size + left) * c, (right - left) * c)
                else:
                    for j in range(left, right):
                        at = patch + (i * size + j) * part
                        copy(x.array, x0 + i * row + j * column + c0, out.array, at, part)
            whole = Pixels(out.array, patch, size * part, part, part)
            read(whole, Points(out.array, out.start + c0, out.point, out.tile), 1, 0)

    return read_tile


@cache
def make_tiles_reader(matrix: Matrix, size: int, m: int) -> Any:
    """read_tiles(x: Map, t: Tiling, first, count, up, left, out: Points, patch): `count` tiles, m apart, from `first`
    on.

    The tiles of outputs, and those of size x size pixels that they need, `up` and `left` pixels before. There is a call
    for every run of tiles inside the image: for few channels, calls cost as much as the transform.
    """
    read = make_read(matrix, size)
    read_tile = make_tile_reader(matrix, size)

    @inline(f"{matrix} {size} {m}")
    def read_tiles(x, t, first, count, up, left, out, patch):
        reach = (size - 1) * t.dw
        apart = m * t.dw
        unit = first // t.columns
        column = first % t.columns
        done = 0
        while done < count:
            image, oy, ox = row_of_tiles(unit, m, t)
            iy = oy - up
            ix = ox + column * apart - left
            stop = min(t.columns, column + count - done)
            while column < stop:
                outside = iy < 0 or ix < 0 or iy + (size - 1) * t.dh >= x.h
                inside = 0 if outside else (x.w - 1 - reach - ix) // apart + 1
                some = max(1, min(stop - column, inside))
                to = Points(out.array, out.start + done * out.tile, out.point, out.tile)
                if inside > 0:
                    x0 = ((image * x.h + iy) * x.w + ix) * x.c
                    read(Pixels(x.array, x0, t.dh * x.w * x.c, t.dw * x.c, x.c), to, some, apart * x.c)
                else:
                    read_tile(x, t, Place(image, iy, ix), to, patch)
                column = column + some
                done = done + some
                ix = ix + some * apart
            column = 0
            unit = unit + 1

    return read_tiles


@cache
def _make_writer(form: Form, added: bool, summing: bool) -> Any:
    whole, edge = (make_write(form, edge, added, summing) for edge in (False, True))
    m = form[0]

    @inline(f"{form} {added} {summing}")
    def write(inside, products, y, rows, columns, epilogue):
        if inside:
            whole(products, y, m, m, epilogue)
        else:
            edge(products, y, rows, columns, epilogue)

    return write


@cache
def make_tile_writer(form: Form, sums_up: bool) -> Any:
    """write_tile(products: Points, y: Map, t: Tiling, place: Place, first, last, epilogue: TileEpilogue): channels
    first .. last of a tile that may reach over the output's border; see `make_write`.

    The products, bias and sums of channel 0 lie where products and epilogue say. adds and summing are never both set.
    sums_up: whether any caller asks for sums.
    """
    m = form[0]
    plain, adding, totals = (_make_writer(form, *kind) for kind in ((False, False), (True, False), (False, True)))

    @inline(f"{form} {sums_up}")
    def write_tile(products, y, t, place, first, last, epilogue):
        y0 = ((place.image * y.h + place.y) * y.w + place.x) * y.c + first
        pixels = Pixels(y.array, y0, t.dh * y.w * y.c, t.dw * y.c, last - first)
        part = Points(products.array, products.start + first, products.point, products.tile)
        rows, columns = m, m
        inside = place.y + (m - 1) * t.dh < y.h and place.x + (m - 1) * t.dw < y.w
        if not inside:
            rows = _inside(place.y, t.dh, m, y.h)[1]
            columns = _inside(place.x, t.dw, m, y.w)[1]
        end = _from_channel(epilogue, first)
        if sums_up and end.summing:
            totals(inside, part, pixels, rows, columns, end)
        elif end.adds:
            adding(inside, part, pixels, rows, columns, end)
        else:
            plain(inside, part, pixels, rows, columns, end)

    return write_tile


@inline()
def _from_channel(end, first):
    """An epilogue whose bias and sums begin with channel `first`."""
    return TileEpilogue(
        end.bias,
        end.bias_start + first,
        end.residual,
        end.adds,
        end.sums,
        end.sums_start + first,
        end.sums_step,
        end.summing,
        end.relu,
    )


@inline()
def enqueue_tiles(lines, at, x, t, span, m, size, up, left):
    """Put the pixels of a span of tiles of a map on the prefetch list, each of size x size pixels, m apart, `up` and
    `left` pixels before the outputs; returns the next number.

    Lines that the chunk's earlier tiles have prefetched are left out. With size = m: the pixels that tiles of outputs
    write.
    """
    first = span.first
    while first < span.last:
        unit = first // t.columns
        image, oy, ox = row_of_tiles(unit, m, t)
        column = first - unit * t.columns
        stop = min(t.columns, column + span.last - first)
        y = oy - up
        x0 = ox + column * m * t.dw - left
        rows = min(size, (x.h - y + t.dh - 1) // t.dh)
        shared = max((size - m) * (oy >= m * t.dh and first - t.columns >= span.begin), (t.dh - 1 - y) // t.dh)
        start = max(0, x0 + (size - m) * t.dw * (column > 0))
        end = min(x.w, ox + (stop * m + size - m) * t.dw - left)
        for row in range(shared, rows):
            line = (image * x.h + y + row * t.dh) * x.w
            at = enqueue(lines, at, x.array, (line + start) * x.c, max(0, end - start) * x.c)
        first += stop - column
    return at


@inline()
def enqueue_inputs(lines, at, x, x2, t, span, m, n):
    """Enqueue the lines of one or two maps that a span of tiles reads."""
    at = enqueue_tiles(lines, at, x, t, span, m, n, t.top, t.left)
    return enqueue_tiles(lines, at, x2, t, span, m, n, t.top, t.left) if x2.c else at


@inline()
def enqueue_outputs(lines, at, y, y2, residual, t, span, m, adds):
    """Enqueue the lines of one or two results, or of a residual, that a span of tiles writes or adds."""
    at = enqueue_tiles(lines, at, y, t, span, m, m, 0, 0)
    if y2.c:
        return enqueue_tiles(lines, at, y2, t, span, m, m, 0, 0)
    return enqueue_tiles(lines, at, Map(residual, y.h, y.w, y.c), t, span, m, m, 0, 0) if adds else at
