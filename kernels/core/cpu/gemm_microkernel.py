"""The one inner loop of convolutions, matrix products and Winograd: a register tile of outer products.

    C[i, j] = start[j] (or C[i, j]) + sum over runs (u, v) and steps t of  A[u, v][i a_row + t a_step] * B[u, v][t
    b_step + j]

for `rows` x (vectors * lanes) results held in registers: per step one broadcast of A per row, one load of B per vector,
and rows * vectors fused multiply-adds. Everything else is a choice of strides:

    matrix product     A rows of pixels, a_step 1, B a packed panel
    convolution        a run is a row of the filter: S C contiguous floats of the padded image, a_row = stride C
    filter gradient    A the pixels' channels (a_row 1, a_step C), B the cotangent's rows, t over pixels

Columns of such tiles cover any number of rows: in the last tile, rows beyond the last one are clamped to it (they
compute and store the same values again). Columns of the matrix beyond the last are masked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import product
from typing import Any, NamedTuple

from kernels.core.cpu.jit import inline
from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.target import target

# Vectors of columns -> rows of the register tile, by the number of vector registers: a tall tile, within 15 % of the
# FMA peak, and a low one that makes up the remainder. All keep at least 8 independent sums in flight.
_ROWS: dict[int, tuple[int, int]] = {4: (2, 1), 1: (4, 1)}
if target().lanes > 1:
    _ROWS = {32: {4: (6, 4), 2: (14, 8), 1: (24, 16)}, 16: {2: (6, 4), 1: (12, 8)}}[target().registers]
_TOGETHER, _UNROLLED_HEIGHT = 4, 6  # steps of the inner loop that are written out, in tiles of so many rows
# The processor has registers for the addresses of so many rows. In higher tiles four rows share one and are addressed
# by it and multiples of a_row; left alone, the compiler would make an address per row and fetch them from memory at
# every step. Tiles and runs make them anew; left alone, the compiler would carry every row's address through the loops
# around them, in memory, too.
_POINTERS, _SHARED = 8, 4
_EVERY, _FRACTION = 2, 16  # every second of these steps asks for a line; bits behind the point in a place on the list
_FEW = 1 << 14  # floats of a filter
# bits of `finish`, how a convolution's results become those of its layer: added to what is there; max(result, 0)
ADDED, RELU = 1, 2


def panel_vectors(columns: int) -> int:
    """How many vectors wide the panels of a matrix with `columns` columns are: the widest tile that leaves no panel
    partly idle.
    """
    needed = -(-columns // target().lanes)
    return next(v for v in _ROWS if needed % v == 0)


def tile_rows(vectors: int) -> int:
    """Rows of the tall register tile that is `vectors` wide."""
    return _ROWS[vectors][0]


def tile_heights(vectors: int) -> tuple[int, int]:
    """Rows of the tall and of the low register tile that are `vectors` wide."""
    return _ROWS[vectors]


@lru_cache(maxsize=8)
def make_tall_tiles(vectors: int) -> Any:
    """tall_tiles(rows): how many of a column's tiles are tall: as many as leave a multiple of low ones, if any number
    does.
    """
    tall, low = _ROWS[vectors]

    @inline(f"{vectors}")
    def tall_tiles(rows: int) -> int:
        talls = rows // tall
        for fewer in range(min(low, talls + 1)):
            if (rows - (talls - fewer) * tall) % low == 0:
                return talls - fewer
        return talls

    return tall_tiles


class _Options(NamedTuple):
    """What a register tile does beside multiplying; see `make_column`, `make_finishing_column` and `_make_tile`."""

    blocks: bool = False
    mask_b: bool = False
    mask_c: bool = False
    ahead: int = 0
    beside: bool = False
    asks: bool = False
    finishes: bool = False
    sums: bool = False


@cache
def make_column(
    vectors: int, blocks: bool = False, mask_b: bool = False, mask_c: bool = False, ahead: int = 0, beside: bool = False
) -> Any:
    """column(..., rows, columns, start, s0): the arguments of a tile, for any number of rows: tall tiles, then low
    ones, the last one clamped.

    beside: A's rows lie side by side (ar = 1). at = 0: tile behind tile, too, as packed by kernels/core/cpu/packing.py;
    ar is their pitch per row.
    """
    options = _Options(blocks, mask_b, mask_c, ahead, beside)
    every = _make_any_column(vectors, options)

    @inline(f"{vectors} {options}")
    def column(a, a0, ar, at, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c, c0, cr, rows, columns, start, s0):  # type: ignore[no-untyped-def]
        every(
            a, a0, ar, at, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c, c0, cr, rows, columns, start, s0, a, 0, 0, a, 0, 0
        )

    return column


@cache
def make_asking_column(vectors: int, blocks: bool = False, beside: bool = False, ahead: int = 0) -> Any:
    """column(..., start, s0, noted, first, lines): a column whose tall tiles ask for `lines` cache lines of the list
    `noted` (runs.note), from
    number `first` on, evenly: asked for all at once, the memory would keep the products waiting. See `worth_asking`.
    """
    options = _Options(blocks, ahead=ahead, beside=beside, asks=target().asks)
    every = _make_any_column(vectors, options)

    @inline(f"{vectors} {options}")
    def column(a, a0, ar, at, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c, c0, cr, rows, columns, start, s0, noted, first,  # type: ignore[no-untyped-def]
               lines):  # fmt: skip
        every(a, a0, ar, at, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c, c0, cr, rows, columns, start, s0, noted, first,
              lines, a, 0, 0)  # fmt: skip

    return column


@cache
def make_finishing_column(vectors: int, masked: bool, summing: bool) -> Any:
    """column(..., start, s0, noted, first, lines, sums, t0, finish): such a column that also finishes the results of a
    convolution.

    masked: its last vector of columns is not full.   summing: it sums results and their squares; else it knows a ReLU.
    """
    return _make_any_column(vectors, _Options(mask_c=masked, asks=target().asks, finishes=True, sums=summing))


def _make_any_column(vectors: int, options: _Options) -> Any:
    tall, low = _ROWS[vectors]
    tall_tiles, beside, asks = make_tall_tiles(vectors), options.beside, options.asks
    tall_tile, low_tile, last_tile = (
        _make_tile(vectors, height, whole, options) for height, whole in ((tall, True), (low, True), (low, False))
    )
    asking_tile = _make_tile(vectors, tall, True, options, asks=True) if asks else tall_tile

    @inline(f"every {vectors} {options}")
    def every(a, a0, ar, at, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c, c0, cr, rows, columns, start, s0, noted, first,  # type: ignore[no-untyped-def]
              lines, sums, t0, finish):  # fmt: skip
        talls, done = tall_tiles(rows), 0
        tall_step, low_step = (tall, low) if beside and at == 0 else (at, at)
        if asks and lines > 0:
            per_tile = (lines << _FRACTION) // max(1, talls)
            per_step, place = per_tile // max(1, n), first << _FRACTION
            for _ in range(talls):
                asking_tile(a, a0 + done * ar, ar, tall_step, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c,
                            c0 + done * cr, cr, tall, columns, start, s0, noted, place, per_step,
                            sums, t0, finish)  # fmt: skip
                done, place = done + tall, place + per_tile
        else:
            for _ in range(talls):
                tall_tile(a, a0 + done * ar, ar, tall_step, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c, c0 + done * cr,
                          cr, tall, columns, start, s0, noted, 0, 0, sums, t0, finish)  # fmt: skip
                done += tall
        while done + low <= rows:
            low_tile(a, a0 + done * ar, ar, low_step, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c, c0 + done * cr, cr,
                     low, columns, start, s0, noted, 0, 0, sums, t0, finish)  # fmt: skip
            done += low
        if done < rows:
            last_tile(a, a0 + done * ar, ar, low_step, b, b0, bt, n, n1, a1, b1, n2, a2, b2, c, c0 + done * cr, cr,
                      rows - done, columns, start, s0, noted, 0, 0, sums, t0, finish)  # fmt: skip

    return every


def worth_asking(floats: int) -> bool:
    """Whether products with a filter of so many floats are to ask for memory: small ones wait for it, for large ones it
    is work beside the work.
    """
    return target().asks and floats < _FEW


def _make_tile(vectors: int, height: int, whole: bool, options: _Options, asks: bool = False) -> Callable[..., None]:
    """The program of one register tile:

    tile(A, a0, a_row, a_step, B, b0, b_step, steps, runs1, a_run1, b_run1, runs2, a_run2, b_run2, C, c0, c_row, rows,
    columns, start, s0,
         noted, place, per_step, sums, t0, finish)

    It starts from start[s0 + j]: a bias, or zeros.   whole: all rows exist; else those beyond `rows` are clamped.
    blocks: it starts from C, or where s0 = 0 from start: C is the sum over blocks of steps, of which this is the first.
    mask_b, mask_c: only `columns` of B's and C's columns exist.
    ahead: B's panels are asked for so many steps in advance, into the second cache: they come from memory where few
        rows meet large filters.
    beside: a_row is 1.   asks: so are lines of the list `noted` from `place` on, `per_step` a step (both in 2^-16).
    finishes: by bits of `finish` the tile starts from C (ADDED), and negative results become 0 (RELU; not with sums).
    sums: sums[t0 + j] += the sum of column j's results, sums[t0 + vectors * lanes + j] += that of their squares.
    """
    blocks, mask_b, mask_c, ahead, beside, _, finishes, sums_up = options
    lanes, width, together = (
        target().lanes,
        vectors * target().lanes,
        _TOGETHER if whole and height == _UNROLLED_HEIGHT else 1,
    )

    @program("piiipiiiiiiiiipiiiipipiipii")
    def tile(code: Code, a: Pointer, a0: Int, a_row: Int, a_step: Int, b: Pointer, b0: Int, b_step: Int, steps: Int,
             runs1: Int, a_run1: Int, b_run1: Int, runs2: Int, a_run2: Int, b_run2: Int, c: Pointer, c0: Int,
             c_row: Int, rows: Int, columns: Int, start: Pointer, s0: Int, noted: Pointer, place: Int, per_step: Int,
             sums: Pointer, t0: Int, finish: Int) -> None:  # fmt: skip
        row = [code.int(i) if whole else _clamped(code, i, rows) for i in range(height)]
        a_rows = [r * (1 if beside else a_row) for r in row]
        anew = (lambda p: p) if beside else code.opaque
        corner, b, counts = anew(a + a0), b + b0, [columns - j * lanes for j in range(vectors)]
        b_counts, c_counts = (counts if mask else [None] * vectors for mask in (mask_b, mask_c))

        if blocks:
            begun = s0 >= 1
            origin, origin_row = code.choose(begun, c + c0, start), code.choose(begun, c_row, code.int(0))
            first = [[code.load(origin + r * origin_row, j * lanes, c_counts[j]) for j in range(vectors)] for r in row]
        else:
            first = [[code.load(start, s0 + j * lanes) for j in range(vectors)]] * height
        products, places = (
            [[code.variable(value) for value in line] for line in first],
            list(product(range(height), range(vectors))),
        )
        if finishes:
            with code.when(finish.has(ADDED)):
                # else these addresses would be kept for the end, and the inner loop needs the registers
                there = code.opaque(c + c0)
                for i, j in places:
                    products[i][j].set(code.load(there + row[i] * c_row, j * lanes, c_counts[j]))

        def addresses(a: Pointer) -> list[Pointer]:
            if beside or not whole or height <= _POINTERS:
                return [a + at for at in a_rows]
            corners = [code.opaque(a + a_rows[i]) for i in range(0, height, _SHARED)]
            return [corners[i // _SHARED] + i % _SHARED * a_row for i in range(height)]

        def multiply(a: Pointer, b: Pointer) -> None:
            for j in range(0, vectors * (ahead > 0), max(1, 16 // lanes)):
                code.prefetch(b, ahead * width + j * lanes, near=False)
            columns_of_b = [code.load(b, j * lanes, b_counts[j]) for j in range(vectors)]
            for i, address in enumerate(addresses(a)):
                factor = code.broadcast(address)
                for j in range(vectors):
                    products[i][j].set(code.fma(factor, columns_of_b[j], products[i][j].get()))

        with code.loop(0, runs1) as u, code.loop(0, runs2) as v:
            a_run, b_run = anew(corner + (u * a_run1 + v * a_run2)), anew(b + (u * b_run1 + v * b_run2))

            def step(t: Int, number: int, a_run: Pointer = a_run, b_run: Pointer = b_run) -> None:
                if asks and number % _EVERY == 0:
                    code.prefetch_noted(noted, code.shifted(place + t * per_step, _FRACTION))
                multiply(a_run + t * a_step, b_run + t * b_step)

            _over_steps(code, steps, together, step)
        if sums_up:
            _add_sums(code, [[v.get() for v in line] for line in products], None if whole else rows, sums, t0)
        elif finishes:
            with code.when(finish.has(RELU)):
                for i, j in places:
                    products[i][j].set(code.relu(products[i][j].get()))
        for i, j in places:
            code.store(products[i][j].get(), c + c0 + row[i] * c_row, j * lanes, c_counts[j])

    return tile


def _over_steps(code: Code, steps: Int, together: int, body: Callable[[Int, int], None]) -> None:
    """body(t, number) for every step, `together` of them written out one behind the other: number 0, 1, ...

    They share the rows' addresses. Higher tiles than those of _UNROLLED_HEIGHT have more of these than the processor
    has registers, and lose.
    """
    whole = code.rounded_to(steps, code.int(together))
    with code.loop(0, whole, together) as t:
        for step in range(together):
            body(t + step, step)
    if together > 1:
        with code.loop(whole, steps) as t:
            body(t, 0)


def _add_sums(code: Code, products: list[list[Vec]], rows: Int | None, start: Pointer, s0: Int) -> None:
    """Sums and sums of squares of the columns; with `rows`, of the first so many rows (a clamped row is a copy of the
    last one).
    """
    vectors = len(products[0])
    for j in range(vectors):
        total, squares = (code.load(start, s0 + (k * vectors + j) * code.lanes) for k in range(2))
        for i, line in enumerate(products):
            value = line[j] if rows is None else code.select(code.spread(code.int(i) < rows), line[j], 0)
            total, squares = total + value, code.fma(value, value, squares)
        code.store(total, start, s0 + j * code.lanes)
        code.store(squares, start, s0 + (vectors + j) * code.lanes)


def _clamped(code: Code, i: int, rows: Int) -> Int:
    """min(i, rows - 1)."""
    return code.lesser(code.int(i), rows - 1)
