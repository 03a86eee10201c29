"""The pictures of a run: learning curves, and predictions next to the truth."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.data import MARS, Classes, pixel_counts
from engine.files import write_bytes
from kernels.core.labels import check_labels

ERROR = "#ff2ec4"
IGNORED = "#3b3b3b"  # what counts nowhere
_MOST_NAMED = 24  # classes in a legend
_DPI = 80
_CELL = (240, 400)  # pixels: the least and the largest width of a tile in predictions.png
_TALLEST = 480  # pixels that a tile may be high
_PAGE = 2800  # pixels that all rows may be high together
_MARKERS = "os^Dv*PX"
_MARKED = 60  # epochs of which each has a marker


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


def rgb(labels: np.ndarray, classes: Classes = MARS) -> np.ndarray:
    """Label map (H, W) -> uint8 (H, W, 3) in the classes' colours. Raises ValueError for labels without a colour."""
    check_labels("rgb", "labels", labels, len(classes), classes.allowed)
    palette = np.array([channels(colour) for colour in (*classes.colours, IGNORED)], np.uint8)
    return palette[np.minimum(labels, len(classes))]


def channels(colour: str) -> tuple[int, int, int]:
    """'#rrggbb' as numbers from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def wrong_pixels(mask: np.ndarray, labels: np.ndarray, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """Where a tile is labelled, and where it is labelled and predicted wrong: bool (H, W) each."""
    labelled = mask != classes.ignored
    if classes.unlabelled == 0:
        labelled &= mask != 0
    return labelled, labelled & (mask != labels)


def stretch(image: np.ndarray) -> np.ndarray:
    """A tile with its 1st..99th percentile stretched over 0..1, for the eye."""
    low, high = np.percentile(image, (1, 99))
    return np.clip((image - low) / max(high - low, 1 if image.dtype.kind == "u" else 1e-6), 0, 1)


def draw_predictions(
    path: Path,
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    classes: Classes,
    title: str,
) -> None:
    """A page of rows: image (H, W) or (H, W, 3), truth, prediction, errors (labelled pixels predicted wrong).

    A tile is 240 to 400 pixels wide. At most 12 rows are drawn, of tall tiles fewer.
    """
    plt = pyplot()
    from matplotlib.patches import Patch

    width = min(max(_CELL[0], *(image.shape[1] for image in images)), _CELL[1])
    heights = [min(width * image.shape[0] / image.shape[1], _TALLEST) + 4 for image in images[:12]]
    rows = max(1, int((np.cumsum(heights) <= _PAGE).sum()))
    size = 4 * width / _DPI, sum(heights[:rows]) / _DPI + 1.0
    ratios = {"height_ratios": heights[:rows]}
    figure, axes = plt.subplots(rows, 4, figsize=size, squeeze=False, layout="constrained", gridspec_kw=ratios)
    for k in range(rows):
        picture = stretch(images[k])
        labelled, wrong = wrong_pixels(masks[k], labels[k], classes)
        share = wrong.sum() / max(1, labelled.sum())
        errors = 0.6 * (picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2))
        errors[wrong] = np.array(channels(ERROR)) / 255
        for axis, shown in zip(
            axes[k], (picture, rgb(masks[k], classes), rgb(labels[k], classes), errors), strict=True
        ):
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[k, 3].set_ylabel(f"{share:.0%} wrong", fontsize=8)
        axes[k, 3].yaxis.set_label_position("right")
    for axis, name in zip(axes[0], ("image", "truth", "prediction", "errors"), strict=True):
        axis.set_title(name, fontsize=11)
    names = ["unlabelled" if label == classes.unlabelled else name for label, name in enumerate(classes.names)]
    there = np.unique(np.concatenate([np.unique(a) for some in (masks, labels) for a in some]))
    named = (
        range(len(names))
        if len(names) <= _MOST_NAMED
        else [int(label) for label in there if label < len(names)][:_MOST_NAMED]
    )
    handles = [Patch(color=classes.colours[label], label=names[label]) for label in named]
    if (there >= len(classes)).any():
        handles.append(Patch(color=IGNORED, label="ignored"))
    handles.append(Patch(color=ERROR, label="error"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path, _DPI)


def choose_rows(
    masks: np.ndarray, count: int = 12, classes: Classes = MARS, counts: np.ndarray | None = None
) -> np.ndarray:
    """Tiles worth looking at: those with the most rare-class pixels first (a third), then mixed tiles, then evenly
    spread ones.

    counts: pixels of each class in each tile, where they are known.
    """
    counts = pixel_counts(masks, classes) if counts is None else counts
    shares = counts[:, list(classes.scored)] / masks[0].size  # (N, scored classes)
    rare = shares[:, min(reversed(range(shares.shape[1])), key=lambda c: float(shares[:, c].sum()) or np.inf)]
    rock = [int(i) for i in np.argsort(-rare, kind="stable")[: count // 3] if rare[i] > 0]
    mixed = [int(i) for i in np.argsort(-np.sort(shares, 1)[:, -min(2, shares.shape[1])], kind="stable")]
    spread = [int(i) for i in np.linspace(0, len(masks) - 1, count)]
    picked: dict[int, None] = dict.fromkeys(rock)
    for source, until in ((mixed, 2 * count // 3), (spread, count), (mixed, count)):
        for i in source:
            if len(picked) >= min(until, len(masks)):
                break
            picked.setdefault(i)
    return np.array(list(picked))


def draw_curves(path: Path, rows: Sequence[dict[str, Any]], classes: Classes) -> None:
    """Loss, mean IoU in both readings, IoU per class and learning rate over the epochs,
    from the rows of metrics.jsonl. Each epoch has a marker, so that a single one is seen, too.
    """
    plt = pyplot()
    from matplotlib.ticker import MaxNLocator

    epochs = [r["epoch"] for r in rows]
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")

    def draw(axis: Any, values: Sequence[float], k: int = 0, **style: Any) -> None:
        marker = _MARKERS[k % len(_MARKERS)] if len(epochs) <= _MARKED else None
        axis.plot(epochs, values, marker=marker, ms=4, **style)

    draw(axes[0], [r["train_loss"] for r in rows], color="k", lw=2, label="total")
    for k, term in enumerate(rows[0].get("terms", {}), 1):
        draw(axes[0], [r["terms"][term] for r in rows], k, lw=1, label=term)
    axes[0].set_title("training loss and its terms")
    draw(axes[1], [r["val_miou_fg"] for r in rows], lw=2, label="fg")
    draw(axes[1], [r["val_miou_keras"] for r in rows], 1, ls="--", lw=1, label="keras")
    rate = axes[1].twinx()
    draw(rate, [r["learning_rate"] for r in rows], 2, color="0.6", lw=1)
    rate.set_ylabel("learning rate", color="0.4")
    rate.set_ylim(0, None)
    axes[1].set_title("validation mean IoU, and the learning rate in grey")
    for k, label in enumerate(classes.scored):
        values = [np.nan if r["iou"][k] is None else r["iou"][k] for r in rows]
        name = classes.names[label] if k < _MOST_NAMED else None
        draw(axes[2], values, k, lw=2, label=name)
    axes[2].set_title("validation IoU per class")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(epochs) == 1:
            axis.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in axes[1:]:
        axis.set_ylim(0, 1)
    _save(figure, path, 90)
