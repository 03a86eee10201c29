"""The progress of a run: a live view in a terminal, plain lines elsewhere. The two say the same."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol, TextIO

from engine.files import finite


class Reporter(Protocol):
    """The interface to which training reports."""

    def name(self, scored: tuple[str, ...]) -> None:
        """The names of the classes whose IoU a row holds."""

    def note(self, text: str) -> None:
        """A line worth keeping."""

    def compiling(self, done: int, of: int, name: str) -> None:
        """A kernel was compiled, because it was not on disk."""

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        """A step is done: `speed` in images/s, `eta` in seconds for the whole run."""

    def epoch(self, row: dict[str, Any], epochs: int, seconds: float, best: bool) -> None:
        """An epoch is done and validated; `row` is its line of metrics.jsonl."""

    def close(self) -> None:
        """Nothing more will be reported."""


MOST_SHOWN = 8  # classes in a line or a row


def clock(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def epoch_line(row: dict[str, Any], epochs: int, seconds: float, best: bool, scored: tuple[str, ...]) -> str:
    """One line for an epoch: losses, both readings of the metric, IoU per class, speed."""
    terms = " ".join(f"{name} {value:.3f}" for name, value in row["terms"].items())
    shown = [f"{name} {'-' if v is None else f'{v:.3f}'}" for name, v in zip(scored, row["iou"], strict=True)]
    per_class = " ".join(shown if len(shown) <= MOST_SHOWN else [*shown[:MOST_SHOWN], f"... of {len(shown)}"])
    return (
        f"epoch {row['epoch']:>3}/{epochs}  loss {row['train_loss']:.4f} ({terms})  val mIoU fg "
        f"{row['val_miou_fg']:.4f} "
        f"keras {row['val_miou_keras']:.4f} [{per_class}]  {row['images_per_second']:.0f} images/s  "
        f"{clock(seconds)}{'  best' if best else ''}"
    )


_NEGATIVE = {"margin": "where the right class leads", "boundary": "inside its class"}


def loss_line(terms: dict[str, float]) -> str:
    """'loss: 0.4 margin + 0.2 dice', and why it may be negative, where it may."""
    line = "loss: " + " + ".join(f"{coefficient:g} {name}" for name, coefficient in terms.items())
    below = [f"{name} is negative {where}" for name, where in _NEGATIVE.items() if name in terms]
    return f"{line} ({' and '.join(below)}, so the sum may be negative)" if below else line


def compile_line(done: int, of: int, name: str) -> str:
    """'compiling kernels 7/31 (conv.direct.direct_forward)'."""
    return f"compiling kernels {done}/{of} ({name}), once for this processor"


class PlainReporter:
    """One line per epoch, and one every `every` seconds within long epochs."""

    def __init__(self, classes: tuple[str, ...], stream: TextIO | None = None, every: float = 20.0) -> None:
        self.scored = classes[1:]
        self.stream = stream or sys.stdout
        self.every = every
        self.last = time.monotonic()

    def name(self, scored: tuple[str, ...]) -> None:
        self.scored = scored

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def compiling(self, done: int, of: int, name: str) -> None:
        now = time.monotonic()
        if done in (1, of) or now - self.last >= self.every / 4:
            self.last = now
            self.note(compile_line(done, of, name))

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            self.note(
                f"epoch {epoch:>3}/{epochs}  step {step}/{steps}  loss {terms['loss']:.4f}  {speed:.0f} images/s  "
                f"{clock(eta)} to go"
            )

    def epoch(self, row: dict[str, Any], epochs: int, seconds: float, best: bool) -> None:
        self.last = time.monotonic()
        self.note(epoch_line(row, epochs, seconds, best, self.scored))

    def close(self) -> None:
        pass


class VerboseReporter(PlainReporter):
    """A line for every step, with the terms of the loss."""

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        values = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
        self.note(f"epoch {epoch:>3}/{epochs}  step {step}/{steps}  {values}  {speed:.0f} images/s  {clock(eta)} to go")


class QuietReporter(PlainReporter):
    """Nothing but what follows the run."""

    def note(self, text: str) -> None:
        pass


class JsonReporter(QuietReporter):
    """A JSON object a line for every epoch, as in metrics.jsonl, and the notes on stderr."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        pass

    def epoch(self, row: dict[str, Any], epochs: int, seconds: float, best: bool) -> None:
        print(json.dumps(finite(row)), file=self.stream, flush=True)


class LiveReporter:
    """A live view: progress of the run and of the epoch, the current loss terms, and a table of the last epochs."""

    def __init__(self, classes: tuple[str, ...], shown: int = 12) -> None:
        from rich.console import Console
        from rich.live import Live

        self.scored = classes[1:]
        self.shown = shown
        self.rows: list[tuple[dict[str, Any], bool]] = []
        self.now: tuple[int, int, int, int, dict[str, float], float, float] | None = None
        self.compiled: str | None = None
        self.console = Console()
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._view)
        self.live.start()

    def name(self, scored: tuple[str, ...]) -> None:
        self.scored = scored

    def note(self, text: str) -> None:
        self.live.console.print(text, markup=False, highlight=False)

    def compiling(self, done: int, of: int, name: str) -> None:
        self.compiled = None if done == of else compile_line(done, of, name)

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        self.now = (epoch, epochs, step, steps, terms, speed, eta)

    def epoch(self, row: dict[str, Any], epochs: int, seconds: float, best: bool) -> None:
        self.rows.append((row, best))

    def close(self) -> None:
        self.live.stop()

    def _view(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("epoch", "loss", "mIoU fg", "keras", *self.scored[:MOST_SHOWN], "images/s"):
            table.add_column(name, justify="right")
        for row, best in self.rows[-self.shown :]:
            iou = ["-" if v is None else f"{v:.3f}" for v in row["iou"][:MOST_SHOWN]]
            cells = [
                str(row["epoch"]),
                f"{row['train_loss']:.4f}",
                f"{row['val_miou_fg']:.4f}",
                f"{row['val_miou_keras']:.4f}",
                *iou,
            ]
            table.add_row(*cells, f"{row['images_per_second']:.0f}", style="bold green" if best else None)
        if self.now is None:
            return table if self.compiled is None else Group(table, Text(self.compiled, style="dim"))
        epoch, epochs, step, steps, terms, speed, eta = self.now
        bar = Table.grid(padding=(0, 1))
        done = (epoch - 1) + step / steps
        bar.add_row(f"epoch {epoch}/{epochs}", ProgressBar(steps, step, width=40), f"{speed:.0f} images/s")
        bar.add_row("run", ProgressBar(epochs, done, width=40), f"{clock(eta)} to go")
        return Group(table, bar, Text("  ".join(f"{k} {v:.4f}" for k, v in terms.items()), style="dim"))


REPORTERS = {"quiet": QuietReporter, "verbose": VerboseReporter, "json": JsonReporter}


def make_reporter(classes: tuple[str, ...], how: str = "") -> Reporter:
    """The reporter of this name; without one, the live view when stdout is a terminal, plain lines otherwise."""
    if how:
        return REPORTERS[how](classes)
    return LiveReporter(classes) if sys.stdout.isatty() else PlainReporter(classes)
