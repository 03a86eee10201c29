"""A run as the page shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.config import Config
from engine.data import Classes, Tiles
from engine.errors import reason
from engine.report.tiles import Picture, pictures
from engine.training.metrics import TileScores, tile_scores
from engine.training.run_folder import PROFILE

if TYPE_CHECKING:
    from engine.training.checkpoint import Checkpoint


class Operator(NamedTuple):
    """One operator of a profiled step: calls, seconds of all of them, floating-point operations, and bytes moved."""

    name: str
    calls: int
    seconds: float
    flops: int
    bytes: int


class Profile(NamedTuple):
    """Where a training step's time goes: operators, the longest first, and the seconds of a whole step."""

    operators: list[Operator]
    step_seconds: float


@dataclass(frozen=True)
class Record:
    """All that the page shows of one run.

    name: what the page calls it.  rows: of metrics.jsonl.  summary: what summary.json holds.
    scores: of the validation tiles by the best epoch's weights, None where these or the tiles cannot be read.
    tiles: their pictures, by 'worst', 'best' and 'random'.  missing: why something is not there, a line each.
    versions: what else decides a run's bits, by name.
    """

    name: str
    folder: Path
    config: Config
    classes: Classes
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    scores: TileScores | None = None
    tiles: dict[str, list[Picture]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    profile: Profile | None = None
    versions: dict[str, str] = field(default_factory=dict)


def measured(record: Record, best: Checkpoint, val: Tiles, tiles: int = 6, scores: TileScores | None = None) -> Record:
    """The record with scores and pictures of validation tiles, `tiles` of each kind. scores: where they are known."""
    if scores is None:
        form = best.form
        scores = tile_scores(best.confusion(val), form.classes, form.absent, val.units)
    return replace(record, scores=scores, tiles=pictures(best, val, scores, tiles) if tiles else {})


def with_profile(record: Record) -> Record:
    """The record with the profile that lies in the run's folder, if one does and can be read."""
    try:
        return replace(record, profile=read_profile(record.folder))
    except ValueError as error:
        return replace(record, missing=(*record.missing, f"Without the times of operators: {error}."))


def read_profile(folder: Path) -> Profile | None:
    """The profile that engine.profile has left in a run folder; None where there is none.

    Raises ValueError with one line for a file of another form.
    """
    path = folder / PROFILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        operators = [
            Operator(
                str(o["name"]), int(o["calls"]), float(o["seconds"]), int(o.get("flops") or 0), int(o.get("bytes") or 0)
            )
            for o in found["operators"]
        ]
        return Profile(sorted(operators, key=lambda o: -o.seconds), float(found["step_seconds"]))
    except Exception as error:  # whatever the file holds
        raise ValueError(f"{path}: cannot be read ({reason(error)})") from error
