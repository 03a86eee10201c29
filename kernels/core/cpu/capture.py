"""Kernel launches, captured once and replayed in one native call.

    graph = CapturedGraph()
    with graph.active(): y = computation(x)     # captures the launches of this thread; its arrays come from the
                                                # graph's own buffer pool
    graph.replay(first, stop)                   # the same machine code on the same memory: new numbers in x give new
                                                # numbers in y

A launch needs its kernel's address, its count of chunks and its argument slots (numbers, and the addresses of arrays).
All memory that it points to lives as long as the graph: blocks of a pool that serves nobody else, and a reference to
every other array. Arrays of the computation reuse each other's blocks as they did during capture, which is right as
long as launches are replayed in their order. Chunks depend on shapes alone, so a graph is good for any number of
threads. Worth 12 to 60 % of a step, and more than half of the time of one image (bench/RESULTS.md, "What each mechanism
is worth").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kernels.core.cpu import buffer_pool, thread_pool
from kernels.core.cpu.thread_pool import (
    BUSY,
    acquire,
    address_of,
    call,
    compiled,
    current_pool,
    load,
    release,
    run_job,
    sleeping_workers,
)
from kernels.core.dispatch import capture_with, host_computed
from kernels.core.random import words_of

_FIELDS = 3  # of a launch in the table: address, chunks, address of its argument slots


@compiled
def _replay(control, table, at, stop, workers, woken, scratch, stride):  # type: ignore[no-untyped-def]
    """Do the launches at .. stop and return `stop`, or BUSY with nothing done, or the number of the launch before which
    workers have to be woken: between two launches that keep them busy they may fall sleeping_workers. woken: they have
    just been. control = 0: without the pool.
    """
    if control and acquire(control, scratch, stride, workers, 1):
        return BUSY
    while at < stop:
        launch = table + 8 * _FIELDS * at
        address = load(launch)
        chunks = load(launch + 8)
        slots = load(launch + 16)
        if workers == 0 or chunks == 1:
            call(address, 0, chunks, scratch, slots)
        else:
            if not woken and sleeping_workers(control, workers):
                break
            run_job(control, address, slots, chunks)
            woken = 0
        at += 1
    if control:
        release(control)
    return at


class Place(NamedTuple):
    """A place in a captured graph: how many launches and calls come before it."""

    launch: int
    call: int


class _Call(NamedTuple):
    """An operator that computes on values in Python, too: it is called again, before launch number `before`, and its
    results copied.
    """

    before: int
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[np.ndarray, ...]

    def again(self) -> None:
        for was, now in zip(self.results, _arrays(_boxed(self.call(*self.args, **self.kwargs))), strict=True):
            if now is not was:
                np.copyto(was, now)


def _arrays(result: Any) -> tuple[np.ndarray, ...]:
    """The arrays of an operator's result: it may be one, or tuples and lists of them."""
    if isinstance(result, (tuple, list)):
        return tuple(array for part in result for array in _arrays(part))
    return (result,) if isinstance(result, np.ndarray) else ()


def _boxed(result: Any) -> Any:
    """An operator's result with NumPy's scalars, which expressions of single numbers give, as arrays: memory that
    another run can write to.
    """
    if isinstance(result, (tuple, list)):
        parts = [_boxed(part) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
    return np.asarray(result) if isinstance(result, np.generic) else result


class CapturedGraph:
    """The launches of a computation and the memory they use."""

    def __init__(self) -> None:
        self.pool = buffer_pool.Pool(smallest=0)
        self._launches: list[tuple[int, int, np.ndarray]] = []
        self._kept: dict[int, np.ndarray] = {}
        self._scratch = 0
        self._calls: list[_Call] = []
        self._draws: list[tuple[np.ndarray, int]] = []

    def __len__(self) -> int:
        return len(self._launches)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block this thread's launches are captured, and its arrays come from the graph's pool."""
        before = thread_pool.recorder.tell
        thread_pool.recorder.tell = self._add
        try:
            with buffer_pool.use_pool(self.pool):
                yield
        finally:
            thread_pool.recorder.tell = before

    def _add(self, address: int, chunks: int, scratch: int, slots: np.ndarray, arguments: Sequence[Any]) -> None:
        self._launches.append((address, chunks, slots[: len(arguments)].copy()))
        self._scratch = max(self._scratch, scratch)
        for a in arguments:
            if isinstance(a, np.ndarray) and not self.pool.owns(a):
                self._kept[id(a)] = a

    @contextmanager
    def operators(self) -> Iterator[None]:
        """The same for all operators of kernels/: those that compute on the host, too, are kept as calls. `run` replays
        both.
        """
        with self.active(), capture_with(self._operator, self._draws):
            yield

    def _operator(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = len(self)
        host_computed()
        result = call(*args, **kwargs)
        if host_computed():
            self.drop(first)
            result = _boxed(result)
            self._calls.append(_Call(first, call, args, kwargs, _arrays(result)))
        return result

    @property
    def calls(self) -> list[str]:
        """The operators that are called again."""
        return [c.call.__self__.name for c in self._calls]  # type: ignore[attr-defined]

    start = Place(0, 0)

    @property
    def place(self) -> Place:
        """The present place of the capture."""
        return Place(len(self), len(self._calls))

    def run(self, start: Place, stop: Place) -> None:
        """Replay the launches, and the calls between them, that were captured between two places."""
        first = start.launch
        for operator in self._calls[start.call : stop.call]:
            self.replay(first, operator.before)
            operator.again()
            first = operator.before
        self.replay(first, stop.launch)

    def redraw(self, shift: int) -> None:
        """Move the random masks `shift` draws further on in their stream."""
        for slots, offset in self._draws:
            slots[...] = words_of(offset + shift)

    def drop(self, first: int) -> None:
        """Forget the launches from number `first` on."""
        del self._launches[first:]

    @cached_property
    def _table(self) -> np.ndarray:
        return np.array(
            [(address, chunks, address_of(slots)) for address, chunks, slots in self._launches], np.int64
        ).reshape(-1, _FIELDS)

    def replay(self, first: int, stop: int) -> None:
        """Replay the launches first .. stop in their order. Only one thread at a time may call this; nothing may be
        captured afterwards.
        """
        table = address_of(self._table)
        pool = current_pool()
        room = pool.scratch if self._scratch <= pool.scratch.floats else pool.reserve(self._scratch)
        workers = pool.size - 1
        woken = 0
        while first < stop:
            reached = _replay(pool.control, table, first, stop, workers, woken, room.address, room.stride)
            if reached == BUSY:  # the pool is busy with another thread's job: replay alone
                own = np.empty(self._scratch + 16, np.float32)
                reached = _replay(0, table, first, stop, 0, 1, address_of(own), 0)
            elif reached < stop:
                pool.wake()
            first = reached
            woken = 1
