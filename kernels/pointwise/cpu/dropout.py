"""Fast dropout, float32: as many Philox blocks at once as a vector has lanes, their words then in the order of the
elements.

A block is ten rounds of two 32-bit products, some 60 instructions for four numbers; written for vectors, that is what a
few numbers from memory cost.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, I64
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Condition, Float, Int, Pointer, program
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.dispatch import mark_random_input
from kernels.core.random import MULTIPLIERS, ROUNDS, WEYL, words_of

_BLOCKS = 8192  # Philox blocks of four words per chunk
_WORD, _LONG = ir.IntType(32), ir.IntType(64)


class _Words:
    """Vectors of 32-bit and 64-bit words, for a vector program."""

    def __init__(self, code: Code) -> None:
        self.builder = code.builder
        self.lanes = code.lanes
        self.words = ir.VectorType(_WORD, code.lanes)
        self.longs = ir.VectorType(_LONG, code.lanes)

    def constant(self, kind: ir.VectorType, *values: Any) -> ir.Constant:
        """Numbers for the lanes, or one for all."""
        return ir.Constant(kind, list(values) if len(values) > 1 else [values[0]] * self.lanes)

    def splat(self, value: Int) -> ir.Value:
        """The lower half of an integer in all lanes."""
        return self.builder.trunc(self.splat_long(value), self.words)

    def splat_long(self, value: Int) -> ir.Value:
        """An integer in all lanes."""
        first = self.builder.insert_element(ir.Constant(self.longs, ir.Undefined), value.value, _WORD(0))
        return self.builder.shuffle_vector(
            first, ir.Constant(self.longs, ir.Undefined), ir.Constant(self.words, [0] * self.lanes)
        )

    def product(self, a: ir.Value, factor: int) -> tuple[ir.Value, ir.Value]:
        """The upper and the lower half of a times a constant."""
        whole = self.builder.mul(self.builder.zext(a, self.longs), self.constant(self.longs, factor))
        return self.builder.trunc(
            self.builder.lshr(whole, self.constant(self.longs, 32)), self.words
        ), self.builder.trunc(whole, self.words)

    def philox(self, block: Int, low: Int, high: Int, keys: tuple[Int, Int]) -> list[ir.Value]:
        """The four words of as many blocks as there are lanes, from number `block` on."""
        numbers = self.builder.add(self.splat_long(block), self.constant(self.longs, *range(self.lanes)))
        c0 = self.builder.trunc(numbers, self.words)
        c1 = self.builder.trunc(self.builder.lshr(numbers, self.constant(self.longs, 32)), self.words)
        c2, c3 = self.splat(low), self.splat(high)
        k0, k1 = (self.splat(key) for key in keys)
        for _ in range(ROUNDS):
            high0, low0 = self.product(c0, MULTIPLIERS[0])
            high1, low1 = self.product(c2, MULTIPLIERS[1])
            c0 = self._mixed(high1, c1, k0)
            c1 = low1
            c2 = self._mixed(high0, c3, k1)
            c3 = low0
            k0, k1 = (
                self.builder.add(k, self.constant(self.words, step)) for k, step in zip((k0, k1), WEYL, strict=True)
            )
        return [c0, c1, c2, c3]

    def _mixed(self, *words: ir.Value) -> ir.Value:
        return self.builder.xor(self.builder.xor(words[0], words[1]), words[2])

    def interleaved(self, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
        """a0, b0, a1, b1, ... in two vectors."""
        order = [k // 2 + k % 2 * self.lanes for k in range(2 * self.lanes)]
        first, second = (ir.Constant(self.words, half) for half in (order[: self.lanes], order[self.lanes :]))
        return self.builder.shuffle_vector(a, b, first), self.builder.shuffle_vector(a, b, second)


@program
def _drop(
    code: Code,
    x: Pointer,
    y: Pointer,
    first: Int,
    last: Int,
    n: Int,
    low: Int,
    high: Int,
    key0: Int,
    key1: Int,
    least: Int,
    scale: Float,
) -> None:
    """The elements of the blocks first .. last: y = x scale where the upper 24 bits of their word are `least` or more,
    else 0 x.
    """
    words = _Words(code)
    factor = code.splat(scale)

    def vectors(block: Int, rest: bool) -> None:
        w0, w1, w2, w3 = words.philox(block, low, high, (key0, key1))
        pairs = zip(words.interleaved(w0, w2), words.interleaved(w1, w3), strict=True)
        for k, word in enumerate(w for pair in pairs for w in words.interleaved(*pair)):
            at = block * 4 + k * code.lanes
            count = n - at if rest else None
            top_bits = code.builder.lshr(word, words.constant(words.words, 8))
            kept = Condition(code, code.builder.icmp_unsigned(">=", top_bits, words.splat(least)))
            code.store(code.load(x, at, count) * code.select(kept, factor, 0), y, at, count)

    whole = code.lesser(last, code.shifted(n, 2))
    whole = first + code.rounded_down(whole - first)
    with code.loop(first, whole, code.lanes) as block:
        vectors(block, False)
    with code.loop(whole, last, code.lanes) as block:
        vectors(block, True)


@lru_cache(maxsize=1)
def _dropout_kernel() -> Kernel:
    @cpu_kernel()
    def dropout(
        start, stop, scratch, x: F32, y: F32, key0: int, key1: int, offset: I64, threshold: int, n: int, scale: float
    ):
        last = min(stop * _BLOCKS, (n + 3) // 4)
        _drop(x, y, start * _BLOCKS, last, n, offset[0], offset[1], key0, key1, threshold, scale)

    return dropout


def dropout_forward(x: np.ndarray, p: float, seed: int, offset: int) -> Any:
    """As kernels.pointwise.reference.dropout_forward: the same Philox bits."""
    if x.dtype != np.float32 or not x.size:
        return NotImplemented
    x = contiguous(x)
    y = buffer_pool.empty(x.shape, np.float32)
    place = np.array(words_of(offset), np.int64)
    mark_random_input(place, offset)
    blocks = -(-x.size // 4)
    threshold = math.ceil(float(np.float32(p)) * 2**24)  # keep when (word >> 8) >= p 2^24
    parallel(
        _dropout_kernel(),
        -(-blocks // _BLOCKS),
        x.reshape(-1),
        y.reshape(-1),
        *words_of(seed),
        place,
        threshold,
        x.size,
        1 / (1 - p),
    )
    return y
