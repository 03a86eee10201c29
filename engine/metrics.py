"""Mean intersection over union, in both readings, from one integer confusion matrix.

    fg      mean over the foreground classes that occur in truth or prediction
    keras   Keras's MeanIoU with ignore_class=0: pixels whose TRUTH is 0 are dropped, but class 0 still enters the mean as soon as one
            foreground pixel is predicted as 0, with IoU 0: a single pixel costs a fifth of the score

With class 0 barred from predictions both agree. Accumulate over a whole set; a mean of per-batch values is another, biased number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels import metric as kernels
from kernels.core.device import Array
from kernels.core.labels import check_labels

_EPS = 1e-7  # Keras's epsilon, in both of its divisions


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int = 5) -> np.ndarray:
    """int64 (classes, classes): [t, p] counts pixels of truth t predicted as p. Integer arrays of equal shape, values 0..classes-1."""
    if truth.shape != prediction.shape:
        raise ValueError(f"confusion_matrix: truth has shape {truth.shape} but prediction has {prediction.shape}")
    check_labels("confusion_matrix", "truth", truth, classes)
    check_labels("confusion_matrix", "prediction", prediction, classes)
    index = truth.astype(np.int64).ravel() * classes + prediction.ravel()
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def confusion_per_image(truth: Array, prediction: Array, classes: int = 5) -> Array:
    """int64 (N, classes, classes): one confusion matrix per image of (N, H, W) arrays, on their device.

    Raises ValueError for values that are not 0..classes-1, on CUDA when the counts are copied to the host (kernels/core/labels.py).
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"confusion_per_image: truth has shape {truth.shape} but prediction has {prediction.shape}")
    return kernels.confusion_per_image(truth, prediction, classes)


@dataclass(frozen=True)
class Scores:
    """miou_fg, miou_keras: the two readings.  iou: per class 1..C-1, None where a class is absent from truth and prediction.
    accuracy: share of foreground pixels predicted right.  pixels: how many foreground pixels there were.
    """

    miou_fg: float
    miou_keras: float
    iou: tuple[float | None, ...]
    accuracy: float
    pixels: int


def scores(confusion: np.ndarray) -> Scores:
    """Both readings of mean IoU from a confusion matrix over all classes; rows of truth 0 are ignored."""
    counts = confusion.astype(np.int64).copy()
    counts[0] = 0
    hit = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hit
    valid = union > 0
    iou = hit / (union + _EPS)
    keras = iou[valid].sum() / (valid.sum() + _EPS)
    foreground = valid[1:]
    exact = np.divide(hit, union, out=np.zeros(len(hit)), where=valid)
    fg = exact[1:][foreground].mean() if foreground.any() else 0.0
    per_class = tuple(float(v) if ok else None for v, ok in zip(exact[1:], foreground, strict=True))
    pixels = int(counts.sum())
    return Scores(float(fg), float(keras), per_class, float(hit.sum() / max(1, pixels)), pixels)


def bootstrap(per_image: np.ndarray, groups: np.ndarray | None = None, draws: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of miou_fg: per_image (N, C, C), resampled by group (source image) where groups (N,) are given.

    Percentile bootstrap over groups: tiles of one source image are not independent, so they are drawn together.
    """
    if groups is not None:
        _, index = np.unique(groups, return_inverse=True)
        totals = np.zeros((index.max() + 1, *per_image.shape[1:]), np.int64)
        np.add.at(totals, index, per_image)
        per_image = totals
    rng = np.random.default_rng(seed)
    n, classes = len(per_image), per_image.shape[1]
    picks = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    values = [scores(m.reshape(classes, classes)).miou_fg for m in picks @ per_image.reshape(n, -1)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
