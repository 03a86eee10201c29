"""AdamW, moving average and gradient norm in one pass each over the flat vectors. Bytes per parameter: 24 read, 16 written."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from kernels.core.compile import Kernel, cpu_kernel
from kernels.core.runs import over_run
from kernels.core.simd import Code, Int, Pointer, program, target
from kernels.core.threads import parallel

_CHUNK = 65_536


@program("piip")
def _squares(code: Code, g: Pointer, at: Int, length: Int, sums: Pointer) -> None:
    """sums (one vector) = sum of g^2."""
    total = code.variable(0.0)

    def body(i: Int, rest: Any) -> None:
        value = code.load(g, at + i, rest)
        total.set(code.fma(value, value, total.get()))

    over_run(code, length, body)
    code.store(total.get(), sums)


@lru_cache(maxsize=1)
def _norm_kernel() -> Kernel:
    lanes, run = target().lanes, 1024

    @cpu_kernel("pdi")
    def squared_norm(start, stop, scratch, g, out, n):  # type: ignore[no-untyped-def]
        totals, sums = carray(out, stop), carray(scratch, lanes)
        for chunk in range(start, stop):
            totals[chunk] = 0.0
            for at in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, n), run):
                _squares(g, at, min(run, n - at), scratch)
                for lane in range(lanes):
                    totals[chunk] += sums[lane]

    return squared_norm


def squared_norm(g: np.ndarray) -> Any:
    """As kernels.optimizer.reference.squared_norm."""
    if g.dtype != np.float32 or not g.flags.c_contiguous or not g.size:
        return NotImplemented
    chunks = -(-g.size // _CHUNK)
    out = np.empty(chunks)
    parallel(_norm_kernel(), chunks, g.reshape(-1), out, g.size, scratch=64)
    return out.sum()


# Constants of a step, in the order in which the program reads them.
_CONSTANTS = 8


@lru_cache(maxsize=2)
def _step_kernel(averaged: bool) -> Kernel:
    @program("ppppppiip")
    def step(
        code: Code, p: Pointer, g: Pointer, m: Pointer, v: Pointer, decay: Pointer, average: Pointer, at: Int, length: Int, constants: Pointer
    ) -> None:
        clip, first, second, rate, root, eps, learning_rate, kept = (code.broadcast(constants, k) for k in range(_CONSTANTS))

        def body(i: Int, rest: Any) -> None:
            i = at + i
            gradient = code.load(g, i, rest) * clip
            mean, square, weight = code.load(m, i, rest), code.load(v, i, rest), code.load(p, i, rest)
            mean = code.fma(first, gradient - mean, mean)
            square = code.fma(second, gradient * gradient - square, square)
            weight = weight - learning_rate * code.load(decay, i, rest) * weight
            weight = weight - rate * mean / (code.sqrt(square) * root + eps)
            for value, place in ((mean, m), (square, v), (weight, p)):
                code.store(value, place, i, rest)
            if averaged:
                old = code.load(average, i, rest)
                code.store(code.fma(kept, weight - old, old), average, i, rest)

        over_run(code, length, body)

    @cpu_kernel("pppppppi", "averaged" * averaged)
    def adamw_step(start, stop, scratch, p, g, m, v, decay, average, constants, n):  # type: ignore[no-untyped-def]
        for chunk in range(start, stop):
            at = chunk * _CHUNK
            step(p, g, m, v, decay, average, at, min(_CHUNK, n - at), constants)

    return adamw_step


def adamw_step(
    p: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    decay: np.ndarray,
    average: np.ndarray | None,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    clip: Any,
    average_decay: float,
) -> Any:
    """As kernels.optimizer.reference.adamw_step."""
    vectors = (p, g, m, v, decay, p if average is None else average)
    if any(a.dtype != np.float32 or not a.flags.c_contiguous for a in vectors) or not p.size:
        return NotImplemented
    rate, root = learning_rate / (1 - beta1**step), (1 - beta2**step) ** -0.5
    constants = np.array([clip, 1 - beta1, 1 - beta2, rate, root, eps, learning_rate, 1 - average_decay], np.float32)
    parallel(_step_kernel(average is not None), -(-p.size // _CHUNK), *vectors, constants, p.size)
    return None
