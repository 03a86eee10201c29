"""Rows of floats that are standardised, in vector programs:
their means and variances, several rows at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kernels.core.cpu.simd import Code, Int, Pointer, Variable, Vec
from kernels.core.cpu.vector_ops import vector_loop

_ROWS_AT_ONCE = 4  # rows at the same time: a sum waits for its last addition, those of other rows do not


class Row(NamedTuple):
    """The statistics of a row, in all lanes: xhat = (x - mean) inverse + shift, and the means of g and of g xhat."""

    mean: Vec
    inverse: Vec
    shift: Vec
    g: Vec
    product: Vec


class Rows:
    """Rows of `channels` floats, one after the other, computed in float32 or, if `wide`, in float64."""

    def __init__(self, code: Code, channels: Int, eps: Any, wide: bool) -> None:
        self.code, self.channels, self.wide = code, channels, wide
        self.math = code.wide if wide else code
        self.share = 1 / self.math.number(channels)
        self.eps = self._converted(self.math, code.splat(eps))

    def _converted(self, to: Code, value: Vec) -> Vec:
        return to.converted(value) if self.wide else value

    def load(self, p: Pointer, at: Any, rest: Any) -> Vec:
        """Floats to compute with."""
        return self._converted(self.math, self.code.load(p, at, rest))

    def store(self, value: Vec, p: Pointer, at: Any, rest: Any) -> None:
        """Results as floats."""
        self.code.store(self._converted(self.code, value), p, at, rest)

    def over(self, first: Int, last: Int, body: Callable[[list[Int]], None]) -> None:
        """body(where they begin) for the rows first .. last, several at a time, then one by one."""
        whole = first + self.code.rounded_to(last - first, self.code.int(_ROWS_AT_ONCE))
        with self.code.loop(first, whole, _ROWS_AT_ONCE) as row:
            body([(row + k) * self.channels for k in range(_ROWS_AT_ONCE)])
        with self.code.loop(whole, last) as row:
            body([row * self.channels])

    def xhat(self, x: Pointer, at: Int, rest: Any, row: Row) -> Vec:
        """(x - mean) inverse."""
        return self.math.fma(self.load(x, at, rest) - row.mean, row.inverse, row.shift)

    def statistics(self, x: Pointer, places: list[Int], gradient: tuple[Pointer, Pointer] | None = None) -> list[Row]:
        """The statistics of the rows at `places`, in two passes.   gradient: dy and the weight, g = dy weight (without:
        g = 0).
        """
        code = self.code
        math = self.math
        sums, offsets, squares, gs, products = ([math.variable() for _ in places] for _ in range(5))
        dy, weight = gradient or (None, None)

        def first(j: Int, rest: Any) -> None:
            w = self.load(weight, j, rest) if weight else None
            for k, place in enumerate(places):
                sums[k].set(sums[k].get() + self.load(x, place + j, rest))
                if dy:
                    gs[k].set(math.fma(self.load(dy, place + j, rest), w, gs[k].get()))

        vector_loop(code, self.channels, first)
        means = self._means(sums)

        def second(j: Int, rest: Any) -> None:
            w = self.load(weight, j, rest) if weight else None
            for k, place in enumerate(places):
                d = math.kept(self.load(x, place + j, rest) - means[k], rest)
                offsets[k].set(offsets[k].get() + d)
                squares[k].set(math.fma(d, d, squares[k].get()))
                if dy:
                    products[k].set(math.fma(self.load(dy, place + j, rest) * w, d, products[k].get()))

        vector_loop(code, self.channels, second)
        out = []
        for mean, offset, square, g, product in zip(
            means, *map(self._means, (offsets, squares, gs, products)), strict=True
        ):
            # The mean was rounded: `offset`, the mean of x - mean, is its error. With it a row far from zero loses
            # nothing.
            inverse = 1 / math.sqrt(math.maximum(0, square - offset * offset) + self.eps)
            out.append(Row(mean, inverse, -offset * inverse, g, (product - offset * g) * inverse))
        return out

    def _means(self, sums: list[Variable]) -> list[Vec]:
        return [self.math.total(value.get()) * self.share for value in sums]
