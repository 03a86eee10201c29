"""Depthwise convolution: one filter per channel. Pure vector code over channels; memory traffic bounds it, not
arithmetic.

A chunk is a strip of output rows of one image. It is walked in tiles of a few rows and columns, and each tile channel
vector by channel
vector: an input vector is loaded once for all of the tile's outputs that it reaches, and memory is read and written in
order. x is read in place: rows beyond the image are read from a row of zeros, and only the output columns at a row's
ends, computed one by one, check for columns beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.cpu.vector_ops import clear, copy, vector_loop
from kernels.core.dispatch import mark_host_computation
from kernels.core.geometry import Window

# Rows and columns of a tile. More rows would save loads, but rows of a power of two of floats share few sets of the L1
# cache.
_FORWARD, _GRADIENT = (2, 4), (4, 4)
_STRIP = 65_536  # floats of x under a strip: 256 KB, inside an L2 cache
_CHUNKS = 16
_MOST = 49  # taps, all of which are unrolled


def serves(window: Window, inputs: int, outputs: int, groups: int) -> bool:
    """Whether every group has one input and one output channel, and the filter is of a usual size."""
    return groups > 1 and inputs == outputs == groups and window.kernel[0] * window.kernel[1] <= _MOST


class _Taps(NamedTuple):
    """The part of a window that is compiled in: all but the padding."""

    r: int
    s: int
    sh: int
    sw: int
    dh: int
    dw: int


class DepthwiseParams(NamedTuple):
    """The rest of a convolution as kernels and programs see it: image (h, w, c), output (p, q) and padding."""

    h: int
    w: int
    c: int
    p: int
    q: int
    top: int
    left: int
    inner: int  # the output columns inner .. outer read no padding
    outer: int


_Place = tuple[int, int]
_Pairs = list[_Place]
_Inputs = list[tuple[Pointer, _Pairs, _Pairs]]


def _reach(outputs: int, kernel: int, stride: int, dilation: int) -> dict[int, _Pairs]:
    """Along an axis: input position, from the first output's first on -> the pairs (output, tap) that meet there."""
    out: dict[int, _Pairs] = {}
    for t in range(outputs):
        for k in range(kernel):
            out.setdefault(t * stride + k * dilation, []).append((t, k))
    return out


class _Walk:
    """The walk of programs over an image's output rows first .. first + count."""

    def __init__(
        self,
        code: Code,
        taps: _Taps,
        layer: DepthwiseParams,
        x: Pointer,
        zeros: Pointer,
        image: Int,
        first: Int,
        count: Int,
    ) -> None:
        self.code = code
        self.taps = taps
        self.layer = layer
        self.zeros = zeros
        self.image = image
        self.first = first
        self.count = count
        self.x = x + image * (layer.h * layer.w * layer.c)

    def over_tiles(self, rows: int, columns: int, body: Callable[[Int, Int, int, int], None]) -> None:
        """body(first row, first column, rows, columns) over all output pixels, each once. A tile of one column may read
        padding columns.
        """
        code = self.code
        whole = self.first + self.code.rounded_to(self.count, self.code.int(rows))
        with code.loop(self.first, whole, rows) as row:
            self._over_columns(columns, lambda q, many: body(row, q, rows, many))
        with code.loop(whole, self.first + self.count) as row:
            self._over_columns(columns, lambda q, many: body(row, q, 1, many))

    def _over_columns(self, columns: int, body: Callable[[Int, int], None]) -> None:
        code = self.code
        layer = self.layer
        whole = code.rounded_to(layer.outer - layer.inner, code.int(columns))
        with code.loop(layer.inner, layer.inner + whole, columns) as q:
            body(q, columns)
        with code.loop(0, layer.q - whole) as q:  # the pixels to the left and right of the tiles
            body(q + code.choose(q < layer.inner, code.int(0), whole), 1)

    def inputs(self, row: Int, q: Int, rows: int, columns: int) -> _Inputs:
        """The pixels that a tile reads, each with the (output row, filter row) and the (output column, filter column)
        that meet there.
        """
        code = self.code
        taps = self.taps
        layer = self.layer
        left = q * taps.sw - layer.left
        out = []
        for down, vertical in _reach(rows, taps.r, taps.sh, taps.dh).items():
            y = row * taps.sh + down - layer.top
            line = code.choose(code.both(y >= 0, y < layer.h), self.x + y * (layer.w * layer.c), self.zeros)
            first = line + left * layer.c
            for right, horizontal in _reach(columns, taps.s, taps.sw, taps.dw).items():
                pixel = first + layer.c * right
                if columns == 1:
                    pixel = code.choose(code.both(left + right >= 0, left + right < layer.w), pixel, self.zeros)
                out.append((pixel, vertical, horizontal))
        return out

    def taps_at(self, start: Any, c: Int) -> dict[_Place, Int]:
        """Where the filter's taps lie for channel c, from `start` on."""
        return {
            (i, j): start + (i * self.taps.s + j) * self.layer.c + c
            for i in range(self.taps.r)
            for j in range(self.taps.s)
        }

    def products(self, inputs: _Inputs, c: Int, rest: Any) -> Iterator[tuple[Vec, _Place, _Place]]:
        """(input vector, output, tap) for every product of a tile; each input is loaded once."""
        for pixel, vertical, horizontal in inputs:
            value = self.code.load(pixel, c, rest)
            for a, i in vertical:
                for t, j in horizontal:
                    yield value, (a, t), (i, j)

    def outputs(self, y: Pointer, row: Int, q: Int, rows: int, columns: int) -> dict[_Place, Pointer]:
        """The pixels of a tile in an array like the output."""
        layer = self.layer
        first = y + ((self.image * layer.p + row) * layer.q + q) * layer.c
        return {(a, t): first + layer.q * layer.c * a + layer.c * t for a in range(rows) for t in range(columns)}


