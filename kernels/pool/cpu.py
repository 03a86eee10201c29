"""Fast max pooling: vector programs over channels, one output pixel (forward) or input pixel (backward) at a time.

Forward reads each window and writes the maximum and one byte, the tap it came from. Backward is a gather: an input
pixel adds dy of the windows whose byte names it. Bytes per output: its taps read, 5 written; backward: 5 read per
window that covers the pixel, 4 written.
"""

from __future__ import annotations

import math
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, U8
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.cpu.vector_ops import clear, vector_loop
from kernels.core.geometry import Pair, Window

_CHUNK = 32_768  # output values per chunk, about
_UNROLLED = 9  # taps of the largest window that is unrolled


def _take(code: Code, best: Vec, where: Vec, value: Vec, tap: Any) -> tuple[Vec, Vec]:
    """The larger of best and value, and its tap; NaN wins, as in NumPy and PyTorch."""
    better = code.either(value > best, value.is_nan())
    return code.select(better, value, best), code.select(better, tap, where)


def _make_whole(r: int, s: int, places: bool) -> Any:
    """whole(x, x0, row, column, y, offset, y0, channels): an R x S window that lies inside, unrolled. places: write
    offsets.
    """

    @program
    def whole(
        code: Code, x: Pointer, x0: Int, row: Int, column: Int, y: Pointer, offset: Pointer, y0: Int, channels: Int
    ) -> None:
        taps = [x + x0 + row * i + column * j for i in range(r) for j in range(s)]

        def body(c: Int, rest: Any) -> None:
            values = [code.load(tap, c, rest) for tap in taps]
            if places:
                best = values[0]
                where = code.vec(0)
                for t in range(1, r * s):
                    best, where = _take(code, best, where, values[t], t)
                code.store_bytes(where, offset, y0 + c, rest)
            else:
                best = reduce(lambda a, b: code.maximum(b, a), values)  # an instruction each, which loses a NaN
                best = code.select(reduce(code.either, [v.is_nan() for v in values]), math.nan, best)
            code.store(best, y, y0 + c, rest)

        vector_loop(code, channels, body)

    return whole


def _make_taps(places: bool) -> tuple[Any, Any]:
    """first_tap starts a window with one tap, next_tap compares its maximum so far with a further one."""

    @program
    def first_tap(
        code: Code, x: Pointer, x0: Int, tap: Int, y: Pointer, offset: Pointer, y0: Int, channels: Int
    ) -> None:
        number = code.number(tap)

        def body(c: Int, rest: Any) -> None:
            code.store(code.load(x, x0 + c, rest), y, y0 + c, rest)
            if places:
                code.store_bytes(number, offset, y0 + c, rest)

        vector_loop(code, channels, body)

    @program
    def next_tap(
        code: Code, x: Pointer, x0: Int, tap: Int, y: Pointer, offset: Pointer, y0: Int, channels: Int
    ) -> None:
        number = code.number(tap)

        def body(c: Int, rest: Any) -> None:
            best = code.load(y, y0 + c, rest)
            where = code.load_bytes(offset, y0 + c, rest) if places else code.vec(0)
            best, where = _take(code, best, where, code.load(x, x0 + c, rest), number)
            code.store(best, y, y0 + c, rest)
            if places:
                code.store_bytes(where, offset, y0 + c, rest)

        vector_loop(code, channels, body)

    return first_tap, next_tap


class Geometry(NamedTuple):
    """A max pool: map (h, w, c), output (p, q), window, and rows of all images in the output and the map."""

    h: int
    w: int
    c: int
    p: int
    q: int
    r: int
    s: int
    sh: int
    sw: int
    dh: int
    dw: int
    top: int
    left: int
    rows_out: int
    rows_in: int


