"""The runs of a grid: one folder per cell and seed, each trained by a process of its own, measured once, and never
repeated when it is finished.

OUT/CELL/seed-N/            the run folder of engine.train
OUT/CELL/seed-N/validation.npz   confusion (N, C, C) of every validation tile by the best epoch's weights, and by the
last's; by the best's with
                                 test-time augmentation, 'flips' and 'views'; groups (N,); form; the revision of the
                                 software that trained it

The settings, curves, scores and counts of a finished run are small. They can be kept elsewhere as logs,
GRID/CELL/seed-N under a folder, from which tables are made without the runs, and any grid that asks for the same
settings takes them instead of training again.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import numpy as np

from engine.config import Config, read_toml, to_toml
from engine.experiment.grid import Cell, Grid
from engine.experiment.statistics import Outcome
from engine.training.run_folder import METRICS, SETTINGS, SUMMARY, VALIDATION, holds_state
from kernels.core.modules import PLACE, PREFIX, version

_CHECKPOINTS = ("best", "last")
_AUGMENTED = ("flips", "views")  # the best weights with test-time augmentation
_VIEWS = 8
_PATIENCE = 60  # seconds that a process gets to save its state
_EPOCH = re.compile(r"epoch +\d+/\d+  (?!step )")  # the line of a finished epoch
_LOGS = (SETTINGS, METRICS, VALIDATION, SUMMARY)  # the summary last: with it a run counts as finished


class RunError(RuntimeError):
    """A training run of a grid failed; the message names its folder and its last line."""


@dataclass(frozen=True)
class Run:
    """One cell with one seed, and its folder."""

    cell: Cell
    seed: int
    config: Config
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        return _finished(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json."""
        return _summary(self.folder)


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def _finished(folder: Path) -> bool:
    return (folder / SUMMARY).is_file() and not _summary(folder)["interrupted"]


def runs_of(grid: Grid, out: Path, seeds: int, overrides: dict[str, Any], folds: int = 0) -> list[Run]:
    """All runs of a grid, seed by seed, so that an interrupted grid has every cell at the lower seeds.

    folds: in place of seeds, a run for each fold, whose number is its seed, too.
    """
    if folds:
        parts = [({"folds": folds, "fold": k, "seed": k}, f"fold-{k}-of-{folds}") for k in range(folds)]
    else:
        parts = [({"seed": seed}, f"seed-{seed}") for seed in range(seeds)]
    return [
        Run(cell, part["seed"], cell.config(**part, **overrides), out / cell.folder / name)
        for part, name in parts
        for cell in grid.cells
    ]


def conflict(run: Run) -> str | None:
    """The first difference between a run folder's settings and the grid's, in one line; None where there is none or the
    folder is new.
    """
    path = run.folder / SETTINGS
    if not path.is_file():
        return None
    there = asdict(read_toml(path))
    wanted = asdict(run.config)
    different = [name for name in wanted if there[name] != wanted[name]]
    if not different:
        return None
    name = different[0]
    return f"{run.folder}: its {name} is {there[name]!r}, the grid asks for {wanted[name]!r}; give another --out"


def logged(root: Path) -> dict[Config, Path]:
    """Folders with the logs of finished runs anywhere under `root`, by settings."""
    folders = sorted(path.parent for path in root.glob(f"**/{VALIDATION}"))
    return {_comparable(read_toml(folder / SETTINGS)): folder for folder in folders if _finished(folder)}


def alike(runs: list[Run]) -> dict[Config, list[Run]]:
    """The runs by what they train: those of one group have the same result."""
    groups: dict[Config, list[Run]] = {}
    for run in runs:
        groups.setdefault(_comparable(run.config), []).append(run)
    return groups


def share(done: Run, runs: list[Run]) -> None:
    """Copy the logs of a finished run to those that train the same."""
    logs = {_comparable(done.config): done.folder}
    for run in runs:
        if run is not done and not run.finished:
            take(run, logs)


def take(run: Run, logs: dict[Config, Path]) -> Path | None:
    """Copy the logs of a finished run with the run's settings into its folder; returns where they lay, None where there
    are none.
    """
    folder = logs.get(_comparable(run.config))
    if folder is not None:
        _copy_logs(folder, run.folder, run.config)
    return folder


def keep(run: Run, root: Path, grid: Grid) -> None:
    """Copy a finished run's logs to root/GRID/CELL/seed-N; of the data's path they keep only the last name."""
    _copy_logs(run.folder, root / grid.name / run.cell.folder / run.folder.name, _of_any_place(run.config))


