"""Two networks for one problem:  python -m engine.dual MAIN AUXILIARY [--data FILE] [--threshold T] [--json]

The main network knows all classes, the auxiliary one a rare class and the rest, so that all of it learns the rare
class. Where the auxiliary network is sure of the rare class, the main network's probability of it is raised to the
auxiliary's:

    p_rare <- max(p_rare, q)  where  q > threshold

and the label is the most probable class as before. (The report's section 4.3, "dual model".) The threshold is tuned on
the tiles that are measured. A second figure shows how much such tuning flatters: each half of the source images is
measured with the threshold that is best for the other half.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from engine.cli import UsageError, check_memory, parsed, run_command, use_threads

if TYPE_CHECKING:
    from engine.data import Classes, Tiles
    from engine.training.checkpoint import Checkpoint

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))
ALONE = 1.0  # a threshold that no probability exceeds: the main network alone


@dataclass(frozen=True)
class Arguments:
    """Measure a network together with a second one that knows a rare class only, and tune the threshold between them.

    Train the second network with a classes file of two classes, one of which is named like a class of the main network
    and the other of which stands for all other mask values (docs/data.md).
    """

    main: Annotated[Path, tyro.conf.Positional]
    """The run folder or checkpoint of the network that knows all classes."""
    auxiliary: Annotated[Path, tyro.conf.Positional]
    """That of the network that knows the rare class."""
    name: str | None = None
    """The rare class; by default the one whose name both networks know."""
    data: str | None = None
    """'synthetic', an .npz file or a folder; by default what the main network was trained on."""
    split: Literal["val", "test"] = "val"
    """The held-out part (split as in the main network's training) or the test set."""
    threshold: float | None = None
    """Measure with this threshold, 0 to 1, instead of tuning it."""
    json: bool = False
    """Print one JSON object instead of a table."""
    batch: int = 32
    """Tiles per forward pass."""
    flips: bool = False
    """Average both networks' logits over horizontal and vertical flips."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    threads: int = 0
    """Number of threads for CPU kernels; 0: as many as AREOGRAD_THREADS says, else one per core."""
    memory: int = 0
    """MiB of memory that a folder's decoded tiles may take; 0: half of what is available."""


def shared_class(main: Classes, auxiliary: Classes, name: str | None = None) -> tuple[int, int]:
    """The rare class's labels in both networks. Raises UsageError where its name is not one that both know."""
    both = [n for n in main.scored_names if n in auxiliary.names]
    if name is None and len(both) != 1:
        raise UsageError(
            f"--name: the networks share {len(both)} names of classes ({', '.join(both) or 'none'}), expected the "
            "rare class's name"
        )
    chosen = both[0] if name is None else name
    if chosen not in both:
        raise UsageError(
            f"--name: got {chosen!r}, expected one that both networks know: {', '.join(both) or 'there is none'}"
        )
    return main.names.index(chosen), auxiliary.names.index(chosen)


def fused_labels(p: np.ndarray, q: np.ndarray, rare: int, threshold: float) -> np.ndarray:
    """Labels (N, H, W) from the main network's probabilities p (N, H, W, C) and the auxiliary's q (N, H, W) of class
    `rare`.
    """
    raised = p.copy()
    raised[..., rare] = np.where(q > threshold, np.maximum(p[..., rare], q), p[..., rare])
    return raised.argmax(-1).astype(np.uint8)


def confusions(
    main: Checkpoint,
    auxiliary: Checkpoint,
    tiles: Tiles,
    rare: tuple[int, int],
    thresholds: Sequence[float],
    batch: int = 32,
    flips: bool = False,
) -> np.ndarray:
    """int64 (T, N, C, C): every tile's confusion matrix with each threshold."""
    from engine.training.metrics import confusion_per_image

    classes = main.form.classes
    count = len(classes)
    truth = tiles.labels()
    out = np.zeros((len(thresholds), len(tiles), count, count), np.int64)
    for start in range(0, len(tiles), batch):
        rows = slice(start, min(start + batch, len(tiles)))
        p = main.probabilities(tiles.images[rows], batch, flips)
        q = auxiliary.probabilities(tiles.images[rows], batch, flips)
        # pixels that count nowhere go to a row of their own
        known = np.where(truth[rows] == classes.ignored, count, truth[rows].astype(np.int64))
        for k, threshold in enumerate(thresholds):
            labels = fused_labels(p, q[..., rare[1]], rare[0], threshold)
            out[k, rows] = confusion_per_image(known, labels, count + 1)[:, :count, :count]
    return out


def cross_tuned(counts: np.ndarray, units: np.ndarray, measure: Any) -> np.ndarray:
    """int64 (C, C): every source image counted with the threshold that is best for the other half of the source images.

    counts (T, N, C, C); units (N,): the source images; measure: a score of a confusion matrix.
    """
    _, index = np.unique(units, return_inverse=True)
    half = index % 2 == 0
    total = np.zeros(counts.shape[2:], np.int64)
    for tuned, measured in ((half, ~half), (~half, half)):
        best = int(np.argmax([measure(c[tuned].sum(0)) for c in counts]))
        total += counts[best, measured].sum(0)
    return total


def dual(arguments: Arguments) -> dict[str, Any]:
    """The scores as a dictionary; errors as one line each."""
    from engine.data.preparation import check_scored, prepare
    from engine.evaluate import tiles_of_split
    from engine.training.checkpoint import load_checkpoint
    from engine.training.metrics import scores
    from kernels.core import device

    if arguments.batch < 1:
        raise UsageError(f"--batch: got {arguments.batch}, expected at least 1")
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise UsageError(f"--threshold: got {arguments.threshold:g}, expected 0 to 1")
    check_memory(arguments.memory)
    use_threads(arguments.threads)
    choice = device.choose(None if arguments.device == "auto" else arguments.device)
    main = load_checkpoint(arguments.main)
    auxiliary = load_checkpoint(arguments.auxiliary)
    form = main.form
    rare = shared_class(form.classes, auxiliary.form.classes, arguments.name)
    source = arguments.data or main.config.data
    data = prepare(main.config, None if source == main.config.data else source, form.classes, arguments.memory)
    tiles = tiles_of_split(data, arguments.split, source)
    for checkpoint in (main, auxiliary):
        checkpoint.form.check(tiles.channels, tiles.images.dtype, f"--data {source}")
        checkpoint.net.to(choice.name)
    check_scored(tiles, form.classes, form.absent, f"--data {source}: nothing to measure")
    thresholds = (ALONE, *(THRESHOLDS if arguments.threshold is None else (arguments.threshold,)))
    counts = confusions(main, auxiliary, tiles, rare, thresholds, arguments.batch, arguments.flips)

    def figures(confusion: np.ndarray) -> dict[str, Any]:
        result = scores(confusion, form.classes, form.absent)
        return {
            "miou_fg": result.miou_fg,
            "miou_keras": result.miou_keras,
            "iou": dict(zip(form.classes.scored_names, result.iou, strict=True)),
        }

    rows = [{"threshold": t, **figures(c.sum(0))} for t, c in zip(thresholds, counts, strict=True)]
    what = {"class": form.classes.names[rare[0]], "data": source, "split": arguments.split, "tiles": len(tiles)}
    result = {**what, "alone": rows[0], "fused": rows[1:]}
    if arguments.threshold is None:
        result["best"] = max(rows[1:], key=lambda row: row["miou_fg"])
        result["cross_tuned"] = figures(
            cross_tuned(counts, tiles.units, lambda c: scores(c, form.classes, form.absent).miou_fg)
        )
    return result


def run(arguments: Arguments) -> int:
    """Measure and print."""
    result = dual(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    name = result["class"]
    print(f"{result['split']}: {result['tiles']} tiles of {result['data']}; the auxiliary network knows {name}")
    lines = [
        ("main network alone", result["alone"]),
        *((f"threshold {row['threshold']:.2f}", row) for row in result["fused"]),
    ]
    lines += [
        (text, result[key])
        for key, text in (("best", "best threshold"), ("cross_tuned", "tuned on the other half"))
        if key in result
    ]
    for text, row in lines:
        rare = row["iou"][name]
        print(
            f"  {text:<24} fg {row['miou_fg']:.4f}   keras {row['miou_keras']:.4f}   {name} "
            f"{'absent' if rare is None else f'{rare:.4f}'}"
        )
    if "best" in result:
        print(f"best threshold: {result['best']['threshold']:.2f}")
    return 0


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.dual")))


if __name__ == "__main__":
    main()
