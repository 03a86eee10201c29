"""The GEMM micro-kernel of convolutions, matrix products and Winograd: a register tile of outer products.

    C[i, j] = initial[j] + sum over taps (u, v) and steps t of  A[u, v][i a_row + t a_step] * B[u, v][t b_step + j]

for MR x NR results held in registers (NR = vectors * lanes). Each step broadcasts one value of A per row, loads one
vector of B per vector of columns, and does MR * vectors fused multiply-adds. Everything else is a choice of strides:

    matrix product     A rows of pixels, a_step 1, B a packed micro-panel
    convolution        a tap is a row of the filter: S C contiguous floats of the padded image, a_row = stride C
    filter gradient    A the pixels' channels (a_row 1, a_step C), B the cotangent's rows, t over pixels

A `gemm` multiplies any number of rows of A by one micro-panel of B: main tiles of MR rows, then remainder tiles. Rows
of the edge tile beyond the last one are clamped to it: they compute and store the same values again. Columns of the
matrix beyond the last are masked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import product
from typing import Any, NamedTuple

from kernels.core.cpu.jit import inline
from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.target import target

# By the number of vector registers: vectors of columns -> rows of the main tile (MR), within 15 % of the FMA peak, and
# of the remainder tile. All keep at least 8 independent sums in flight.
_TILE_ROWS: dict[int, tuple[int, int]] = {4: (2, 1), 1: (4, 1)}
if target().lanes > 1:
    _TILE_ROWS = {32: {4: (6, 4), 2: (14, 8), 1: (24, 16)}, 16: {2: (6, 4), 1: (12, 8)}}[target().registers]
_UNROLL = 4  # unrolled steps of the inner loop ...
_UNROLLED_ROWS = 6  # ... in main tiles of that many rows
# The processor has registers for the addresses of that many rows. In higher tiles four rows share one address and
# multiples of a_row; left alone, the compiler would compute an address per row, spill it and reload it at every step.
# Tiles and taps compute their addresses anew; left alone, the compiler would carry every row's address through the
# outer loops, in memory, too.
_MOST_ADDRESSES, _ROWS_PER_ADDRESS = 8, 4
_PREFETCH_EVERY = 2  # steps
_FRACTION_BITS = 16  # of a place on the prefetch list
_LARGEST_PREFETCHING = 1 << 14  # floats of a filter
# bits of Epilogue.operations
ADD, RELU = 1, 2  # start from C (a residual, or earlier taps); max(result, 0)


class Rows(NamedTuple):
    """A: element (i, t) lies at array[start + i row + t step]."""

    array: Any
    start: Any
    row: Any
    step: Any


class Panel(NamedTuple):
    """B, a micro-panel: element (t, j) lies at array[start + t step + j]."""

    array: Any
    start: Any
    step: Any


class Taps(NamedTuple):
    """The sum: `steps` for each of outer x inner taps; tap (u, v) adds u outer_a + v inner_a to A's place, likewise
    to B's.
    """

    steps: Any
    outer: Any
    outer_a: Any
    outer_b: Any
    inner: Any
    inner_a: Any
    inner_b: Any


class Results(NamedTuple):
    """C: rows x columns results; element (i, j) lies at array[start + i row + j]."""

    array: Any
    start: Any
    row: Any
    rows: Any
    columns: Any


class Initial(NamedTuple):
    """The initial values of the sums: array[start + j], a bias or zeros. accumulate: nonzero to start from C (beta =
    1), in a gemm that accumulates.
    """

    array: Any
    start: Any
    accumulate: Any


class Prefetch(NamedTuple):
    """Entries first .. first + count of a prefetch list (prefetch.py)."""

    lines: Any
    first: Any
    count: Any


class Epilogue(NamedTuple):
    """The epilogue, applied to results in registers: the bits ADD and RELU of `operations`; in a gemm that sums,
    sums[start + j] += the sum of column j, sums[start + NR + j] += that of its squares.
    """

    sums: Any
    start: Any
    operations: Any


@inline()
def one_tap(steps):  # type: ignore[no-untyped-def]
    """The Taps of a matrix product."""
    return Taps(steps, 1, 0, 0, 1, 0, 0)


def panel_vectors(columns: int) -> int:
    """How many vectors wide the micro-panels of a matrix with `columns` columns are: the widest that leaves no panel
    partly idle.
    """
    needed = -(-columns // target().lanes)
    return next(v for v in _TILE_ROWS if needed % v == 0)


def tile_rows(vectors: int) -> int:
    """MR: rows of the main tile that is `vectors` wide."""
    return _TILE_ROWS[vectors][0]


def tile_heights(vectors: int) -> tuple[int, int]:
    """Rows of the main and of the remainder tile that are `vectors` wide."""
    return _TILE_ROWS[vectors]


def prefetch_pays(floats: int) -> bool:
    """Whether products with a filter of that many floats prefetch: small filters wait for memory; for large ones the
    prefetches only add instructions.
    """
    return target().prefetches and floats < _LARGEST_PREFETCHING


@lru_cache(maxsize=8)
def make_main_tiles(vectors: int) -> Any:
    """main_tiles(rows): how many tiles of a gemm are main tiles: as many as leave a multiple of remainder tiles, if any
    number does.
    """
    main, remainder = _TILE_ROWS[vectors]

    @inline(f"{vectors}")
    def main_tiles(rows: int) -> int:
        most = rows // main
        for fewer in range(min(remainder, most + 1)):
            if (rows - (most - fewer) * main) % remainder == 0:
                return most - fewer
        return most

    return main_tiles


class _Options(NamedTuple):
    """The work of a tile besides multiplying; see `make_gemm` and `_make_tile`."""

    accumulates: bool = False
    mask_b: bool = False
    mask_c: bool = False
    ahead: int = 0
    unit_rows: bool = False
    prefetches: bool = False
    epilogue: bool = False
    sums: bool = False


@cache
def make_gemm(
    vectors: int,
    accumulates: bool = False,
    mask_b: bool = False,
    mask_c: bool = False,
    ahead: int = 0,
    unit_rows: bool = False,
) -> Any:
    """gemm(a: Rows, b: Panel, taps: Taps, c: Results, initial: Initial) for micro-panels of `vectors` vectors.

    accumulates: `initial.accumulate` counts: C is a sum over k-blocks.   mask_b, mask_c: only `c.columns` of B's
    and C's columns exist.   ahead: B's panels are prefetched that many steps in advance, into the L2 cache: they come
    from memory where few rows meet large filters.
    unit_rows: A's rows are contiguous (row stride 1). With a.step = 0 tile follows tile, as packing.py packs them; then
    a.row is their pitch per row.
    """
    options = _Options(accumulates, mask_b, mask_c, ahead, unit_rows)
    general = _make_general(vectors, options)

    @inline(f"{vectors} {options}")
    def gemm(a, b, taps, c, initial):  # type: ignore[no-untyped-def]
        general(a, b, taps, c, initial, Prefetch(c.array, 0, 0), Epilogue(c.array, 0, 0))

    return gemm


@cache
def make_prefetching_gemm(vectors: int, accumulates: bool = False, unit_rows: bool = False, ahead: int = 0) -> Any:
    """gemm(a, b, taps, c, initial, prefetch: Prefetch): the main tiles prefetch the listed lines, evenly: all at once
    would stall the products. See `prefetch_pays`.
    """
    options = _Options(accumulates, ahead=ahead, unit_rows=unit_rows, prefetches=target().prefetches)
    general = _make_general(vectors, options)

    @inline(f"{vectors} {options}")
    def gemm(a, b, taps, c, initial, prefetch):  # type: ignore[no-untyped-def]
        general(a, b, taps, c, initial, prefetch, Epilogue(c.array, 0, 0))

    return gemm


@cache
def make_epilogue_gemm(vectors: int, masked: bool, summing: bool) -> Any:
    """gemm(a, b, taps, c, initial, prefetch, epilogue: Epilogue) for a convolution's forward.

    masked: its last vector of columns is not full.   summing: it sums results and their squares; else it knows a ReLU.
    """
    return _make_general(vectors, _Options(mask_c=masked, prefetches=target().prefetches, epilogue=True, sums=summing))


def _make_general(vectors: int, options: _Options) -> Any:
    main, remainder = _TILE_ROWS[vectors]
    main_tiles = make_main_tiles(vectors)
    unit_rows = options.unit_rows
    prefetches = options.prefetches
    main_tile = _make_tile(vectors, main, True, options)
    remainder_tile = _make_tile(vectors, remainder, True, options)
    edge_tile = _make_tile(vectors, remainder, False, options)
    prefetching_tile = _make_tile(vectors, main, True, options, prefetches=True) if prefetches else main_tile

    @inline(f"general {vectors} {options}")
    def general(a, b, taps, c, initial, prefetch, epilogue):  # type: ignore[no-untyped-def]
        mains = main_tiles(c.rows)
        done = 0
        packed = unit_rows and a.step == 0
        main_step, remainder_step = (main, remainder) if packed else (a.step, a.step)
        if prefetches and prefetch.count > 0:
            per_tile = (prefetch.count << _FRACTION_BITS) // max(1, mains)
            per_step = per_tile // max(1, taps.steps)
            place = prefetch.first << _FRACTION_BITS
            for _ in range(mains):
                rows = Rows(a.array, a.start + done * a.row, a.row, main_step)
                out = Results(c.array, c.start + done * c.row, c.row, main, c.columns)
                prefetching_tile(rows, b, taps, out, initial, prefetch.lines, place, per_step, epilogue)
                done += main
                place += per_tile
        else:
            for _ in range(mains):
                rows = Rows(a.array, a.start + done * a.row, a.row, main_step)
                out = Results(c.array, c.start + done * c.row, c.row, main, c.columns)
                main_tile(rows, b, taps, out, initial, prefetch.lines, 0, 0, epilogue)
                done += main
        while done + remainder <= c.rows:
            rows = Rows(a.array, a.start + done * a.row, a.row, remainder_step)
            out = Results(c.array, c.start + done * c.row, c.row, remainder, c.columns)
            remainder_tile(rows, b, taps, out, initial, prefetch.lines, 0, 0, epilogue)
            done += remainder
        if done < c.rows:
            rows = Rows(a.array, a.start + done * a.row, a.row, remainder_step)
            out = Results(c.array, c.start + done * c.row, c.row, c.rows - done, c.columns)
            edge_tile(rows, b, taps, out, initial, prefetch.lines, 0, 0, epilogue)

    return general


def _make_tile(vectors: int, height: int, whole: bool, options: _Options, prefetches: bool = False) -> Any:
    """The program of one register tile of `height` rows.

    whole: all rows exist; else those beyond c.rows are clamped.   prefetches: so are entries of the list `lines` from
    `place` on, `per_step` a step (both in 2^-16).
    """
    lanes = target().lanes
    width = vectors * lanes
    unroll = _UNROLL if whole and height == _UNROLLED_ROWS else 1

    @program
    def tile(
        code: Code,
        a: Rows,
        b: Panel,
        taps: Taps,
        c: Results,
        initial: Initial,
        lines: Pointer,
        place: Int,
        per_step: Int,
        epilogue: Epilogue,
    ) -> None:
        row = [code.int(i) if whole else _clamped(code, i, c.rows) for i in range(height)]
        a_rows = [r * (1 if options.unit_rows else a.row) for r in row]
        anew = (lambda p: p) if options.unit_rows else code.opaque
        corner = anew(a.array + a.start)
        panel = b.array + b.start
        counts = [c.columns - j * lanes for j in range(vectors)]
        b_counts = counts if options.mask_b else [None] * vectors
        c_counts = counts if options.mask_c else [None] * vectors
        places = list(product(range(height), range(vectors)))

        first = _first_values(code, row, c, initial, c_counts, options)
        sums = [[code.variable(value) for value in line] for line in first]
        if options.epilogue:
            with code.when(epilogue.operations.has(ADD)):
                # else the compiler would keep these addresses for the end, and the inner loop needs the registers
                there = code.opaque(c.array + c.start)
                for i, j in places:
                    sums[i][j].set(code.load(there + row[i] * c.row, j * lanes, c_counts[j]))

        def addresses(a_tap: Pointer) -> list[Pointer]:
            if options.unit_rows or not whole or height <= _MOST_ADDRESSES:
                return [a_tap + at for at in a_rows]
            shared = [code.opaque(a_tap + a_rows[i]) for i in range(0, height, _ROWS_PER_ADDRESS)]
            return [shared[i // _ROWS_PER_ADDRESS] + i % _ROWS_PER_ADDRESS * a.row for i in range(height)]

        def multiply(a_step: Pointer, b_step: Pointer) -> None:
            for j in range(0, vectors * (options.ahead > 0), max(1, 16 // lanes)):
                code.prefetch(b_step, options.ahead * width + j * lanes, near=False)
            columns = [code.load(b_step, j * lanes, b_counts[j]) for j in range(vectors)]
            for i, address in enumerate(addresses(a_step)):
                factor = code.broadcast(address)
                for j in range(vectors):
                    sums[i][j].set(code.fma(factor, columns[j], sums[i][j].get()))

        with code.loop(0, taps.outer) as u, code.loop(0, taps.inner) as v:
            a_tap = anew(corner + (u * taps.outer_a + v * taps.inner_a))
            b_tap = anew(panel + (u * taps.outer_b + v * taps.inner_b))

            def step(t: Int, number: int, a_tap: Pointer = a_tap, b_tap: Pointer = b_tap) -> None:
                if prefetches and number % _PREFETCH_EVERY == 0:
                    code.prefetch_listed(lines, code.shifted(place + t * per_step, _FRACTION_BITS))
                multiply(a_tap + t * a.step, b_tap + t * b.step)

            _over_steps(code, taps.steps, unroll, step)
        if options.sums:
            _add_sums(code, [[v.get() for v in line] for line in sums], None if whole else c.rows, epilogue)
        elif options.epilogue:
            with code.when(epilogue.operations.has(RELU)):
                for i, j in places:
                    sums[i][j].set(code.relu(sums[i][j].get()))
        for i, j in places:
            code.store(sums[i][j].get(), c.array + c.start + row[i] * c.row, j * lanes, c_counts[j])

    return tile


def _first_values(
    code: Code, row: list[Int], c: Results, initial: Initial, counts: list[Any], options: _Options
) -> list[list[Vec]]:
    """The initial sums of every row: `initial`, or C."""
    vectors = range(len(counts))
    if not options.accumulates:
        return [[code.load(initial.array, initial.start + j * code.lanes) for j in vectors]] * len(row)
    accumulate = initial.accumulate >= 1
    origin = code.choose(accumulate, c.array + c.start, initial.array + initial.start)
    origin_row = code.choose(accumulate, c.row, code.int(0))
    return [[code.load(origin + r * origin_row, j * code.lanes, counts[j]) for j in vectors] for r in row]


def _over_steps(code: Code, steps: Int, unroll: int, body: Callable[[Int, int], None]) -> None:
    """body(t, number) for every step, unrolled by `unroll`: number 0, 1, ...

    They share the rows' addresses. Tiles higher than those of _UNROLLED_ROWS have more addresses than the processor has
    registers, and get slower.
    """
    whole = code.rounded_to(steps, code.int(unroll))
    with code.loop(0, whole, unroll) as t:
        for step in range(unroll):
            body(t + step, step)
    if unroll > 1:
        with code.loop(whole, steps) as t:
            body(t, 0)


def _add_sums(code: Code, results: list[list[Vec]], rows: Int | None, epilogue: Epilogue) -> None:
    """Add the columns' sums and sums of squares to those of the epilogue; with `rows`, of the first so many rows (a
    clamped row is a copy of the last one).
    """
    vectors = len(results[0])
    at = epilogue.start
    for j in range(vectors):
        total = code.load(epilogue.sums, at + j * code.lanes)
        squares = code.load(epilogue.sums, at + (vectors + j) * code.lanes)
        for i, line in enumerate(results):
            value = line[j] if rows is None else code.select(code.spread(code.int(i) < rows), line[j], 0)
            total = total + value
            squares = code.fma(value, value, squares)
        code.store(total, epilogue.sums, at + j * code.lanes)
        code.store(squares, epilogue.sums, at + (vectors + j) * code.lanes)


def _clamped(code: Code, i: int, rows: Int) -> Int:
    """min(i, rows - 1)."""
    return code.lesser(code.int(i), rows - 1)
