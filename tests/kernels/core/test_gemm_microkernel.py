"""The GEMM micro-kernel against NumPy, at the host's vector width; test_simd.py runs this file at each narrower
one, too.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest

from kernels.core.cpu import gemm_microkernel, prefetch
from kernels.core.cpu.gemm_microkernel import (
    ADD,
    RELU,
    Epilogue,
    Initial,
    Panel,
    Prefetch,
    Results,
    Rows,
    Taps,
    one_tap,
)
from kernels.core.cpu.target import target

LANES = target().lanes
RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


VECTORS = 2 if LANES > 1 else 1


@pytest.mark.parametrize("origin", ["start", "first block", "later block", "PLAIN", "ADDED", "SUMMED", "BOTH"])
def test_gemms(origin: str) -> None:
    """C = initial + A B over two levels of taps, or C += A B: any number of rows, a tail of columns, guards untouched;
    in k-blocks with B's rows not padded. A gemm with an epilogue adds to C, or sums its results and their squares, and
    has a ReLU.

    The first of several k-blocks does not read what C holds. Lines that are prefetched meanwhile change nothing.
    """
    width, steps, runs1, runs2 = VECTORS * LANES, 5, 2, 3
    blocks, finishes = "block" in origin, origin.isupper()
    accumulate = int(origin == "later block")
    if finishes:
        gemm = gemm_microkernel.make_epilogue_gemm(VECTORS, True, origin in ("SUMMED", "BOTH"))
        operations = ADD * (origin in ("ADDED", "BOTH")) + RELU * (origin == "ADDED")

        @numba.njit
        def run(a, ar, b, br, c, cr, rows, columns, start, lines, sums):
            taps, out = Taps(5, 2, 15, 15 * br, 3, 5, 5 * br), Results(c, 3, cr, rows, columns)
            prefetch, epilogue = Prefetch(lines, 1, 10), Epilogue(sums, 1, operations)
            gemm(Rows(a, 1, ar, 1), Panel(b, 2, br), taps, out, Initial(start, 1, 0), prefetch, epilogue)
    elif blocks:
        prefetching = gemm_microkernel.make_prefetching_gemm(VECTORS, accumulates=True)
        masked = gemm_microkernel.make_gemm(VECTORS, accumulates=True, mask_b=True, mask_c=True)

        @numba.njit
        def run(a, ar, b, br, c, cr, rows, columns, start, lines, sums):
            taps, out = Taps(5, 2, 15, 15 * br, 3, 5, 5 * br), Results(c, 3, cr, rows, columns)
            initial = Initial(start, accumulate, accumulate)
            if columns == br:
                prefetching(Rows(a, 1, ar, 1), Panel(b, 2, br), taps, out, initial, Prefetch(lines, 1, 10))
            else:
                masked(Rows(a, 1, ar, 1), Panel(b, 2, br), taps, out, initial)
    else:
        gemm = gemm_microkernel.make_gemm(VECTORS, mask_c=True)

        @numba.njit
        def run(a, ar, b, br, c, cr, rows, columns, start, lines, sums):
            taps, out = Taps(5, 2, 15, 15 * br, 3, 5, 5 * br), Results(c, 3, cr, rows, columns)
            gemm(Rows(a, 1, ar, 1), Panel(b, 2, br), taps, out, Initial(start, 1, 0))

    depth, main = steps * runs1 * runs2, gemm_microkernel.tile_rows(VECTORS)
    for rows in sorted({1, 2, main - 1, main, main + 1, 2 * main + 1, 3 * main - 1}):
        columns = width if rows == main else width - LANES // 2 if LANES > 1 else 1
        row_of_b = columns + 1 if blocks and columns < width else width
        a, b, start = (
            floats(rows, depth + 2),
            floats(depth, row_of_b),
            np.zeros(width + 1, np.float32) if blocks else floats(width + 1),
        )
        if finishes:
            b[:, columns:] = start[1 + columns :] = 0  # as panels and biases are padded
        c, sums = floats(rows, columns + 2), floats(1 + 2 * width)
        if origin == "first block":
            c[:, :columns] = np.nan
        flat_a, flat_b, flat_c = (
            np.concatenate([floats(k), m.reshape(-1), floats(7)]) for k, m in ((1, a), (2, b), (3, c))
        )
        before, sums_before = flat_c.copy(), sums.copy()
        lines = np.full(11, flat_a.ctypes.data, np.int64)
        run(flat_a, depth + 2, flat_b, row_of_b, flat_c, columns + 2, rows, columns, start, lines, sums)
        first = {"first block": 0, "later block": c[:, :columns], "ADDED": c[:, :columns], "BOTH": c[:, :columns]}.get(
            origin, start[1 : 1 + columns]
        )
        exact = a[:, :depth].astype(np.float64) @ b[:, :columns] + first
        want = np.maximum(exact, 0) if origin == "ADDED" else exact
        got = flat_c[3 : 3 + c.size].reshape(c.shape)
        size = np.abs(a[:, :depth]).astype(np.float64) @ np.abs(b[:, :columns]) + 4
        bound = (depth + 1) * 2.0**-24 * size  # of a sum of `depth` + 1 terms
        assert (np.abs(got[:, :columns] - want) <= bound).all(), rows
        flat_c[3 : 3 + c.size].reshape(c.shape)[:, :columns] = c[:, :columns]
        np.testing.assert_array_equal(flat_c, before)
        if origin in ("SUMMED", "BOTH"):
            for k, power in enumerate((1, 2)):
                total = sums_before[1 + k * width : 1 + k * width + columns] + (exact**power).sum(0)
                slack = (bound + rows * 2.0**-23 * size) * size ** (power - 1) * 2
                assert (np.abs(sums[1 + k * width : 1 + k * width + columns] - total) <= slack.sum(0)).all(), (
                    rows,
                    power,
                )
        else:
            np.testing.assert_array_equal(sums, sums_before)


def test_an_epilogue_keeps_what_is_no_number() -> None:
    """NaN passes the bound of a ReLU, as it passes np.maximum: a run that has lost its way must show it."""
    gemm, width = gemm_microkernel.make_epilogue_gemm(VECTORS, False, False), VECTORS * LANES

    @numba.njit
    def run(a, b, c, start):
        out, end = Results(c, 0, width, 2, width), Epilogue(a, 0, RELU)
        gemm(Rows(a, 0, 1, 1), Panel(b, 0, width), one_tap(1), out, Initial(start, 0, 0), Prefetch(a, 0, 0), end)

    c = np.zeros((2, width), np.float32)
    run(np.array([np.nan, -1], np.float32), np.ones(width, np.float32), c.reshape(-1), np.zeros(width, np.float32))
    assert np.isnan(c[0]).all()
    assert (c[1] == 0).all()


def test_lists_of_cache_lines() -> None:
    """`enqueue` writes the addresses of a run's lines, one after the other; `share` cuts any count into parts that
    meet.
    """

    @numba.njit
    def enqueued(x, lines):
        return prefetch.enqueue(lines, prefetch.enqueue(lines, 1, x, 5, 33), x, 64, 16)

    x, lines = np.zeros(100, np.float32), np.zeros(8, np.int64)
    assert enqueued(x, lines) == 5
    assert (lines - x.ctypes.data).tolist()[1:5] == [4 * 5, 4 * 21, 4 * 37, 4 * 64]
    assert lines[0] == lines[5] == 0

    @numba.njit
    def parts(count, of):
        return [prefetch.share(count, part, of) for part in range(of)]

    for count, of in ((0, 3), (2, 5), (17, 4), (64, 8)):
        shares = parts(count, of)
        assert [first for first, _ in shares] == [sum(n for _, n in shares[:k]) for k in range(of)]
        assert sum(n for _, n in shares) == count


def test_panels_leave_none_partly_idle() -> None:
    for columns in range(1, 8 * LANES + 1):
        vectors = gemm_microkernel.panel_vectors(columns)
        assert -(-columns // LANES) % vectors == 0
