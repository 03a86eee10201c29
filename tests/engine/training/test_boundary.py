"""The boundary F-score against a search through all pairs of pixels."""

from __future__ import annotations

import numpy as np
import pytest

from engine.training.boundary import boundary_counts, boundary_f, within


def on_boundary(labels: np.ndarray, judged: np.ndarray, c: int) -> list[tuple[int, int]]:
    """Judged pixels of class c with a judged pixel of another class above, below, left or right."""
    h, w = labels.shape
    found = []
    for y in range(h):
        for x in range(w):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < h and 0 <= u < w
                if inside and labels[y, x] == c and judged[y, x] and judged[v, u] and labels[v, u] != c:
                    found.append((y, x))
                    break
    return found


def near(points: list[tuple[int, int]], others: list[tuple[int, int]], tolerance: int) -> int:
    return sum(any((y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u in others) for y, x in points)


def blobs(rng: np.random.Generator, classes: int) -> np.ndarray:
    """Labels (13, 17) in patches, so that there are both edges and insides."""
    return rng.integers(0, classes, (5, 6)).repeat(3, 0).repeat(3, 1)[:13, :17].astype(np.uint8)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 3, 30])
def test_counts_against_all_pairs(tolerance: int) -> None:
    rng = np.random.default_rng(tolerance)
    truth = np.stack([blobs(rng, 4), blobs(rng, 2), np.full((13, 17), 3, np.uint8)])
    prediction = np.stack([np.roll(truth[0], 1, 1), blobs(rng, 4), np.full((13, 17), 3, np.uint8)])
    judged = np.stack([blobs(rng, 5) > 0 for _ in range(3)])
    got = boundary_counts(truth, prediction, judged, 4, tolerance)
    assert got.shape == (3, 4, 4)
    for n in range(3):
        for c in range(4):
            predicted, true = (on_boundary(labels[n], judged[n], c) for labels in (prediction, truth))
            wanted = [len(predicted), near(predicted, true, tolerance), len(true), near(true, predicted, tolerance)]
            assert got[n, c].tolist() == wanted, (n, c)
    assert got[:2].sum() > 100
    assert got[2].sum() == 0


def test_the_disc_is_euclidean() -> None:
    marked = np.zeros((1, 9, 11), bool)
    marked[0, 4, 5] = True
    rows, columns = np.mgrid[:9, :11]
    for distance in range(12):
        np.testing.assert_array_equal(within(marked, distance)[0], (rows - 4) ** 2 + (columns - 5) ** 2 <= distance**2)


def test_f_by_hand() -> None:
    """Class 0: precision 6/8, recall 3/4. Class 1 has no boundary, class 2 was never found, class 3 was not trained."""
    counts = np.array([[8, 6, 4, 3], [0, 0, 0, 0], [5, 0, 0, 0], [8, 8, 8, 8]])
    mean, values = boundary_f(counts, (0, 1, 2, 3), absent=(3,))
    assert values == (pytest.approx(0.75), None, 0.0, None)
    assert mean == pytest.approx(0.375)
    assert boundary_f(counts[1:2], (0,)) == (None, (None,))


def test_a_boundary_may_be_off_by_the_tolerance() -> None:
    """An edge that is two columns too far right: nothing agrees within 1, everything within 2."""
    truth, prediction = np.zeros((1, 8, 16), np.uint8), np.zeros((1, 8, 16), np.uint8)
    truth[:, :, 6:] = 1
    prediction[:, :, 8:] = 1
    judged = np.ones((1, 8, 16), bool)
    for tolerance, wanted in ((1, 0.0), (2, 1.0)):
        assert boundary_f(boundary_counts(truth, prediction, judged, 2, tolerance)[0], (0, 1))[0] == wanted


def test_the_unlabelled_has_no_edge() -> None:
    """Neither has the image."""
    truth = np.ones((1, 8, 16), np.uint8)
    judged = np.ones((1, 8, 16), bool)
    judged[:, 3:5, 4:9] = False
    truth[~judged] = 0
    assert boundary_counts(truth, np.ones_like(truth), judged, 2, 2).sum() == 0
