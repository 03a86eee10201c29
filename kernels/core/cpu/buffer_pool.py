"""Recycled buffers: large NumPy arrays whose memory is used again when the last view of them is gone.

A fresh large array costs a page fault per 4 KB (about a millisecond per 16 MB, several when two threads fault at once);
a recycled one costs a microsecond. `empty` hands out ordinary NumPy arrays: views of blocks that the pool keeps. A
block is free when the pool's is the only reference to it, so nothing has to be freed by hand and nothing can be freed
too early. Blocks are aligned to 64 bytes and come in size classes at most 12.5 % apart. Small arrays are not worth it
and come from NumPy.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

SMALLEST = 1 << 16  # bytes; below this NumPy's own cache is faster
ALIGNMENT = 64  # bytes; a cache line and an AVX-512 vector
HUGE_PAGE = 1 << 21  # bytes
# bytes of memory that small blocks are cut from; it goes back to the system with the last of them
_SHARED = 8 * HUGE_PAGE
_SLACK = 4  # a free block may be this many times larger than the request


def _references_of_a_free_block() -> int:
    """What getrefcount counts for a block that nobody uses: the pool's reference and the argument's. It is measured,
    since interpreters differ in what they count: from 3.14 on a local variable lends its reference to the call. So
    blocks are counted where they lie, `entry[0]`, never through a variable.
    """
    entry = (np.empty(1, np.uint8), 0)
    return sys.getrefcount(entry[0])


_FREE = _references_of_a_free_block()


class _Slab:
    """Memory of the system in huge pages (fewer TLB misses), handed out from its start."""

    def __init__(self, size: int) -> None:
        try:
            self.memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"memory: the system has no {size} bytes") from error
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.used = -np.frombuffer(self.memory, np.uint8).__array_interface__["data"][0] % HUGE_PAGE
        self.end = self.used + size

    def block(self, size: int) -> np.ndarray:
        """The next `size` bytes as an array of its own: a view would count the references of the array that it is a
        view of.
        """
        self.used += size
        return np.frombuffer(self.memory, np.uint8, size, self.used - size)


class Pool:
    """A pool of recycled blocks. `peak` counts the bytes of all blocks at their most. smallest: bytes from which on
    arrays come from it.
    """

    def __init__(self, smallest: int = SMALLEST) -> None:
        self._lock = threading.Lock()
        self._smallest = smallest
        self._blocks: dict[
            int, list[tuple[np.ndarray, int]]
        ] = {}  # by size class: blocks and where they are aligned, the last one used last
        self._bytes = self.peak = 0
        self._slab: _Slab | None = None  # what blocks below a huge page are cut from

    @staticmethod
    def size_class(size: int) -> int:
        """Round up to 8 classes per power of two, so that nearly equal sizes share blocks."""
        step = 1 << max(12, size.bit_length() - 4)
        return -(-size // step) * step

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An uninitialised C-contiguous array, from recycled memory when it is large."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < self._smallest:
            return np.empty(shape, dtype)
        rounded = self.size_class(size)
        with self._lock:
            block, start = self._free(rounded) or self._free_larger(rounded) or self._new(rounded)
            return block[start : start + size].view(dtype).reshape(shape)

    def _free(self, size: int) -> tuple[np.ndarray, int] | None:
        """A free block of this size class: the one that was used last."""
        blocks = self._blocks.get(size, [])
        for k in range(len(blocks) - 1, -1, -1):
            entry = blocks[k]
            if sys.getrefcount(entry[0]) == _FREE:
                if k < len(blocks) - 1:
                    blocks.append(blocks.pop(k))
                return entry
        return None

    def _free_larger(self, size: int) -> tuple[np.ndarray, int] | None:
        """A free block of the next larger classes, up to _SLACK times the size: fewer blocks wait for an array of just
        their size.
        """
        for other in sorted(s for s in self._blocks if size < s <= _SLACK * size):
            found = self._free(other)
            if found:
                return found
        return None

    def _new(self, size: int) -> tuple[np.ndarray, int]:
        block, start = self._fresh(size)
        self._blocks.setdefault(size, []).append((block, start))
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        return block, start

    def _fresh(self, size: int) -> tuple[np.ndarray, int]:
        """A new block and where in it `size` aligned bytes begin. A large one has huge pages of its own, small ones
        share them.
        """
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            block = np.empty(size + ALIGNMENT, np.uint8)
            return block, -block.__array_interface__["data"][0] % ALIGNMENT
        if size >= HUGE_PAGE:
            return _Slab(size).block(size), 0
        if self._slab is None or self._slab.used + size > self._slab.end:
            self._slab = _Slab(_SHARED)
        return self._slab.block(size), 0

    def owns(self, array: np.ndarray) -> bool:
        """Whether the array's memory is one of this pool's blocks."""
        with self._lock:
            return any(block is array.base for blocks in self._blocks.values() for block, _ in blocks)

    @property
    def references(self) -> int:
        """How many references the blocks have besides the pool's own."""
        with self._lock:
            return sum(sys.getrefcount(entry[0]) - _FREE for blocks in self._blocks.values() for entry in blocks)

    @property
    def largest(self) -> int:
        """Bytes of the largest block."""
        with self._lock:
            return max((size for size, blocks in self._blocks.items() if blocks), default=0)

    @property
    def live(self) -> int:
        """Bytes of the blocks in use."""
        with self._lock:
            return sum(
                size for size, blocks in self._blocks.items() for entry in blocks if sys.getrefcount(entry[0]) != _FREE
            )

    @property
    def held(self) -> int:
        """Bytes of the blocks that wait for their next use."""
        return self._bytes - self.live

    def release(self) -> None:
        """Give all waiting blocks back to the system."""
        with self._lock:
            for size, blocks in self._blocks.items():
                kept = [entry for entry in blocks if sys.getrefcount(entry[0]) != _FREE]
                self._bytes -= size * (len(blocks) - len(kept))
                self._blocks[size] = kept


pool = Pool()


class _Current(threading.local):
    pool = pool


_current = _Current()


def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """`Pool.empty` of the calling thread's pool: the common one, unless within `use_pool`."""
    return _current.pool.empty(shape, dtype)


@contextlib.contextmanager
def use_pool(other: Pool) -> Iterator[None]:
    """Within the block this thread's arrays come from another pool."""
    before = _current.pool
    _current.pool = other
    try:
        yield
    finally:
        _current.pool = before


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """`empty`, filled with zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array
