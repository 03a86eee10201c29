"""Vector programs against NumPy: every primitive at the host's vector width, and at each narrower one in a process of
its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from kernels.core.cpu import vector_ops
from kernels.core.cpu.simd import Code, Float, Int, Pointer, program
from kernels.core.cpu.simd_values import ProgramError
from kernels.core.cpu.target import TARGETS, mask_bytes, target
from tests.support.vector_widths import other_widths

LANES = target().lanes
RNG = np.random.default_rng(3)
NUMBERS = (RNG.standard_normal(8 * LANES) * 2.0 ** RNG.integers(-6, 6, 8 * LANES)).astype(np.float32)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest error in units of the last place of the exact result."""
    return float((np.abs(got.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


# -- arithmetic --------------------------------------------------------------------------------------------------------

# name -> (what is emitted, NumPy on float32 or float64, largest error in units of the last place)
Row = tuple[Callable[..., Any], Callable[..., Any], float]
ROWS: dict[str, Row] = {
    "a + b": (lambda code, a, b: a + b, lambda a, b: a + b, 0.5),
    "a - b": (lambda code, a, b: a - b, lambda a, b: a - b, 0.5),
    "a * b": (lambda code, a, b: a * b, lambda a, b: a * b, 0.5),
    "a / b": (lambda code, a, b: a / b, lambda a, b: a / b, 0.5),
    "1 + a": (lambda code, a, b: 1 + a, lambda a, b: 1 + a, 0.5),
    "1 - a": (lambda code, a, b: 1 - a, lambda a, b: 1 - a, 0.5),
    "3 * a": (lambda code, a, b: 3 * a, lambda a, b: 3 * a, 0.5),
    "1 / a": (lambda code, a, b: 1 / a, lambda a, b: 1 / a, 0.5),
    "-a": (lambda code, a, b: -a, lambda a, b: -a, 0),
    # two roundings are allowed to a scalar
    "fma": (
        lambda code, a, b: code.fma(a, b, a),
        lambda a, b: a * b + a,
        0.5 if LANES > 1 else 1e9,
    ),
    "fma of numbers": (lambda code, a, b: code.fma(a, 2.0, 1), lambda a, b: a * 2 + 1, 0.5),
    "floor": (lambda code, a, b: code.floor(a), lambda a, b: np.floor(a), 0),
    "sqrt": (lambda code, a, b: code.sqrt(a * a), lambda a, b: np.abs(a), 1),
    "maximum": (lambda code, a, b: code.maximum(a, b), np.maximum, 0),
    "minimum": (lambda code, a, b: code.minimum(a, b), np.minimum, 0),
    "maximum with 0": (lambda code, a, b: code.maximum(a, 0), lambda a, b: np.maximum(a, 0), 0),
    "select": (lambda code, a, b: code.select(a > b, a, -1.5), lambda a, b: np.where(a > b, a, -1.5), 0),
    "equals": (lambda code, a, b: code.select(a.equals(b), 1, 2), lambda a, b: np.where(a == b, 1.0, 2.0), 0),
    "is_nan": (
        lambda code, a, b: code.select((a / (b - b)).is_nan(), 1, 2),
        lambda a, b: np.where(a == 0, 1.0, 2.0),
        0,
    ),
    "both": (
        lambda code, a, b: code.select(code.both(a > b, a > 0), 1, 2),
        lambda a, b: np.where((a > b) & (a > 0), 1.0, 2.0),
        0,
    ),
    "either": (
        lambda code, a, b: code.select(code.either(a > b, a > 0), 1, 2),
        lambda a, b: np.where((a > b) | (a > 0), 1.0, 2.0),
        0,
    ),
    "not": (lambda code, a, b: code.select(code.not_(a > b), 1, 2), lambda a, b: np.where(~(a > b), 1.0, 2.0), 0),
    "broadcast_lane": (lambda code, a, b: code.broadcast_lane(a), lambda a, b: per_vector(a, lambda v: v[:, :1]), 0),
}


def per_vector(a: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    vectors = a.reshape(-1, LANES)
    return np.broadcast_to(function(vectors), vectors.shape).reshape(-1)


def test_arithmetic() -> None:
    a, b = NUMBERS.copy(), NUMBERS[::-1].copy()
    b[::3], a[5 % len(a)] = a[::3], 0

    @program
    def all_rows(code: Code, x: Pointer, y: Pointer, out: Pointer, n: Int):
        with code.loop(0, n, code.lanes) as i:
            for k, (emit, _, _) in enumerate(ROWS.values()):
                code.store(emit(code, code.load(x, i), code.load(y, i)), out, n * k + i)

    @numba.njit
    def run(x, y, out):
        all_rows(x, y, out, x.size)

    out = np.empty((len(ROWS), a.size), np.float32)
    with np.errstate(all="ignore"):
        run(a, b, out.reshape(-1))
        for got, (name, (_, exact, bound)) in zip(out, ROWS.items(), strict=True):
            want = exact(a.astype(np.float64), b.astype(np.float64))
            finite = np.isfinite(want)
            np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=name)
            if bound < 1e9:
                assert ulps(got[finite], want[finite]) <= bound + 1e-6, name
            np.testing.assert_allclose(
                got[finite], want[finite], rtol=1e-6, atol=2.0**-23 * float(np.abs(a * b).max()), err_msg=name
            )


def applied(emit: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    """emit(code, vector) over an array of whole vectors."""

    @program
    def over(code: Code, x: Pointer, y: Pointer, n: Int):
        with code.loop(0, n, code.lanes) as i:
            code.store(emit(code, code.load(x, i)), y, i)

    @numba.njit
    def run(x, y):
        over(x, y, x.size)

    y = np.empty_like(x)
    run(x, y)
    return y


def test_exp() -> None:
    """Within 2 units in the last place where the result is a normal number; the ends as documented."""
    x = np.concatenate([np.linspace(-86.9, 88.7, 4096 * LANES), np.linspace(88.6, 88.7228, 64 * LANES)]).astype(
        np.float32
    )
    ends = np.resize(
        np.array([-np.inf, -1e30, -100, -87.4, 0, 88.73, 89, 1e30, np.inf, np.nan], np.float32), 20 * LANES
    )
    got = applied(lambda code, v: code.exp(v), np.concatenate([x, ends]))
    assert ulps(got[: x.size], np.exp(x.astype(np.float64))) <= 2
    np.testing.assert_array_equal(got[x.size : x.size + 10], [0, 0, 0, 0, 1, np.inf, np.inf, np.inf, np.inf, np.nan])


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -1.5, 1e-38, 3e38, -3e38], np.float32)


def test_not_a_number_and_infinity_go_through() -> None:
    """Each function of one vector of special values, against NumPy's; maximum and minimum as documented, since NaN
    makes them one-sided.
    """
    x = np.resize(SPECIAL, 10 * LANES)
    rows: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
        (lambda code, v: code.log(v), np.log),
        (lambda code, v: code.sigmoid(v), lambda v: 1 / (1 + np.exp(-v))),
        (lambda code, v: code.sqrt(v), np.sqrt),
        (lambda code, v: code.floor(v), np.floor),
        (lambda code, v: code.relu(v), lambda v: np.maximum(v, 0)),
        (lambda code, v: code.select(code.relu_open(v), 1, 0), lambda v: np.where(v <= 0, 0, 1)),
        (lambda code, v: code.select(v.not_at_most(1.5), 1, 0), lambda v: np.where(v <= 1.5, 0, 1)),
        (lambda code, v: code.select(v > 0, 1, 0), lambda v: np.where(v > 0, 1, 0)),
        (lambda code, v: code.maximum(v, 2), lambda v: np.fmax(v, 2)),
        (lambda code, v: code.maximum(2, v), lambda v: np.maximum(v, 2)),
        (lambda code, v: code.minimum(v, 2), lambda v: np.minimum(v, 2)),
        (lambda code, v: code.minimum(2, v), lambda v: np.fmin(v, 2)),
    ]
    with np.errstate(all="ignore"):
        for k, (emit, exact) in enumerate(rows):
            # Below the normal numbers the logarithm is -inf: `x` has none.
            want = (
                exact(x.astype(np.float64))
                if k != 0
                else np.where(np.abs(x) < 2.0**-126, -np.inf, exact(x.astype(np.float64)))
            )
            np.testing.assert_allclose(applied(emit, x), want, rtol=1e-6, atol=1e-37, err_msg=f"row {k}")


def test_relu_and_its_mask_are_one_instruction_each() -> None:
    """A maximum that kept NaN by a comparison and a selection of its own would double what every fused
    epilogue does.
    """
    if target().name not in ("avx2", "avx512"):
        pytest.skip("the instructions are those of x86")

    @program
    def clipped(code: Code, x: Pointer, y: Pointer, n: Int):
        with code.loop(0, n, code.lanes) as i:
            code.store(code.relu(code.load(x, i)), y, i)

    @numba.njit
    def run(x, y):
        clipped(x, y, x.size)

    run(np.ones(8 * LANES, np.float32), np.ones(8 * LANES, np.float32))
    (text,) = run.inspect_asm().values()
    assert "vmaxps" in text
    assert not any(word in text for word in ("vcmp", "vblend", "vand"))


def test_log_and_sigmoid() -> None:
    """log within 3 units in the last place over all normal numbers, also next to 1. sigmoid = 1 / (1 + e^-x): 2 units
    from e^-x, and a rounding each of the sum and the quotient, make at most 3.
    """
    x = np.concatenate([np.geomspace(1.2e-38, 3e38, 4096 * LANES), np.linspace(0.5, 2, 4096 * LANES)]).astype(
        np.float32
    )
    assert ulps(applied(lambda code, v: code.log(v), x), np.log(x.astype(np.float64))) <= 3
    x = np.linspace(-80, 30, 2048 * LANES).astype(np.float32)
    assert ulps(applied(lambda code, v: code.sigmoid(v), x), 1 / (1 + np.exp(-x.astype(np.float64)))) <= 3


def test_total_adds_all_lanes() -> None:
    x = NUMBERS.copy()
    got = applied(lambda code, v: code.total(v), x)
    exact = per_vector(x.astype(np.float64), lambda v: v.sum(1, keepdims=True))
    size = per_vector(np.abs(x).astype(np.float64), lambda v: v.sum(1, keepdims=True))
    assert (np.abs(got - exact) <= max(1, np.log2(LANES)) * 2.0**-24 * size).all()
    assert len(set(got[:LANES])) == 1  # in all lanes


def test_transposed_over_as_many_vectors_as_lanes() -> None:
    x = np.arange(LANES * LANES, dtype=np.float32)

    @program
    def turn(code: Code, x: Pointer, z: Pointer):
        vectors = [code.load(x, k * code.lanes) for k in range(code.lanes)]
        for k, vector in enumerate(code.transposed(vectors)):
            code.store(vector, z, k * code.lanes)

    @numba.njit
    def run(x, z):
        turn(x, z)

    z = np.empty((LANES, LANES), np.float32)
    run(x, z)
    np.testing.assert_array_equal(z, x.reshape(LANES, LANES).T)


def test_float64() -> None:
    """Vectors of float64 beside those of float32: 1 + 2^-40 x is only seen there, and what is gathered with such
    numbers is what lies there.
    """

    @program
    def mixed(code: Code, x: Pointer, places: Pointer, table: Pointer, marks: Pointer, y: Pointer, n: Int):
        wide, one = code.wide, code.wide.ramp() * 0 + 1
        with code.loop(0, n, code.lanes) as i:
            tiny = wide.converted(code.load(x, i)) * 2.0**-40
            code.store(code.converted(((one + tiny) - 1) * 2.0**40), y, i)
            place = wide.converted(code.load(places, i))
            code.store(code.gather(table, place), y, n + i)
            code.store(code.gather_bytes(marks, place), y, 2 * n + i)
            with code.when(code.first(code.ramp().equals(0))):
                code.store(code.ramp(), y, 3 * n + i)
            with code.when(code.first(code.ramp().equals(1))):
                code.store(code.vec(-1), y, 3 * n + i)

    @numba.njit
    def run(x, places, table, marks, y):
        mixed(x, places, table, marks, y, x.size)

    n = 4 * LANES
    x, table, marks = RNG.integers(-99, 99, n).astype(np.float32), floats(77), RNG.integers(0, 256, 77).astype(np.uint8)
    places, y = RNG.permutation(np.resize(np.arange(77), n)), np.empty((4, n), np.float32)
    run(x, places.astype(np.float32), table, marks, y.reshape(-1))
    np.testing.assert_array_equal(y, [x, table[places], marks[places], np.tile(np.arange(LANES), 4)])


def test_scalars_in_all_lanes() -> None:
    @program
    def scalars(code: Code, x: Pointer, n: Int, a: Float, y: Pointer):
        results = (code.splat(a), code.splat(2.5), code.vec(-3), code.number(n), code.broadcast(x, n))
        for k, value in enumerate(results):
            code.store(value, y, k * code.lanes)

    @numba.njit
    def run(x, y):
        scalars(x, 3, np.float32(0.1), y)

    y = np.empty((5, LANES), np.float32)
    run(NUMBERS, y.reshape(-1))
    for row, want in zip(y, (np.float32(0.1), 2.5, -3, 3, NUMBERS[3]), strict=True):
        np.testing.assert_array_equal(row, np.full(LANES, want))


# -- memory ------------------------------------------------------------------------------------------------------------


def test_loads_and_stores_with_tails_touch_nothing_else() -> None:
    """Every count 0 .. lanes, at odd offsets: floats and bytes."""

    @program
    def move(code: Code, x: Pointer, y: Pointer, raw: Pointer, out: Pointer, at: Int, count: Int):
        everything = code.lanes  # what a masked load gives beyond its count is 0
        code.store(code.load(x, at, count), y, 2)
        code.store(code.load(x, at), y, everything + 5, count)
        code.store(code.load_bytes(raw, at, count), y, 2 * everything + 9)
        code.store(code.load_bytes(raw, at), y, 3 * everything + 9)
        code.store_bytes(code.load_bytes(raw, at), out, 3, count)
        code.store_bytes(code.load_bytes(raw, at), out, everything + 7)

    @numba.njit
    def run(x, y, raw, out, at, count):
        move(x, y, raw, out, at, count)

    x, raw = floats(3 * LANES), RNG.integers(0, 256, 3 * LANES).astype(np.uint8)
    for count in range(LANES + 1):
        for at in (0, 1, LANES - 1):
            y, out = np.full(4 * LANES + 12, np.nan, np.float32), np.full(2 * LANES + 9, 99, np.uint8)
            run(x, y, raw, out, at, count)
            want, bytes_ = np.full_like(y, np.nan), np.full_like(out, 99)
            want[2 : 2 + LANES] = np.where(np.arange(LANES) < count, x[at : at + LANES], 0)
            want[LANES + 5 : LANES + 5 + count] = x[at : at + count]
            want[2 * LANES + 9 : 3 * LANES + 9] = np.where(np.arange(LANES) < count, raw[at : at + LANES], 0)
            want[3 * LANES + 9 : 4 * LANES + 9] = raw[at : at + LANES]
            bytes_[3 : 3 + count], bytes_[LANES + 7 : 2 * LANES + 7] = raw[at : at + count], raw[at : at + LANES]
            np.testing.assert_array_equal(y, want)
            np.testing.assert_array_equal(out, bytes_)


def test_masks_are_kept_as_bits() -> None:
    """`mask_bytes(n)` bytes hold the masks of n elements, the last vector's too, and give them back."""

    @program
    def keep(code: Code, x: Pointer, bits: Pointer, y: Pointer, n: Int):
        vector_ops.vector_loop(code, n, lambda i, rest: code.store_mask(code.load(x, i, rest) > 0, bits, i))
        vector_ops.vector_loop(
            code, n, lambda i, rest: code.store(code.select(code.load_mask(bits, i), 1, -1), y, i, rest)
        )

    @numba.njit
    def run(x, bits, y):
        keep(x, bits, y, x.size)

    for n in (1, LANES, 3 * LANES, 3 * LANES + LANES // 2, 4 * LANES - 1):
        x, bits, y = floats(n), np.full(mask_bytes(n) + 1, 77, np.uint8), np.empty(n, np.float32)
        run(x, bits, y)
        np.testing.assert_array_equal(y, np.where(x > 0, 1, -1))
        assert bits[-1] == 77, "written beyond the masks"
        if LANES >= 8:
            assert mask_bytes(n) == -(-n // LANES) * LANES // 8
            packed = np.unpackbits(bits[:-1], bitorder="little")[:n]
            np.testing.assert_array_equal(packed, x > 0)


@pytest.mark.parametrize("n", sorted({0, 1, LANES - 1, LANES, LANES + 1, 5 * LANES + LANES // 2}))
def test_runs(n: int) -> None:
    """copy, clear, add, copy_rows: any length, nothing beside it touched."""

    @numba.njit
    def run(x, y, n):
        vector_ops.copy(x, 1, y, 3, n)
        vector_ops.clear(y, n + 5, n)
        vector_ops.add(y, 2 * n + 7, x, 2, n)
        vector_ops.copy_rows(x, 1, n + 1, y, 4 * n + 10, n + 2, n, 2)

    x, y = floats(2 * n + 4), floats(6 * n + 20)
    want = y.copy()
    want[3 : 3 + n] = x[1 : 1 + n]
    want[n + 5 : 2 * n + 5] = 0
    want[2 * n + 7 : 3 * n + 7] += x[2 : 2 + n]
    for row in range(2):
        want[4 * n + 10 + row * (n + 2) :][:n] = x[1 + row * (n + 1) :][:n]
    run(x, y, n)
    np.testing.assert_array_equal(y, want)


def test_periods() -> None:
    """periodic_loop gives every element its place in the period, the rest of the last one too."""
    period = 2 * LANES

    @program
    def label(code: Code, y: Pointer, start: Int, stop: Int, table: Pointer, period: Int):
        vector_ops.periodic_loop(
            code, start, stop, period, lambda i, j, rest: code.store(code.load(table, j, rest), y, i, rest)
        )

    @numba.njit
    def run(y, start, stop, table, period):
        label(y, start, stop, table, period)

    table = np.arange(period, dtype=np.float32)
    for length in (0, 1, period, 2 * period, 2 * period + LANES + LANES // 2):
        y = np.full(4 * period, -1, np.float32)
        run(y, 3, 3 + length, table, period)
        want = np.full_like(y, -1)
        want[3 : 3 + length] = np.arange(length) % period
        np.testing.assert_array_equal(y, want)


# -- control and integers ----------------------------------------------------------------------------------------------


def test_loops_conditions_variables_and_integers() -> None:
    """Counts of trips (none when start >= stop), nesting, a loop behind a condition, accumulators; Int arithmetic
    through `number`.
    """

    @program
    def count(code: Code, y: Pointer, start: Int, stop: Int, step: Int):
        trips, pairs, last, taken = (code.variable() for _ in range(4))
        with code.loop(start, stop, step) as i:
            trips.set(trips.get() + 1)
            last.set(code.number(i))
            with code.loop(i, stop) as j, code.when(j < i + 2):
                pairs.set(pairs.get() + 1)
        with code.when(start >= 2), code.loop(0, 3):
            taken.set(taken.get() + 1)
        with code.when(None):
            results = [v.get() for v in (trips, pairs, last, taken)]
        integers = (start + stop, 7 + start, start - stop, 7 - start, start * stop, 3 * start, code.lesser(start, stop))
        integers += (code.rounded_down(stop), code.rounded_to(stop, code.int(3)), code.int(5), start + 0, start * 1)
        integers += (code.choose(stop < start, stop, code.int(7)),)
        results += [code.number(n) for n in integers]
        for k, value in enumerate(results):
            code.store(value, y, k * code.lanes)
        chosen = code.choose(start < stop, code.opaque(y), code.opaque(y) + code.lanes)
        code.store(code.vec(0.5), chosen, len(results) * code.lanes)

    @numba.njit
    def run(y, start, stop, step):
        count(y, start, stop, step)

    for start, stop, step in ((0, 5, 1), (1, 8, 3), (4, 4, 1), (6, 2, 2), (2, 37, 5)):
        y = np.full((19, LANES), -9, np.float32)
        run(y.reshape(-1), start, stop, step)
        trips = list(range(start, stop, step))
        want = [len(trips), sum(min(2, stop - i) for i in trips), trips[-1] if trips else 0, 3 * (start >= 2)]
        want += [start + stop, 7 + start, start - stop, 7 - start, start * stop, 3 * start, min(start, stop)]
        want += [stop // LANES * LANES, stop // 3 * 3, 5, start, start, stop if stop < start else 7]
        np.testing.assert_array_equal(y[:17], np.repeat(np.array(want, np.float32)[:, None], LANES, 1))
        place = 17 if start < stop else 18
        np.testing.assert_array_equal(y[17:], np.where(np.arange(17, 19)[:, None] == place, 0.5, -9.0) * np.ones(LANES))


# -- widths and mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", other_widths())
def test_other_vectors(width: str) -> None:
    """This file and that of the register tile once more with the vector width forced."""
    files = __file__, str(Path(__file__).with_name("test_gemm_microkernel.py"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not other_vectors and not mistakes",
        *files,
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "AREOGRAD_SIMD": width}, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    show = [sys.executable, "-c", "from kernels.core.cpu.target import target; print(target().name, target().lanes)"]
    shown = subprocess.run(
        show, capture_output=True, text=True, env={**os.environ, "AREOGRAD_SIMD": width}, check=False
    )
    assert shown.stdout.split() == [width, str(TARGETS[width].lanes)]


def test_mistakes_are_named(monkeypatch) -> None:
    def number(code: Code, x: Pointer, n: int) -> None: ...

    def nothing(code: Code, x: Pointer, n) -> None: ...

    with pytest.raises(ValueError, match=r"program .*number: got a parameter .*'int'.*, expected Pointer, Int, Float"):
        program(number)
    with pytest.raises(ValueError, match=r"program .*nothing: its parameter 'n' has no annotation"):
        program(nothing)
    monkeypatch.setenv("AREOGRAD_SIMD", "mmx")
    with pytest.raises(ValueError, match=r"AREOGRAD_SIMD: got 'mmx', this processor has .*scalar"):
        target.__wrapped__()


REFUSED = {
    "if v > 0": (lambda code, v, n: 1 if v > 0 else 0, r"got a condition in `if`.*use code.when, code.select"),
    "n and 1": (lambda code, v, n: n and 1, r"got an Int in `if`, `while`, `and`.*use code.when or code.choose"),
    "not v": (lambda code, v, n: not v, r"got a Vec in `if`.*use code.select"),
    "range(n)": (lambda code, v, n: range(n), r"got an Int where Python needs a number.*code.loop"),
    "n // 2": (lambda code, v, n: n // 2, r"got // of an Int"),
    "n / 2": (lambda code, v, n: n / 2, r"got / of an Int"),
    "-n": (lambda code, v, n: -n, r"got unary - of an Int"),
    "v ** 2": (lambda code, v, n: v**2, r"got \*\* of a Vec"),
    "v[0]": (lambda code, v, n: v[0], r"got an index of a Vec"),
    "for lane in v": (lambda code, v, n: list(v), r"got a loop of a Vec"),
}


@pytest.mark.parametrize("construct", REFUSED)
def test_python_that_programs_do_not_have_is_one_line(construct: str) -> None:
    """It names the program and the construct, where it would otherwise emit something else."""
    use, message = REFUSED[construct]

    @program
    def refused(code: Code, x: Pointer, n: Int) -> None:
        use(code, code.load(x), n)

    @numba.njit
    def caller(x, n):
        refused(x, n)

    with pytest.raises(ProgramError, match=rf"^program \S*refused: {message}") as error:
        caller(np.zeros(64, np.float32), 3)
    assert "\n" not in str(error.value)


def test_comparisons() -> None:
    """All four of vectors, which are false where either is NaN, and of integers."""

    @program
    def compare(code: Code, x: Pointer, y: Pointer, n: Int) -> None:
        v = code.load(x)
        for k, mask in enumerate((v < 1, v <= 1, v > 1, v >= 1)):
            code.store(code.select(mask, 1, 0), y, k * code.lanes)
        for k, condition in enumerate((n < 3, n <= 3, n > 3, n >= 3, n.equals(3))):
            code.store(code.select(code.spread(condition), 1, 0), y, (4 + k) * code.lanes)

    @numba.njit
    def caller(x, y, n):
        compare(x, y, n)

    lanes = target().lanes
    for value, wanted in ((0, [1, 1, 0, 0]), (1, [0, 1, 0, 1]), (2, [0, 0, 1, 1]), (np.nan, [0, 0, 0, 0])):
        for n, whole in ((2, [1, 1, 0, 0, 0]), (3, [0, 1, 0, 1, 1]), (4, [0, 0, 1, 1, 0])):
            y = np.full(9 * lanes, -1, np.float32)
            caller(np.full(lanes, value, np.float32), y, n)
            assert y[::lanes].tolist() == wanted + whole
