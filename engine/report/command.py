"""The command line of engine.report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro

from engine.cli import Output, UsageError, parsed, run_command, use_threads
from engine.config import Config, read_toml
from engine.data import Classes, DataError
from engine.errors import quoted, reading
from engine.files import finite
from engine.training.run_folder import (
    BEST,
    METRICS,
    REPORT,
    SETTINGS,
    SUMMARY,
    VALIDATION,
    RunFolder,
    check_run,
    known_summary,
)

if TYPE_CHECKING:
    from engine.data.preparation import Prepared
    from engine.report.record import Record
    from engine.training.checkpoint import Checkpoint
    from engine.training.metrics import TileScores

Note = Callable[[str], None]

_MOST_TILES = 100
_NUMBERS = ("train_loss", "val_miou_fg", "val_miou_keras", "learning_rate", "images_per_second")  # of every epoch
_HEAD = 2000  # characters of a page, in which it says what wrote it


@dataclass(frozen=True)
class Arguments:
    """Write a page about a run, or one that compares several: report.html, which needs no network and no server.

    A run's folder also gets summary.json, curves.png and predictions.png, as far as the run came. Where the page goes
    elsewhere (several runs, or --out), run folders are only read, so that runs may be training meanwhile.

    Examples:
      python -m engine.report runs/tiny-1                     runs/tiny-1/report.html, the summary and the pictures
      python -m engine.report runs/tiny-1 runs/small-1        both in report.html, in the current folder
      python -m engine.report runs/* --out compared.html
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(name="run...")]
    """Run folders in which at least one epoch was finished."""
    out: Path | None = None
    """The page; by default report.html, in the run's folder, or, for several runs, in the current one."""
    tiles: int = 6
    """How many of the worst, of the best, and of random validation tiles are shown; 0: none."""
    json: bool = False
    """Print one JSON object instead of lines: the path of the page, and what summary.json holds of each run."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)
    tensorboard: bool = False
    """Also write each run's epochs as TensorBoard events to RUN/tensorboard, where there are none yet."""
    threads: int = 0
    """Number of threads for CPU kernels; 0: as many as AREOGRAD_THREADS says, else one per core."""


class Found(NamedTuple):
    """What can be read of a run.

    record: as the page shows it, but for what its validation tiles give.  best: None for a run of which only the logs
    were kept.  data: None where it cannot be read any more.
    """

    record: Record
    best: Checkpoint | None = None
    data: Prepared | None = None

    def measured(self, name: str, tiles: int, note: Note = print) -> Record:
        """The whole record, under a name and with some tiles. This measures the validation tiles. note: is told so."""
        from engine.report.record import measured

        record = replace(self.record, name=name)
        if self.best is None or self.data is None:
            return record
        epoch = self.best.record["epoch"]
        note(f"{record.folder}: measuring {len(self.data.val)} validation tiles, epoch {epoch}")
        return measured(record, self.best, self.data.val, tiles)


def find(folder: Path) -> Found:
    """Read a run folder. Raises InputError with one line for what is no run, or has no finished epoch."""
    from engine.report.record import Record
    from engine.training.reporting import read_rows, summary_of
    from engine.training.run_state import StateError, load_state

    check_run(folder)
    config = read_toml(folder / SETTINGS)
    with reading(UsageError, f"{folder / METRICS}: cannot be read"):
        rows = read_rows(folder)
    if not rows:
        raise UsageError(f"{folder}: no epoch of this run is finished, so there is nothing to report")
    known = known_summary(folder)
    if known and not (folder / BEST).exists() and (folder / VALIDATION).is_file():
        classes, scores = _logged(folder / VALIDATION)
        _check_rows(folder, rows, classes)
        with reading(UsageError, f"{folder / SUMMARY}: is no summary of a run, as it lacks"):
            summary_of(known | {"epoch": known["best_epoch"]}, rows, bool(known["interrupted"]), {})
        missing = (f"Without tiles: of this run only the logs were kept, and no {BEST}.",)
        return Found(Record(folder.name, folder, config, classes, rows, known, scores, missing=missing))
    try:
        state = load_state(folder)
        progress, versions = state.progress, state.surroundings
    except StateError:  # of a run before there were states
        progress, versions = {}, {}
    return _with_weights(folder, config, rows, known, progress, versions)


def _with_weights(
    folder: Path,
    config: Config,
    rows: list[dict[str, Any]],
    known: dict[str, Any],
    progress: dict[str, Any],
    versions: dict[str, str],
) -> Found:
    """known: what an earlier summary.json holds, for facts that cannot be found any more."""
    from engine.data.preparation import prepare
    from engine.report.record import Record
    from engine.training.checkpoint import load_checkpoint
    from engine.training.reporting import summary_of
    from kernels.core import device
    from layers import measure

    best = load_checkpoint(folder / BEST)
    data: Prepared | None = None
    missing: tuple[str, ...] = ()
    try:
        data = prepare(config)
    except DataError as error:
        missing = (f"Without tiles and confusion matrix: the data cannot be read any more ({error}).",)
    size = measure(best.net, (1, *best.form.size, best.form.channels))
    seconds, images = (progress.get(name) for name in ("training_seconds", "trained_images"))
    facts = {
        "seconds": progress.get("seconds", known.get("seconds")),
        "images_per_second": images / seconds if images and seconds else known.get("images_per_second"),
        "parameters": size.parameters,
        "flops_per_image": size.flops,
        "train_tiles": known.get("train_tiles") if data is None else len(data.train),
        "val_tiles": known.get("val_tiles") if data is None else len(data.val),
        "device": known.get("device") or str(device.choose(None if config.device == "auto" else config.device)),
        "interval_over": known.get("interval_over") if data is None else data.val.unit,
        "notes": progress.get("notes", known.get("notes", []) if data is None else data.notes),
    }
    _check_rows(folder, rows, best.form.classes)
    with reading(UsageError, f"{folder / BEST}: its record lacks"):
        summary = summary_of(best.record, rows, not progress.get("ended", rows[-1]["epoch"] >= config.epochs), facts)
    classes = best.form.classes
    record = Record(folder.name, folder, config, classes, rows, summary, missing=missing, versions=versions)
    return Found(record, best, data)


def _check_rows(folder: Path, rows: list[dict[str, Any]], classes: Classes) -> None:
    """Raise UsageError for rows that hold something else than the scores of epoch after epoch."""
    with reading(UsageError, f"{folder / METRICS}: cannot be used"):
        epochs = [row["epoch"] for row in rows]
        if epochs != sorted(set(epochs)) or not all(isinstance(epoch, int) for epoch in epochs):
            raise ValueError(f"its epochs are {quoted(epochs)}, expected ascending numbers")
        for row in rows:
            numbers = [row[name] for name in _NUMBERS]
            numbers += [value for value in row["iou"] if value is not None]
            numbers += [*(row.get("terms") or {}).values(), *(row.get("gradient_norms") or {}).values()]
            if not all(isinstance(number, (int, float)) for number in numbers):
                raise ValueError(f"epoch {row['epoch']} holds {quoted(numbers)}, expected numbers")
            if len(row["iou"]) != len(classes.scored):
                raise ValueError(f"epoch {row['epoch']} has {len(row['iou'])} IoUs, expected {len(classes.scored)}")


def _logged(path: Path) -> tuple[Classes, TileScores]:
    """The classes, and the scores of the best epoch, as engine.experiment has measured them."""
    from engine.training.checkpoint import form_from_dict
    from engine.training.metrics import tile_scores

    with reading(UsageError, f"{path}: cannot be read"), np.load(path, allow_pickle=False) as file:
        form = form_from_dict(json.loads(str(file["form"])))
        return form.classes, tile_scores(file["best"].astype(np.int64), form.classes, form.absent, file["groups"])


def report(folder: Path, tiles: int = 6, note: Note = print) -> dict[str, Any]:
    """Write the summary, the pictures and the page of a run into its folder; returns what summary.json holds."""
    from engine.files import write_json
    from engine.report.page import write_page
    from engine.training.reporting import draw_pictures

    found = find(folder)
    record = found.record
    if found.best is not None:
        write_json(folder / SUMMARY, record.summary)
    draw_pictures(folder, found.best, None if found.data is None else found.data.val, record.rows, record.classes)
    write_page(folder / REPORT, [found.measured(folder.resolve().name, tiles, note)])
    for line in record.missing:
        note(line)
    return record.summary


def compare(folders: Sequence[Path], out: Path, tiles: int = 6, note: Note = print) -> list[Record]:
    """Write the page of some runs, whose folders are only read; returns what it shows. note: is told the progress."""
    from engine.report.page import write_page

    names = distinct_names(folders)
    records = [find(folder).measured(name, tiles, note) for folder, name in zip(folders, names, strict=True)]
    write_page(out, records)
    return records


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many of its parents as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]).removeprefix("//"))
    return names


def _check(arguments: Arguments) -> None:
    """Raise UsageError for arguments that cannot be served, before anything is computed."""
    runs = arguments.runs
    if not runs:
        raise UsageError("RUN: got none, expected at least one run folder")
    if not 0 <= arguments.tiles <= _MOST_TILES:
        raise UsageError(f"--tiles: got {arguments.tiles}, expected 0 to {_MOST_TILES}")
    for folder in runs:
        check_run(folder)
        if sum(other.resolve() == folder.resolve() for other in runs) > 1:
            raise UsageError(f"{folder}: the run is given twice")


def _check_page(out: Path, argument: str) -> None:
    """Raise UsageError where a page cannot be written, or would replace a file that is no report."""
    from engine.report.page import GENERATOR

    if not out.parent.is_dir():
        raise UsageError(f"{argument}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise UsageError(f"{argument}: is a folder, expected the name of a page")
    try:
        with open(out, encoding="utf-8", errors="replace") as file:
            if GENERATOR not in file.read(_HEAD):
                raise UsageError(f"{argument}: is there and is no report; give another name")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{argument}: cannot be written ({error.strerror})") from None


def run(arguments: Arguments) -> int:
    """Report on run folders. To one that is written to, no other process may write meanwhile."""
    from engine.training.reporting import summary_lines

    _check(arguments)
    runs = arguments.runs
    note = arguments.output.note
    if arguments.tensorboard:
        from engine.training.tensorboard import check_installed

        check_installed()
    use_threads(arguments.threads)
    if arguments.out is None and len(runs) == 1:
        _check_page(runs[0] / REPORT, str(runs[0] / REPORT))
        with RunFolder(runs[0], "run") as folder:
            summary = report(folder.path, arguments.tiles, note)
        summaries = {str(runs[0]): summary}
        out = runs[0] / REPORT
        lines = [summary_lines(summary, folder.path)]
    else:
        out = Path(REPORT) if arguments.out is None else arguments.out
        _check_page(out, f"--out {out}")
        records = compare(runs, out, arguments.tiles, note)
        summaries = {str(folder): record.summary for folder, record in zip(runs, records, strict=True)}
        lines = [
            " ".join([f"{record.name}: val mIoU fg {record.summary['val_miou_fg']:.4f}", *record.missing])
            for record in records
        ]
        lines.append(f"report   {out}")
    if arguments.json:
        print(json.dumps({"report": str(out), "runs": finite(summaries)}))
    elif not arguments.output.quiet:
        print(*lines, sep="\n")
    for folder in runs if arguments.tensorboard else ():
        _write_events(folder, note)
    return 0


def _write_events(run: Path, note: Note) -> None:
    from engine.training.run_folder import EVENTS, event_files
    from engine.training.tensorboard import write_events

    with RunFolder(run, "run") as folder:
        if event_files(folder.path):
            note(f"events   {run / EVENTS}  (were there already, and stay as they are)")
            return
        record = find(folder.path).record
        write_events(folder.path, record.rows, record.classes.scored_names)
        note(f"events   {run / EVENTS}  (tensorboard --logdir {run / EVENTS})")


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.report")))
