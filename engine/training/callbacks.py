"""What `engine.fit` calls after its steps and epochs. None of them changes what is computed, unless it writes to the
model or the optimizer.

    class Rate(Callback):
        def on_epoch(self, history):
            return history.rows[-1]["loss"] < 0.01             # True stops the training

A function of the history is a callback as well: it is called after each epoch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.files import write_bytes
from engine.training.history import History
from engine.training.progress import Content, Reporter, clock, make_reporter


class Step(NamedTuple):
    """A step that is done: number `step` of `steps` (0: not known yet) in an epoch, counted from 1. samples: of it.
    loss, lr: of it.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    samples: int
    loss: float
    lr: float


class StopTraining(Exception):
    """A callback raises it to end the training in order; its message becomes `History.stopped`."""


class Callback:
    """The base: does nothing. A method that returns True, or raises StopTraining, ends the training after this step or
    epoch.
    """

    def on_start(self, history: History) -> bool | None:
        """Before the first step: `history` knows the model, the optimizer and how many epochs are asked for."""

    def on_step(self, step: Step) -> bool | None:
        """After every step."""

    def on_epoch(self, history: History) -> bool | None:
        """After every epoch, whose row is the last one."""

    def on_end(self, history: History) -> None:
        """After the last step, however training has ended, an error included."""


class EarlyStopping(Callback):
    """Ends the training when a column has had no better number for `patience` epochs, and gives the model the weights
    of the best epoch back.

    watch: the column, by default the validation loss, or the loss where there is none.  largest: whether more is
    better.  restore: whether the weights are given back.  Raises ValueError for a patience below 1.
    """

    def __init__(self, patience: int = 5, watch: str = "", largest: bool = False, restore: bool = True) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping: patience is {patience}, expected at least 1")
        self.patience, self.watch, self.largest, self.restore = patience, watch, largest, restore
        self.weights: dict[str, np.ndarray] = {}

    def on_start(self, history: History) -> None:
        self.weights = {}

    def on_epoch(self, history: History) -> None:
        best = history.best_by(self.watch or history.watched, self.largest)
        if best is history.rows[-1] and self.restore:
            self.weights = history.model.state_dict()
        if best is not None and history.rows[-1]["epoch"] - best["epoch"] >= self.patience:
            raise StopTraining(f"no better {self.watch or history.watched} for {self.patience} epochs")

    def on_end(self, history: History) -> None:
        if self.weights:
            history.model.load_state_dict(self.weights)


class SaveBest(Callback):
    """Writes the model's weights to a safetensors file, atomically, whenever an epoch is the best so far.

        model.load_state_dict(safetensors.numpy.load_file(path))

    watch, largest: see EarlyStopping. Raises OutputError where the file cannot be written.
    """

    def __init__(self, path: str | Path, watch: str = "", largest: bool = False) -> None:
        self.path, self.watch, self.largest = Path(path), watch, largest

    def on_epoch(self, history: History) -> None:
        from safetensors.numpy import save

        if history.best_by(self.watch or history.watched, self.largest) is history.rows[-1]:
            write_bytes(self.path, save(history.model.state_dict()))


class Progress(Callback):
    """Shows how far training is: a live view in a terminal and in a notebook, else a line per epoch."""

    def __init__(self) -> None:
        self.reporter: Reporter | None = None

    def on_start(self, history: History) -> None:
        self.reporter = make_reporter((), content=FIT)
        self.started = time.monotonic()
        self.samples = 0

    def on_step(self, step: Step) -> None:
        if self.reporter is None:
            return
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.samples += step.samples
        done = (step.epoch - 1) * step.steps + step.step
        left = seconds / done * (step.epochs * step.steps - done) if step.steps else 0.0
        terms = {"loss": step.loss}
        self.reporter.step(step.epoch, step.epochs, step.step, step.steps, terms, self.samples / seconds, left)

    def on_epoch(self, history: History) -> None:
        if self.reporter is not None:
            row = history.rows[-1]
            self.reporter.epoch(row, history.epochs, row["seconds"], row is history.best)

    def on_end(self, history: History) -> None:
        if self.reporter is None:
            return
        if history.stopped:
            self.reporter.note(f"stopped: {history.stopped}")
        self.reporter.close()
        self.reporter = None


def _cells(row: dict[str, Any], scored: tuple[str, ...]) -> dict[str, str]:
    """The columns of a table of rows, which knows its own names; seconds stand elsewhere."""
    return {name: _shown(value) for name, value in row.items() if name != "seconds"}


def _line(row: dict[str, Any], epochs: int, seconds: float, best: bool, scored: tuple[str, ...]) -> str:
    values = "  ".join(f"{name} {_shown(value)}" for name, value in row.items() if name not in ("epoch", "seconds"))
    return f"epoch {row['epoch']:>3}/{epochs}  {values}  {clock(seconds)}{'  best' if best else ''}"


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


FIT = Content(_line, _cells, "samples/s")
