"""Preparation of filters and biases for a convolution: micro-panels, transposes, pixel fusion; and the sums of chunks
after it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.cpu.vector_ops import add, clear, copy
from kernels.core.cpu.weight_cache import packed_once
from kernels.core.dispatch import mark_host_computation

CHUNKS = 16
MOST_SUMS = 600_000  # floats of the filter gradient's sums of all chunks: chunks of large filters are fewer
_SQUARE = 16  # side of the blocks in which a filter is transposed: their rows and columns stay in the L1 cache


# -- biases ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def zeros(count: int) -> np.ndarray:
    """That many zeros, read-only."""
    return np.zeros(count, np.float32)


@lru_cache(maxsize=1)
def _bias_kernel() -> Kernel:
    @cpu_kernel()
    def arrange_bias(start, stop, _scratch, b: F32, out: F32, groups: int, k: int, width: int, times: int):
        for group in range(groups):
            for i in range(times):
                copy(b, group * k, out, group * width + i * k, k)
            clear(out, group * width + times * k, width - times * k)

    return arrange_bias


def padded_bias(b: np.ndarray | None, groups: int, k: int, width: int) -> np.ndarray:
    """A bias of `groups` times k channels (None: zeros), each group's padded to whole panels."""
    padded = -(-k // width) * width
    if b is None:
        return zeros(groups * padded)
    return contiguous(b) if padded == k else _arranged(b, groups, padded, 1)


def repeated_bias(b: np.ndarray, times: int) -> np.ndarray:
    """The bias of `times` pixels in a row."""
    return _arranged(b, 1, times * len(b), times)


def _arranged(b: np.ndarray, groups: int, width: int, times: int) -> np.ndarray:
    """Each group's part of a bias, `times` times, padded with zeros to `width`."""

    def arrange() -> np.ndarray:
        out = buffer_pool.empty((groups * width,), np.float32)
        parallel(_bias_kernel(), 1, contiguous(b), out, groups, len(b) // groups, width, times)
        return out

    return packed_once(b, ("bias", groups, width, times), arrange)


# -- panels ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def pack_kernel() -> Kernel:
    """Filters to panels (G, panels, taps, width), zeros beyond a group's k output channels. These lie in runs of `run`
    floats, `run_step` apart; `tap_step` lies between taps, `group_step` between groups.
    """

    @cpu_kernel()
    def pack_filter(
        start,
        stop,
        _scratch,
        w: F32,
        panels: F32,
        taps: int,
        k: int,
        width: int,
        run: int,
        run_step: int,
        tap_step: int,
        group_step: int,
    ):
        per_group = -(-k // width)
        for panel in range(start, stop):
            group = panel // per_group
            column = panel % per_group * width
            count = min(width, k - column)
            for i in range(taps):
                o = (panel * taps + i) * width
                done = 0
                while done < count:
                    at = column + done
                    some = min(count - done, run - at % run)
                    place = group * group_step + i * tap_step + at // run * run_step + at % run
                    copy(w, place, panels, o + done, some)
                    done += some
                clear(panels, o + count, width - count)

    return pack_filter


def packed(w: np.ndarray, groups: int, width: int) -> np.ndarray:
    """The panels of a filter (R, S, C/G, G K)."""
    r, s, c, k = w.shape
    k //= groups
    return packed_once(w, (groups, width), lambda: _pack(w, r * s * c, groups, k, width, k, 0, groups * k, k))


def packed_rows(w: np.ndarray, width: int) -> np.ndarray:
    """The panels of a transposed filter (R, S, C, K): a row of it is a group of S K output channels."""
    r, s, c, k = w.shape
    return packed_once(w, ("rows", width), lambda: _pack(w, c, r, s * k, width, k, c * k, k, s * c * k))


def _pack(w: np.ndarray, taps: int, groups: int, k: int, width: int, *steps: int) -> np.ndarray:
    count = groups * -(-k // width)
    panels = buffer_pool.empty((count * taps * width,), np.float32)
    parallel(pack_kernel(), count, contiguous(w).reshape(-1), panels, taps, k, width, *steps)
    return panels


@lru_cache(maxsize=1)
def _pack_transposed_kernel() -> Kernel:
    @cpu_kernel()
    def pack_transposed(start, stop, _scratch, w: F32, panels: F32, c: int, k: int, width: int):
        for panel in range(start, stop):
            row = panel * width
            rest = min(width, c - panel * width)
            for i0 in range(0, k, _SQUARE):
                for j in range(width):
                    for i in range(i0, min(i0 + _SQUARE, k)):
                        panels[(panel * k + i) * width + j] = w[(row + j) * k + i] if j < rest else np.float32(0)

    return pack_transposed


def packed_transposed(w: np.ndarray, width: int) -> np.ndarray:
    """The panels of the transpose of a 1x1 filter (1, 1, C, K)."""
    c, k = w.shape[2:]
    count = -(-c // width)
    panels = buffer_pool.empty((count * k * width,), np.float32)
    parallel(_pack_transposed_kernel(), count, contiguous(w).reshape(-1), panels, c, k, width)
    return panels


# -- transposes --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def flip_kernel() -> Kernel:
    """Filters (taps, C, K) to (taps, K, C), the taps reversed if `reverse`;
    a chunk per tap and _SQUARE input channels.
    """

    @cpu_kernel()
    def flip_filter(start, stop, _scratch, w: F32, out: F32, taps: int, c: int, k: int, reverse: int):
        parts = -(-c // _SQUARE)
        for chunk in range(start, stop):
            tap = chunk // parts
            i0 = chunk % parts * _SQUARE
            to = taps - 1 - tap if reverse else tap
            i1 = min(i0 + _SQUARE, c)
            source = tap * c * k
            target_ = to * c * k
            for j0 in range(0, k, _SQUARE):
                for j in range(j0, min(j0 + _SQUARE, k)):
                    for i in range(i0, i1):
                        out[target_ + j * c + i] = w[source + i * k + j]

    return flip_filter


def swapped(w: np.ndarray, reverse: bool = False) -> np.ndarray:
    """(R, S, C, K) to a contiguous (R, S, K, C), the taps reversed if wanted."""
    r, s, c, k = w.shape
    out = buffer_pool.empty((r, s, k, c), np.float32)
    parallel(flip_kernel(), r * s * -(-c // _SQUARE), contiguous(w).reshape(-1), out.reshape(-1), r * s, c, k, reverse)
    return out


def flipped(w: np.ndarray, groups: int) -> np.ndarray:
    """The filter of the data gradient: taps reversed, input and output channels swapped within each group: (R, S, K/G,
    C).
    """
    r, s, c, k = w.shape
    if groups == 1 and w.flags.c_contiguous:
        return swapped(w, reverse=True)
    mark_host_computation()
    w = w[::-1, ::-1].reshape(r, s, c, groups, k // groups)
    return contiguous(w.transpose(0, 1, 4, 3, 2)).reshape(r, s, k // groups, groups * c)


# -- pixel fusion ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _widen_kernel() -> Kernel:
    @cpu_kernel()
    def widen_filter(start, stop, _scratch, w: F32, wide: F32, s: int, c: int, k: int, f: int):
        for row in range(start, stop):
            for t in range(s + f - 1):
                for i in range(c):
                    for pixel in range(f):
                        j = t - pixel
                        to = (((row * (s + f - 1) + t) * c + i) * f + pixel) * k
                        if 0 <= j < s:
                            copy(w, ((row * s + j) * c + i) * k, wide, to, k)
                        else:
                            clear(wide, to, k)

    return widen_filter


def widened(w: np.ndarray, f: int) -> np.ndarray:
    """(R, S, C, K) -> (R, S + f - 1, C, f K): the filter f times, each shifted by one more tap."""
    r, s, c, k = w.shape
    wide = buffer_pool.empty((r, s + f - 1, c, f * k), np.float32)
    parallel(_widen_kernel(), r, contiguous(w).reshape(-1), wide.reshape(-1), s, c, k, f)
    return wide


@lru_cache(maxsize=1)
def _narrow_kernel() -> Kernel:
    @cpu_kernel()
    def narrow_gradient(start, stop, _scratch, wide: F32, dw: F32, s: int, c: int, k: int, f: int):
        for row in range(start, stop):
            for j in range(s):
                for i in range(c):
                    to = ((row * s + j) * c + i) * k
                    clear(dw, to, k)
                    for pixel in range(f):
                        add(dw, to, wide, (((row * (s + f - 1) + j + pixel) * c + i) * f + pixel) * k, k)

    return narrow_gradient


def narrowed(wide: np.ndarray, f: int) -> np.ndarray:
    """The gradient of a filter from that of the filter `widened` from it: (R, S + f - 1, C, f K) -> (R, S, C, K)."""
    r = wide.shape[0]
    s = wide.shape[1] - f + 1
    c = wide.shape[2]
    k = wide.shape[3] // f
    dw = buffer_pool.empty((r, s, c, k), np.float32)
    parallel(_narrow_kernel(), r, wide.reshape(-1), dw.reshape(-1), s, c, k, f)
    return dw


# -- gradients ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _chunks_kernel() -> Kernel:
    @cpu_kernel()
    def filter_gradient_finish(
        start, stop, _scratch, partial: F32, dw: F32, c: int, k: int, kp: int, chunks: int, per: int
    ):
        for i in range(start * per, min(stop * per, c)):
            for chunk in range(1, chunks):
                add(partial, i * kp, partial, (chunk * c + i) * kp, k)
            copy(partial, i * kp, dw, i * k, k)

    return filter_gradient_finish


def added_chunks(partial: np.ndarray, chunks: int, rows: int, k: int, kp: int) -> np.ndarray:
    """The chunks' sums (chunks, rows, kp), added in order, without their padding: (rows, k)."""
    dw = buffer_pool.empty((rows, k), np.float32)
    per = -(-rows // CHUNKS)
    parallel(_chunks_kernel(), -(-rows // per), partial, dw.reshape(-1), rows, k, kp, chunks, per)
    return dw
