"""Training as TensorBoard events, in the folder RUN/tensorboard (tensorboardX writes the files).

Everything is a scalar over optimiser steps: the losses of every step, and at the end of an epoch its row of
metrics.jsonl. A resumed run begins another file, which says from which step on it replaces what is there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.cli import UsageError
from engine.files import OutputError
from engine.training.progress import Reporter
from engine.training.run_folder import EVENTS


def check_installed() -> None:
    """Raise UsageError unless tensorboardX is installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UsageError("--tensorboard: needs the package tensorboardX (pip install tensorboardX)")


def scalars(row: dict[str, Any], scored: Sequence[str]) -> Iterator[tuple[str, float]]:
    """(tag, value) of an epoch's row of metrics.jsonl; what is absent has none."""
    values = {
        "epoch": row["epoch"],
        "train/loss": row["train_loss"],
        **{f"train/{name}": value for name, value in (row.get("terms") or {}).items()},
        "validation/miou_fg": row["val_miou_fg"],
        "validation/miou_keras": row["val_miou_keras"],
        **{f"validation/iou/{name}": value for name, value in zip(scored, row["iou"], strict=True)},
        "learning_rate": row["learning_rate"],
        "images_per_second": row["images_per_second"],
        "gradient_norm/mean": row.get("gradient_norm"),
        "gradient_norm/largest": row.get("largest_gradient_norm"),
        **{f"gradient_norm/{name}": value for name, value in (row.get("gradient_norms") or {}).items()},
    }
    return ((tag, float(value)) for tag, value in values.items() if value is not None)


def write_events(folder: Path, rows: Sequence[dict[str, Any]], scored: Sequence[str]) -> None:
    """The epochs of a run that has ended; over epochs where the rows do not say how many steps they had."""
    with _writer(folder, 0) as writer:
        for row in rows:
            for tag, value in scalars(row, scored):
                writer.add_scalar(tag, value, row.get("step", row["epoch"]))


def _writer(folder: Path, first: int) -> Any:
    """A writer of a new file, whose events replace those from step `first` on. Raises OutputError."""
    from tensorboardX import SummaryWriter

    # A file's name has the second in which it was begun; the number tells two of one second apart, in their order.
    number = f".{len(list((folder / EVENTS).glob('*'))):03d}"
    try:
        return SummaryWriter(str(folder / EVENTS), purge_step=first, filename_suffix=number)
    except OSError as error:
        raise OutputError(f"cannot write {folder / EVENTS}: {error.strerror or error}") from None


class TensorBoardReporter:
    """A Reporter that hands all it is told to another one, and writes the numbers as events.

    folder: the run's. The file is begun with the first step, when it is known where the run goes on.
    """

    def __init__(self, inner: Reporter, folder: Path) -> None:
        self.inner, self.folder = inner, folder
        self.scored: tuple[str, ...] = ()
        self.writer: Any = None

    def _begin(self, first: int) -> None:
        if self.writer is None:
            self.writer = _writer(self.folder, first)

    def name(self, scored: tuple[str, ...]) -> None:
        self.scored = scored
        self.inner.name(scored)

    def note(self, text: str) -> None:
        self.inner.note(text)

    def compiling(self, done: int, of: int, name: str) -> None:
        self.inner.compiling(done, of, name)

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        number = (epoch - 1) * steps + step
        self._begin(number)
        for name, value in terms.items():
            self.writer.add_scalar(f"step/{name}", value, number)
        self.inner.step(epoch, epochs, step, steps, terms, speed, eta)

    def epoch(self, row: dict[str, Any], epochs: int, seconds: float, best: bool) -> None:
        self._begin(row["step"] + 1)  # resumed between an epoch's last step and its validation: the step stays
        for tag, value in scalars(row, self.scored):
            self.writer.add_scalar(tag, value, row["step"])
        self.writer.flush()
        self.inner.epoch(row, epochs, seconds, best)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
        self.inner.close()
