"""Counter-based random numbers: Philox 4x32-10, the same bits on every device.

A stream is a pair (seed, offset) of 64-bit integers and nothing else: the i-th block of four 32-bit words is a pure
function of (seed, offset, i). So random masks need not be stored (backward makes them again), checkpoints restore the
stream by writing two integers, and work can be split over threads or GPU blocks in any way.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # golden ratio, sqrt(3) - 1
_MASK = 0xFFFFFFFF
ROUNDS = 10


def philox(counter: Any, key: tuple[int, int], xp: Any = np) -> Any:
    """Ten Philox rounds. counter: uint32 (4, ...), key: two ints below 2^32 -> uint32 (4, ...), uniform bits.

    One round: (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)); the key grows by
    the Weyl constants after each round.
    """
    c0, c1, c2, c3 = (counter[i].astype(xp.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (product1 >> 32) ^ c1 ^ k0
        c1 = product1 & _MASK
        c2 = (product0 >> 32) ^ c3 ^ k1
        c3 = product0 & _MASK
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return xp.stack([c0, c1, c2, c3]).astype(xp.uint32)


def random_words(seed: int, offset: int, count: int, xp: Any = np) -> Any:
    """`count` uint32 words of the stream (seed, offset): word 4 i + j is lane j of block i."""
    blocks = -(-count // 4)
    index = xp.arange(blocks, dtype=xp.uint64)
    counter = xp.empty((4, blocks), xp.uint32)
    counter[0] = (index & _MASK).astype(xp.uint32)
    counter[1] = (index >> 32).astype(xp.uint32)
    counter[2] = offset & _MASK
    counter[3] = offset >> 32 & _MASK
    return philox(counter, (seed & _MASK, seed >> 32 & _MASK), xp).T.reshape(-1)[:count]


def uniform(seed: int, offset: int, shape: tuple[int, ...], xp: Any = np) -> Any:
    """float32 in [0, 1) on a grid of 2^-24, exact in every float dtype: (word >> 8) 2^-24."""
    count = 1
    for n in shape:
        count *= n
    return ((random_words(seed, offset, count, xp) >> 8).astype(xp.float32) * 2.0**-24).reshape(shape)


def words_of(number: int) -> tuple[int, int]:
    """The lower and the upper 32 bits."""
    return number & _MASK, number >> 32 & _MASK


@dataclass
class Stream:
    """A position in the random stream. Each draw takes one offset, whatever its size."""

    seed: int = 0
    offset: int = 0

    def next(self) -> tuple[int, int]:
        """(seed, offset) for one draw; advances the stream."""
        self.offset += 1
        return self.seed, self.offset - 1

    def generator(self) -> np.random.Generator:
        """A NumPy generator keyed by one draw, for host-side sampling (orders, parameters of augmentation)."""
        seed, offset = self.next()
        return np.random.Generator(np.random.Philox(key=(seed & (2**64 - 1)) | (offset << 64)))
