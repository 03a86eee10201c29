"""The register tile against NumPy, at the host's vector width; tests/test_simd.py runs this file at each narrower one,
too.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest

from kernels.core.cpu import gemm_microkernel, prefetch
from kernels.core.cpu.target import target

LANES = target().lanes
RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


VECTORS = 2 if LANES > 1 else 1


@pytest.mark.parametrize("origin", ["start", "first block", "later block", "PLAIN", "ADDED", "SUMMED", "BOTH"])
def test_columns_of_register_tiles(origin: str) -> None:
    """C = start + A B over two levels of runs, or C += A B: any number of rows, a tail of columns, guards untouched; in
    blocks with B's rows not padded. A column that finishes adds to C, or sums its results and their squares, and has a
    ReLU.

    The first of several blocks does not read what C holds. Lines that are asked for meanwhile change nothing.
    """
    width, steps, runs1, runs2 = VECTORS * LANES, 5, 2, 3
    blocks, finishes = "block" in origin, origin.isupper()
    begun = int(origin == "later block")
    if finishes:
        column = gemm_microkernel.make_finishing_column(VECTORS, True, origin in ("SUMMED", "BOTH"))
        finish = gemm_microkernel.ADDED * (origin in ("ADDED", "BOTH")) + gemm_microkernel.RELU * (origin == "ADDED")

        @numba.njit
        def run(a, ar, b, br, c, cr, rows, columns, start, noted, sums):
            column(a, 1, ar, 1, b, 2, br, 5, 2, 15, 15 * br, 3, 5, 5 * br, c, 3, cr, rows, columns, start, 1, noted, 1,
                   10, sums, 1, finish)  # fmt: skip
    elif blocks:
        asking, padded = (
            gemm_microkernel.make_asking_column(VECTORS, blocks=True),
            gemm_microkernel.make_column(VECTORS, blocks=True, mask_b=True, mask_c=True),
        )

        @numba.njit
        def run(a, ar, b, br, c, cr, rows, columns, start, noted, sums):
            if columns == br:
                asking(a, 1, ar, 1, b, 2, br, 5, 2, 15, 15 * br, 3, 5, 5 * br, c, 3, cr, rows, columns, start, begun,
                       noted, 1, 10)  # fmt: skip
            else:
                padded(a, 1, ar, 1, b, 2, br, 5, 2, 15, 15 * br, 3, 5, 5 * br, c, 3, cr, rows, columns, start, begun)
    else:
        column = gemm_microkernel.make_column(VECTORS, mask_c=True)

        @numba.njit
        def run(a, ar, b, br, c, cr, rows, columns, start, noted, sums):
            column(a, 1, ar, 1, b, 2, br, 5, 2, 15, 15 * br, 3, 5, 5 * br, c, 3, cr, rows, columns, start, 1)

    depth, tall = steps * runs1 * runs2, gemm_microkernel.tile_rows(VECTORS)
    for rows in sorted({1, 2, tall - 1, tall, tall + 1, 2 * tall + 1, 3 * tall - 1}):
        columns = width if rows == tall else width - LANES // 2 if LANES > 1 else 1
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
        noted = np.full(11, flat_a.ctypes.data, np.int64)
        run(flat_a, depth + 2, flat_b, row_of_b, flat_c, columns + 2, rows, columns, start, noted, sums)
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


def test_a_column_that_finishes_keeps_what_is_no_number() -> None:
    """NaN passes the bound of a ReLU, as it passes np.maximum: a run that has lost its way must show it."""
    column, width = gemm_microkernel.make_finishing_column(VECTORS, False, False), VECTORS * LANES

    @numba.njit
    def run(a, b, c, start):
        column(
            a,
            0,
            1,
            1,
            b,
            0,
            width,
            1,
            1,
            0,
            0,
            1,
            0,
            0,
            c,
            0,
            width,
            2,
            width,
            start,
            0,
            a,
            0,
            0,
            a,
            0,
            gemm_microkernel.RELU,
        )

    c = np.zeros((2, width), np.float32)
    run(np.array([np.nan, -1], np.float32), np.ones(width, np.float32), c.reshape(-1), np.zeros(width, np.float32))
    assert np.isnan(c[0]).all()
    assert (c[1] == 0).all()


def test_lists_of_cache_lines() -> None:
    """`note` writes the addresses of a run's lines, one behind the other;
    `share` cuts any count into parts that meet.
    """

    @numba.njit
    def lines(x, noted):
        return prefetch.note(noted, prefetch.note(noted, 1, x, 5, 33), x, 64, 16)

    x, noted = np.zeros(100, np.float32), np.zeros(8, np.int64)
    assert lines(x, noted) == 5
    assert (noted - x.ctypes.data).tolist()[1:5] == [4 * 5, 4 * 21, 4 * 37, 4 * 64]
    assert noted[0] == noted[5] == 0

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
