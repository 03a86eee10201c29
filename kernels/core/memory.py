"""Recycled buffers: large NumPy arrays whose memory returns to a pool when the last view of them dies.

A fresh large array costs a page fault per 4 KB (about a millisecond per 16 MB, several when two threads fault at once); a
recycled one costs microseconds. `empty` hands out ordinary NumPy arrays; the pool notices their death by reference
counting, so nothing has to be freed by hand and nothing can be freed too early. Blocks are aligned to 64 bytes and come
in size classes at most 12.5 % apart. Small arrays are not worth it and come from NumPy.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

SMALLEST = 1 << 16  # bytes; below this NumPy's own cache is faster
ALIGNMENT = 64  # bytes; a cache line and an AVX-512 vector


class _Block:
    """Owner of one piece of memory; its death, when the last view is gone, returns the piece to the pool."""

    __slots__ = ("__array_interface__", "memory", "pool", "size")

    def __init__(self, pool: Pool, size: int, memory: np.ndarray) -> None:
        self.pool, self.size, self.memory = pool, size, memory
        address = -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}

    def __del__(self) -> None:
        self.pool._take_back(self.size, self.memory)


class Pool:
    """A pool of recycled blocks. `live` and `peak` count the bytes handed out, `held` those waiting for reuse."""

    def __init__(self) -> None:
        # Reentrant: an allocation under the lock can set off a garbage collection whose dead blocks come back here.
        self._lock = threading.RLock()
        self._free: dict[int, list[np.ndarray]] = {}
        self.live = self.peak = self.held = 0

    @staticmethod
    def size_class(size: int) -> int:
        """Round up to 8 classes per power of two, so that nearly equal sizes share blocks."""
        step = 1 << max(12, size.bit_length() - 4)
        return -(-size // step) * step

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An uninitialised C-contiguous array, from recycled memory when it is large."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype)
        rounded = self.size_class(size)
        with self._lock:
            stack = self._free.get(rounded)
            memory = stack.pop() if stack else None
            if memory is not None:
                self.held -= rounded
            self.live += rounded
            self.peak = max(self.peak, self.live)
        if memory is None:
            memory = np.empty(rounded + ALIGNMENT, np.uint8)
        return np.asarray(_Block(self, rounded, memory))[:size].view(dtype).reshape(shape)

    def _take_back(self, size: int, memory: np.ndarray) -> None:
        with self._lock:
            self._free.setdefault(size, []).append(memory)
            self.live -= size
            self.held += size

    def release(self) -> None:
        """Give all waiting blocks back to the system."""
        with self._lock:
            self._free.clear()
            self.held = 0

    def reset_peak(self) -> None:
        """Start a new measurement of `peak`."""
        self.peak = self.live


pool = Pool()
empty = pool.empty


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """`empty`, filled with zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array
