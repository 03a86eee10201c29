"""The report of a run: summary.json, the pictures and the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.data import Classes, Tiles
from engine.files import finite, write_text
from engine.inference import labels_of, predict_logits
from engine.report.page import write_page
from engine.report.record import Record, measured
from engine.training.checkpoint import Checkpoint, load_checkpoint
from engine.training.metrics import TileScores
from engine.training.plots import choose_rows, draw_curves, draw_predictions
from engine.training.progress import MOST_SHOWN
from engine.training.run_folder import BEST, CURVES, METRICS, PREDICTIONS, REPORT, SUMMARY

# Keys of a row of metrics.jsonl that differ between two runs of the same bits.
WALL_CLOCK = ("images_per_second", "training_seconds", "seconds")


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write metrics.jsonl, a line per epoch."""
    write_text(folder / METRICS, "".join(json.dumps(finite(row)) + "\n" for row in rows))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl as a run holds them; ValueError or KeyError when the file is damaged."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for row in rows:
        row["train_loss"] = math.nan if row["train_loss"] is None else row["train_loss"]
    return rows


def summary_of(
    best: dict[str, Any], rows: Sequence[dict[str, Any]], interrupted: bool, facts: dict[str, Any]
) -> dict[str, Any]:
    """The contents of summary.json: the best epoch's record, how far the run came, and facts about it."""
    scores = {k: best[k] for k in ("val_miou_fg", "val_miou_keras", "val_miou_fg_interval", "iou", "accuracy")}
    return {**scores, "best_epoch": best["epoch"], "epochs": rows[-1]["epoch"], "interrupted": interrupted, **facts}


def draw(record: Record, val: Tiles, scores: TileScores | None) -> None:
    """Draw predictions.png and curves.png of a run, and write its page. scores: of the validation tiles by the best
    epoch's weights, where they are known.
    """
    best = load_checkpoint(record.folder / BEST)
    draw_pictures(record.folder, best, val, record.rows, record.classes)
    write_page(record.folder / REPORT, [measured(record, best, val, scores=scores)])


def draw_pictures(
    folder: Path, best: Checkpoint | None, val: Tiles | None, rows: Sequence[dict[str, Any]], classes: Classes
) -> None:
    """Draw curves.png, and predictions.png with the best network, where that and tiles are given."""
    draw_curves(folder / CURVES, rows, classes)
    if best is None or val is None:
        return
    shown = val[choose_rows(val.labels(), classes=classes, counts=val.counts)].loaded()
    logits = predict_logits(best.net, shown.images, best.normalisation, crop=best.window)
    labels = labels_of(logits, best.barred)
    ends = [val.size] * len(shown) if shown.sizes is None else shown.sizes.tolist()
    arrays = ([a[k, :h, :w] for k, (h, w) in enumerate(ends)] for a in (shown.images, shown.labels(), labels))
    title = f"validation tiles, epoch {best.record['epoch']}: mIoU {best.record['val_miou_fg']:.3f} (fg)"
    draw_predictions(folder / PREDICTIONS, *arrays, classes, title)


def summary_lines(summary: dict[str, Any], folder: Path) -> str:
    """The last lines of a run: the scores, then the files and their contents."""
    low, high = summary["val_miou_fg_interval"]
    shown = [f"{name} {'absent' if value is None else format(value, '.3f')}" for name, value in summary["iou"].items()]
    per_class = ", ".join(shown if len(shown) <= MOST_SHOWN else [*shown[:MOST_SHOWN], f"... of {len(shown)}"])
    lines = [
        f"val mIoU fg {summary['val_miou_fg']:.4f} (95 % {low:.3f} to {high:.3f}, by "
        f"{summary.get('interval_over') or 'source image'}), "
        f"keras {summary['val_miou_keras']:.4f}; {per_class}",
        f"model    {folder / BEST}  (epoch {summary['best_epoch']})",
        f"metrics  {folder / SUMMARY}, {folder / METRICS}",
    ]
    pictures = [str(folder / name) for name in (PREDICTIONS, CURVES) if (folder / name).exists()]
    if pictures:
        lines.append(f"pictures {', '.join(pictures)}")
    if (folder / REPORT).exists():
        lines.append(f"report   {folder / REPORT}  (open it in a browser)")
    return "\n".join(lines)
