"""Held arrays: within a block nobody can write to them, so packed and folded filters and captured graphs may be kept.

    with holding():                                     # autograd.inference() does this
        number = current().number(array)                # array is read-only from here to the end of the block: NumPy
        raises on a write
                                                        # equal numbers: the same contents, also in another block

Outside of a block writes to an array cannot be seen. So the array is compared once, with a copy, when the next block
first uses it. A block belongs to its thread; blocks within it are part of it. An array is writeable again when the last
block that holds it ends. CuPy arrays cannot be made read-only: in every block they get a new number, and a write within
the block is seen only if it goes through a Tensor (`add_`, `copy_`, `touch`). Views that were made before the block
stay writeable: nobody may write through them within it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from typing import Any

import numpy as np

from kernels.core.device import Array

_memcmp = (ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_lock = threading.RLock()
_numbers = itertools.count(1)
_known: dict[int, _Contents] = {}  # by the id of the array, for as long as it lives
_waiting: list[np.ndarray] = []  # to be writeable again as soon as what they are views of is


class _Contents:
    """The record of an array: a copy of its contents, their number, how many blocks hold it, and whether it was
    writeable before.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.copy = array.copy()
        self.number = next(_numbers)
        self.holders = 0
        self.writeable = True
        weakref.finalize(array, _known.pop, id(array), None).atexit = False

    def compare(self, array: np.ndarray) -> None:
        if array.shape != self.copy.shape or array.dtype != self.copy.dtype or not _same_bits(array, self.copy):
            self.copy = array.copy()
            self.number = next(_numbers)


class Block:
    """The outermost block of a thread. entries: what caches store for the rest of the block, by their ids."""

    def __init__(self) -> None:
        self.entries: dict[int, Any] = {}
        self._held: dict[int, np.ndarray] = {}
        self._asked: dict[int, tuple[Array, int, int]] = {}

    def number(self, array: Array, version: int = 0) -> int:
        """Hold the array until the block ends. The number identifies its contents; when `version` changes, they are
        compared again.
        """
        asked = self._asked.get(id(array))
        if asked is not None and asked[1] == version:
            return asked[2]
        number = self._look(array) if isinstance(array, np.ndarray) else next(_numbers)
        self._asked[id(array)] = array, version, number
        return number

    def _look(self, array: np.ndarray) -> int:
        with _lock:
            contents = _known.get(id(array))
            if contents is None:
                contents = _known[id(array)] = _Contents(array)
            if id(array) not in self._held:
                self._held[id(array)] = array
                if not contents.holders:
                    contents.writeable = array.flags.writeable or any(a is array for a in _waiting)
                    array.setflags(write=False)
                contents.holders += 1
            contents.compare(array)
            return contents.number

    def end(self) -> None:
        """Let go of everything."""
        with _lock:
            for array in self._held.values():
                contents = _known[id(array)]
                contents.holders -= 1
                if not contents.holders and contents.writeable:
                    _waiting.append(array)
            for _ in range(2):  # owners of memory first, then what is a view of it
                _waiting[:] = [a for a in _waiting if not _free(a)]
        self._held.clear()


def _free(array: np.ndarray) -> bool:
    """Make an array writeable unless somebody holds it; whether this is done with."""
    if _known[id(array)].holders:
        return True
    try:
        array.setflags(write=True)
    except ValueError:  # it is a view of an array that is held
        return False
    return True


def _row(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    """The arguments by which memcmp compares two contiguous arrays: it is twice as fast as NumPy's == on the weights of
    the report's network.
    """
    return a.__array_interface__["data"][0], b.__array_interface__["data"][0], a.nbytes


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return not _memcmp(*_row(a, b)) if _contiguous(a, b) else a.tobytes() == b.tobytes()


def _contiguous(*arrays: np.ndarray) -> bool:
    return all(a.flags.c_contiguous for a in arrays)


class Snapshot:
    """The present contents of arrays, for comparison outside of blocks, where every use has to compare. The arrays stay
    where they are in memory.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        with _lock:
            pairs = [(a, _known[id(a)].copy if id(a) in _known else a.copy()) for a in arrays]
        self._kept = pairs  # the rows are addresses only
        self._rows = [_row(a, b) for a, b in pairs if _contiguous(a, b)]
        self._others = [(a, b) for a, b in pairs if not _contiguous(a, b)]

    def holds(self) -> bool:
        """Whether all arrays hold the same bits still."""
        return not any(starmap(_memcmp, self._rows)) and all(starmap(_same_bits, self._others))


class _Current(threading.local):
    block: Block | None = None


_current = _Current()


def current() -> Block | None:
    """This thread's block, if there is one."""
    return _current.block


@contextmanager
def holding() -> Iterator[None]:
    """A block (see above). Within another one of the same thread it has no effect of its own."""
    if _current.block is not None:
        yield
        return
    _current.block = block = Block()
    try:
        yield
    finally:
        _current.block = None
        block.end()
