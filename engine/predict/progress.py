"""The progress of a prediction, on stderr: a bar in a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from engine.training.progress import clock, compile_line

_EVERY = 10.0  # seconds between lines


class Progress:
    """Counts images and windows. As a context: the bar is removed when the block ends.

    lines: whether the block prints a line for every image, which in one terminal are the progress.
    quiet: whether nothing is shown.
    """

    def __init__(self, images: int, windows: int, lines: bool = False, quiet: bool = False) -> None:
        self.images, self.windows = images, windows
        self.quiet = quiet
        self.shown = not quiet and sys.stderr.isatty() and not (lines and sys.stdout.isatty())
        self.done = [0, 0]
        self.bar: Any = None

    def __enter__(self) -> Progress:
        self.begun = self.last = time.monotonic()
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
            # stdout stays as it is: rich would wrap its lines, and print them to stderr
            apart = {"redirect_stdout": False, "redirect_stderr": False}
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True, **apart)
            self.task = self.bar.add_task(self._counted(), total=self.windows)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _counted(self) -> str:
        return f"{self.done[0]} of {self.images} images"

    def advance(self, images: int, windows: int) -> None:
        """So many more are done."""
        self.done = [self.done[0] + images, self.done[1] + windows]
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done[1], description=self._counted())
            return
        now = time.monotonic()
        if not self.quiet and now - self.last >= _EVERY and self.done[1] < self.windows:
            self.last = now
            left = (now - self.begun) * (self.windows / self.done[1] - 1)
            print(f"{self._counted()}, {self.done[1] / self.windows:.0%}, {clock(left)} to go", file=sys.stderr)


def compiling(done: int, of: int, name: str) -> None:
    """A kernel was compiled, because it was not on disk."""
    line = compile_line(done, of, name)
    if sys.stderr.isatty():
        print(f"\r{line}\x1b[K", end="\n" if done == of else "", file=sys.stderr, flush=True)
    elif done in (1, of):
        print(line, file=sys.stderr)
