"""Training runs of a second or two: their data, their command line, and what they leave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import train
from engine.cli import run_command
from engine.training.reporting import WALL_CLOCK, read_rows
from engine.training.trainer import Run

# dropout and batch norm are in it
NETWORK = ["--width=4", "--bottleneck=none", "--encoder=plain", "--skips=plain", "--cutmix=0.5"]
posix = pytest.mark.skipif(os.name != "posix", reason="sends signals, forks, or looks at modes")


def write_tiles(path: Path) -> None:
    """A few small tiles of noise in the original form."""
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.integers(0, 256, (30, 16, 24)), rng.integers(0, 5, (30, 16, 24))], 1).astype(np.uint8)
    np.savez(path, training_set=pixels, train_group=np.array([f"image {k // 2}" for k in range(30)]))


def flags(tiles: Path, out: Path, *more: str, epochs: int = 2) -> list[str]:
    """The command line of a run: three steps per epoch."""
    return [f"--data={tiles}", f"--out={out}", f"--epochs={epochs}", "--batch=8", *NETWORK, *more]


def run(arguments: list[str]) -> int:
    """The exit code of a run in this process."""
    return train.run(train.parse(arguments))


def ended(
    arguments: list[str], capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int] = run
) -> tuple[int, str]:
    """The exit code of a command, and its only line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(arguments))
    line = capsys.readouterr().err
    assert line.count("\n") <= 1, line
    return stop.value.code, line


def results(out: Path) -> dict[str, Any]:
    """What a run left, without times."""
    # as text: keys have an order, too
    rows = [json.dumps({k: v for k, v in row.items() if k not in WALL_CLOCK}) for row in read_rows(out)]
    return {
        "rows": rows,
        **{name: (out / name).read_bytes() for name in ("best.safetensors", "last.safetensors", "config.toml")},
    }


def stop_in_step(number: int, signal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run takes the signal for received when its `number`-th step begins."""
    step, steps = Run._step, []

    def stopping(self, *arguments):
        steps.append(0)
        if len(steps) == number:
            self.stop.signal = signal
        return step(self, *arguments)

    monkeypatch.setattr(Run, "_step", stopping)