@lru_cache(maxsize=64)
def _forward_kernel(taps: _Taps) -> Kernel:
    @program
    def strip(
        code: Code,
        x: Pointer,
        own: Pointer,
        w: Pointer,
        bias: Pointer,
        y: Pointer,
        image: Int,
        first: Int,
        count: Int,
        layer: DepthwiseParams,
    ) -> None:
        """Output rows first .. first + count of an image: y = bias + sum over taps of x w. own: a row of zeros."""
        walk = _Walk(code, taps, layer, x, own, image, first, count)

        def tile(row: Int, q: Int, rows: int, columns: int) -> None:
            inputs = walk.inputs(row, q, rows, columns)
            outputs = walk.outputs(y, row, q, rows, columns)

            def channels(c: Int, rest: Any) -> None:
                factors = {tap: code.load(w, at, rest) for tap, at in walk.taps_at(0, c).items()}
                sums = {place: code.variable(code.load(bias, c, rest)) for place in outputs}
                for value, place, tap in walk.products(inputs, c, rest):
                    sums[place].set(code.fma(value, factors[tap], sums[place].get()))
                for place, total in sums.items():
                    code.store(total.get(), outputs[place], c, rest)

            vector_loop(code, layer.c, channels)

        walk.over_tiles(*_FORWARD, tile)

    @cpu_kernel(str(tuple(taps)))
    def depthwise_forward(start, stop, scratch, x: F32, w: F32, bias: F32, y: F32, layer: DepthwiseParams, rows: int,
                          blocks: int):  # fmt: skip
        for chunk in range(start, stop):
            image = chunk // blocks
            first = chunk % blocks * rows
            clear(scratch, 0, layer.w * layer.c)
            strip(x, scratch, w, bias, y, image, first, min(rows, layer.p - first), layer)

    return depthwise_forward


