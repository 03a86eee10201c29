"""`load`: a trained network from a run folder, a checkpoint or a grid of runs, ready to predict and to be measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autograd.html import block, code, curves, details, faint, number, table, tag
from engine.config import Config
from engine.data import Classes, DataError, Tiles
from engine.ensemble import Ensemble
from engine.errors import reading
from engine.evaluate import Arguments, count, evaluate, figures
from engine.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from engine.training.reporting import read_rows
from engine.training.run_folder import BEST, METRICS, SUMMARY
from layers import UNet

_CURVES = {"loss": "train_loss", "mean IoU (fg)": "val_miou_fg"}


@dataclass(frozen=True)
class Trained:
    """A trained network with everything that is known about it.

    path: its file.  checkpoint: what the file holds.  rows: of metrics.jsonl, one per epoch, and summary: what
    summary.json holds; both are empty for a file that does not lie in a run folder.
    """

    path: Path
    checkpoint: Checkpoint = field(repr=False)
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    summary: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def net(self) -> UNet:
        """The network, in evaluation mode."""
        return self.checkpoint.net

    @property
    def config(self) -> Config:
        """The settings that it was trained with."""
        return self.checkpoint.config

    @property
    def classes(self) -> Classes:
        """What its labels mean: names, colours, and which are scored."""
        return self.checkpoint.form.classes

    @property
    def record(self) -> dict[str, Any]:
        """The epoch and the validation scores of these weights."""
        return self.checkpoint.record

    def predict(self, images: Any, batch: int = 32, flips: bool = False) -> np.ndarray:
        """The label of every pixel, uint8 (N, H, W): the classes' numbers in `classes`.

        images: as the training data hold them, (N, H, W) or (N, H, W, C), of the same dtype and any size; or one
        image, whose labels are (H, W). Images of another size than the training's are seen through windows.
        flips: average over flipped images.  Raises DataError for images of another kind.
        """
        return self._joined(1, images, batch, flips)

    def probabilities(self, images: Any, batch: int = 32, flips: bool = False) -> np.ndarray:
        """The probability of every class in every pixel, float32 (N, H, W, classes), or (H, W, classes) of one image; 0
        for classes that are never predicted. Arguments and errors are those of `predict`.
        """
        return self._joined(2, images, batch, flips)

    def _joined(self, part: int, images: Any, batch: int, flips: bool) -> np.ndarray:
        """One part of what `Ensemble.batches` gives: 1, the labels, or 2, the probabilities."""
        tiles, one = self._tiles(images)
        found = np.concatenate([parts[part] for parts in Ensemble((self.checkpoint,)).batches(tiles, batch, flips)])
        return found[0] if one else found

    def evaluate(self, data: Any = None, split: str | None = None) -> dict[str, Any]:
        """The scores on labelled images, as `python -m engine.evaluate --json` prints them.

        data: 'synthetic', an .npz file or a folder, by default what the network was trained on, of which `split`
        ('val', 'test' or 'all'; by default val of the training data, all of others) is measured; or (images, masks), of
        which all is.
        Raises DataError for data that cannot be read or do not fit, CheckpointError for a file that has gone.
        """
        if not isinstance(data, tuple):
            source = None if data is None else str(data)
            return evaluate(Arguments((self.path,), source, split=split))  # type: ignore[arg-type]
        if len(data) != 2:
            raise DataError(f"evaluate: got {len(data)} arrays, expected (images, masks)")
        images, masks = (np.asarray(array) for array in data)
        if masks.dtype.kind in "iu" and masks.size and masks.min() >= 0 and masks.max() <= 255:
            masks = masks.astype(np.uint8)
        form = self.checkpoint.form
        tiles = Tiles(images, masks, classes=self.classes)
        form.check(tiles.channels, tiles.images.dtype, "evaluate: images")
        return {"tiles": len(tiles), **figures(count(Ensemble((self.checkpoint,)), tiles), tiles, form)}

    def _tiles(self, images: Any) -> tuple[np.ndarray, bool]:
        """Images (N, H, W) or (N, H, W, C) that the network was built for, and whether only one was given."""
        form = self.checkpoint.form
        array = np.asarray(images)
        one = array.ndim == (2 if form.channels == 1 else 3)
        array = array[None] if one else array
        if array.ndim == 4 and array.shape[3] == form.channels == 1:
            array = array[..., 0]
        if array.ndim != (3 if form.channels == 1 else 4):
            form_of = "(N, H, W)" if form.channels == 1 else f"(N, H, W, {form.channels})"
            raise DataError(f"images: got shape {np.shape(images)}, expected {form_of}, or one image")
        form.check(1 if array.ndim == 3 else array.shape[3], array.dtype, "images")
        if not array.size:
            raise DataError(f"images: got shape {np.shape(images)}, expected at least one pixel")
        return array, one

    def _repr_html_(self) -> str:
        config = self.config
        classes = self.classes
        size = f"{self.net.parameter_count():,} parameters"
        title = tag("div", tag("b", "Trained"), " ", code(self.path), "  ", faint(f"{config.preset}, {size}"))
        scored = {"mean IoU (fg)": "val_miou_fg", "accuracy": "accuracy"}
        means = [f", {text} {number(self.record[key])}" for text, key in scored.items() if key in self.record]
        about = faint(f"trained on {config.data}, epoch {self.record.get('epoch', '?')}", *means)
        swatch = "display: inline-block; width: .8em; height: .8em; margin-right: 6px; background: "
        iou = self.record.get("iou", {})
        rows = [
            (tag("span", tag("span", style=swatch + colour), name), number(iou[name]) if name in iou else "\u2013")
            for name, colour in zip(classes.names, classes.colours, strict=True)
        ]
        drawn = [
            tag("div", curves({name: [r[key] for r in self.rows]}), style="display: inline-block")
            for name, key in _CURVES.items()
            if self.rows
        ]
        settings = table([(name, value) for name, value in vars(config).items()], left=2)
        return block(title, about, table(rows, ("class", "IoU")), *drawn, details("settings", settings))


def load(run: str | Path) -> Trained:
    """The network of a run folder (its best epoch), of a .safetensors file of one, or of a run of a grid of experiments
    (GRID/CELL/seed-N, or GRID/CELL where it has one run).

    Raises CheckpointError, one line, where there is none or it cannot be read.
    """
    path = _file_of(Path(run))
    checkpoint = load_checkpoint(path)
    folder = path.parent
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    if (folder / METRICS).is_file():
        with reading(CheckpointError, f"{folder / METRICS}: cannot be read"):
            rows = read_rows(folder)
    if (folder / SUMMARY).is_file():
        with reading(CheckpointError, f"{folder / SUMMARY}: cannot be read"):
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return Trained(path, checkpoint, rows, summary)


def _file_of(run: Path) -> Path:
    """The checkpoint that `run` names. Raises CheckpointError for a folder that holds none, or several."""
    if not run.is_dir():
        return run
    if (run / BEST).exists():
        return run / BEST
    found = sorted(run.glob(f"*/{BEST}"))
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found[:8])
        raise CheckpointError(f"checkpoint {run}: a folder of {len(found)} runs, expected one of them: {names}")
    if not found:
        raise CheckpointError(
            f"checkpoint {run}: a folder without {BEST}, expected the folder of a run that has finished an epoch, or a "
            ".safetensors file"
        )
    return found[0]
