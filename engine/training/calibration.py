"""Calibration: whether a network that is sure of a share p of its pixels is right about a share p of them.

A pixel's confidence is the probability of its most probable class. Pixels are sorted into 15 bins of equal width by
their confidence, (k/15, (k+1)/15]. The expected calibration error (Guo et al., "On calibration of modern neural
networks", ICML 2017) is the mean over all pixels of how far their bin's accuracy is from its mean confidence:

    ECE = sum over bins of  pixels of the bin / all pixels * |accuracy of the bin - mean confidence of the bin|
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
PIXELS, RIGHT, CONFIDENCE = range(3)  # the last axis of the counts


def calibration_counts(confidence: np.ndarray, right: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """float64 (N, BINS, 3): of every image and bin the pixels, those predicted right, and the sum of confidences.

    confidence: (N, H, W) in [0, 1].  right, judged: bool (N, H, W); pixels that are not judged count nowhere.
    """
    n = len(confidence)
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    place = np.searchsorted(inner, confidence.reshape(n, -1)) + BINS * np.arange(n)[:, None]
    taken = judged.reshape(n, -1)
    index = place[taken]
    weights = (None, right.reshape(n, -1)[taken], confidence.reshape(n, -1)[taken])
    sums = [np.bincount(index, weight, n * BINS).reshape(n, BINS) for weight in weights]
    return np.stack(sums, -1).astype(np.float64)


def calibration(counts: np.ndarray) -> dict[str, Any]:
    """The expected calibration error, the mean confidence and the reliability table, from counts (BINS, 3) summed over
    a set: of every bin its limits, its pixels, and their mean confidence and accuracy, None where it is empty.
    """
    pixels, right, confidence = counts.T
    total = pixels.sum()
    table = []
    for k in range(BINS):
        row: dict[str, Any] = {"from": k / BINS, "to": (k + 1) / BINS, "pixels": int(pixels[k])}
        row["confidence"] = confidence[k] / pixels[k] if pixels[k] else None
        row["accuracy"] = right[k] / pixels[k] if pixels[k] else None
        table.append(row)
    return {
        "ece": float(np.abs(right - confidence).sum() / total) if total else None,
        "mean_confidence": float(confidence.sum() / total) if total else None,
        "bins": table,
    }
