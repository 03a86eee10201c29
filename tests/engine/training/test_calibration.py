"""The calibration error against a loop over pixels, and against scikit-learn's reliability curve."""

from __future__ import annotations

import numpy as np
import pytest

from engine.training.calibration import BINS, calibration, calibration_counts


def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    confidence = rng.random((4, 20, 30)).astype(np.float32) ** 0.5
    confidence[0, 0, :3] = 1, 0.2, 0  # 0.2 and 0.4 are edges
    right = rng.random((4, 20, 30)) < 0.8 * confidence
    return confidence, right, rng.random((4, 20, 30)) < 0.7


def test_against_a_loop_over_pixels() -> None:
    confidence, right, judged = sample()
    counts = calibration_counts(confidence, right, judged)
    assert counts.shape == (4, BINS, 3)
    rows = [[0, 0, 0.0] for _ in range(BINS)]
    for p, r, j in zip(confidence.ravel().tolist(), right.ravel(), judged.ravel(), strict=True):
        if j:
            k = next(k for k in range(BINS) if p <= (k + 1) / BINS)
            rows[k][0] += 1
            rows[k][1] += int(r)
            rows[k][2] += p
    np.testing.assert_allclose(counts.sum(0), rows, rtol=1e-9)
    total = sum(row[0] for row in rows)
    wanted = sum(row[0] / total * abs(row[1] / row[0] - row[2] / row[0]) for row in rows if row[0])
    result = calibration(counts.sum(0))
    assert result["ece"] == pytest.approx(wanted, rel=1e-9)
    assert result["mean_confidence"] == pytest.approx(confidence[judged].mean(dtype=np.float64), rel=1e-9)
    assert sum(row["pixels"] for row in result["bins"]) == judged.sum()


def test_against_scikit_learn() -> None:
    curve = pytest.importorskip("sklearn.calibration", reason="scikit-learn is not installed").calibration_curve
    confidence, right, judged = sample()
    accuracy, mean = curve(right[judged], confidence[judged].astype(np.float64), n_bins=BINS)
    bins = [row for row in calibration(calibration_counts(confidence, right, judged).sum(0))["bins"] if row["pixels"]]
    np.testing.assert_allclose([row["accuracy"] for row in bins], accuracy, rtol=1e-9)
    np.testing.assert_allclose([row["confidence"] for row in bins], mean, rtol=1e-9)


def test_sure_and_right_half_of_the_time() -> None:
    confidence = np.full((1, 2, 4), 0.9)
    right = np.arange(8).reshape(1, 2, 4) < 4
    counts = calibration_counts(confidence, right, np.ones((1, 2, 4), bool))
    result = calibration(counts[0])
    assert result["ece"] == pytest.approx(0.4)
    (row,) = (row for row in result["bins"] if row["pixels"])
    assert (row["from"], row["to"], row["pixels"]) == (13 / 15, 14 / 15, 8)
    assert (row["accuracy"], row["confidence"]) == (0.5, pytest.approx(0.9))


def test_no_pixel_is_judged() -> None:
    result = calibration(np.zeros((BINS, 3)))
    assert (result["ece"], result["mean_confidence"]) == (None, None)
    assert all(row["accuracy"] is None for row in result["bins"])
