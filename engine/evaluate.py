"""Measure a trained network:  python -m engine.evaluate CHECKPOINT --data FILE [--split val|test|all] [--json]"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from engine.command import UsageError, parsed, run_command, use_threads
from engine.data import CLASSES, DataError, Tiles


@dataclass(frozen=True)
class Arguments:
    """Measure a trained network on tiles: both readings of mean IoU, IoU per class, with confidence intervals."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A best.safetensors or last.safetensors of a run."""
    data: str | None = None
    """'synthetic', an .npz file or a folder; by default what the network was trained on."""
    split: Literal["val", "test", "all"] = "val"
    """The held-out part (split as in training), the file's test set, or every cleaned training tile."""
    json: bool = False
    """Print one JSON object instead of a table."""
    batch: int = 32
    """Tiles per forward pass."""
    flips: bool = False
    """Average the logits over horizontal and vertical flips (test-time augmentation)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int = 0
    """How many threads CPU kernels use; 0: as many as AREOGRAD_THREADS says, else one per core."""


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """The scores as a dictionary; errors as one line each."""
    from engine.checkpoint import load_checkpoint
    from engine.inference import evaluate_confusion
    from engine.metrics import bootstrap, scores
    from engine.training import prepare
    from kernels.core import device

    if arguments.batch < 1:
        raise UsageError(f"--batch: got {arguments.batch}, expected at least 1")
    use_threads(arguments.threads)
    choice = device.choose(None if arguments.device == "auto" else arguments.device)
    checkpoint = load_checkpoint(arguments.checkpoint)
    config = checkpoint.config
    source = arguments.data or config.data
    data = prepare(source, config.tiles, config.val_fraction, config.seed)
    tiles = _choose(data, arguments.split, source)
    checkpoint.net.to(choice.name)
    per_image = evaluate_confusion(
        checkpoint.net, tiles.images, tiles.masks, checkpoint.normalisation, config.background, arguments.batch, arguments.flips
    )
    result = scores(per_image.sum(0))
    return {
        "checkpoint": str(arguments.checkpoint),
        "data": source,
        "split": arguments.split,
        "tiles": len(tiles),
        "miou_fg": result.miou_fg,
        "miou_fg_interval": list(bootstrap(per_image, tiles.groups)),
        "miou_keras": result.miou_keras,
        "iou": dict(zip(CLASSES[1:], result.iou, strict=True)),
        "accuracy": result.accuracy,
        "pixels": result.pixels,
        "notes": data.notes,
    }


def _choose(data: Any, split: str, source: str) -> Tiles:
    if split == "val":
        return data.val
    if split == "test":
        if data.test is None or data.test.masks is None:
            raise DataError(f"--split test: {source} has no test set with labels")
        return data.test
    parts = (data.train, data.val)
    groups = None if data.train.groups is None else np.concatenate([p.groups for p in parts])
    return Tiles(np.concatenate([p.images for p in parts]), np.concatenate([p.masks for p in parts]), groups)


def run(arguments: Arguments) -> int:
    """Evaluate and print."""
    result = evaluate(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    for note in result["notes"]:
        print(note)
    low, high = result["miou_fg_interval"]
    print(f"{result['split']}: {result['tiles']} tiles of {result['data']}, {result['pixels']} labelled pixels")
    fg = f"fg {result['miou_fg']:.4f}  (95 % {low:.4f} to {high:.4f})"
    print(f"  mean IoU  {fg}   keras {result['miou_keras']:.4f}   accuracy {result['accuracy']:.4f}")
    for name, value in result["iou"].items():
        print(f"  {name:>10}  {'absent' if value is None else f'{value:.4f}'}")
    return 0


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.evaluate")))


if __name__ == "__main__":
    main()
