"""The progress of a run: a live view in a terminal and in a notebook, plain lines elsewhere. They say the same."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TextIO

from autograd.html import Markup, bar, block, faint, table, tag
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
        """A step is done: `speed` in images/s, `eta` in seconds for the whole run. steps: 0 where nobody knows them."""

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


def run_cells(row: dict[str, Any], scored: tuple[str, ...]) -> dict[str, str]:
    """The columns of a table of epochs: loss, both readings of the metric, IoU per class, speed."""
    iou = ["-" if v is None else f"{v:.3f}" for v in row["iou"][:MOST_SHOWN]]
    return {
        "epoch": str(row["epoch"]),
        "loss": f"{row['train_loss']:.4f}",
        "mIoU fg": f"{row['val_miou_fg']:.4f}",
        "keras": f"{row['val_miou_keras']:.4f}",
        **dict(zip(scored, iou, strict=False)),
        "images/s": f"{row['images_per_second']:.0f}",
    }


class Content(NamedTuple):
    """What is said of an epoch's row: line(row, epochs, seconds, best, scored) and cells(row, scored), by column. unit:
    that of the speed.
    """

    line: Callable[[dict[str, Any], int, float, bool, tuple[str, ...]], str]
    cells: Callable[[dict[str, Any], tuple[str, ...]], dict[str, str]]
    unit: str


RUN = Content(epoch_line, run_cells, "images/s")


def compile_line(done: int, of: int, name: str) -> str:
    """'compiling kernels 7/31 (conv.direct.direct_forward)'."""
    return f"compiling kernels {done}/{of} ({name}), once for this processor"


def _to_go(steps: int, eta: float) -> str:
    return f"  {clock(eta)} to go" if steps else ""


class PlainReporter:
    """One line per epoch, and one every `every` seconds within long epochs."""

    def __init__(
        self, classes: tuple[str, ...], stream: TextIO | None = None, every: float = 20.0, content: Content = RUN
    ) -> None:
        self.scored = classes[1:]
        self.content = content
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
                f"epoch {epoch:>3}/{epochs}  step {step}/{steps or '?'}  loss {terms['loss']:.4f}  {speed:.0f} "
                f"{self.content.unit}{_to_go(steps, eta)}"
            )

    def epoch(self, row: dict[str, Any], epochs: int, seconds: float, best: bool) -> None:
        self.last = time.monotonic()
        self.note(self.content.line(row, epochs, seconds, best, self.scored))

    def close(self) -> None:
        pass


class VerboseReporter(PlainReporter):
    """A line for every step, with the terms of the loss."""

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        values = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
        self.note(
            f"epoch {epoch:>3}/{epochs}  step {step}/{steps or '?'}  {values}  {speed:.0f} {self.content.unit}"
            f"{_to_go(steps, eta)}"
        )


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


class _Now(NamedTuple):
    """The last step that was reported; see Reporter.step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    terms: dict[str, float]
    speed: float
    eta: float

    @property
    def shares(self) -> tuple[float, float]:
        """How much of the epoch and of the run is done, 0 to 1; an epoch of unknown steps is not begun."""
        epoch = self.step / self.steps if self.steps else 0.0
        return epoch, (self.epoch - 1 + epoch) / self.epochs


class _View:
    """What a live view shows: the last epochs, the current step, the kernel that was compiled last."""

    def __init__(self, classes: tuple[str, ...], shown: int = 12, content: Content = RUN) -> None:
        self.scored = classes[1:]
        self.shown = shown
        self.content = content
        self.rows: list[tuple[dict[str, Any], bool]] = []
        self.now: _Now | None = None
        self.compiled: str | None = None

    def name(self, scored: tuple[str, ...]) -> None:
        self.scored = scored

    def compiling(self, done: int, of: int, name: str) -> None:
        self.compiled = None if done == of else compile_line(done, of, name)

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        self.now = _Now(epoch, epochs, step, steps, terms, speed, eta)

    def epoch(self, row: dict[str, Any], epochs: int, seconds: float, best: bool) -> None:
        self.rows.append((row, best))

    def _cells(self) -> list[tuple[dict[str, str], bool]]:
        """The columns of each of the last epochs, and whether it is the best so far."""
        return [(self.content.cells(row, self.scored), best) for row, best in self.rows[-self.shown :]]


