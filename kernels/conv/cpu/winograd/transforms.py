"""Winograd's transforms F(m x m, r x r) as vector programs over channels.

    y = A^T [ (G g G^T) * (B^T d B) ] A        d: n x n input tile, n = m + r - 1, g: r x r filter, y: m x m output
    tile, * per point

For a whole layer the product per point sums over channels: n^2 small matrix products. The gradients are the transposed
steps:

    dd = B [(G g G^T) * (A dy A^T)] B^T (not used: the data gradient is the forward kernel with the flipped filter)
    dg = G^T [ (A dy A^T) * (B^T d B) ] G, summed over tiles

Multiplications per output: F(4, 3) 36 / 16 and F(2, 3) 16 / 4 against 9, F(2, 5) 36 / 4 against 25. Largest float32
error, relative to the largest output, about 2e-5, 1e-6 and 2e-5. The evaluation points are 0, 1, -1, (2, -2,) infinity;
transforms with as many points share B^T.
Source: Lavin & Gray, arXiv 1509.09308.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.vector_ops import vector_loop

Matrix = tuple[tuple[float, ...], ...]


def _transposed(a: Matrix) -> Matrix:
    return tuple(zip(*a, strict=True))


Form = tuple[int, int]  # (m, r)

_BT: dict[int, Matrix] = {
    4: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    6: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
AT: dict[Form, Matrix] = {
    (2, 3): ((1, 1, 1, 0), (0, 1, -1, -1)),
    (2, 5): ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 1)),
    (4, 3): ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
G: dict[Form, Matrix] = {
    (2, 3): ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    (2, 5): (
        (1 / 4, 0, 0, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6, 1 / 3, 2 / 3),
        (1 / 24, -1 / 12, 1 / 6, -1 / 3, 2 / 3),
        (0, 0, 0, 0, 1),
    ),
    (4, 3): (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}


def points(form: Form) -> int:
    """n = m + r - 1, the side of a tile."""
    return sum(form) - 1


def input_matrix(form: Form) -> Matrix:
    """B^T."""
    return _BT[points(form)]


def cotangent_matrix(form: Form) -> Matrix:
    """A, for the transform A dy A^T."""
    return _transposed(AT[form])


def combine(code: Code, matrix: Matrix, x: Sequence[Vec]) -> list[Vec]:
    """matrix @ x with shared work: two rows that agree but for signs are e + o and e - o; so for columns, with sums and
    differences of x.
    """
    columns = _transposed(matrix)
    for j in range(len(columns)):
        for k in range(j + 1, len(columns)):
            signs = [_sign(a, b) for a, b in zip(columns[j], columns[k], strict=True)]
            if (
                None not in signs
                and any(columns[j])
                and len({s for s, a in zip(signs, columns[j], strict=True) if a}) == 2
            ):
                plus = x[j] + x[k]
                minus = x[j] - x[k]
                reduced = tuple(
                    tuple(a for i, a in enumerate(row) if i not in (j, k)) + ((row[j], 0) if s == 1 else (0, row[j]))
                    for row, s in zip(matrix, signs, strict=True)
                )
                return combine(code, reduced, [v for i, v in enumerate(x) if i not in (j, k)] + [plus, minus])
    out: list[Vec | None] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if out[i] is not None:
            continue
        partner = next((k for k in range(i + 1, len(matrix)) if out[k] is None and _mirrored(row, matrix[k])), None)
        if partner is None:
            out[i] = _row(code, row, x)
            continue
        same = tuple(a if a == b else 0 for a, b in zip(row, matrix[partner], strict=True))
        other = tuple(a if a != b else 0 for a, b in zip(row, matrix[partner], strict=True))
        e, o = _row(code, same, x), _row(code, other, x)
        out[i] = e + o
        out[partner] = e - o
    return out  # type: ignore[return-value]


def _sign(a: float, b: float) -> int | None:
    return 1 if a == b else -1 if a == -b else None


def _mirrored(a: Sequence[float], b: Sequence[float]) -> bool:
    signs = [_sign(p, q) for p, q in zip(a, b, strict=True)]
    used = {s for s, p in zip(signs, a, strict=True) if p}
    return None not in signs and used == {1, -1}


def _row(code: Code, row: Sequence[float], x: Sequence[Vec]) -> Vec:
    """sum of row[j] x[j], starting with a coefficient of 1 if there is one."""
    terms = sorted(((a, v) for a, v in zip(row, x, strict=True) if a), key=lambda t: abs(t[0]) != 1)
    if not terms:
        return code.vec(0)
    a, v = terms[0]
    rest = terms[1:]
    total = v if a == 1 else v * a
    for a, v in rest:
        total = total + v if a == 1 else total - v if a == -1 else code.fma(code.vec(a), v, total)
    return total


def transform(code: Code, matrix: Matrix, tile: Sequence[Sequence[Vec]]) -> list[list[Vec]]:
    """matrix @ tile @ matrix^T for a tile given by rows."""
    columns = [combine(code, matrix, column) for column in zip(*tile, strict=True)]  # column by column: matrix @ tile
    return [combine(code, matrix, [column[i] for column in columns]) for i in range(len(matrix))]


class Pixels(NamedTuple):
    """A tile's pixels in a map: pixel (i, j) has its channels from array[start + i row + j column] on."""

    array: Any
    start: Any
    row: Any
    column: Any
    channels: Any


class Points(NamedTuple):
    """Transformed tiles: point p of tile number t is at array[start + p point + t tile], channels in whole vectors."""

    array: Any
    start: Any
    point: Any
    tile: Any


