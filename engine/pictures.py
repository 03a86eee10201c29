"""The pictures of a run: learning curves, and predictions beside the truth."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.files import write_bytes
from kernels.core.labels import check_labels

COLOURS = ("#3b3b3b", "#c9a36a", "#8fb3c9", "#e8d9a0", "#d1495b")  # background, soil, bedrock, sand, big rock
_ERROR = "#ff2ec4"


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure as a PNG file that appears whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    pyplot().close(figure)
    write_bytes(path, content.getvalue())


def rgb(labels: np.ndarray) -> np.ndarray:
    """Label map (H, W) -> uint8 (H, W, 3) in the classes' colours. ValueError for labels without a colour."""
    check_labels("rgb", "labels", labels, len(COLOURS))
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS], np.uint8)
    return palette[labels]


def stretch(image: np.ndarray) -> np.ndarray:
    """A grey tile with its 1st..99th percentile stretched over 0..1, for the eye."""
    low, high = np.percentile(image, (1, 99))
    return np.clip((image - low) / max(high - low, 1), 0, 1)


def draw_predictions(path: Path, images: np.ndarray, masks: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str) -> None:
    """A page of rows: image, truth, prediction, errors (foreground pixels predicted wrong). All (N, H, W); at most 12 rows are drawn."""
    plt = pyplot()
    from matplotlib.patches import Patch

    rows = min(12, len(images))
    figure, axes = plt.subplots(rows, 4, figsize=(12, 1.55 * rows + 1.0), squeeze=False, layout="constrained")
    for k in range(rows):
        grey = stretch(images[k])
        wrong = (masks[k] != 0) & (masks[k] != labels[k])
        share = wrong.sum() / max(1, (masks[k] != 0).sum())
        errors = np.repeat(grey[..., None] * 0.6, 3, 2)
        errors[wrong] = [int(_ERROR[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        for axis, picture in zip(axes[k], (grey, rgb(masks[k]), rgb(labels[k]), errors), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[k, 3].set_ylabel(f"{share:.0%} wrong", fontsize=8)
        axes[k, 3].yaxis.set_label_position("right")
    for axis, name in zip(axes[0], ("image", "truth", "prediction", "errors"), strict=True):
        axis.set_title(name, fontsize=11)
    handles = [Patch(color=c, label=n if k else "unlabelled") for k, (c, n) in enumerate(zip(COLOURS, classes, strict=True))]
    handles.append(Patch(color=_ERROR, label="error"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path, 80)


def choose_rows(masks: np.ndarray, count: int = 12) -> np.ndarray:
    """Tiles worth looking at: those with the most rare-class pixels first (a third), then mixed tiles, then evenly spread ones."""
    check_labels("choose_rows", "masks", masks, len(COLOURS))
    shares = np.stack([(masks == c).mean((1, 2)) for c in range(1, 5)], 1)  # (N, 4)
    rock = [int(i) for i in np.argsort(-shares[:, 3], kind="stable")[: count // 3] if shares[i, 3] > 0]
    mixed = [int(i) for i in np.argsort(-np.sort(shares, 1)[:, -2], kind="stable")]
    spread = [int(i) for i in np.linspace(0, len(masks) - 1, count)]
    picked: dict[int, None] = dict.fromkeys(rock)
    for source, until in ((mixed, 2 * count // 3), (spread, count), (mixed, count)):
        for i in source:
            if len(picked) >= min(until, len(masks)):
                break
            picked.setdefault(i)
    return np.array(list(picked))


def draw_curves(path: Path, rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """Loss, mean IoU in both readings, IoU per class and learning rate over the epochs, from the rows of metrics.jsonl."""
    plt = pyplot()
    epochs = [r["epoch"] for r in rows]
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    axes[0].plot(epochs, [r["train_loss"] for r in rows], "k", lw=2, label="total")
    for term in rows[0].get("terms", {}):
        axes[0].plot(epochs, [r["terms"][term] for r in rows], lw=1, label=term)
    axes[0].set_title("training loss and its terms")
    axes[1].plot(epochs, [r["val_miou_fg"] for r in rows], lw=2, label="fg")
    axes[1].plot(epochs, [r["val_miou_keras"] for r in rows], "--", lw=1, label="keras")
    rate = axes[1].twinx()
    rate.plot(epochs, [r["learning_rate"] for r in rows], color="0.75", lw=1)
    rate.set_ylabel("learning rate", color="0.6")
    axes[1].set_title("validation mean IoU")
    for k, name in enumerate(classes[1:]):
        values = [np.nan if r["iou"][k] is None else r["iou"][k] for r in rows]
        axes[2].plot(epochs, values, color=COLOURS[k + 1], lw=2, label=name)
    axes[2].set_title("validation IoU per class")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes[1:]:
        axis.set_ylim(0, 1)
    _save(figure, path, 90)
