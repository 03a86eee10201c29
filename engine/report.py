"""Make the summary and the pictures of a run folder, also of a run that was stopped or killed:  python -m engine.report
RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from engine.cli import UsageError, parsed, run_command, use_threads
from engine.training.run_folder import BEST, METRICS, SETTINGS, RunFolder


@dataclass(frozen=True)
class Arguments:
    """Write summary.json, curves.png and predictions.png of a run, as far as it came."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder in which at least one epoch was finished."""
    threads: int = 0
    """Number of threads for CPU kernels; 0: as many as AREOGRAD_THREADS says, else one per core."""


def report(folder: Path) -> dict[str, Any]:
    """Write summary and pictures; returns what summary.json holds. Errors are one line each."""
    from engine.config import read_toml
    from engine.data.preparation import prepare
    from engine.training.checkpoint import load_checkpoint
    from engine.training.reporting import draw, read_rows, write_summary
    from engine.training.run_state import StateError, load_state
    from kernels.core import device
    from layers import measure

    config = read_toml(folder / SETTINGS)
    choice = device.choose(None if config.device == "auto" else config.device)
    try:
        rows = read_rows(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / METRICS}: cannot be read ({error})") from None
    if not rows:
        raise UsageError(f"{folder}: no epoch of this run is finished, so there is nothing to report")
    best = load_checkpoint(folder / BEST)
    data = prepare(config)
    try:
        progress = load_state(folder).progress
    except StateError:  # of a run before there were states
        progress = {}
    size = measure(best.net, (1, *best.form.size, best.form.channels))
    seconds, images = (progress.get(name) for name in ("training_seconds", "trained_images"))
    facts = {
        "seconds": progress.get("seconds"),
        "images_per_second": images / seconds if images and seconds else None,
        "parameters": size.parameters,
        "flops_per_image": size.flops,
        "train_tiles": len(data.train),
        "val_tiles": len(data.val),
        "device": str(choice),
        "interval_over": data.val.unit,
        "notes": progress.get("notes", data.notes),
    }
    summary = write_summary(
        folder, best.record, rows, not progress.get("ended", rows[-1]["epoch"] >= config.epochs), facts
    )
    draw(folder, data.val, rows)
    return summary


def run(arguments: Arguments) -> int:
    """Report on a run folder, to which no other process may write meanwhile."""
    from engine.training.reporting import summary_lines

    if not (arguments.run / SETTINGS).exists():
        raise UsageError(f"{arguments.run}: is no run folder (it holds no {SETTINGS})")
    use_threads(arguments.threads)
    with RunFolder(arguments.run, "run") as folder:
        print(summary_lines(report(folder.path), folder.path))
    return 0


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.report")))


if __name__ == "__main__":
    main()