@lru_cache(maxsize=16)
def _forward_kernel(r: int, s: int, places: bool) -> Kernel:
    unrolled = r * s <= _UNROLLED
    whole = _make_whole(r, s, places) if unrolled else None
    first_tap, next_tap = _make_taps(places)

    @cpu_kernel(f"{r}x{s}{' values' * (not places)}")
    def max_pool2d_forward(start, stop, scratch, x: F32, y: F32, offset: U8, g: Geometry, per_chunk: int):
        h = g.h
        w = g.w
        c = g.c
        p = g.p
        q = g.q
        kr = g.r
        ks = g.s
        dh = g.dh
        dw = g.dw
        for line in range(start * per_chunk, min(stop * per_chunk, g.rows_out)):
            image = line // p
            row = line % p
            y_in = row * g.sh - g.top
            r0 = max(0, (dh - 1 - y_in) // dh)
            r1 = min(kr, (h - 1 - y_in) // dh + 1)
            for column in range(q):
                x_in = column * g.sw - g.left
                x0 = ((image * h + y_in) * w + x_in) * c
                y0 = (line * q + column) * c
                s0 = max(0, (dw - 1 - x_in) // dw)
                s1 = min(ks, (w - 1 - x_in) // dw + 1)
                if unrolled and r0 == 0 and s0 == 0 and r1 == kr and s1 == ks:
                    whole(x, x0, dh * w * c, dw * c, y, offset, y0, c)
                    continue
                for i in range(r0, r1):
                    for j in range(s0, s1):
                        at = x0 + (i * dh * w + j * dw) * c
                        if i == r0 and j == s0:
                            first_tap(x, at, i * ks + j, y, offset, y0, c)
                        else:
                            next_tap(x, at, i * ks + j, y, offset, y0, c)

    return max_pool2d_forward


@lru_cache(maxsize=256)
def _geometry(n: int, size: Pair, c: int, window: Window) -> Geometry:
    p, q = window.output_size(size)
    (top, _), (left, _) = window.padding
    shape = *window.kernel, *window.stride, *window.dilation
    return Geometry(*size, c, p, q, *shape, top, left, n * p, n * size[0])


def max_pool2d_forward(x: np.ndarray, window: Window, places: bool = True) -> Any:
    """As kernels.pool.reference.max_pool2d_forward, for float32 and windows of up to 256 taps that meet the image
    everywhere.
    """
    r, s = window.kernel
    (top, bottom), (left, right) = window.padding
    (er, es) = window.extent
    alone = (
        max(top, bottom) >= er
        or max(left, right) >= es
        or (window.dilation != (1, 1) and (top or bottom or left or right))
    )
    if x.dtype != np.float32 or not x.size or r * s > 256 or alone:
        return NotImplemented
    x = contiguous(x)
    n, h, w, c = x.shape
    p, q = window.output_size((h, w))
    y = buffer_pool.empty((n, p, q, c), np.float32)
    offset = buffer_pool.empty((n, p, q, c if places else 0), np.uint8)
    per = max(1, _CHUNK // (q * c))
    geometry = _geometry(n, (h, w), c, window)
    parallel(
        _forward_kernel(r, s, places), -(-n * p // per), x.reshape(-1), y.reshape(-1), offset.reshape(-1), geometry, per
    )
    return y, offset if places else None


@program
def _add_claimed(
    code: Code, dy: Pointer, offset: Pointer, d0: Int, dx: Pointer, x0: Int, tap: Int, channels: Int
) -> None:
    """dx += dy where the window's maximum is `tap`."""
    number = code.number(tap)

    def body(c: Int, rest: Any) -> None:
        hit = code.load_bytes(offset, d0 + c, rest).equals(number)
        code.store(code.load(dx, x0 + c, rest) + code.select(hit, code.load(dy, d0 + c, rest), 0), dx, x0 + c, rest)

    vector_loop(code, channels, body)


def _make_spread(r: int, s: int, accumulate_into: bool) -> Any:
    """spread(dy, offset, d0, dx, x0, row, column, channels): a window that overlaps no other: every tap is written
    (accumulate_into: added to) once.
    """

    @program
    def spread(
        code: Code, dy: Pointer, offset: Pointer, d0: Int, dx: Pointer, x0: Int, row: Int, column: Int, channels: Int
    ) -> None:
        def body(c: Int, rest: Any) -> None:
            value = code.load(dy, d0 + c, rest)
            where = code.load_bytes(offset, d0 + c, rest)
            for i in range(r):
                for j in range(s):
                    place = x0 + row * i + column * j + c
                    part = code.select(where.equals(i * s + j), value, 0)
                    code.store(part + code.load(dx, place, rest) if accumulate_into else part, dx, place, rest)

        vector_loop(code, channels, body)

    return spread


def _make_gather(r: int, s: int, accumulate_into: bool) -> Any:
    """gather(dy, offset, d0, row, dx, x0, channels): a pixel that all R S windows of stride 1 cover; d0 is the window
    of tap 0.
    """

    @program
    def gather(
        code: Code, dy: Pointer, offset: Pointer, d0: Int, row: Int, dx: Pointer, x0: Int, channels: Int
    ) -> None:
        def body(c: Int, rest: Any) -> None:
            total = code.load(dx, x0 + c, rest) if accumulate_into else code.vec(0)
            for i in range(r):
                for j in range(s):
                    at = d0 - row * i - channels * j + c
                    total = total + code.select(
                        code.load_bytes(offset, at, rest).equals(i * s + j), code.load(dy, at, rest), 0
                    )
            code.store(total, dx, x0 + c, rest)

        vector_loop(code, channels, body)

    return gather


@lru_cache(maxsize=16)
def _backward_kernel(r: int, s: int, accumulate_into: bool) -> Kernel:
    unrolled = r * s <= _UNROLLED
    gather = _make_gather(r, s, accumulate_into) if unrolled else None

    @cpu_kernel(f"{r}x{s}{' accumulates' * accumulate_into}")
    def max_pool2d_backward(start, stop, scratch, dy: F32, offset: U8, dx: F32, g: Geometry, per_chunk: int):
        h = g.h
        w = g.w
        c = g.c
        p = g.p
        q = g.q
        kr = g.r
        ks = g.s
        sh = g.sh
        sw = g.sw
        dh = g.dh
        dw = g.dw
        dense = unrolled and sh == 1 and sw == 1 and dh == 1 and dw == 1
        for line in range(start * per_chunk, min(stop * per_chunk, g.rows_in)):
            image = line // h
            y = line % h
            for x in range(w):
                x0 = (line * w + x) * c
                # the window of tap (i, j) is ((v - i dh) / sh, (u - j dw) / sw)
                v = y + g.top
                u = x + g.left
                if dense and v - kr + 1 >= 0 and v < p and u - ks + 1 >= 0 and u < q:
                    gather(dy, offset, ((image * p + v) * q + u) * c, q * c, dx, x0, c)
                    continue
                if not accumulate_into:
                    clear(dx, x0, c)
                for i in range(kr):
                    a = v - i * dh
                    if a < 0 or a % sh or a // sh >= p:
                        continue
                    for j in range(ks):
                        b = u - j * dw
                        if b >= 0 and b % sw == 0 and b // sw < q:
                            _add_claimed(dy, offset, ((image * p + a // sh) * q + b // sw) * c, dx, x0, i * ks + j, c)

    return max_pool2d_backward


@lru_cache(maxsize=16)
def _spread_kernel(r: int, s: int, accumulate_into: bool) -> Kernel:
    spread = _make_spread(r, s, accumulate_into)

    @cpu_kernel(f"{r}x{s}{' accumulates' * accumulate_into}")
    def max_pool2d_spread(start, stop, scratch, dy: F32, offset: U8, dx: F32, g: Geometry, per_chunk: int):
        h = g.h
        w = g.w
        c = g.c
        p = g.p
        q = g.q
        for line in range(start * per_chunk, min(stop * per_chunk, g.rows_out)):
            image = line // p
            row = line % p
            for column in range(q):
                spread(
                    dy, offset, (line * q + column) * c, dx, ((image * h + row * r) * w + column * s) * c, w * c, c, c
                )

    return max_pool2d_spread


def max_pool2d_backward(
    dy: np.ndarray, offset: np.ndarray, size: Pair, window: Window, accumulate_into: np.ndarray | None = None
) -> Any:
    """As kernels.pool.reference.max_pool2d_backward."""
    if (
        dy.dtype != np.float32
        or offset.dtype != np.uint8
        or not dy.size
        or (
            accumulate_into is not None
            and not (accumulate_into.flags.c_contiguous and accumulate_into.dtype == dy.dtype)
        )
    ):
        return NotImplemented
    dy, offset = contiguous(dy), contiguous(offset)
    n, p, q, c = dy.shape
    r, s = window.kernel
    dx = buffer_pool.empty((n, *size, c), np.float32) if accumulate_into is None else accumulate_into
    geometry = _geometry(n, size, c, window)
    flat = dy.reshape(-1), offset.reshape(-1), dx.reshape(-1), geometry
    if window == Window((r, s), (r, s)) and (p * r, q * s) == size and r * s <= _UNROLLED:
        per = max(1, _CHUNK // (q * c))
        parallel(_spread_kernel(r, s, accumulate_into is not None), -(-n * p // per), *flat, per)
    else:
        per = max(1, _CHUNK // (size[1] * c))
        parallel(_backward_kernel(r, s, accumulate_into is not None), -(-n * size[0] // per), *flat, per)
    return dx
