"""The runs of a grid: one folder per cell and seed, each trained by a process of its own, measured once, and never repeated when it is finished.

OUT/CELL/seed-N/            the run folder of engine.train
OUT/CELL/seed-N/validation.npz   confusion (N, C, C) of every validation tile by the best epoch's weights, and by the last's; groups (N,); form
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Config, read_toml, to_toml
from engine.experiment.grid import Cell, Grid
from engine.experiment.statistics import Outcome
from engine.run_folder import holds_state

_CHECKPOINTS = ("best", "last")


class RunError(RuntimeError):
    """A training run of a grid failed; the message names its folder and its last line."""


@dataclass(frozen=True)
class Run:
    """One cell with one seed, and where it lies."""

    cell: Cell
    seed: int
    config: Config
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        return (self.folder / "summary.json").is_file() and not self.summary["interrupted"]

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))


def runs_of(grid: Grid, out: Path, seeds: int, overrides: dict[str, Any]) -> list[Run]:
    """All runs of a grid, seed by seed, so that an interrupted grid has every cell at the lower seeds."""
    return [Run(cell, seed, cell.config(seed=seed, **overrides), out / cell.folder / f"seed-{seed}") for seed in range(seeds) for cell in grid.cells]


def conflict(run: Run) -> str | None:
    """What differs between a run folder's settings and the grid's, in one line; None where nothing does or the folder is new."""
    path = run.folder / "config.toml"
    if not path.is_file():
        return None
    there, wanted = asdict(read_toml(path)), asdict(run.config)
    different = [name for name in wanted if there[name] != wanted[name]]
    if not different:
        return None
    name = different[0]
    return f"{run.folder}: its {name} is {there[name]!r}, the grid asks for {wanted[name]!r}; give another --out"


def train(run: Run, threads: int = 0, say: Callable[[str], None] = print) -> None:
    """Train the run in a process of its own, or go on with one that was stopped. RunError when it fails."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    settings = run.folder.with_name(run.folder.name + ".toml")
    settings.write_text(to_toml(run.config), encoding="utf-8")
    begun = holds_state(run.folder)
    place = ["--resume", str(run.folder)] if begun else ["--config", str(settings), "--out", str(run.folder)]
    command = [sys.executable, "-m", "engine.train", *place, "--threads", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace")
    line = ""
    try:
        for line in process.stdout or ():
            if line.startswith("epoch"):
                say(f"  {line.rstrip()}")
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        raise RunError(f"{run.folder}: the run ended with exit code {code}: {line.strip()}")
    settings.unlink()


def measure(run: Run) -> None:
    """Write validation.npz: what the best and the last weights predict on every validation tile, and the tiles' source images."""
    from engine.checkpoint import load_checkpoint

    val = _validation(_of_data(run.config))
    arrays: dict[str, np.ndarray] = {"groups": _unique_groups(val.sources)}
    for name in _CHECKPOINTS:
        checkpoint = load_checkpoint(run.folder / f"{name}.safetensors")
        arrays[name] = checkpoint.confusion(val).astype(np.int32)
        arrays["form"] = np.array(json.dumps(asdict(checkpoint.form)))
    part = run.folder / "validation.part.npz"
    np.savez_compressed(part, **arrays)
    part.replace(run.folder / "validation.npz")


def outcome(run: Run, checkpoint: str = "best") -> Outcome:
    """The measured outcome of a finished run, measuring it first where that has not been done."""
    from engine.checkpoint import Form, form_from_dict

    path = run.folder / "validation.npz"
    if not path.is_file():
        measure(run)
    with np.load(path, allow_pickle=False) as file:
        form = form_from_dict(json.loads(str(file["form"]))) if "form" in file else Form()
        return Outcome(run.seed, file[checkpoint].astype(np.int64), file["groups"], form.classes, form.absent)


@lru_cache(maxsize=2)
def _validation(config: Config) -> Any:
    from engine.preparation import prepare

    return prepare(config).val


def _of_data(config: Config) -> Config:
    """A Config with those settings only that decide the tiles: the same for all cells of a grid with one seed."""
    names = ("data", "masks", "classes", "ignore", "split", "clean", "crop", "tiles", "val_fraction", "seed")
    return Config(**{name: getattr(config, name) for name in names})


def _unique_groups(sources: np.ndarray) -> np.ndarray:
    """The source images' names; a tile whose source is unknown is an image of its own."""
    return np.array([name or f"tile {k}" for k, name in enumerate(sources)])