@lru_cache(maxsize=64)
def _filter_kernel(taps: _Taps) -> Kernel:
    tap_count = taps.r * taps.s

    @program
    def strip(
        code: Code,
        x: Pointer,
        own: Pointer,
        dy: Pointer,
        dw0: Int,
        image: Int,
        first: Int,
        count: Int,
        layer: DepthwiseParams,
    ) -> None:
        """own[dw0 ...] += for every tap the sums of x dy over output rows first .. first + count of an image. own
        begins with a row of zeros.
        """
        walk = _Walk(code, taps, layer, x, own, image, first, count)

        def tile(row: Int, q: Int, rows: int, columns: int) -> None:
            inputs = walk.inputs(row, q, rows, columns)
            outputs = walk.outputs(dy, row, q, rows, columns)

            def channels(c: Int, rest: Any) -> None:
                given = {place: code.load(pixel, c, rest) for place, pixel in outputs.items()}
                places = walk.taps_at(dw0, c)
                sums = {tap: code.variable(code.load(own, at, rest)) for tap, at in places.items()}
                for value, place, tap in walk.products(inputs, c, rest):
                    sums[tap].set(code.fma(value, given[place], sums[tap].get()))
                for tap, total in sums.items():
                    code.store(total.get(), own, places[tap], rest)

            vector_loop(code, layer.c, channels)

        walk.over_tiles(*_GRADIENT, tile)

    @cpu_kernel(str(tuple(taps)))
    def depthwise_filter_gradient(start, stop, scratch, x: F32, dy: F32, partial: F32, layer: DepthwiseParams,
                                  rows: int, blocks: int, strips: int, per_chunk: int):  # fmt: skip
        row = layer.w * layer.c
        floats = tap_count * layer.c
        for chunk in range(start, stop):
            # the sums accumulate in the thread's own memory: no other thread writes to their cache lines
            clear(scratch, 0, row + floats)
            for k in range(chunk * per_chunk, min((chunk + 1) * per_chunk, strips)):
                image = k // blocks
                first = k % blocks * rows
                strip(x, scratch, dy, row, image, first, min(rows, layer.p - first), layer)
            copy(scratch, row, partial, chunk * floats, floats)

    return depthwise_filter_gradient


@lru_cache(maxsize=256)
def _plan(size: tuple[int, int, int], window: Window) -> tuple[_Taps, DepthwiseParams, int, int]:
    """The form to compile, the layer, output rows per strip and strips per image."""
    h, w, c = size
    p, q = window.output_size((h, w))
    r, s = window.kernel
    sh, sw = window.stride
    dh, dw = window.dilation
    (top, _), (left, _) = window.padding
    inner = min(q, -(-left // sw))
    outer = max(inner, min(q, (w - 1 - (s - 1) * dw + left) // sw + 1))
    layer = DepthwiseParams(h, w, c, p, q, top, left, inner, outer)
    rows = -(-p // -(-p // max(1, (_STRIP // (w * c) - (r - 1) * dh) // sh)))
    rows += -rows % max(_FORWARD[0], _GRADIENT[0])
    return _Taps(r, s, sh, sw, dh, dw), layer, rows, -(-p // rows)


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window) -> np.ndarray:
    """y (N, P, Q, C) of contiguous float32 x (N, H, W, C) and w (R, S, 1, C)."""
    taps, layer, rows, blocks = _plan(x.shape[1:], window)
    y = buffer_pool.empty((x.shape[0], layer.p, layer.q, layer.c), np.float32)
    bias = np.zeros(layer.c, np.float32) if b is None else contiguous(b)
    arrays = x.reshape(-1), contiguous(w).reshape(-1), bias, y.reshape(-1)
    parallel(_forward_kernel(taps), x.shape[0] * blocks, *arrays, layer, rows, blocks, scratch=layer.w * layer.c)
    return y


def backward_filter(x: np.ndarray, dy: np.ndarray, window: Window) -> np.ndarray:
    """dw (R, S, 1, C) of contiguous float32 x (N, H, W, C) and dy (N, P, Q, C)."""
    taps, layer, rows, blocks = _plan(x.shape[1:], window)
    strips = x.shape[0] * blocks
    per_chunk = -(-strips // min(_CHUNKS, strips))
    chunks = -(-strips // per_chunk)
    partial = buffer_pool.empty((chunks, taps.r, taps.s, 1, layer.c), np.float32)
    arrays = x.reshape(-1), dy.reshape(-1), partial.reshape(-1)
    parallel(
        _filter_kernel(taps),
        chunks,
        *arrays,
        layer,
        rows,
        blocks,
        strips,
        per_chunk,
        scratch=(layer.w + taps.r * taps.s) * layer.c,
    )
    mark_host_computation()
    return partial.sum(0)
