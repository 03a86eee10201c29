"""AdamW, SGD, moving average and gradient norm in one pass each over the flat vectors. Bytes per parameter: 20 read, 16
written.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from kernels.core.cpu.arguments import F32, F64, I64, Arrays
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear, copy_rows, vector_loop
from kernels.optimizer.layout import LINE

_CHUNK = 65_536
_LINE_BITS = LINE.bit_length() - 1


@program
def _squares(code: Code, g: Pointer, at: Int, length: Int, sums: Pointer) -> None:
    """sums (one vector) = sum of g^2."""
    total = code.variable(0.0)

    def body(i: Int, rest: Any) -> None:
        value = code.load(g, at + i, rest)
        total.set(code.fma(value, value, total.get()))

    vector_loop(code, length, body)
    code.store(total.get(), sums)


@lru_cache(maxsize=1)
def _norm_kernel() -> Kernel:
    lanes = target().lanes
    run = 1024

    @cpu_kernel()
    def squared_norm(start, stop, scratch, g: F32, out: F64, n: int):
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


def _decay_at(code: Code, decay: Pointer, i: Int) -> Any:
    """The weight decay of the line of parameters that begins at i, in all lanes."""
    return code.broadcast(decay, code.shifted(i, _LINE_BITS))


# Constants of a step, in the order in which the program reads them.
_CONSTANTS = 8
_SGD_CONSTANTS = 5


@lru_cache(maxsize=2)
def _step_kernel(averaged: bool) -> Kernel:
    @program
    def step(
        code: Code,
        p: Pointer,
        g: Pointer,
        m: Pointer,
        v: Pointer,
        decay: Pointer,
        average: Pointer,
        at: Int,
        length: Int,
        constants: Pointer,
    ) -> None:
        clip, first, second, rate, root, eps, learning_rate, kept = (
            code.broadcast(constants, k) for k in range(_CONSTANTS)
        )

        def body(i: Int, rest: Any) -> None:
            i = at + i
            gradient = code.load(g, i, rest) * clip
            mean, square, weight = code.load(m, i, rest), code.load(v, i, rest), code.load(p, i, rest)
            mean = code.fma(first, gradient - mean, mean)
            square = code.fma(second, gradient * gradient - square, square)
            weight = weight - learning_rate * _decay_at(code, decay, i) * weight
            weight = weight - rate * mean / (code.sqrt(square) * root + eps)
            for value, place in ((mean, m), (square, v), (weight, p)):
                code.store(value, place, i, rest)
            if averaged:
                old = code.load(average, i, rest)
                code.store(code.fma(kept, weight - old, old), average, i, rest)

        vector_loop(code, length, body)

    @cpu_kernel("averaged" * averaged)
    def adamw_step(
        start, stop, scratch, p: F32, g: F32, m: F32, v: F32, decay: F32, average: F32, constants: F32, n: int
    ):
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
    if (
        decay.size != -(-p.size // LINE)
        or any(a.dtype != np.float32 or not a.flags.c_contiguous for a in vectors)
        or not p.size
    ):
        return NotImplemented
    rate = learning_rate / (1 - beta1**step)
    root = (1 - beta2**step) ** -0.5
    constants = np.array([clip, 1 - beta1, 1 - beta2, rate, root, eps, learning_rate, 1 - average_decay], np.float32)
    parallel(_step_kernel(average is not None), -(-p.size // _CHUNK), *vectors, constants, p.size)
    return None


@lru_cache(maxsize=8)
def _sgd_kernel(momentum: bool, nesterov: bool, averaged: bool) -> Kernel:
    @program
    def step(
        code: Code,
        p: Pointer,
        g: Pointer,
        buffer: Pointer,
        decay: Pointer,
        average: Pointer,
        at: Int,
        length: Int,
        constants: Pointer,
    ) -> None:
        clip, kept_momentum, fresh, learning_rate, kept = (code.broadcast(constants, k) for k in range(_SGD_CONSTANTS))

        def body(i: Int, rest: Any) -> None:
            i = at + i
            weight = code.load(p, i, rest)
            d = code.fma(_decay_at(code, decay, i), weight, code.load(g, i, rest) * clip)
            if momentum:
                speed = code.fma(kept_momentum, code.load(buffer, i, rest), fresh * d)
                code.store(speed, buffer, i, rest)
                d = code.fma(kept_momentum, speed, d) if nesterov else speed
            weight = weight - learning_rate * d
            code.store(weight, p, i, rest)
            if averaged:
                old = code.load(average, i, rest)
                code.store(code.fma(kept, weight - old, old), average, i, rest)

        vector_loop(code, length, body)

    @cpu_kernel("momentum" * momentum + "nesterov" * nesterov + "averaged" * averaged)
    def sgd_step(start, stop, scratch, p: F32, g: F32, buffer: F32, decay: F32, average: F32, constants: F32, n: int):
        for chunk in range(start, stop):
            at = chunk * _CHUNK
            step(p, g, buffer, decay, average, at, min(_CHUNK, n - at), constants)

    return sgd_step


def sgd_step(
    p: np.ndarray,
    g: np.ndarray,
    buffer: np.ndarray | None,
    decay: np.ndarray,
    average: np.ndarray | None,
    *,
    learning_rate: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    clip: Any,
    average_decay: float,
) -> Any:
    """As kernels.optimizer.reference.sgd_step."""
    vectors = (p, g, p if buffer is None else buffer, decay, p if average is None else average)
    if (
        decay.size != -(-p.size // LINE)
        or any(a.dtype != np.float32 or not a.flags.c_contiguous for a in vectors)
        or not p.size
    ):
        return NotImplemented
    constants = np.array([clip, momentum, 1 - dampening, learning_rate, 1 - average_decay], np.float32)
    kernel = _sgd_kernel(buffer is not None, buffer is not None and nesterov, average is not None)
    parallel(kernel, -(-p.size // _CHUNK), *vectors, constants, p.size)
    return None


# -- gathering ---------------------------------------------------------------------------------------------------------

_PARTS = 32  # of one launch; a launch of that many takes 7 microseconds
_PIECE = 16_384  # floats
_WORDS = 7  # of a piece
_SOURCES = Arrays(_PARTS)


@lru_cache(maxsize=1)
def _gather_kernel() -> Kernel:
    @cpu_kernel()
    def gather(start, stop, _scratch, pieces: I64, out: F32, parts: _SOURCES):
        for k in range(start * _WORDS, stop * _WORDS, _WORDS):
            part, begin, at, rows, columns, down, across = (
                pieces[k], pieces[k + 1], pieces[k + 2], pieces[k + 3], pieces[k + 4], pieces[k + 5], pieces[k + 6],
            )  # fmt: skip
            if part < 0:
                clear(out, at, rows * columns)
            elif across == 1:
                copy_rows(parts[part], begin, down, out, at, columns, columns, rows)
            else:
                source = parts[part]
                for first in range(0, columns, LINE):  # that many lines of the source stay in the L1 cache
                    for i in range(rows):
                        for j in range(first, min(first + LINE, columns)):
                            out[at + i * columns + j] = source[begin + i * down + j * across]

    return gather


Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape, and strides in floats


@lru_cache(maxsize=256)
def _pieces(
    offsets: tuple[int, ...], sizes: tuple[int, ...], layouts: tuple[Layout | tuple[()] | None, ...], room: int
) -> np.ndarray | None:
    """Pieces of about _PIECE floats: (part or -1, first float in it, place in the vector, rows, columns, from row to
    row, from column to column).

    layouts: () is a contiguous part, None a missing one. None where a part does not fit into the vector.
    """
    pieces = []
    for part, (at, size, layout) in enumerate(zip(offsets, sizes, layouts, strict=True)):
        if not 0 <= at <= room - size:
            return None
        (*lead, rows, columns), steps = layout or ((1, size), (0, 1))
        wide = max(1, min(columns, _PIECE) if rows == 1 else columns)
        high = max(1, _PIECE // wide)
        for index in np.ndindex(*lead):
            begin = sum(i * step for i, step in zip(index, steps, strict=False))
            for row, column in itertools.product(range(0, rows, high), range(0, columns, wide)):
                place = begin + row * steps[-2] + column * steps[-1]
                count = min(high, rows - row), min(wide, columns - column)
                pieces.append((-1 if layout is None else part, place, at + row * columns + column, *count, *steps[-2:]))
            at += rows * columns
    return np.array(pieces, np.int64).reshape(-1)


def gather(parts: Sequence[np.ndarray | None], out: np.ndarray, offsets: Sequence[int], sizes: Sequence[int]) -> Any:
    """As kernels.optimizer.reference.gather, for parts without gaps, their axes in any order."""
    dtype = out.dtype
    flat = []
    layouts = []
    for part, size in zip(parts, sizes, strict=True):
        layout: Layout | tuple[()] | None = None if part is None else ()
        if part is None:
            lies = out
        elif part.size != size or part.dtype != dtype:
            return NotImplemented
        elif part.flags.c_contiguous:
            lies = part.reshape(-1)
        else:
            ordered = part.transpose(sorted(range(part.ndim), key=part.strides.__getitem__, reverse=True))
            if not ordered.flags.c_contiguous:
                return NotImplemented
            lies = ordered.reshape(-1)
            layout = (part.shape, tuple(step // 4 for step in part.strides))
        flat.append(lies)
        layouts.append(layout)
    tables = []
    for first in range(0, len(parts), _PARTS):
        some = slice(first, first + _PARTS)
        tables.append(_pieces(tuple(offsets[some]), tuple(sizes[some]), tuple(layouts[some]), out.size))
    if dtype != np.float32 or not out.flags.c_contiguous or any(table is None for table in tables):
        return NotImplemented
    for k, table in enumerate(tables):
        given = flat[k * _PARTS : (k + 1) * _PARTS]
        parallel(_gather_kernel(), len(table) // _WORDS, table, out, [*given, *[out] * (_PARTS - len(given))])
    return None
