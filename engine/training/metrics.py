"""Mean intersection over union, in both readings, from one integer confusion matrix.

    fg      mean over the scored classes (engine/data/classes.py) that occur in truth or prediction: of the Mars tiles
    the foreground
    keras   Keras's MeanIoU with ignore_class=0: pixels whose TRUTH is 0 are dropped, but class 0 still enters the mean
    as soon as one
            foreground pixel is predicted as 0, with IoU 0: a single pixel costs a fifth of the score

With class 0 barred from predictions both agree, as they do where no class is unlabelled; of a binary problem `fg` is
the IoU of its class, `keras` the mean of the class's and the background's. Accumulate over a whole set; a mean of
per-batch values is biased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.data.classes import Classes
from kernels import metric as kernels
from kernels.core.device import Array
from kernels.core.labels import check_labels

_EPS = 1e-7  # Keras's epsilon, in both of its divisions
_WIDE = 32  # classes from which on a thousand drawn matrices are too many numbers


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int = 5) -> np.ndarray:
    """int64 (classes, classes): [t, p] counts pixels of truth t predicted as p. Integer arrays of equal shape, values
    0..classes-1.

    Raises ValueError for unlike shapes and for other values.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"confusion_matrix: truth has shape {truth.shape} but prediction has {prediction.shape}")
    check_labels("confusion_matrix", "truth", truth, classes)
    check_labels("confusion_matrix", "prediction", prediction, classes)
    index = truth.astype(np.int64).ravel() * classes + prediction.ravel()
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def confusion_per_image(truth: Array, prediction: Array, classes: int = 5) -> Array:
    """int64 (N, classes, classes): one confusion matrix per image of (N, H, W) arrays of integers, on their device.

    Raises ValueError for unlike shapes, and for values that are not 0..classes-1, on CUDA when the counts are copied to
    the host (kernels/core/labels.py).
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"confusion_per_image: truth has shape {truth.shape} but prediction has {prediction.shape}")
    return kernels.confusion_per_image(truth, prediction, classes)


@dataclass(frozen=True)
class Scores:
    """miou_fg, miou_keras: the two readings.  iou: per scored class, None where one is absent from truth and
    prediction, or was from training.
    accuracy: share of labelled pixels predicted right.  pixels: how many labelled pixels there were.
    """

    miou_fg: float
    miou_keras: float
    iou: tuple[float | None, ...]
    accuracy: float
    pixels: int


def scores(confusion: np.ndarray, classes: Classes | None = None, absent: Sequence[int] = ()) -> Scores:
    """Both readings of mean IoU from a confusion matrix over all classes.

    Rows of truth 0 are ignored where class 0 is unlabelled (also without `classes`). absent: labels that never occurred
    in training; pixels of them are errors of what is predicted there, but their IoU, 0, is in no mean.
    """
    counts = judged(confusion, classes)
    first = 1 if classes is None else classes.scored[0]
    hit = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hit
    valid = union > 0
    valid[list(absent)] = False
    iou = hit / (union + _EPS)
    keras = iou[valid].sum() / (valid.sum() + _EPS)
    foreground = valid[first:]
    exact = np.divide(hit, union, out=np.zeros(len(hit)), where=valid)
    fg = exact[first:][foreground].mean() if foreground.any() else 0.0
    per_class = tuple(float(v) if ok else None for v, ok in zip(exact[first:], foreground, strict=True))
    pixels = int(counts.sum())
    return Scores(float(fg), float(keras), per_class, float(hit.sum() / max(1, pixels)), pixels)


def precision_recall(
    confusion: np.ndarray, classes: Classes | None = None, absent: Sequence[int] = ()
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Of every scored class, from a confusion matrix over all classes: precision, the share of pixels predicted as it
    that are it, and recall, the share of its pixels that are predicted as it. Unlabelled pixels count nowhere.

    None where nothing was predicted as it, or nothing is it, and for classes that training lacked (`absent`).
    """
    counts = judged(confusion, classes)
    hit = np.diag(counts)

    def shares(of: np.ndarray) -> tuple[float | None, ...]:
        labels = _scored(len(counts), classes)
        return tuple(float(hit[c] / of[c]) if of[c] and c not in absent else None for c in labels)

    return shares(counts.sum(0)), shares(counts.sum(1))


def judged(confusion: np.ndarray, classes: Classes | None) -> np.ndarray:
    """The counts (..., C, C) in int64, without those of unlabelled pixels."""
    counts = confusion.astype(np.int64)
    if classes is None or classes.unlabelled == 0:
        counts[..., 0, :] = 0
    return counts


def _scored(count: int, classes: Classes | None) -> Sequence[int]:
    """The labels of the scored classes, of `count` in all."""
    return range(1, count) if classes is None else classes.scored