def _copy_logs(source: Path, target: Path, config: Config) -> None:
    """Copy the logs of a run, with `config` as its settings."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _LOGS:
        if name == SETTINGS:
            (target / name).write_text(to_toml(config), encoding="utf-8")
        else:
            shutil.copyfile(source / name, target / name)


def _of_any_place(config: Config) -> Config:
    """The settings without the folder that the data lie in."""
    return replace(config, data=Path(config.data).name)


def _comparable(config: Config) -> Config:
    """Settings that are equal for runs with the same result. 'mixed' leaves class 0 out of IoU and margin only, so that
    without these two terms it is 'train'.
    """
    config = _of_any_place(config)
    if config.background == "mixed" and not config.iou and not config.margin:
        return replace(config, background="train")
    return config


class Trainings:
    """Trains runs, `jobs` at a time, each in a process of its own with `threads` threads. Iterating gives each run when
    it has ended, with its RunError if it failed: the others go on.

    Whatever ends the `with` block, a signal included, lets the processes save their states and end; the next time they
    go on.
    """

    def __init__(self, runs: list[Run], jobs: int, threads: int, say: Callable[[str], None]) -> None:
        self.runs = runs
        self.threads = threads
        self.say = say
        self.several = jobs > 1
        self.pool = ThreadPoolExecutor(jobs)
        self.processes = set[subprocess.Popen]()
        self.handler: Any = None

    def __enter__(self) -> Trainings:
        if current_thread() is main_thread():
            self.handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        return self

    def __iter__(self) -> Iterator[tuple[Run, RunError | None]]:
        futures = {self.pool.submit(self._train, run): run for run in self.runs}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, RunError):
                raise error
            yield futures[future], error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self.processes):
            if kind is not KeyboardInterrupt:  # the terminal has sent that to all of them
                process.terminate()
        for process in list(self.processes):
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        self.pool.shutdown()
        if self.handler is not None:
            signal.signal(signal.SIGTERM, self.handler)

    def _train(self, run: Run) -> None:
        place = f"{run.cell.name}, seed {run.seed}"
        self.say(f"training {place}")
        train(
            run,
            self.threads,
            lambda line: self.say(f"  {place}: {line}" if self.several else f"  {line}"),
            self.processes,
        )


def train(
    run: Run, threads: int = 0, say: Callable[[str], None] = print, processes: set[subprocess.Popen] | None = None
) -> None:
    """Train the run in a process of its own, or go on with one that was stopped. Raises RunError when it fails.
    processes: holds it while it runs.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    settings = run.folder.with_name(run.folder.name + ".toml")
    settings.write_text(to_toml(run.config), encoding="utf-8")
    begun = holds_state(run.folder)
    place = ["--resume", str(run.folder)] if begun else ["--config", str(settings), "--out", str(run.folder)]
    command = [sys.executable, "-m", f"{PREFIX}engine.train", *place, "--threads", str(threads)]
    running = set() if processes is None else processes
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    running.add(process)
    line = ""
    try:
        for line in process.stdout or ():
            if _EPOCH.match(line):
                say(line.rstrip())
        code = process.wait()
    finally:
        running.discard(process)
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        raise RunError(f"{run.folder}: the run ended with exit code {code}: {line.strip()}")
    settings.unlink()


def measure(run: Run) -> None:
    """Write validation.npz: what the best and the last weights predict on every validation tile, and the tiles' source
    images.
    """
    from engine.training.checkpoint import load_checkpoint

    val = _validation(_of_data(run.config))
    arrays: dict[str, np.ndarray] = {"groups": _unique_groups(val.sources), "revision": np.array(revision())}
    for name in _CHECKPOINTS:
        checkpoint = load_checkpoint(run.folder / f"{name}.safetensors")
        arrays[name] = checkpoint.confusion(val).astype(np.int32)
        if name == "best":
            arrays["form"] = np.array(json.dumps(asdict(checkpoint.form)))
            arrays["flips"] = checkpoint.confusion(val, flips=True).astype(np.int32)
            arrays["views"] = checkpoint.confusion(val, views=_VIEWS).astype(np.int32)
    part = run.folder / "validation.part.npz"
    np.savez_compressed(part, **arrays)
    part.replace(run.folder / VALIDATION)


@lru_cache
def revision() -> str:
    """The revision of the checkout that runs; of an installation or an unpacked sdist its version; else 'unknown'."""
    return (None if PREFIX else revision_of(PLACE)) or version()


def revision_of(checkout: Path) -> str | None:
    """The revision of a git checkout; None of another folder, also of one in another project's checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--show-toplevel", "--short", "HEAD"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    top, commit = lines
    return commit if Path(top).resolve() == checkout.resolve() else None


def outcome(run: Run, checkpoint: str = "best") -> Outcome:
    """The measured outcome of a finished run, measuring it first where that has not been done,
    or not everything of it.
    """
    from engine.training.checkpoint import form_from_dict

    path = run.folder / VALIDATION
    if not path.is_file() or not _is_whole(path):
        measure(run)
    with np.load(path, allow_pickle=False) as file:
        form = form_from_dict(json.loads(str(file["form"])))
        return Outcome(
            run.seed,
            file[checkpoint].astype(np.int64),
            file["groups"],
            form.classes,
            form.absent,
            str(file["revision"]),
        )


def _is_whole(path: Path) -> bool:
    """Whether a validation.npz holds every measurement of this version."""
    with np.load(path, allow_pickle=False) as file:
        return {*_CHECKPOINTS, *_AUGMENTED, "groups", "form", "revision"} <= set(file.files)


@lru_cache(maxsize=2)
def _validation(config: Config) -> Any:
    from engine.data.preparation import prepare

    return prepare(config).val


def _of_data(config: Config) -> Config:
    """A Config with those settings only that decide the tiles: the same for all cells of a grid with one seed."""
    names = (
        "data",
        "masks",
        "classes",
        "ignore",
        "split",
        "clean",
        "crop",
        "tiles",
        "val_fraction",
        "folds",
        "fold",
        "seed",
    )
    return Config(**{name: getattr(config, name) for name in names})


def _unique_groups(sources: np.ndarray) -> np.ndarray:
    """The source images' names; a tile whose source is unknown is an image of its own."""
    return np.array([name or f"tile {k}" for k, name in enumerate(sources)])
