"""Measure a trained network, or several together:  python -m engine.evaluate RUN [RUN ...] [--data FOLDER]"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import tyro

from engine.cli import Output, UsageError, check_memory, parsed, run_command, use_threads
from engine.data import DataError, Tiles, sharing

if TYPE_CHECKING:
    from engine.build import Form
    from engine.config import Config
    from engine.ensemble import Ensemble
    from engine.training.checkpoint import Checkpoint

_MOST_COLUMNS = 12  # classes of a confusion matrix that is printed whole
_MOST_MISTAKES = 10  # of a larger one


@dataclass(frozen=True)
class Arguments:
    """Measure a trained network: both readings of mean IoU with confidence intervals; IoU, precision, recall and
    boundary F-score per class; the confusion matrix; calibration. Several checkpoints are measured as one ensemble,
    whose probabilities are the mean of its members'. docs/accuracy.md defines every figure.

    Examples:
      python -m engine.evaluate RUN                          the tiles that the run held out
      python -m engine.evaluate RUN --split test --flips     its test set, averaged over flips
      python -m engine.evaluate RUN OTHER/best.safetensors   an ensemble of two
      python -m engine.evaluate RUN --data FOLDER            all images of FOLDER/images, by FOLDER/masks

    Where test tiles share a source image with training, the scores without them are printed, too.
    """

    GROUPS: ClassVar[dict[str, str]] = {"data": "on what", "json": "what is printed", "batch": "how it is computed"}

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT ...")]
    """Run folders (their best.safetensors is measured) or .safetensors files."""
    data: str | None = None
    """'synthetic', an .npz file or a folder; by default what the (first) network was trained on. Its masks are read by
    the network's classes.
    """
    masks: str = ""
    """The folder of the masks, where --data is a folder of images only."""
    split: Literal["val", "test", "all"] | None = None
    """The held-out part (split as in training), the test set, or every tile outside of the test set, cleaned as in
    training. By default val of the training data, and all of other data.
    """
    memory: int = 0
    """MiB of memory that a folder's decoded tiles may take, else they are read from a temporary file; 0: half of what
    is available.
    """
    json: bool = False
    """Print one JSON object instead of tables."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)
    tolerance: int = 2
    """Pixels by which a boundary may be off, for the boundary F-score."""
    batch: int = 32
    """Tiles per forward pass."""
    flips: bool = False
    """Average the logits over horizontal and vertical flips (test-time augmentation)."""
    views: int = 0
    """Average over as many randomly moved, rotated and scaled views, too (test-time augmentation as in the report)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    threads: int = 0
    """Number of threads for CPU kernels; 0: as many as AREOGRAD_THREADS says, else one per core."""


class Counts(NamedTuple):
    """What every figure is computed from: of each of N tiles the confusion matrix, int64 (N, C, C), the boundary
    pixels (boundary.py), int64 (N, C, 4), and the bins of the calibration (calibration.py), float64 (N, BINS, 3).
    """

    confusion: np.ndarray
    boundary: np.ndarray
    calibration: np.ndarray

    def of(self, rows: np.ndarray) -> Counts:
        """Those of some tiles."""
        return Counts(*(part[rows] for part in self))


def evaluate(arguments: Arguments, loaded: Checkpoint | None = None) -> dict[str, Any]:
    """The scores as a dictionary; errors as one line each. loaded: the network, where it is not to be read again."""
    from engine.data.preparation import check_scored
    from engine.ensemble import Ensemble, load_ensemble
    from kernels.core import device

    _check(arguments)
    use_threads(arguments.threads)
    choice = device.choose(None if arguments.device == "auto" else arguments.device)
    ensemble = load_ensemble(arguments.checkpoints) if loaded is None else Ensemble((loaded,))
    form = ensemble.form
    data = _measured_data(arguments, ensemble)
    tiles = data.tiles
    form.check(tiles.channels, tiles.images.dtype, f"--data {data.source}")
    check_scored(
        tiles,
        form.classes,
        form.absent,
        f"--data {data.source}: nothing to measure: the {len(tiles)} tiles of '{data.split}'",
    )
    ensemble.to(choice.name)
    counts = count(ensemble, tiles, arguments.batch, arguments.flips, arguments.views, arguments.tolerance)
    paths = [str(path) for path in arguments.checkpoints]
    result = {
        "checkpoint": paths[0],
        "checkpoints": paths,
        "data": data.source,
        "split": data.split,
        "tiles": len(tiles),
        **figures(counts, tiles, form),
        "boundary_tolerance": arguments.tolerance,
        "interval_over": tiles.unit,
        "notes": data.notes,
    }
    if data.split == "test" and tiles.sources_known and data.train is not None:
        shared = sharing(tiles, data.train)
        result["tiles_sharing_a_source_image_with_training"] = int(shared.sum())
        if shared.any() and not shared.all():
            result["without_them"] = figures(counts.of(~shared), tiles[~shared], form)
    return result


def _check(arguments: Arguments) -> None:
    """Raise UsageError for numbers that make no sense."""
    for name, value, least, most in (
        ("batch", arguments.batch, 1, 1 << 20),
        ("views", arguments.views, 0, 1000),
        ("tolerance", arguments.tolerance, 0, 1000),
    ):
        if not least <= value <= most:
            raise UsageError(f"--{name}: got {value}, expected {least} to {most}")
    check_memory(arguments.memory)
    if arguments.masks and arguments.data is None:
        raise UsageError(f"--masks {arguments.masks}: goes with --data, a folder of images")


# -- data --------------------------------------------------------------------------------------------------------------


class _Data(NamedTuple):
    """The tiles to measure on, where they are from, and what training saw of the same source, if that is known."""

    tiles: Tiles
    source: str
    split: str
    notes: list[str]
    train: Tiles | None = None


def _measured_data(arguments: Arguments, ensemble: Ensemble) -> _Data:
    from engine.data.preparation import prepare, unsplit

    config, form = ensemble.members[0].config, ensemble.form
    others = [
        f"warning: {path} held out another part of its data, so it may have been trained on these tiles"
        for path, member in zip(arguments.checkpoints, ensemble.members, strict=True)
        if _held_out(member.config) != _held_out(config)
    ]
    own = not arguments.masks and (arguments.data is None or _same(arguments.data, config.data))
    source = config.data if arguments.data is None or own else arguments.data
    place = (config, None if own else source, form.classes, arguments.memory, arguments.masks)
    split = arguments.split or ("val" if own else "all")
    if split != "all":
        data = prepare(*place)
        data.notes.extend(others if split == "val" else [])
        return _Data(tiles_of_split(data, split, source), source, split, data.notes, data.train)
    tiles, notes = unsplit(*place)
    if arguments.split is None:
        notes.append(
            f"no tile is held out, for the network was trained on {config.data}; if these are the same tiles, "
            "--split val measures those that training held out"
        )
    return _Data(tiles, source, split, notes)


def _held_out(config: Config) -> tuple[Any, ...]:
    """What decides which part of the data a run holds out."""
    return config.data, config.seed, config.split, config.val_fraction, config.folds, config.fold


def _same(source: str, trained: str) -> bool:
    """Whether both name the same data."""
    try:
        return source == trained or ("synthetic" not in (source, trained) and os.path.samefile(source, trained))
    except (OSError, ValueError):  # one of them is not there; reading it says what is wrong
        return False


def tiles_of_split(data: Any, split: str, source: str) -> Tiles:
    """The tiles of 'val' or 'test'. Raises DataError where there is no test set with labels."""
    if split == "val":
        return data.val
    if data.test is None or data.test.masks is None:
        raise DataError(f"--split test: {source} has no test set with labels")
    return data.test


# -- figures -----------------------------------------------------------------------------------------------------------


def count(
    ensemble: Ensemble, tiles: Tiles, batch: int = 32, flips: bool = False, views: int = 0, tolerance: int = 2
) -> Counts:
    """What `figures` needs, tile by tile. batch, flips, views: see `Ensemble.batches`.  tolerance: in pixels."""
    from engine.training.boundary import boundary_counts
    from engine.training.calibration import calibration_counts
    from engine.training.metrics import confusion_per_image

    classes = ensemble.form.classes
    number = len(classes)
    masks = tiles.labels()
    parts = []
    for rows, labels, probabilities in ensemble.batches(tiles.images, batch, flips, views):
        truth = masks[rows]
        judged = truth != classes.ignored
        # pixels that count nowhere go to a row of their own
        known = np.where(judged, truth, number).astype(np.int64)
        if classes.unlabelled == 0:
            judged &= truth != 0
        parts.append(
            Counts(
                confusion_per_image(known, labels, number + 1)[:, :number, :number],
                boundary_counts(truth, labels, judged, number, tolerance),
                calibration_counts(probabilities.max(-1), labels == truth, judged),
            )
        )
    return Counts(*map(np.concatenate, zip(*parts, strict=True)))


def figures(counts: Counts, tiles: Tiles, form: Form) -> dict[str, Any]:
    """The scores of some tiles (docs/accuracy.md)."""
    from engine.training.boundary import PREDICTED, TRUE, boundary_f
    from engine.training.calibration import calibration
    from engine.training.metrics import bootstrap, iou_intervals, precision_recall, scores

    classes, absent = form.classes, form.absent
    confusion = counts.confusion.sum(0)
    result = scores(confusion, classes, absent)
    intervals = iou_intervals(counts.confusion, tiles.units, classes=classes, absent=absent)
    precision, recall = precision_recall(confusion, classes, absent)
    edges = counts.boundary.sum(0)
    boundary, boundary_of_class = boundary_f(edges, classes.scored, absent)
    judged = [label for label in classes.scored if label not in absent]

    def named(values: Any) -> dict[str, Any]:
        return dict(zip(classes.scored_names, values, strict=True))

    return {
        "miou_fg": result.miou_fg,
        "miou_fg_interval": list(bootstrap(counts.confusion, tiles.units, classes=classes, absent=absent)),
        "miou_keras": result.miou_keras,
        "iou": named(result.iou),
        "iou_intervals": named(intervals),
        "accuracy": result.accuracy,
        "pixels": result.pixels,
        "precision": named(precision),
        "recall": named(recall),
        "boundary_f_mean": boundary,
        "boundary_f": named(boundary_of_class),
        "boundary_pixels": {"true": int(edges[judged, TRUE].sum()), "predicted": int(edges[judged, PREDICTED].sum())},
        "classes": list(classes.names),
        "confusion": confusion.tolist(),
        "calibration": calibration(counts.calibration.sum(0)),
    }


# -- printing ----------------------------------------------------------------------------------------------------------


def run(arguments: Arguments) -> int:
    """Evaluate and print."""
    result = evaluate(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    for note in result["notes"]:
        arguments.output.note(note)
    if len(result["checkpoints"]) > 1:
        print(f"an ensemble of {len(result['checkpoints'])} networks: the mean of their probabilities")
    print(f"{result['split']}: {result['tiles']} tiles of {result['data']}, {result['pixels']} labelled pixels")
    _print_figures(result, result["interval_over"], result["boundary_tolerance"])
    shared = result.get("tiles_sharing_a_source_image_with_training")
    if shared is not None:
        print(
            f"{shared} of the {result['tiles']} tiles share a source image with training"
            + (", so that this leaks" if shared else "")
        )
    if "without_them" in result:
        print(f"without them: {result['tiles'] - shared} tiles, {result['without_them']['pixels']} labelled pixels")
        _print_figures(result["without_them"], result["interval_over"], result["boundary_tolerance"])
    return 0


def _print_figures(scores: dict[str, Any], over: str, tolerance: int) -> None:
    low, high = scores["miou_fg_interval"]
    fg = f"fg {scores['miou_fg']:.4f}  (95 % {low:.4f} to {high:.4f}, drawn over {over}s)"
    print(f"  mean IoU  {fg}   keras {scores['miou_keras']:.4f}   accuracy {scores['accuracy']:.4f}")
    edges = scores["boundary_pixels"]
    print(
        f"  boundary  F {_shown(scores['boundary_f_mean']).strip()}  (within {tolerance} pixels; "
        f"{edges['true']} true and {edges['predicted']} predicted boundary pixels)"
    )
    fit = scores["calibration"]
    error, confidence = (_shown(fit[key]).strip() for key in ("ece", "mean_confidence"))
    print(f"  calibration  expected error {error}, mean confidence {confidence}")
    width = max(10, *map(len, scores["classes"]))
    print(f"  {'':>{width}}     IoU  {'95 %':>16}  precision  recall  boundary F")
    for name, value in scores["iou"].items():
        interval = scores["iou_intervals"][name]
        between = "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
        others = f"{_shown(scores['precision'][name], 9)}  {_shown(scores['recall'][name])}"
        print(f"  {name:>{width}}  {_shown(value)}  {between:>16}  {others}  {_shown(scores['boundary_f'][name], 10)}")
    _print_confusion(np.array(scores["confusion"]), list(scores["iou"]), scores["classes"], width)


def _shown(value: float | None, width: int = 6) -> str:
    return format("absent" if value is None else format(value, ".4f"), f">{width}")


def _print_confusion(counts: np.ndarray, scored: list[str], names: list[str], width: int) -> None:
    """Shares of the true pixels of each class, in percent, or, of many classes, the largest mistakes."""
    judged = [k for k in range(len(names)) if counts[k].any() and (names[k] in scored or len(names) == 2)]
    if len(names) <= _MOST_COLUMNS:
        columns = [k for k in range(len(names)) if counts[judged, k].any() or k in judged]
        widths = [max(6, len(names[k])) for k in columns]
        print("  confusion: of the pixels of a class (rows), the percentage predicted as each (columns)")
        head = "  ".join(format(names[k], f">{w}") for k, w in zip(columns, widths, strict=True))
        print(f"  {'':>{width}}  {head}")
        for k in judged:
            shares = 100 * counts[k] / counts[k].sum()
            row = "  ".join(format(shares[c], f">{w}.2f") for c, w in zip(columns, widths, strict=True))
            print(f"  {names[k]:>{width}}  {row}")
        return
    mistakes = sorted(((int(counts[t, p]), t, p) for t in judged for p in range(len(names)) if t != p), reverse=True)
    print("  the most frequent mistakes:")
    for pixels, t, p in mistakes[:_MOST_MISTAKES]:
        if pixels:
            print(f"  {100 * pixels / counts[t].sum():6.2f} % of {names[t]} predicted as {names[p]} ({pixels} pixels)")


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.evaluate")))


if __name__ == "__main__":
    main()