class LiveReporter(_View):
    """A live view: progress of the run and of the epoch, the current loss terms, and a table of the last epochs."""

    def __init__(self, classes: tuple[str, ...], shown: int = 12, content: Content = RUN) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(classes, shown, content)
        self.console = Console()
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._view)
        self.live.start()

    def note(self, text: str) -> None:
        self.live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.live.stop()

    def _view(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="dim")
        cells = self._cells()
        for name in cells[0][0] if cells else ():
            table.add_column(name, justify="right")
        for row, best in cells:
            table.add_row(*row.values(), style="bold green" if best else None)
        if self.now is None:
            return table if self.compiled is None else Group(table, Text(self.compiled, style="dim"))
        now = self.now
        bars = Table.grid(padding=(0, 1))
        epoch, run = now.shares
        speed = f"{now.speed:.0f} {self.content.unit}"
        bars.add_row(f"epoch {now.epoch}/{now.epochs}", ProgressBar(1, epoch, width=40), speed)
        bars.add_row("run", ProgressBar(1, run, width=40), _to_go(now.steps, now.eta).strip())
        return Group(table, bars, Text("  ".join(f"{k} {v:.4f}" for k, v in now.terms.items()), style="dim"))


class NotebookReporter(_View):
    """The same in a notebook: one output, which is drawn anew at most `rate` times a second."""

    def __init__(self, classes: tuple[str, ...], shown: int = 12, content: Content = RUN, rate: float = 4.0) -> None:
        from IPython.display import HTML, display

        super().__init__(classes, shown, content)
        self.notes: list[str] = []
        self.every = 1 / rate
        self.drawn = time.monotonic()
        self.html = HTML
        self.output = display(HTML(self._view()), display_id=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._draw()

    def compiling(self, done: int, of: int, name: str) -> None:
        super().compiling(done, of, name)
        self._draw(done < of)

    def step(
        self, epoch: int, epochs: int, step: int, steps: int, terms: dict[str, float], speed: float, eta: float
    ) -> None:
        super().step(epoch, epochs, step, steps, terms, speed, eta)
        self._draw(lazily=True)

    def epoch(self, row: dict[str, Any], epochs: int, seconds: float, best: bool) -> None:
        super().epoch(row, epochs, seconds, best)
        self._draw()

    def close(self) -> None:
        self.now = None
        self._draw()

    def _draw(self, lazily: bool = False) -> None:
        if lazily and time.monotonic() - self.drawn < self.every:
            return
        self.drawn = time.monotonic()
        self.output.update(self.html(self._view()))

    def _view(self) -> Markup:
        parts = [tag("div", note) for note in self.notes]
        if cells := self._cells():
            best = max((k for k, (_, best) in enumerate(cells) if best), default=None)
            parts.append(table([list(row.values()) for row, _ in cells], list(cells[0][0]), left=0, strong=best))
        if self.compiled is not None:
            parts.append(tag("div", faint(self.compiled)))
        if self.now is not None:
            now = self.now
            epoch, run = now.shares
            parts.append(bar(epoch, f"epoch {now.epoch}/{now.epochs}  {now.speed:.0f} {self.content.unit}"))
            parts.append(bar(run, f"run{_to_go(now.steps, now.eta)}"))
            parts.append(tag("div", faint("  ".join(f"{k} {v:.4f}" for k, v in now.terms.items()))))
        return block(*parts)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel. IPython is asked only where it is loaded."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


REPORTERS = {"quiet": QuietReporter, "verbose": VerboseReporter, "json": JsonReporter}


def make_reporter(classes: tuple[str, ...], how: str = "", content: Content = RUN) -> Reporter:
    """The reporter of this name; without one, a live view in a notebook or when stdout is a terminal, else plain
    lines.
    """
    if how:
        return REPORTERS[how](classes, content=content)
    if in_notebook():
        return NotebookReporter(classes, content=content)
    return LiveReporter(classes, content=content) if sys.stdout.isatty() else PlainReporter(classes, content=content)
