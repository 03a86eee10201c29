"""Y = A X B^T by rows: every output row is a weighted sum of a few input rows (A is sparse), every output pixel of a
few pixels of that.

Bytes per element: the input rows with a nonzero weight read, the output written; the row between the two steps stays in
    the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Float, Int, Pointer, program
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.cpu.vector_ops import clear, vector_loop

_CHUNK = 16_384  # output floats per chunk, about


@program
def _axpy(code: Code, a: Float, x: Pointer, x0: Int, y: Pointer, y0: Int, length: Int) -> None:
    """y += a x."""
    factor = code.splat(a)
    vector_loop(
        code,
        length,
        lambda i, rest: code.store(
            code.fma(factor, code.load(x, x0 + i, rest), code.load(y, y0 + i, rest)), y, y0 + i, rest
        ),
    )


@lru_cache(maxsize=1)
def _kernel() -> Kernel:
    @cpu_kernel()
    def resample2d(
        start,
        stop,
        scratch,
        x: F32,
        a: F32,
        b: F32,
        y: F32,
        lines: int,
        h: int,
        w: int,
        c: int,
        p: int,
        q: int,
        per_chunk: int,
    ):
        rows, columns = carray(a, (p, h)), carray(b, (q, w))
        for line in range(start * per_chunk, min(stop * per_chunk, lines)):
            image = line // p
            row = line % p
            clear(scratch, 0, w * c)
            for i in range(h):
                if rows[row, i] != 0:
                    _axpy(rows[row, i], x, (image * h + i) * w * c, scratch, 0, w * c)
            clear(y, line * q * c, q * c)
            for j in range(q):
                for k in range(w):
                    if columns[j, k] != 0:
                        _axpy(columns[j, k], scratch, k * c, y, (line * q + j) * c, c)

    return resample2d


def resample2d_forward(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> Any:
    """As kernels.resample.reference.resample2d_forward."""
    if x.dtype != np.float32 or not x.size or not len(a) or not len(b):
        return NotImplemented
    x = contiguous(x)
    n, h, w, c = x.shape
    a = np.ascontiguousarray(a, np.float32)
    b = np.ascontiguousarray(b, np.float32)
    p, q = len(a), len(b)
    y = buffer_pool.empty((n, p, q, c), np.float32)
    per = max(1, _CHUNK // (q * c))
    parallel(_kernel(), -(-n * p // per), x.reshape(-1), a.reshape(-1), b.reshape(-1), y.reshape(-1), n * p, h, w, c, p,
             q, per, scratch=w * c)  # fmt: skip
    return y


def resample2d_backward(dy: np.ndarray, a: np.ndarray, b: np.ndarray) -> Any:
    """As kernels.resample.reference.resample2d_backward."""
    return resample2d_forward(dy, a.T, b.T)
