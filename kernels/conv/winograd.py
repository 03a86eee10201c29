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
from typing import NamedTuple

import numpy as np

from kernels.conv import filters
from kernels.conv import winograd_programs as programs
from kernels.conv.winograd_programs import Form
from kernels.conv.winograd_tiles import PATCH, make_tile_writer, make_tiles_reader, note_tiles, row_of_tiles
from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel, inline
from kernels.core.contract import make_asking_column, panel_vectors, tile_rows
from kernels.core.geometry import Pair, Window
from kernels.core.prepared import prepared
from kernels.core.runs import add, clear, share
from kernels.core.simd import target
from kernels.core.threads import contiguous, parallel

PAD = 16  # floats, a cache line
_SCRATCH = 80_000  # floats of transformed tiles per block: 320 KB, a share of a typical L2
# floats of the filter gradient's sums that are worth a tile more per block: they are read and written once per block
_SUMS_PER_TILE = 18_000
CHUNKS = 16  # per layer, about
LEAST = 64  # tiles per block and chunk: the filter's panels are read once for them ...
_SMALL = 300_000  # ... half as many for transformed filters of so many floats, which stay in the cache
_QUIET = 1 << 18  # floats: maps that stay in the caches are not asked for
_MOST_LINES = 20_000  # of a block that are asked for: a list of up to 160 KB
AHEAD = 256  # steps: 16 KB of panels
ZEROS = np.zeros(8192, np.float32)


class Tiling(NamedTuple):
    """How a layer is cut into tiles: the image (h, w), the output (p, q), tile rows and columns per phase, dilation and
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
        """Of a stride-1 window over an image of `size`."""
        m = form[0]
        p, q = window.output_size(size)
        dh, dw = window.dilation
        rows, columns = (-(-n // (d * m)) for n, d in ((p, dh), (q, dw)))  # ceil(ceil(n / d) / m)
        return cls(*size, p, q, rows, columns, dh, dw, window.padding[0][0], window.padding[1][0])

    @property
    def units(self) -> int:
        """Tile rows of one image, over all phases."""
        return self.rows * self.dh * self.dw


@inline()
def _note_inputs(noted, until, x, x2, first, following, last, m, n, t, c, c2):  # type: ignore[no-untyped-def]
    """Note what the tiles following .. last read of one or two maps; `first` is their chunk's first tile."""
    h, w, above, before = t[0], t[1], t[8], t[9]
    until = note_tiles(noted, until, x, first, following, last, m, t, above, before, n, h, w, c)
    return note_tiles(noted, until, x2, first, following, last, m, t, above, before, n, h, w, c2) if c2 else until


@inline()
def _note_outputs(noted, until, y, y2, more, first, at, last, m, t, k, k2, added):  # type: ignore[no-untyped-def]
    """Note what the tiles at .. last write to one or two results, or add to one."""
    until = note_tiles(noted, until, y, first, at, last, m, t, 0, 0, m, t[2], t[3], k)
    if k2:
        return note_tiles(noted, until, y2, first, at, last, m, t, 0, 0, m, t[2], t[3], k2)
    return note_tiles(noted, until, more, first, at, last, m, t, 0, 0, m, t[2], t[3], k) if added else until


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
                    until = _note_inputs(
                        scratch, until, x, x2, first, at + count, min(at + 2 * count, end), m, n, t, c, c2
                    )
                    if parts == 1:  # else other chunks write to the same lines
                        until = _note_outputs(scratch, until, y, y2, more, first, at, at + count, m, t, k, k2, added)
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


@lru_cache(maxsize=4)
def filter_kernel(form: Form) -> Kernel:
    """Transforms filters (r, r, C, K) into panels (points, K / width, C, width), a cache line between points: all are
    written in turn.
    """
    filter_, points, lanes = programs.make_filter(form), programs.points(form) ** 2, target().lanes

    @cpu_kernel("ppiiiiii", f"F{form}")
    def winograd_filter(start, stop, _scratch, w, u, c, k, kp, width, parts, per_part):  # type: ignore[no-untyped-def]
        for chunk in range(start, stop):
            panel, part = chunk // parts, chunk % parts
            columns = min(width, k - panel * width)
            empty = (width - columns) // lanes * lanes
            # one panel at a time: its rows are written one after another
            for i in range(part * per_part, min((part + 1) * per_part, c)):
                filter_(w, i * k + panel * width, c * k, columns, u, (panel * c + i) * width, kp * c + PAD)
                for point in range(empty and points):  # whole vectors beyond the last channel
                    clear(u, point * (kp * c + PAD) + (panel * c + i) * width + width - empty, empty)

    return winograd_filter


