"""The boundary F-score: whether the edges of classes are where they belong.

IoU is blind to edges, which are few of a large region's pixels. The score (Csurka et al., "What is a good evaluation
measure for semantic segmentation?", BMVC 2013) looks at nothing else. A pixel of class c is on the boundary of c when
one of the four pixels beside it is of another class. Of a class, with a tolerance of t pixels:

    precision   the share of predicted boundary pixels that have a true one within a Euclidean distance of t
    recall      the share of true boundary pixels that have a predicted one within t
    F           2 precision recall / (precision + recall), 0 where nothing agrees

Pixels that count nowhere are left out of both maps: they are on no boundary, and a class does not end at them, nor at
the edge of the image. Pixels are counted over the whole set, as for IoU, and the mean is over the scored classes that
have a boundary in the truth or the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kernels.core.labels import check_labels

PREDICTED, PREDICTED_NEAR, TRUE, TRUE_NEAR = range(4)  # the last axis of the counts


def boundary_counts(
    truth: np.ndarray, prediction: np.ndarray, judged: np.ndarray, classes: int, tolerance: int
) -> np.ndarray:
    """int64 (N, classes, 4): boundary pixels of the prediction, those near true ones, of the truth, those near
    predicted ones.

    truth, prediction: labels (N, H, W).  judged: bool (N, H, W), False for pixels that count nowhere.
    tolerance: pixels, at least 0. Raises ValueError for judged labels that are not 0..classes-1.
    """
    for name, labels in (("truth", truth), ("prediction", prediction)):
        check_labels("boundary_counts", name, np.where(judged, labels, labels.dtype.type(0)), classes)
    counts = np.zeros((len(truth), classes, 4), np.int64)
    edges = [_edges(labels, judged) for labels in (prediction, truth)]
    for c in range(classes):
        predicted, true = (edge & (labels == c) for edge, labels in zip(edges, (prediction, truth), strict=True))
        there = [k for k in range(len(truth)) if predicted[k].any() or true[k].any()]
        if there:
            predicted, true = predicted[there], true[there]
            near = predicted & within(true, tolerance), true & within(predicted, tolerance)
            parts = (predicted, near[0], true, near[1])
            counts[there, c] = np.stack([part.sum((1, 2)) for part in parts], -1)
    return counts


def _edges(labels: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """bool (N, H, W): judged pixels beside a judged pixel of another label."""
    edge = np.zeros(labels.shape, bool)
    for first, second in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:, :, :-1], np.s_[:, :, 1:]),
    ):
        differ = (labels[first] != labels[second]) & judged[first] & judged[second]
        edge[first] |= differ
        edge[second] |= differ
    return edge


def within(marked: np.ndarray, distance: int) -> np.ndarray:
    """bool (N, H, W): pixels with a marked one within a Euclidean distance, row by row of the disc."""
    n, h, w = marked.shape
    sums = np.zeros((n, h, w + 1), np.int32)
    np.cumsum(marked, 2, out=sums[:, :, 1:])
    near = np.zeros(marked.shape, bool)
    columns = np.arange(w)
    for dy in range(-min(distance, h - 1), min(distance, h - 1) + 1):
        reach = math.isqrt(distance**2 - dy**2)
        low, high = np.maximum(columns - reach, 0), np.minimum(columns + reach + 1, w)
        into = slice(max(0, -dy), h - max(0, dy))
        rows = sums[:, max(0, dy) : h - max(0, -dy)]
        near[:, into] |= rows[:, :, high] > rows[:, :, low]
    return near


def boundary_f(
    counts: np.ndarray, scored: Sequence[int], absent: Sequence[int] = ()
) -> tuple[float | None, tuple[float | None, ...]]:
    """The mean F and that of every scored class, from counts (classes, 4) summed over a set. None where a class has no
    boundary, or training lacked it (`absent`); the mean is None where no class has one.
    """
    values = tuple(None if c in absent else _f(counts[c]) for c in scored)
    known = [value for value in values if value is not None]
    return (float(np.mean(known)) if known else None), values


def _f(counts: np.ndarray) -> float | None:
    if not counts[PREDICTED] and not counts[TRUE]:
        return None
    if not counts[PREDICTED_NEAR] or not counts[TRUE_NEAR]:
        return 0.0
    precision, recall = counts[PREDICTED_NEAR] / counts[PREDICTED], counts[TRUE_NEAR] / counts[TRUE]
    return float(2 * precision * recall / (precision + recall))
