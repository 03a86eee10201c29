"""Depthwise convolution: one filter per channel. Pure vector code over channels; bytes decide, not arithmetic."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.conv.direct import _layer, _strip
from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel
from kernels.core.geometry import Window
from kernels.core.runs import clear, over_run
from kernels.core.simd import Code, Int, Pointer, program
from kernels.core.threads import parallel

_PIXELS = 6  # output pixels computed together: each filter vector is loaded once for them
_CHUNKS = 16


def serves(w: np.ndarray, groups: int) -> bool:
    """Whether every group has one input and one output channel."""
    return groups > 1 and w.shape[2] == 1 and w.shape[3] == groups


@program("piiipiipiii")
def _pixels(
    code: Code, x: Pointer, x0: Int, line: Int, column: Int, w: Pointer, taps: Int, per_line: Int, y: Pointer, y0: Int, channels: Int, step: Int
) -> None:
    """y = sum over taps (i, j) of x[i line + j column] w[i, j], for _PIXELS output pixels `step` floats apart in x."""

    def body(c: Int, count: Any) -> None:
        sums = [code.variable(0.0) for _ in range(_PIXELS)]
        with code.loop(0, taps) as i, code.loop(0, per_line) as j:
            factor = code.load(w, (i * per_line + j) * channels + c, count)
            at = x0 + i * line + j * column + c
            for p, total in enumerate(sums):
                total.set(code.fma(factor, code.load(x, at + step * p, count), total.get()))
        for p, total in enumerate(sums):
            code.store(total.get(), y, y0 + channels * p + c, count)

    over_run(code, channels, body)


@program("piiipiiipiii")
def _tap_sums(
    code: Code, x: Pointer, x0: Int, step: Int, line: Int, dy: Pointer, d0: Int, d_line: Int, lines: Int, dw: Pointer, w0: Int, channels: Int, q: Int
) -> None:
    """dw[w0 + c] += sum over lines and pixels of x dy, for one tap."""

    def body(c: Int, count: Any) -> None:
        total = code.variable(code.load(dw, w0 + c, count))
        with code.loop(0, lines) as i, code.loop(0, q) as j:
            total.set(
                code.fma(code.load(x, x0 + i * line + j * step + c, count), code.load(dy, d0 + i * d_line + j * channels + c, count), total.get())
            )
        code.store(total.get(), dw, w0 + c, count)

    over_run(code, channels, body)


@lru_cache(maxsize=1)
def _forward_kernel() -> Kernel:
    @cpu_kernel("pppg21")
    def depthwise_forward(start, stop, scratch, x, w, y, layer):  # type: ignore[no-untyped-def]
        c, p, q, r, s, sh, sw, dh, dw, padded = layer[2], layer[3], layer[4], layer[5], layer[6], layer[7], layer[8], layer[9], layer[10], layer[13]
        rows, blocks = layer[19], layer[20]
        for chunk in range(start, stop):
            image, first = chunk // blocks, chunk % blocks * rows
            count = min(rows, p - first)
            if count <= 0:
                continue
            _strip(x, scratch, layer, image, first, count)
            for row in range(count):
                for j in range(0, q, _PIXELS):
                    at = min(j, q - _PIXELS)  # the last group overlaps the one before
                    _pixels(scratch, (row * sh * padded + at * sw) * c, dh * padded * c, dw * c, w, r, s,
                            y, ((image * p + first + row) * q + at) * c, c, sw * c)  # fmt: skip

    return depthwise_forward


@lru_cache(maxsize=1)
def _filter_kernel() -> Kernel:
    @cpu_kernel("pppg21ii")
    def depthwise_filter_gradient(start, stop, scratch, x, dy, partial, layer, strips, per_chunk):  # type: ignore[no-untyped-def]
        c, p, q, r, s, sh, sw, dh, dw, padded = layer[2], layer[3], layer[4], layer[5], layer[6], layer[7], layer[8], layer[9], layer[10], layer[13]
        rows, blocks = layer[19], layer[20]
        for chunk in range(start, stop):
            clear(partial, chunk * r * s * c, r * s * c)
            for strip in range(chunk * per_chunk, min((chunk + 1) * per_chunk, strips)):
                image, first = strip // blocks, strip % blocks * rows
                count = min(rows, p - first)
                if count <= 0:
                    continue
                _strip(x, scratch, layer, image, first, count)
                for i in range(r):
                    for j in range(s):
                        _tap_sums(scratch, (i * dh * padded + j * dw) * c, sw * c, sh * padded * c, dy, ((image * p + first) * q) * c, q * c, count,
                                  partial, (chunk * r * s + i * s + j) * c, c, q)  # fmt: skip

    return depthwise_filter_gradient


def _strips(x: np.ndarray, window: Window) -> tuple[Any, int]:
    """The layer with every strip padded (also where it need not be, and to at least _PIXELS columns), and floats of a strip."""
    layer = _layer(x, window, x.shape[3], 1)
    reach = (max(layer.q, _PIXELS) - 1) * layer.sw + (layer.s - 1) * layer.dw + 1
    layer = layer._replace(padded_width=max(layer.padded_width, reach))
    lines = (layer.rows - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
    return layer, lines * layer.padded_width * layer.c


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window) -> Any:
    """y (N, P, Q, C) of contiguous float32 x (N, H, W, C) and w (R, S, 1, C); NotImplemented for very narrow outputs."""
    layer, scratch = _strips(x, window)
    if layer.q < _PIXELS:
        return NotImplemented
    y = memory.empty((x.shape[0], layer.p, layer.q, layer.c), np.float32)
    filters = np.ascontiguousarray(w).reshape(-1)
    parallel(_forward_kernel(), x.shape[0] * layer.blocks, x.reshape(-1), filters, y.reshape(-1), np.array(layer, np.int64), scratch=scratch)
    if b is not None:
        y += b
    return y


def backward_filter(x: np.ndarray, dy: np.ndarray, window: Window) -> np.ndarray:
    """dw (R, S, 1, C) of contiguous float32 x (N, H, W, C) and dy (N, P, Q, C)."""
    layer, scratch = _strips(x, window)
    strips = x.shape[0] * layer.blocks
    chunks = min(_CHUNKS, strips)
    per_chunk = -(-strips // chunks)
    chunks = -(-strips // per_chunk)
    partial = memory.empty((chunks, layer.r, layer.s, 1, layer.c), np.float32)
    arguments = (x.reshape(-1), dy.reshape(-1), partial.reshape(-1), np.array(layer, np.int64), strips, per_chunk)
    parallel(_filter_kernel(), chunks, *arguments, scratch=scratch)
    return partial.sum(0)
