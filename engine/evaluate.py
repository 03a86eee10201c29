"""Measure a trained network:  python -m engine.evaluate CHECKPOINT --data FILE [--split val|test|all] [--json]"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from engine.cli import UsageError, check_memory, parsed, run_command, use_threads
from engine.data import DataError, Tiles, sharing

if TYPE_CHECKING:
    from engine.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Arguments:
    """Measure a trained network on tiles: both readings of mean IoU, IoU per class, with confidence intervals.

    Where test tiles share a source image with training, the score without them is printed, too.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A best.safetensors or last.safetensors of a run."""
    data: str | None = None
    """'synthetic', an .npz file or a folder; by default what the network was trained on. Its masks are read by the
    network's classes.
    """
    split: Literal["val", "test", "all"] = "val"
    """The held-out part (split as in training), the test set, or every cleaned training tile."""
    json: bool = False
    """Print one JSON object instead of a table."""
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
    memory: int = 0
    """MiB of memory that a folder's decoded tiles may take, else they are read from a temporary file; 0: half of what
    is available.
    """


def evaluate(arguments: Arguments, loaded: Checkpoint | None = None) -> dict[str, Any]:
    """The scores as a dictionary; errors as one line each. loaded: the network, where it is not to be read again."""
    from engine.data.preparation import check_scored, prepare
    from engine.training.checkpoint import load_checkpoint
    from kernels.core import device

    if arguments.batch < 1:
        raise UsageError(f"--batch: got {arguments.batch}, expected at least 1")
    check_memory(arguments.memory)
    if not 0 <= arguments.views <= 1000:
        raise UsageError(f"--views: got {arguments.views}, expected 0 to 1000")
    use_threads(arguments.threads)
    choice = device.choose(None if arguments.device == "auto" else arguments.device)
    checkpoint = loaded or load_checkpoint(arguments.checkpoint)
    config = checkpoint.config
    form = checkpoint.form
    source = arguments.data or config.data
    data = prepare(config, None if source == config.data else source, form.classes, arguments.memory)
    tiles = tiles_of_split(data, arguments.split, source)
    form.check(tiles.channels, tiles.images.dtype, f"--data {source}")
    check_scored(
        tiles,
        form.classes,
        form.absent,
        f"--data {source}: nothing to measure: the {len(tiles)} tiles of '{arguments.split}'",
    )
    checkpoint.net.to(choice.name)
    per_image = checkpoint.confusion(tiles, arguments.batch, arguments.flips, arguments.views)
    figures = _figures(per_image, tiles, checkpoint)
    result = {
        "checkpoint": str(arguments.checkpoint),
        "data": source,
        "split": arguments.split,
        "tiles": len(tiles),
        **figures,
        "interval_over": tiles.unit,
        "notes": data.notes,
    }
    if arguments.split == "test" and tiles.sources_known:
        shared = sharing(tiles, data.train)
        result["tiles_sharing_a_source_image_with_training"] = int(shared.sum())
        if shared.any() and not shared.all():
            result["without_them"] = _figures(per_image[~shared], tiles[~shared], checkpoint)
    return result


def _figures(per_image: np.ndarray, tiles: Tiles, checkpoint: Checkpoint) -> dict[str, Any]:
    """The scores of some tiles."""
    from engine.training.metrics import bootstrap, iou_intervals, scores

    classes = checkpoint.form.classes
    absent = checkpoint.form.absent
    confusion = per_image.sum(0)
    result = scores(confusion, classes, absent)
    intervals = iou_intervals(per_image, tiles.units, classes=classes, absent=absent)
    return {
        "miou_fg": result.miou_fg,
        "miou_fg_interval": list(bootstrap(per_image, tiles.units, classes=classes, absent=absent)),
        "miou_keras": result.miou_keras,
        "iou": dict(zip(classes.scored_names, result.iou, strict=True)),
        "iou_intervals": dict(zip(classes.scored_names, intervals, strict=True)),
        "confusion": confusion.tolist(),
        "accuracy": result.accuracy,
        "pixels": result.pixels,
    }


def tiles_of_split(data: Any, split: str, source: str) -> Tiles:
    """The tiles that `split` names. Raises DataError where there is no test set with labels."""
    if split == "val":
        return data.val
    if split == "test":
        if data.test is None or data.test.masks is None:
            raise DataError(f"--split test: {source} has no test set with labels")
        return data.test
    from engine.data.preparation import at_least
    from engine.data.stored import joined

    parts = [at_least(at_least(part, data.train.size), data.val.size) for part in (data.train, data.val)]
    arrays = [[getattr(part, name) for part in parts] for name in ("images", "masks", "groups", "sizes")]
    together = (None if any(a is None for a in some) else joined(some) for some in arrays)
    classes = parts[0].classes if parts[0].classes.ignores else parts[1].classes
    return Tiles(*together, classes=classes, known=np.concatenate([part.counts for part in parts]))


def run(arguments: Arguments) -> int:
    """Evaluate and print."""
    result = evaluate(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    for note in result["notes"]:
        print(note)
    print(f"{result['split']}: {result['tiles']} tiles of {result['data']}, {result['pixels']} labelled pixels")
    _print_figures(result, result["interval_over"])
    shared = result.get("tiles_sharing_a_source_image_with_training")
    if shared is not None:
        print(
            f"{shared} of the {result['tiles']} tiles share a source image with training"
            + (", so that this leaks" if shared else "")
        )
    if "without_them" in result:
        print(f"without them: {result['tiles'] - shared} tiles, {result['without_them']['pixels']} labelled pixels")
        _print_figures(result["without_them"], result["interval_over"])
    return 0


def _print_figures(figures: dict[str, Any], over: str) -> None:
    low, high = figures["miou_fg_interval"]
    fg = f"fg {figures['miou_fg']:.4f}  (95 % {low:.4f} to {high:.4f}, drawn over {over}s)"
    print(f"  mean IoU  {fg}   keras {figures['miou_keras']:.4f}   accuracy {figures['accuracy']:.4f}")
    for name, value in figures["iou"].items():
        interval = figures["iou_intervals"][name]
        between = "" if interval is None else f"  ({interval[0]:.4f} to {interval[1]:.4f})"
        print(f"  {name:>10}  {'absent' if value is None else f'{value:.4f}{between}'}")


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.evaluate")))


if __name__ == "__main__":
    main()
