"""Run a grid of training runs and tabulate it:  python -m engine.experiment GRID [--data FILE] [--seeds 3] [--epochs N]
[--out DIR]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from engine.cli import Output, UsageError, make_folder, parsed, run_command
from engine.experiment.grid import Grid, names, read_grid
from engine.experiment.runs import (
    Run,
    RunError,
    Trainings,
    alike,
    conflict,
    keep,
    logged,
    measure,
    runs_of,
    share,
    take,
)
from engine.experiment.table import write_results
from engine.training.progress import clock
from kernels.core.cpu.cores import usable_cores

MOST_JOBS, MOST_FOLDS = 256, 100


@dataclass(frozen=True)
class Arguments:
    """Run a grid of training runs; write a CSV, a Markdown table and a figure with intervals.

    A grid is a TOML file, or the name of one that comes with the package. Every run has a folder OUT/CELL/seed-N. Run
    the same command again
    to go on after an interruption: finished runs are kept, and a run that was stopped continues.

    Examples:
      python -m engine.experiment --list
      python -m engine.experiment losses --data FILE.npz --seeds 3
      python -m engine.experiment losses --data FILE.npz --tables-only
      python -m engine.experiment losses --data FILE.npz --jobs 2 --logs docs/results
    """

    grid: Annotated[str | None, tyro.conf.Positional] = None
    """A TOML file, or a name that --list shows."""
    data: str | None = None
    """'synthetic', an .npz file or a folder; by default the grid's."""
    seeds: int = 3
    """Number of runs of every cell. A seed decides the split, the initial weights, the order and the augmentation."""
    folds: int = 0
    """Number of parts for cross-validation in place of seeds: one run of every cell for each part of the source images,
    validated on it; scores are pooled.
    """
    epochs: int | None = None
    """Epochs of every run; by default the grid's."""
    out: Path | None = None
    """Folder of the runs; by default experiments/GRID."""
    jobs: int = 1
    """Number of runs at a time. With one per core each run takes longer, and all of them together less: a single thread
    never waits.
    """
    threads: int = 0
    """Threads of CPU kernels per run; 0: the cores divided by the jobs."""
    logs: Path | None = None
    """Copy the small logs of finished runs to this folder, GRID/CELL/seed-N, and take from it, whatever grid they
    belong to, runs with the same settings instead of training them again.
    """
    tables_only: bool = False
    """Train nothing: tabulate the runs that are finished."""
    list: bool = False
    """Show the grids that come with the package."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)


def run(arguments: Arguments) -> int:
    """Train what is missing, then tabulate; returns the exit code."""
    if arguments.list:
        for name in names():
            grid = read_grid(name)
            print(f"{name:<14} {len(grid.cells):>2} cells  {grid.title}")
        return 0
    if arguments.grid is None:
        raise UsageError(f"GRID: missing, expected a TOML file or one of {', '.join(names())}")
    if arguments.seeds < 1:
        raise UsageError(f"--seeds: got {arguments.seeds}, expected at least 1")
    if not 1 <= arguments.jobs <= MOST_JOBS:
        raise UsageError(f"--jobs: got {arguments.jobs}, expected 1 to {MOST_JOBS}")
    if arguments.folds and not 2 <= arguments.folds <= MOST_FOLDS:
        raise UsageError(f"--folds: got {arguments.folds}, expected 2 to {MOST_FOLDS}, or 0 for none")
    grid = read_grid(arguments.grid)
    given = {"data": arguments.data, "epochs": arguments.epochs}
    out = arguments.out or Path("experiments") / grid.name
    runs = runs_of(
        grid, out, arguments.seeds, {key: value for key, value in given.items() if value is not None}, arguments.folds
    )
    for one in runs:
        if (line := conflict(one)) is not None:
            raise UsageError(line)
    make_folder(out)
    _take_logs(runs, arguments)
    failed: list[RunError] = []
    if not arguments.tables_only:
        failed = _train_missing(grid, runs, arguments, out)
    print(write_results(grid, runs, out))
    arguments.output.note(f"tables  {out / 'results.md'}, {out / 'results.csv'}\nfigure  {out / 'results.png'}")
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    return 1 if failed else 0


def _take_logs(runs: list[Run], arguments: Arguments) -> None:
    """Take finished runs with the same settings from the logs under --logs."""
    logs = logged(arguments.logs) if arguments.logs else {}
    for one in runs:
        if not one.finished and (folder := take(one, logs)) is not None:
            arguments.output.note(f"{one.cell.name}, seed {one.seed}: taken from {folder}")


def _train_missing(grid: Grid, runs: list[Run], arguments: Arguments, out: Path) -> list[RunError]:
    """Train every run that is not finished, one of those with the same result, and tabulate after each, so that there
    is something to read early. A run that fails stops no other; returns what went wrong.
    """
    missing = [group[0] for group in alike([one for one in runs if not one.finished]).values()]
    threads = arguments.threads or max(1, usable_cores() // arguments.jobs)
    started = time.monotonic()
    done = 0
    failed: list[RunError] = []
    with Trainings(missing, arguments.jobs, threads, arguments.output.note) as trainings:
        for one, error in trainings:
            done += 1
            if error is not None:
                failed.append(error)
                arguments.output.note(f"{done} of {len(missing)} runs failed: {error}")
                continue
            measure(one)
            share(one, runs)
            left = (
                f", about {clock((time.monotonic() - started) / done * (len(missing) - done))} to go"
                if done < len(missing)
                else ""
            )
            arguments.output.note(f"{done} of {len(missing)} runs done: {one.cell.name}, seed {one.seed}{left}")
            write_results(grid, runs, out)
            if arguments.logs:
                keep(one, arguments.logs, grid)
    return failed


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.experiment")))


if __name__ == "__main__":
    main()
