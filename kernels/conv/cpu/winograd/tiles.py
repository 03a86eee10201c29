"""Winograd's tiles in a map: where they lie, reading and writing them at the map's border and inside, noting what is to
be asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kernels.conv.cpu.winograd import transforms as programs
from kernels.conv.cpu.winograd.transforms import Form
from kernels.core.cpu.jit import inline
from kernels.core.cpu.prefetch import note
from kernels.core.cpu.vector_ops import clear, copy

PATCH = 64  # channels of a border tile that are copied at a time: 9 KB, a share of the L1 cache


@inline()
def row_of_tiles(unit: int, m: int, t: Any) -> tuple[int, int, int]:
    """A row of tiles: its image, its first output row, its phase's first output column."""
    rows, dh, dw = t[4], t[6], t[7]
    image = unit // (rows * dh * dw)
    rest = unit - image * rows * dh * dw
    phase = rest // rows
    a = phase // dw
    return image, (rest - phase * rows) * m * dh + a, phase - a * dw


@inline()
def _inside(start: int, step: int, count: int, size: int) -> tuple[int, int]:
    """The range of i in [0, count) with 0 <= start + i step < size."""
    first = 0 if start >= 0 else (-start + step - 1) // step
    last = 0 if start >= size else min(count, (size - start + step - 1) // step)
    return min(first, count), last


@cache
def make_tile_reader(matrix: programs.Matrix, size: int) -> Any:
    """read_tile(x, image, y, x, rows, columns, channels, dh, dw, out, o0, step, patch): a tile that may reach over the
    image's border.

    (y, x) is the tile's first pixel, possibly outside; what is outside reads as 0. A border tile is first copied to
    patch[:size^2 channels].
    """
    read = programs.make_read(matrix, size)

    @inline(f"{matrix} {size}")
    def read_tile(x, image, iy, ix, h, w, c, dh, dw, out, o0, step, patch, patch0):  # type: ignore[no-untyped-def]
        x0 = ((image * h + iy) * w + ix) * c
        if iy >= 0 and ix >= 0 and iy + (size - 1) * dh < h and ix + (size - 1) * dw < w:
            read(x, x0, dh * w * c, dw * c, c, out, o0, step, 1, 0, 0)
            return
        top, bottom = _inside(iy, dh, size, h)
        left, right = _inside(ix, dw, size, w)
        for c0 in range(0, c, PATCH):
            part = min(PATCH, c - c0)
            clear(patch, patch0, size * size * part)
            for i in range(top, bottom):
                if dw == 1 and part == c:  # a run of pixels is one run of memory
                    copy(x, x0 + (i * dh * w + left) * c, patch, patch0 + (i * size + left) * c, (right - left) * c)
                else:
                    for j in range(left, right):
                        copy(x, x0 + (i * dh * w + j * dw) * c + c0, patch, patch0 + (i * size + j) * part, part)
            read(patch, patch0, size * part, part, part, out, o0 + c0, step, 1, 0, 0)

    return read_tile


@cache
def make_tiles_reader(matrix: programs.Matrix, size: int, m: int) -> Any:
    """read_tiles(x, first, count, t, above, before, rows, columns, channels, out, o0, pitch, step, patch): `count`
    tiles, m apart, from `first` on.

    The tiles of outputs, and those of size x size pixels that they need, `above` and `before` pixels further up and to
    the left. Tile number s of them goes to out[o0 + s pitch]. A call for every run of tiles inside the image: for few
    channels, calls cost as much as the transform.
    """
    read, read_tile = programs.make_read(matrix, size), make_tile_reader(matrix, size)

    @inline(f"{matrix} {size} {m}")
    def read_tiles(x, first, count, t, above, before, h, w, c, out, o0, pitch, step, patch):  # type: ignore[no-untyped-def]
        columns, dh, dw = t[5], t[6], t[7]
        unit, column, done = first // columns, first % columns, 0
        while done < count:
            image, oy, ox = row_of_tiles(unit, m, t)
            iy, ix = oy - above, ox + column * m * dw - before
            until = min(columns, column + count - done)
            while column < until:
                inside = (
                    0
                    if iy < 0 or ix < 0 or iy + (size - 1) * dh >= h
                    else (w - 1 - (size - 1) * dw - ix) // (m * dw) + 1
                )
                some = max(1, min(until - column, inside))
                if inside > 0:
                    x0 = ((image * h + iy) * w + ix) * c
                    read(x, x0, dh * w * c, dw * c, c, out, o0 + done * pitch, step, some, m * dw * c, pitch)
                else:
                    read_tile(x, image, iy, ix, h, w, c, dh, dw, out, o0 + done * pitch, step, out, patch)
                column, done, ix = column + some, done + some, ix + some * m * dw
            column, unit = 0, unit + 1

    return read_tiles


@cache
def _make_writer(form: Form, added: bool, summing: bool) -> Any:
    whole, edge = (programs.make_write(form, edge, added, summing) for edge in (False, True))
    m = form[0]

    @inline(f"{form} {added} {summing}")
    def write(
        inside, product, p0, step, y, y0, row, column, channels, rows, columns, bias, b0, more, sums, s0, s_step, relu
    ):  # type: ignore[no-untyped-def]
        if inside:
            whole(product, p0, step, y, y0, row, column, channels, m, m, bias, b0, more, sums, s0, s_step, relu)
        else:
            edge(product, p0, step, y, y0, row, column, channels, rows, columns, bias, b0, more, sums, s0, s_step, relu)

    return write


@cache
def make_tile_writer(form: Form, sums_up: bool) -> Any:
    """write_tile(...): channels first .. last of a tile of y (..., k) that may reach over the output's border; see
    `make_write`.

    added: `more` is added; summing: sums are taken (never both); relu: max(the result, 0).   sums_up: whether any
        caller asks for sums.
    """
    m = form[0]
    plain, adding, totals = (_make_writer(form, *kind) for kind in ((False, False), (True, False), (False, True)))

    @inline(f"{form} {sums_up}")
    def write_tile(product, p0, step, y, image, oy, ox, p, q, k, first, last, dh, dw, bias, b0, more, sums, s0, s_step,
                   added, summing, relu):  # fmt: skip  # type: ignore[no-untyped-def]
        y0, channels, row, column = ((image * p + oy) * q + ox) * k + first, last - first, dh * q * k, dw * k
        p0, b0, s0, rows, columns = p0 + first, b0 + first, s0 + first, m, m
        inside = oy + (m - 1) * dh < p and ox + (m - 1) * dw < q
        if not inside:
            rows, columns = _inside(oy, dh, m, p)[1], _inside(ox, dw, m, q)[1]
        if sums_up and summing:
            totals(inside, product, p0, step, y, y0, row, column, channels, rows, columns, bias, b0, more, sums, s0,
                   s_step, relu)  # fmt: skip
        elif added:
            adding(inside, product, p0, step, y, y0, row, column, channels, rows, columns, bias, b0, more, sums, s0,
                   s_step, relu)  # fmt: skip
        else:
            plain(inside, product, p0, step, y, y0, row, column, channels, rows, columns, bias, b0, more, sums, s0,
                  s_step, relu)  # fmt: skip

    return write_tile


@inline()
def note_tiles(noted, at, x, begin, first, last, m, t, above, before, size, h, w, c):  # type: ignore[no-untyped-def]
    """Note (runs.note) the pixels of the tiles first .. last of a map (N, h, w, c), each of size x size pixels, m
    apart; returns the next number.

    Left out is what the tiles before, down to number `begin`, have asked for. With size = m: the pixels that tiles of
    outputs write.
    """
    columns, dh, dw = t[5], t[6], t[7]
    while first < last:
        unit = first // columns
        image, oy, ox = row_of_tiles(unit, m, t)
        column = first - unit * columns
        stop = min(columns, column + last - first)
        y, left = oy - above, ox + column * m * dw - before
        rows = min(size, (h - y + dh - 1) // dh)
        shared = max((size - m) * (oy >= m * dh and first - columns >= begin), (dh - 1 - y) // dh)
        start, end = max(0, left + (size - m) * dw * (column > 0)), min(w, ox + (stop * m + size - m) * dw - before)
        for row in range(shared, rows):
            at = note(noted, at, x, ((image * h + y + row * dh) * w + start) * c, max(0, end - start) * c)
        first += stop - column
    return at


@inline()
def note_inputs(noted, until, x, x2, first, following, last, m, n, t, c, c2):  # type: ignore[no-untyped-def]
    """Note what the tiles following .. last read of one or two maps; `first` is their chunk's first tile."""
    h, w, above, before = t[0], t[1], t[8], t[9]
    until = note_tiles(noted, until, x, first, following, last, m, t, above, before, n, h, w, c)
    return note_tiles(noted, until, x2, first, following, last, m, t, above, before, n, h, w, c2) if c2 else until


@inline()
def note_outputs(noted, until, y, y2, more, first, at, last, m, t, k, k2, added):  # type: ignore[no-untyped-def]
    """Note what the tiles at .. last write to one or two results, or add to one."""
    until = note_tiles(noted, until, y, first, at, last, m, t, 0, 0, m, t[2], t[3], k)
    if k2:
        return note_tiles(noted, until, y2, first, at, last, m, t, 0, 0, m, t[2], t[3], k2)
    return note_tiles(noted, until, more, first, at, last, m, t, 0, 0, m, t[2], t[3], k) if added else until
