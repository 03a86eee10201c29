"""Images and masks decoded one after the other, by worker processes where there are many pixels.

A worker is another interpreter that is handed names and hands back pixels through pipes; in order, two names ahead. It
shares nothing with its parent (no fork, no semaphores, no import of the caller's main module), does not hear Ctrl-C,
and ends when its pipe closes, however the parent has ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from engine.data.classes import MARS, VALUES, Classes
from engine.data.images import read_pixels, read_stored
from engine.data.tiles import DataError
from engine.errors import InputError, reason
from kernels.core.modules import PLACE, PREFIX

_MANY = 1 << 25  # pixels; fewer are decoded in the time that a worker takes to start
_MOST_WORKERS = 8
_AHEAD = 2  # names that a worker has


class Task(NamedTuple):
    """A pair to decode. size: what its header says, (h, w)."""

    image: Path
    mask: Path | None
    size: tuple[int, int]


Decoded = tuple[np.ndarray, np.ndarray | None]


def decode(task: Task, classes: Classes) -> Decoded:
    """The levels of an image, (h, w) or (h, w, 3), and its labels (h, w). Raises DataError naming the file."""
    pixels = read_pixels(task.image)
    if pixels.shape[:2] != task.size:
        raise DataError(f"{task.image}: has changed while it was read")
    if task.mask is None:
        return pixels, None
    labels = read_labels(task.mask, classes)
    if labels.shape != task.size:
        y, x = labels.shape
        h, w = task.size
        raise DataError(f"{task.mask}: got {y} x {x} pixels, expected {h} x {w} like {task.image}")
    return pixels, labels.astype(classes.dtype)


def read_labels(file: Path, classes: Classes) -> np.ndarray:
    """The labels of a mask file (H, W). Raises DataError naming the file and the first pixel that the classes do not
    know.
    """
    stored = read_stored(file)
    if stored.ndim == 3 and not classes.own_colours:
        if (stored != stored[..., :1]).any():
            raise DataError(
                f"{file}: got a colour mask, but the classes have no colours: classes.toml (or --classes FILE) can "
                "name them"
            )
        stored = stored[..., 0]
    if stored.ndim == 3:
        codes, meaning = classes.colour_table
        code = stored.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        place = np.searchsorted(codes, code).clip(0, len(codes) - 1)
        labels = np.where(codes[place] == code, meaning[place], -1)
    else:
        code = stored.astype(np.int64)
        labels = np.where((code >= 0) & (code < VALUES), classes.table[code.clip(0, VALUES - 1)], -1)
    if (bad := labels < 0).any():
        y, x = (int(i) for i in np.argwhere(bad)[0])
        value = f"#{code[y, x]:06x}" if stored.ndim == 3 else str(code[y, x])
        expected = "a colour of the classes" if stored.ndim == 3 else classes.expected
        hint = " (the Mars tiles' classes; classes.toml or --classes names others)" if classes == MARS else ""
        raise DataError(f"{file}: got {value} at row {y}, column {x}, expected {expected}{hint}")
    return labels


def decoded(tasks: Sequence[Task], classes: Classes) -> Iterator[Decoded]:
    """All pairs, in order."""
    from kernels.core.cpu.cores import usable_cores

    workers = min(usable_cores(), _MOST_WORKERS, len(tasks))
    if workers < 2 or sum(task.size[0] * task.size[1] for task in tasks) < _MANY:
        return (decode(task, classes) for task in tasks)
    return _by_workers(tasks, classes, workers)


def _by_workers(tasks: Sequence[Task], classes: Classes, count: int) -> Iterator[Decoded]:
    """The results of worker processes, in the order of the tasks: the workers take turns, so the next result is the
    next worker's.
    """
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            workers.append(_Worker(classes))
        for k, task in enumerate(tasks[: _AHEAD * count]):
            workers[k % count].give(task)
        for k, task in enumerate(tasks):
            yield workers[k % count].take(task)
            if k + _AHEAD * count < len(tasks):
                workers[k % count].give(tasks[k + _AHEAD * count])
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that decodes."""

    def __init__(self, classes: Classes) -> None:
        path = os.pathsep.join([str(PLACE), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", f"{PREFIX}engine.data.decoding"]
        self.process: Any = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        self._send(replace(classes))  # a copy without its tables

    def give(self, task: Task) -> None:
        """Hand over a task; if the worker has died, `take` names the task."""
        self._send(task)

    def _send(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()

    def take(self, task: Task) -> Decoded:
        """The next result."""
        try:
            result = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise DataError(
                f"{task.image}: the process that decoded it has died (exit code {self.process.wait()})"
            ) from None
        if isinstance(result, str):
            raise DataError(result)
        return result

    def end(self) -> None:
        """Stop it at once."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # for text that was not yet written
                stream.close()
        self.process.wait()


def serve(tasks: IO[bytes], results: IO[bytes]) -> None:
    """Decode what comes until the pipe closes."""
    try:
        classes = pickle.load(tasks)
        while True:
            task = pickle.load(tasks)
            try:
                result: Decoded | str = decode(task, classes)
            except InputError as error:
                result = str(error)
            except Exception as error:
                result = f"{task.image}: cannot be read ({reason(error)})"
            pickle.dump(result, results, pickle.HIGHEST_PROTOCOL)
            results.flush()
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    serve(sys.stdin.buffer, pipe)
    os._exit(0)
