"""Fast gates with one gate per pixel: sigmoids for a block of pixels at once, then a run of channels per pixel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.core import memory
from kernels.core.compile import Kernel, cpu_kernel
from kernels.core.runs import over_run
from kernels.core.simd import Code, Int, Pointer, program
from kernels.core.threads import contiguous, parallel

_BLOCK = 512  # pixels


@program("pipi")
def _sigmoids(code: Code, z: Pointer, z0: Int, s: Pointer, length: Int) -> None:
    """s = sigmoid(z)."""
    over_run(code, length, lambda i, rest: code.store(code.sigmoid(code.load(z, z0 + i, rest)), s, i, rest))


@program("pipipi")
def _scale(code: Code, x: Pointer, x0: Int, s: Pointer, pixel: Int, y: Pointer, channels: Int) -> None:
    """y = x s[pixel]."""
    factor = code.broadcast(s, pixel)
    over_run(code, channels, lambda c, rest: code.store(code.load(x, x0 + c, rest) * factor, y, x0 + c, rest))


@program("ppippii")
def _scale_and_dot(code: Code, dy: Pointer, x: Pointer, x0: Int, s: Pointer, dx: Pointer, pixel: Int, channels: Int) -> None:
    """dx = dy s[pixel], s[_BLOCK + pixel] = <dy, x>."""
    factor, total = code.broadcast(s, pixel), code.variable(0.0)

    def body(c: Int, rest: Any) -> None:
        gradient = code.load(dy, x0 + c, rest)
        code.store(gradient * factor, dx, x0 + c, rest)
        total.set(code.fma(gradient, code.load(x, x0 + c, rest), total.get()))

    over_run(code, channels, body)
    code.store(code.total(total.get()), s, pixel + _BLOCK, code.int(1))


@program("ppii")
def _gate_gradients(code: Code, s: Pointer, dz: Pointer, z0: Int, length: Int) -> None:
    """dz = <dy, x> s (1 - s)."""

    def body(i: Int, rest: Any) -> None:
        value = code.load(s, i, rest)
        code.store(code.load(s, i + _BLOCK, rest) * value * (1 - value), dz, z0 + i, rest)

    over_run(code, length, body)


@lru_cache(maxsize=1)
def _forward_kernel() -> Kernel:
    @cpu_kernel("pppii")
    def gate_forward(start, stop, scratch, x, z, y, pixels, channels):  # type: ignore[no-untyped-def]
        for block in range(start, stop):
            first = block * _BLOCK
            count = min(_BLOCK, pixels - first)
            _sigmoids(z, first, scratch, count)
            for i in range(count):
                _scale(x, (first + i) * channels, scratch, i, y, channels)

    return gate_forward


@lru_cache(maxsize=1)
def _backward_kernel() -> Kernel:
    @cpu_kernel("pppppii")
    def gate_backward(start, stop, scratch, dy, x, z, dx, dz, pixels, channels):  # type: ignore[no-untyped-def]
        for block in range(start, stop):
            first = block * _BLOCK
            count = min(_BLOCK, pixels - first)
            _sigmoids(z, first, scratch, count)
            for i in range(count):
                _scale_and_dot(dy, x, (first + i) * channels, scratch, dx, i, channels)
            _gate_gradients(scratch, dz, first, count)

    return gate_backward


def _single(x: np.ndarray, z: np.ndarray) -> bool:
    return x.dtype == z.dtype == np.float32 and z.shape[-1] == 1 and x.size > 0


def gate_forward(x: np.ndarray, z: np.ndarray) -> Any:
    """As kernels.gate.reference.gate_forward, for one gate per pixel."""
    if not _single(x, z):
        return NotImplemented
    y, channels = memory.empty(x.shape, np.float32), x.shape[-1]
    flat = contiguous(x).reshape(-1), contiguous(z).reshape(-1), y.reshape(-1)
    parallel(_forward_kernel(), -(-z.size // _BLOCK), *flat, z.size, channels, scratch=_BLOCK)
    return y


def gate_backward(dy: np.ndarray, x: np.ndarray, z: np.ndarray) -> Any:
    """As kernels.gate.reference.gate_backward, for one gate per pixel."""
    if not _single(x, z) or dy.dtype != np.float32:
        return NotImplemented
    dx, dz = memory.empty(x.shape, np.float32), memory.empty(z.shape, np.float32)
    flat = [contiguous(a).reshape(-1) for a in (dy, x, z)]
    parallel(_backward_kernel(), -(-z.size // _BLOCK), *flat, dx.reshape(-1), dz.reshape(-1), z.size, x.shape[-1], scratch=2 * _BLOCK)
    return dx, dz
