"""Vector programs over runs of consecutive floats, of any length: copy, clear, add; and the loop that all such programs
share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.target import target

_AHEAD = 16  # rows
_PARTS = 4  # an addition takes four cycles


def vector_loop(code: Code, length: Int, body: Callable[[Int, Any], None]) -> None:
    """body(i, None) for every whole vector of 0 .. length, then body(i, how many) for the rest."""
    lanes = code.lanes
    if lanes == 1:
        with code.loop(0, length) as i:
            body(i, None)
        return
    whole = code.rounded_down(length)
    with code.loop(0, whole, lanes) as i:
        body(i, None)
    with code.when(whole < length):
        body(whole, length - whole)


def vector_sum(code: Code, length: Int, add: Callable[[Vec, Int, Any], Vec]) -> Vec:
    """The sum over a run, in all lanes; add(sum, i, None or how many) gives a sum with the vector at i added.

    There are four partial sums: additions do not wait for one another, and fewer roundings follow one another than in a
        single sum.
    """
    sums = [code.variable(0.0) for _ in range(_PARTS)]
    step = _PARTS * code.lanes
    whole = code.rounded_to(length, code.int(step))
    with code.loop(0, whole, step) as i:
        for k, part in enumerate(sums):
            part.set(add(part.get(), i + k * code.lanes, None))
    vector_loop(code, length - whole, lambda i, rest: sums[0].set(add(sums[0].get(), whole + i, rest)))
    first, second, third, fourth = (part.get() for part in sums)
    return code.total((first + second) + (third + fourth))


def periodic_loop(code: Code, start: Int, stop: Int, period: Int, body: Callable[[Int, Int, Any], None]) -> None:
    """body(i, j, None or how many) for the vectors at i = start .. stop, j = i - start modulo `period` (a multiple of
    the lanes).

    For maps with channels last: a period is a whole number of pixels, and tables of one period hold the channels'
        constants.
    """
    whole = start + code.rounded_to(stop - start, period)
    with code.loop(start, whole, period) as i, code.loop(0, period, code.lanes) as j:
        body(i + j, j, None)
    vector_loop(code, stop - whole, lambda j, rest: body(whole + j, j, rest))


def period_of(channels: int, least: int = 256) -> int:
    """The length of periods for `channels` channels: whole pixels, whole vectors, at least `least` floats."""
    step = math.lcm(channels, target().lanes)
    return -(-least // step) * step


@program
def copy(code: Code, x: Pointer, x0: Int, y: Pointer, y0: Int, length: Int) -> None:
    """y[y0 : y0 + length] = x[x0 : x0 + length]."""
    vector_loop(code, length, lambda i, rest: code.store(code.load(x, x0 + i, rest), y, y0 + i, rest))


@program
def copy_rows(
    code: Code, x: Pointer, x0: Int, x_row: Int, y: Pointer, y0: Int, y_row: Int, length: Int, rows: Int
) -> None:
    """`rows` runs of `length` floats, x_row apart in x and y_row apart in y."""

    def body(i: Int, rest: Any) -> None:
        with code.loop(0, rows) as row:
            code.store(code.load(x, x0 + row * x_row + i, rest), y, y0 + row * y_row + i, rest)

    vector_loop(code, length, body)


@program
def add_rows(
    code: Code, x: Pointer, x0: Int, x_row: Int, y: Pointer, y0: Int, y_row: Int, length: Int, rows: Int
) -> None:
    """The same, added to what y holds."""

    def body(i: Int, rest: Any) -> None:
        with code.loop(0, rows) as row:
            at = y0 + row * y_row + i
            code.store(code.load(y, at, rest) + code.load(x, x0 + row * x_row + i, rest), y, at, rest)

    vector_loop(code, length, body)


@program
def clear(code: Code, y: Pointer, y0: Int, length: Int) -> None:
    """y[y0 : y0 + length] = 0."""
    vector_loop(code, length, lambda i, rest: code.store(code.vec(0), y, y0 + i, rest))


@program
def add(code: Code, y: Pointer, y0: Int, x: Pointer, x0: Int, length: Int) -> None:
    """y[y0 : y0 + length] += x[x0 : x0 + length]."""
    vector_loop(
        code,
        length,
        lambda i, rest: code.store(code.load(y, y0 + i, rest) + code.load(x, x0 + i, rest), y, y0 + i, rest),
    )


def make_start_rows(vectors: int) -> Callable[..., None]:
    """start_rows(y, residual, at, bias, b0, columns, row, rows): y = residual + bias for `rows` runs of up to `vectors`
    vectors, `row` apart.
    """

    @program
    def start_rows(
        code: Code, y: Pointer, residual: Pointer, at: Int, bias: Pointer, b0: Int, columns: Int, row: Int, rows: Int
    ) -> None:
        offsets = [code.load(bias, b0 + j * code.lanes) for j in range(vectors)]
        counts = [columns - j * code.lanes for j in range(vectors)]
        with code.loop(0, rows) as i:
            for j in range(vectors):
                place = at + i * row + j * code.lanes
                code.prefetch(residual, place + _AHEAD * row)
                code.prefetch(y, place + _AHEAD * row, write=True)
                code.store(code.load(residual, place, counts[j]) + offsets[j], y, place, counts[j])

    return start_rows