class TileEpilogue(NamedTuple):
    """The epilogue of results before they are stored: + bias[bias_start + c]; if `adds`, + the value of `residual` at
    the place of the result in y; if `relu`, max(that, 0); if `summing`, sums[sums_start + c] += the results,
    sums[sums_start + sums_step + c] += their squares.
    """

    bias: Any
    bias_start: Any
    residual: Any
    adds: Any
    sums: Any
    sums_start: Any
    sums_step: Any
    summing: Any
    relu: Any


def make_read(matrix: Matrix, size: int) -> Callable[..., None]:
    """read(x: Pixels, out: Points, tiles, apart): transform `tiles` tiles of size x size pixels, `apart` floats apart
    in the map, all of them inside; channels are padded with zeros to whole vectors.
    """

    @program
    def read(code: Code, x: Pixels, out: Points, tiles: Int, apart: Int) -> None:
        n = len(matrix)
        columns = [x.column * j for j in range(size)]
        steps = [out.point * j for j in range(n)]
        with code.loop(0, tiles) as k:
            # One address per row and one offset per column: twelve registers instead of 36.
            corner = x.array + x.start + k * apart
            origin = out.array + out.start + k * out.tile
            rows = [corner + x.row * i for i in range(size)]
            outs = [origin + out.point * (n * i) for i in range(n)]

            def body(c: Int, count: Int | None, rows: list[Pointer] = rows, outs: list[Pointer] = outs) -> None:
                tile = [[code.load(rows[i], columns[j] + c, count) for j in range(size)] for i in range(size)]
                for i, line in enumerate(transform(code, matrix, tile)):
                    for j, value in enumerate(line):
                        code.store(value, outs[i], steps[j] + c)

            vector_loop(code, x.channels, body)

    return read


def make_write(form: Form, edge: bool, added: bool, summing: bool) -> Callable[..., None]:
    """write(products: Points, y: Pixels, rows, columns, epilogue: TileEpilogue): A^T product A, then the epilogue, to
    an m x m tile.

    edge: only the first `rows` rows and `columns` columns of the tile exist.   added, summing: as in the epilogue,
    compiled in.
    """
    m = form[0]
    n = points(form)

    @program
    def write(code: Code, products: Points, y: Pixels, rows: Int, columns: Int, epilogue: TileEpilogue) -> None:
        inside = [
            [code.both(code.int(i) < rows, code.int(j) < columns) if edge else None for j in range(m)] for i in range(m)
        ]
        least = code.select(code.spread(epilogue.relu >= 1), 0, -math.inf)
        first = products.array + products.start
        step = products.point
        points_in_row = [first + step * (n * i) for i in range(n)]
        steps = [step * j for j in range(n)]
        lines = [y.array + y.start + y.row * i for i in range(m)]
        pixels = [y.column * j for j in range(m)]
        others = [epilogue.residual + y.start + y.row * i for i in range(m)]

        def body(c: Int, count: Int | None) -> None:
            tile = [[code.load(points_in_row[i], steps[j] + c) for j in range(n)] for i in range(n)]
            offset = code.load(epilogue.bias, epilogue.bias_start + c, count)
            totals = [code.variable(0.0) for _ in range(2 * summing)]
            for i, line in enumerate(transform(code, AT[form], tile)):
                for j, value in enumerate(line):
                    with code.when(inside[i][j]):
                        if added:
                            value = value + code.load(others[i], pixels[j] + c, count)
                        result = code.maximum(least, value + offset)
                        code.store(result, lines[i], pixels[j] + c, count)
                        if summing:
                            totals[0].set(totals[0].get() + result)
                            totals[1].set(code.fma(result, result, totals[1].get()))
            for k, total in enumerate(totals):
                at = epilogue.sums_start + epilogue.sums_step * k + c
                code.store(code.load(epilogue.sums, at) + total.get(), epilogue.sums, at)

        vector_loop(code, y.channels, body)

    return write


def make_filter(form: Form) -> Callable[..., None]:
    """filter(w, w0, tap, columns, out, o0, step): G w G^T of one input channel: taps at w[w0 + (r i + j) tap], over
    `columns` outputs.

    Point p goes to out[o0 + p step], padded with zeros to whole vectors.
    """

    r = form[1]
    n = points(form)

    @program
    def filter_(code: Code, w: Pointer, w0: Int, tap: Int, columns: Int, out: Pointer, o0: Int, step: Int) -> None:
        def body(c: Int, count: Int | None) -> None:
            taps = [[code.load(w, w0 + c + tap * (r * i + j), count) for j in range(r)] for i in range(r)]
            for i, line in enumerate(transform(code, G[form], taps)):
                for j, value in enumerate(line):
                    code.store(value, out, o0 + c + step * (i * n + j))

        vector_loop(code, columns, body)

    return filter_


def make_filter_gradient(form: Form) -> Callable[..., None]:
    """filter_gradient(u, u0, step, dw, w0, tap, columns): G^T u G, points at u[u0 + p step], taps to dw[w0 + (r i + j)
    tap].
    """
    r = form[1]
    n = points(form)

    @program
    def filter_gradient(
        code: Code, u: Pointer, u0: Int, step: Int, dw: Pointer, w0: Int, tap: Int, columns: Int
    ) -> None:
        def body(c: Int, count: Int | None) -> None:
            tile = [[code.load(u, u0 + c + step * (i * n + j)) for j in range(n)] for i in range(n)]
            for i, line in enumerate(transform(code, _transposed(G[form]), tile)):
                for j, value in enumerate(line):
                    code.store(value, dw, w0 + c + tap * (r * i + j), count)

        vector_loop(code, columns, body)

    return filter_gradient
