"""A small thread pool for kernels that release the GIL. One knob: AREOGRAD_THREADS, or `set_threads`.

Work is cut into chunks by its shape alone, never by the number of threads, and a chunk is computed by one thread: results are the
same bits for any number of threads.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from kernels.core import memory

_Job = Callable[[int], None]


def _default() -> int:
    asked = os.environ.get("AREOGRAD_THREADS", "").strip()
    if not asked:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not asked.isdigit() or int(asked) < 1:
        raise ValueError(f"AREOGRAD_THREADS: got {asked!r}, expected a positive number")
    return int(asked)


class _Team:
    """Helpers that wait for jobs; the caller of `run` is the team's first member."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.queues: list[SimpleQueue[_Job | None]] = [SimpleQueue() for _ in range(size - 1)]
        self.done = threading.Semaphore(0)
        self.busy = threading.Lock()
        for k, queue in enumerate(self.queues):
            threading.Thread(target=self._serve, args=(queue, k + 1), name=f"areograd-{k + 1}", daemon=True).start()

    def _serve(self, queue: SimpleQueue[_Job | None], member: int) -> None:
        while (job := queue.get()) is not None:
            job(member)
            self.done.release()

    def run(self, job: _Job, helpers: int) -> None:
        """job(member) in the caller and in `helpers` threads at once; returns when all are done."""
        for queue in self.queues[:helpers]:
            queue.put(job)
        try:
            job(0)
        finally:
            for _ in range(helpers):
                self.done.acquire()

    def close(self) -> None:
        for queue in self.queues:
            queue.put(None)


_team: _Team | None = None
_process = 0


def threads() -> int:
    """How many threads kernels use."""
    return _current().size


def set_threads(count: int) -> None:
    """Use `count` threads from now on. ValueError below 1."""
    global _team, _process
    if count < 1:
        raise ValueError(f"threads: got {count}, expected at least 1")
    if _team is not None and _process == os.getpid():
        _team.close()
    _team, _process = _Team(count), os.getpid()


def _current() -> _Team:
    global _team, _process
    if _team is None or _process != os.getpid():  # threads do not survive a fork
        _team, _process = _Team(_default()), os.getpid()
    return _team


def parallel(kernel: Callable[..., None], chunks: int, *arguments: Any, scratch: int = 0) -> None:
    """kernel(k, k + 1, *arguments) for every k below `chunks`, over all threads, each k once.

    scratch: floats of uninitialised memory that each thread gets for itself, passed in front of the arguments.
    """
    team = _current()
    helpers = min(team.size, chunks) - 1
    if helpers <= 0 or not team.busy.acquire(blocking=False):  # small work, or a kernel called from within another's thread
        extra = (memory.empty((scratch,), np.float32),) if scratch else ()
        kernel(0, chunks, *extra, *arguments)
        return
    counter = itertools.count()
    errors: list[BaseException] = []

    def job(_member: int) -> None:
        try:
            extra = (memory.empty((scratch,), np.float32),) if scratch else ()
            while (k := next(counter)) < chunks:
                kernel(k, k + 1, *extra, *arguments)
        except BaseException as error:
            errors.append(error)

    if hasattr(kernel, "compile"):
        kernel.compile()  # not in two threads at once
    try:
        team.run(job, helpers)
    finally:
        team.busy.release()
    if errors:
        raise errors[0]