def _equal_parts(count: int, about: int, step: int) -> int:
    """`count` is cut into equal parts of about `about`: their size, a multiple of `step`. A small last part would cost
    as much as a full one.
    """
    parts = max(1, round(count / about))
    return -(-count // (parts * step)) * step


def worth_noting(floats: int, lines: int) -> bool:
    """Whether to ask for the lines of a block, so many, of maps of so many floats: they do not stay in the cache, and
    their list is no burden.
    """
    return target().asks and floats > _QUIET and lines <= _MOST_LINES


def with_list(floats: int, lines: int) -> tuple[int, int]:
    """Floats of scratch memory with a list of so many lines (of 8 bytes each) behind the first `floats`; where it
    begins, in lines (0: no list).
    """
    noted = (floats + 1) // 2
    return 2 * (noted + lines), noted if lines else 0


class _Plan:
    """What does not depend on the values: tiling, panels, chunks, scratch memory. Made once per layer. last: channels
    of a second map, of c.
    """

    def __init__(self, form: Form, images: int, size: Pair, c: int, k: int, window: Window, last: int = 0) -> None:
        lanes, self.vectors = target().lanes, panel_vectors(k)
        self.width, self.points = self.vectors * lanes, programs.points(form) ** 2
        reach = c - last + -(-last // lanes) * lanes  # a second map, which may start anywhere, has whole vectors, too
        self.cp, self.kp = -(-reach // lanes) * lanes, -(-k // self.width) * self.width
        self.tiling = Tiling.of(form, size, window)
        self.geometry = np.array(self.tiling, np.int64)
        self.units, columns = images * self.tiling.units, self.tiling.columns
        height = tile_rows(self.vectors)
        fitting = _SCRATCH // (self.points * (self.cp + self.kp))
        least = LEAST // 2 if self.points * c * self.kp <= _SMALL else LEAST
        self.per = max(-(-self.units // CHUNKS), least // columns)
        # two halves: every part of the panels transforms its chunk's input again
        if LEAST // 2 <= self.units * columns <= LEAST:
            self.per = -(-self.units // 2)
        self.block = _equal_parts(self.per * columns, max(LEAST // 2, fitting), height)
        self.parts = min(self.kp // self.width, -(-4 // -(-self.units // self.per)))
        # Every chunk of the filter gradient has a copy of the sums: fewer chunks for deep layers.
        chunks = max(2, min(CHUNKS, self.units * columns // 64, 4_000_000 // (self.points * c * self.kp)))
        self.gradient_per = -(-self.units // chunks)
        sums = self.points * c * self.kp
        self.gradient_block = _equal_parts(
            self.gradient_per * columns, max(LEAST // 2, fitting, min(2 * LEAST, sums // _SUMS_PER_TILE)), 1
        )
        self.filter_per = -(-c // max(1, CHUNKS // (self.kp // self.width)))

    def scratch(self, block: int, lines: int) -> tuple[int, int]:
        """See `with_list`."""
        return with_list(self.points * (block * (self.cp + self.kp) + 2 * PAD + PATCH) + 2 * self.kp + PAD, lines)

    def lines(self, block: int, *maps: tuple[Pair, int, int]) -> int:
        """The cache lines that a block reads and writes of such maps, each ((h, w), channels, rows of a tile); 0: they
        are not asked for.
        """
        rows = min(block // self.tiling.columns + 2, self.units)
        lines = rows * sum(side * (w * c // 16 + 2) for (_, w), c, side in maps)
        floats = self.units // self.tiling.units * sum(h * w * c for (h, w), c, _ in maps)
        return lines * worth_noting(floats, lines)


plan_of = lru_cache(maxsize=1024)(_Plan)


def transformed(plan: _Plan, w: np.ndarray, form: Form) -> np.ndarray:
    """The panels of a filter (r, r, C, K)."""
    return prepared(w, (form, plan.width, plan.kp), lambda: _transform(plan, w, form))


def _transform(plan: _Plan, w: np.ndarray, form: Form) -> np.ndarray:
    _, _, c, k = w.shape
    u = memory.empty((plan.points * (plan.kp * c + PAD),), np.float32)
    parts = -(-c // plan.filter_per)
    flat = contiguous(w).reshape(-1)
    parallel(
        filter_kernel(form), plan.kp // plan.width * parts, flat, u, c, k, plan.kp, plan.width, parts, plan.filter_per
    )
    return u


def two(maps: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """One or two maps as two flat arrays with their channels (0 where there is no second)."""
    first, last = maps[0], maps[-1]
    return first.reshape(-1), last.reshape(-1), first.shape[3], last.shape[3] if len(maps) > 1 else 0


def forward(
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
                    until = _note_inputs(scratch, until, x, x2, first, following, last, m, n, t, c1, c2)
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
    dw = memory.empty((r, r, c, k), np.float32)
    per = -(-c // CHUNKS)
    first, tap = ((r * r - 1) * c * k, -c * k) if reverse else (0, c * k)
    parallel(gradient_finish_kernel(form), -(-c // per), partial, dw.reshape(-1), c, k, kp, chunks, per, first, tap)
    return dw


def backward_filter(maps: Sequence[np.ndarray], dy: np.ndarray, window: Window, form: Form) -> np.ndarray:
    """dw (r, r, C, K) of a stride-1 convolution of one or two maps (N, H, W, C), dy (N, P, Q, K),
    contiguous float32.
    """
    n, h, wd, _ = maps[0].shape
    x, x2, c, c2 = two(maps)
    k = dy.shape[3]
    plan = plan_of(form, n, (h, wd), c + c2, k, window, c2)
    chunks = -(-plan.units // plan.gradient_per)
    partial = memory.empty((chunks * plan.points * ((c + c2) * plan.kp + PAD),), np.float32)
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
