"""Fast softmax and log-softmax over the last axis, float32, and their gradients: a row is read from memory once, then
it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.thread_pool import flat, parallel
from kernels.core.cpu.vector_ops import vector_loop, vector_sum

_CHUNK = 65_536  # floats


def _make_softmax(logarithm: bool) -> Callable[..., None]:
    @program
    def softmax(code: Code, x: Pointer, x0: Int, y: Pointer, y0: Int, length: Int) -> None:
        """y = e^(x - max) / sum e^(x - max), or its logarithm. y may be x."""
        top = code.variable(float("-inf"))
        total = code.variable(0.0)
        vector_loop(
            code,
            length,
            lambda i, rest: top.set(
                code.maximum(code.kept(code.load(x, x0 + i, rest), rest, float("-inf")), top.get())
            ),
        )
        largest = code.largest(top.get())

        def exponentials(i: Int, rest: Any) -> None:
            e = code.exp(code.load(x, x0 + i, rest) - largest)
            total.set(total.get() + code.kept(e, rest))
            if not logarithm:
                code.store(e, y, y0 + i, rest)

        vector_loop(code, length, exponentials)
        whole = code.total(total.get())
        if logarithm:
            size = code.log(whole)
            vector_loop(
                code, length, lambda i, rest: code.store(code.load(x, x0 + i, rest) - largest - size, y, y0 + i, rest)
            )
        else:
            vector_loop(code, length, lambda i, rest: code.store(code.load(y, y0 + i, rest) / whole, y, y0 + i, rest))

    return softmax


def _make_gradient(logarithm: bool) -> Callable[..., None]:
    @program
    def gradient(code: Code, dy: Pointer, d0: Int, y: Pointer, y0: Int, dx: Pointer, x0: Int, length: Int) -> None:
        """dx = y (dy - <y, dy>), or of the logarithm: dx = dy - e^y sum(dy). dx may be dy."""

        def add(sums: Vec, i: Int, rest: Any) -> Vec:
            value = code.load(dy, d0 + i, rest)
            return sums + value if logarithm else code.fma(code.load(y, y0 + i, rest), value, sums)

        total = vector_sum(code, length, add)

        def subtract(i: Int, rest: Any) -> None:
            value = code.load(dy, d0 + i, rest)
            out = code.load(y, y0 + i, rest)
            code.store(code.fma(-code.exp(out), total, value) if logarithm else out * (value - total), dx, x0 + i, rest)

        vector_loop(code, length, subtract)

    return gradient


softmax, softmax_gradient = _make_softmax(False), _make_gradient(False)


@lru_cache(maxsize=2)
def _forward_kernel(logarithm: bool) -> Kernel:
    row = _make_softmax(True) if logarithm else softmax

    @cpu_kernel(f"{logarithm}")
    def softmax_forward(start, stop, scratch, x: F32, y: F32, rows: int, length: int, rows_per_chunk: int):
        for i in range(start * rows_per_chunk, min(stop * rows_per_chunk, rows)):
            row(x, i * length, y, i * length, length)

    return softmax_forward


@lru_cache(maxsize=2)
def _backward_kernel(logarithm: bool) -> Kernel:
    row = _make_gradient(True) if logarithm else softmax_gradient

    @cpu_kernel(f"{logarithm}")
    def softmax_backward(start, stop, scratch, dy: F32, y: F32, dx: F32, rows: int, length: int, rows_per_chunk: int):
        for i in range(start * rows_per_chunk, min(stop * rows_per_chunk, rows)):
            row(dy, i * length, y, i * length, dx, i * length, length)

    return softmax_backward


def _rowwise(kernel: Callable[[bool], Kernel], logarithm: bool, axis: int, *arrays: np.ndarray) -> Any:
    first = arrays[0]
    if axis not in (-1, first.ndim - 1) or not first.size or any(a.dtype != np.float32 for a in arrays):
        return NotImplemented
    out = buffer_pool.empty(first.shape, np.float32)
    length = first.shape[-1]
    rows = first.size // length
    rows_per_chunk = max(1, _CHUNK // length)
    parallel(kernel(logarithm), -(-rows // rows_per_chunk), *flat(*arrays, out), rows, length, rows_per_chunk)
    return out


def softmax_forward(x: np.ndarray, axis: int) -> Any:
    """As kernels.pointwise.reference.softmax_forward, over the last axis; likewise all functions below."""
    return _rowwise(_forward_kernel, False, axis, x)


def softmax_backward(dy: np.ndarray, y: np.ndarray, axis: int) -> Any:
    """dx = y (dy - sum(dy y))."""
    return _rowwise(_backward_kernel, False, axis, dy, y)


def log_softmax_forward(x: np.ndarray, axis: int) -> Any:
    """y = x - max - log sum e^(x - max)."""
    return _rowwise(_forward_kernel, True, axis, x)


def log_softmax_backward(dy: np.ndarray, y: np.ndarray, axis: int) -> Any:
    """dx = dy - e^y sum(dy)."""
    return _rowwise(_backward_kernel, True, axis, dy, y)
