"""The report of a run: summary.json and the pictures, made from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.data import Tiles
from engine.files import finite, write_json, write_text
from engine.inference import labels_of, predict_logits
from engine.training.checkpoint import load_checkpoint
from engine.training.plots import choose_rows, draw_curves, draw_predictions
from engine.training.progress import MOST_SHOWN
from engine.training.run_folder import BEST, CURVES, METRICS, PREDICTIONS, SUMMARY

WALL_CLOCK = ("images_per_second",)  # keys of a row of metrics.jsonl that differ between two runs of the same bits


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write metrics.jsonl, a line per epoch."""
    write_text(folder / METRICS, "".join(json.dumps(finite(row)) + "\n" for row in rows))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl as a run holds them; ValueError or KeyError when the file is damaged."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for row in rows:
        row["train_loss"] = math.nan if row["train_loss"] is None else row["train_loss"]
    return rows


def write_summary(
    folder: Path, best: dict[str, Any], rows: Sequence[dict[str, Any]], interrupted: bool, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write summary.json and return what it holds: the best epoch's record, how far the run came,
    and facts about it.
    """
    scores = {k: best[k] for k in ("val_miou_fg", "val_miou_keras", "val_miou_fg_interval", "iou", "accuracy")}
    summary = {**scores, "best_epoch": best["epoch"], "epochs": rows[-1]["epoch"], "interrupted": interrupted, **facts}
    write_json(folder / SUMMARY, summary)
    return summary


def draw(folder: Path, val: Tiles, rows: Sequence[dict[str, Any]]) -> None:
    """Draw predictions.png with the best network, and curves.png."""
    best = load_checkpoint(folder / BEST)
    classes = best.form.classes
    shown = val[choose_rows(val.labels(), classes=classes, counts=val.counts)].loaded()
    logits = predict_logits(best.net, shown.images, best.normalisation, crop=best.window)
    labels = labels_of(logits, best.barred)
    ends = [val.size] * len(shown) if shown.sizes is None else shown.sizes.tolist()
    arrays = ([a[k, :h, :w] for k, (h, w) in enumerate(ends)] for a in (shown.images, shown.labels(), labels))
    title = f"validation tiles, epoch {best.record['epoch']}: mIoU {best.record['val_miou_fg']:.3f} (fg)"
    draw_predictions(folder / PREDICTIONS, *arrays, classes, title)
    draw_curves(folder / CURVES, rows, classes)


def summary_lines(summary: dict[str, Any], folder: Path) -> str:
    """The last lines of a run: the scores, then the files and their contents."""
    low, high = summary["val_miou_fg_interval"]
    shown = [f"{name} {'absent' if value is None else format(value, '.3f')}" for name, value in summary["iou"].items()]
    per_class = ", ".join(shown if len(shown) <= MOST_SHOWN else [*shown[:MOST_SHOWN], f"... of {len(shown)}"])
    return (
        f"val mIoU fg {summary['val_miou_fg']:.4f} (95 % {low:.3f} to {high:.3f}, by "
        f"{summary.get('interval_over', 'source image')}), "
        f"keras {summary['val_miou_keras']:.4f}; {per_class}\n"
        f"model    {folder / BEST}  (epoch {summary['best_epoch']})\n"
        f"metrics  {folder / SUMMARY}, {folder / METRICS}\n"
        f"pictures {folder / PREDICTIONS}, {folder / CURVES}"
    )