class TileScores(NamedTuple):
    """What pictures and tables of single tiles need of their confusion matrices.

    confusion: int64 (C, C), the sum over all tiles.  iou: float (N,), the mean over the scored classes of a tile's
    truth; NaN where it has none.  wrong: float (N,), the share of the tile's labelled pixels that are predicted wrong,
    NaN where none is labelled.  labelled: int64 (N,), their number.
    intervals: of the IoU of every scored class over all tiles, by `iou_intervals`.
    """

    confusion: np.ndarray
    iou: np.ndarray
    wrong: np.ndarray
    labelled: np.ndarray
    intervals: tuple[tuple[float, float] | None, ...]


def tile_scores(
    per_image: np.ndarray,
    classes: Classes | None = None,
    absent: Sequence[int] = (),
    groups: np.ndarray | None = None,
) -> TileScores:
    """The scores of single tiles from their confusion matrices (N, C, C); pixels are ignored as by `scores`. groups:
    see `bootstrap`.
    """
    counts = judged(per_image, classes)
    hit = np.diagonal(counts, axis1=1, axis2=2)
    truth = counts.sum(2)
    union = truth + counts.sum(1) - hit
    labels = [label for label in _scored(counts.shape[1], classes) if label not in absent]
    there = truth[:, labels] > 0
    iou = np.divide(hit[:, labels], union[:, labels], out=np.zeros(there.shape), where=there)
    labelled = truth.sum(1)
    right = hit.sum(1)
    nothing = np.full(len(per_image), np.nan)
    return TileScores(
        per_image.sum(0),
        np.divide(iou.sum(1), there.sum(1), out=nothing.copy(), where=there.any(1)),
        np.divide(labelled - right, labelled, out=nothing.copy(), where=labelled > 0),
        labelled,
        iou_intervals(per_image, groups, classes=classes, absent=absent),
    )


def bootstrap(
    per_image: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    classes: Classes | None = None,
    absent: Sequence[int] = (),
) -> tuple[float, float]:
    """Confidence interval of miou_fg: per_image (N, C, C), resampled by group (source image) where groups (N,) are
    given.

    Percentile bootstrap over groups: tiles of one source image are not independent, so they are drawn together.
    """
    per_image, picks = _drawn(per_image, groups, draws, seed)
    n, count = per_image.shape[:2]
    if count > _WIDE:
        values = _of_sums(per_image, picks, classes, absent)
    else:
        values = [scores(m.reshape(count, count), classes, absent).miou_fg for m in picks @ per_image.reshape(n, -1)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def iou_intervals(
    per_image: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    classes: Classes | None = None,
    absent: Sequence[int] = (),
) -> tuple[tuple[float, float] | None, ...]:
    """Confidence interval of the IoU of every scored class, by the draws of `bootstrap`; None where `scores` has no
    IoU. Draws without the class count for nothing.
    """
    hit, union = _sums_of_draws(*_drawn(per_image, groups, draws, seed), classes)
    iou = np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    found: list[tuple[float, float] | None] = []
    for label in _scored(iou.shape[1], classes):
        known = iou[~np.isnan(iou[:, label]), label]
        found.append(None if label in absent or not len(known) else tuple(np.quantile(known, tails).tolist()))
    return tuple(found)


def _drawn(per_image: np.ndarray, groups: np.ndarray | None, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(the confusion matrix of every group, how often each draw has it: (draws, number of groups))."""
    if groups is not None:
        _, index = np.unique(groups, return_inverse=True)
        totals = np.zeros((index.max() + 1, *per_image.shape[1:]), np.int64)
        np.add.at(totals, index, per_image)
        per_image = totals
    n = len(per_image)
    return per_image, np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)


def _sums_of_draws(per_image: np.ndarray, picks: np.ndarray, classes: Classes | None) -> tuple[np.ndarray, np.ndarray]:
    """(hits, unions) of every class in every draw, (draws, C) each: what the IoU needs of a matrix."""
    counts = judged(per_image, classes)
    hit = np.diagonal(counts, axis1=1, axis2=2)
    return picks @ hit, picks @ (counts.sum(1) + counts.sum(2) - hit)


def _of_sums(per_image: np.ndarray, picks: np.ndarray, classes: Classes | None, absent: Sequence[int]) -> list[float]:
    """miou_fg of every draw, from what the IoU needs of a matrix: its diagonal and its sums."""
    first = 1 if classes is None else classes.scored[0]
    values = []
    for h, u in zip(*_sums_of_draws(per_image, picks, classes), strict=True):
        valid = u > 0
        valid[:first] = valid[list(absent)] = False
        values.append(float((h[valid] / u[valid]).mean()) if valid.any() else 0.0)
    return values
