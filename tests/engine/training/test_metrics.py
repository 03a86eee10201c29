"""The metric by hand-computed cases, its class-0 trap included."""

from __future__ import annotations

import numpy as np
import pytest

from engine.data import MARS
from engine.data.classes import Classes, counted
from engine.training.metrics import (
    bootstrap,
    confusion_matrix,
    confusion_per_image,
    iou_intervals,
    scores,
    tile_scores,
)
from tests.support.misprints import Mutant, assert_caught, planted


def test_confusion_matrix_by_hand() -> None:
    truth = np.array([[0, 1, 1], [2, 2, 4]], np.uint8)
    guess = np.array([[3, 1, 2], [2, 0, 4]], np.uint8)
    expected = np.zeros((5, 5), int)
    for t, p in zip(truth.ravel(), guess.ravel(), strict=True):
        expected[t, p] += 1
    got = confusion_matrix(truth, guess)
    assert got.dtype == np.int64
    assert (got == expected).all()
    assert (confusion_per_image(truth[None], guess[None])[0] == expected).all()
    with pytest.raises(ValueError, match=r"truth has shape \(2, 3\) but prediction has \(2, 2\)"):
        confusion_matrix(truth, guess[:, :2])


def test_both_readings_agree_without_class_0_predictions() -> None:
    cm = np.zeros((5, 5), np.int64)
    cm[1, 1], cm[1, 2], cm[2, 2], cm[3, 3], cm[4, 4], cm[4, 3] = 80, 20, 50, 30, 1, 1
    result = scores(cm)
    iou = [80 / 100, 50 / 70, 30 / 31, 1 / 2]
    assert result.iou == pytest.approx(iou)
    assert result.miou_fg == pytest.approx(np.mean(iou), abs=1e-12)
    assert result.miou_keras == pytest.approx(np.mean(iou), abs=1e-6)
    assert result.accuracy == pytest.approx(161 / 182)
    assert result.pixels == 182


def test_one_pixel_predicted_as_class_0_costs_a_fifth_in_keras() -> None:
    """IoUs with mean 0.691 read 0.553 once class 0 is predicted for a single foreground pixel."""
    cm = np.diag([0, 691_000, 691_000, 691_000, 691_000])
    for c in range(1, 5):
        cm[c, 1 + c % 4] += 154_500
    before = scores(cm)
    assert before.miou_fg == pytest.approx(0.691, abs=1e-3)
    assert before.miou_keras == pytest.approx(before.miou_fg, abs=1e-6)
    cm[1, 1] -= 1
    cm[1, 0] += 1
    after = scores(cm)
    assert after.miou_keras == pytest.approx(0.8 * before.miou_fg, abs=1e-4)
    assert after.miou_fg == pytest.approx(before.miou_fg, abs=1e-5)


def test_pixels_of_truth_0_count_nowhere() -> None:
    cm = np.diag([7, 10, 10, 10, 10])
    cm[0] = [5, 100, 100, 100, 100]
    assert scores(cm).miou_fg == 1
    assert scores(cm).miou_keras == pytest.approx(1)


def test_scores_of_single_tiles_by_hand() -> None:
    half = np.zeros((5, 5), int)
    half[1, 1], half[2, 1] = 30, 10  # soil: 30 of 40, bedrock: none of 10
    wrong = np.zeros((5, 5), int)
    wrong[3, 4] = 7
    right = np.diag([9, 5, 0, 0, 2])  # class 0 is unlabelled
    nothing = np.diag([50, 0, 0, 0, 0])
    nothing[0, 2] = 14
    got = tile_scores(np.stack([half, wrong, right, nothing]))
    assert got.confusion.tolist() == (half + wrong + right + nothing).tolist()
    assert got.iou[:3].tolist() == [0.375, 0.0, 1.0]
    assert got.wrong[:3].tolist() == [0.25, 1.0, 0.0]
    assert np.isnan([got.iou[3], got.wrong[3]]).all()
    assert got.labelled.tolist() == [40, 7, 7, 0]
    assert tile_scores(np.stack([half]), MARS, absent=(2,)).iou.tolist() == [0.75]
    with_background = tile_scores(np.stack([right]), counted(5))
    assert with_background.labelled.tolist() == [16]
    binary = tile_scores(np.array([[[90, 4], [2, 4]], [[9, 0], [0, 0]]]), counted(1))
    assert binary.iou[0] == 0.4
    assert np.isnan(binary.iou[1]), "a tile without the class has no IoU"
    assert binary.wrong.tolist() == [0.06, 0.0]


def test_absent_classes() -> None:
    cm = np.zeros((5, 5), np.int64)
    cm[1, 1] = cm[2, 2] = 10
    result = scores(cm)  # 3 and 4 absent from truth and prediction: left out
    assert result.iou == (1, 1, None, None)
    assert result.miou_fg == 1
    cm[1, 3] = 10  # 3 predicted, but not in the truth: IoU 0, counted
    result = scores(cm)
    assert result.iou[2] == 0
    assert result.miou_fg == pytest.approx((0.5 + 1 + 0) / 3)
    assert scores(np.zeros((5, 5), np.int64)).miou_fg == 0


def test_keras_formula_with_both_epsilons() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        cm = rng.integers(0, 50, (5, 5)) * (rng.random((5, 5)) < 0.6)
        masked = cm.copy()
        masked[0] = 0  # sample weight 0 where the truth is ignored
        rows, columns, diagonal = masked.sum(1), masked.sum(0), np.diag(masked)
        denominator = rows + columns - diagonal
        iou = diagonal / (denominator + 1e-7)
        valid = denominator > 1e-9
        assert scores(cm).miou_keras == pytest.approx(iou[valid].sum() / (valid.sum() + 1e-7), abs=1e-15)


def test_large_counts_do_not_lose_units() -> None:
    cm = np.diag([0, 2**40, 2**40, 2**40, 2**40])
    cm[1, 2] = 1
    assert scores(cm).pixels == 2**42 + 1
    assert scores(cm).iou[0] < 1


def test_bootstrap_interval_contains_the_score_and_respects_groups() -> None:
    rng = np.random.default_rng(0)
    per_image = np.zeros((60, 5, 5), np.int64)
    for c in range(1, 5):
        hits = rng.integers(50, 100, 60)
        per_image[:, c, c], per_image[:, c, 1 + c % 4] = hits, 100 - hits
    value = scores(per_image.sum(0)).miou_fg
    low, high = bootstrap(per_image)
    assert low < value < high
    assert (low, high) == bootstrap(per_image)
    # The same tiles ten times over tell nothing new, if drawn by group.
    copies, groups = np.repeat(per_image, 10, 0), np.repeat(np.arange(60), 10)
    wide = np.subtract(*bootstrap(copies, groups)[::-1])
    narrow = np.subtract(*bootstrap(copies)[::-1])
    assert wide == pytest.approx(high - low, rel=0.2)
    assert narrow < 0.5 * wide


@pytest.mark.parametrize("classes", [None, counted(5)], ids=["mars", "five"])
def test_intervals_of_single_classes_are_those_of_drawn_matrices(classes: Classes | None) -> None:
    """The quantiles of each class's IoU over the draws, by `scores` of each draw. A class of one image is in a part of
    the draws only; one that is absent has no interval.
    """
    rng = np.random.default_rng(1)
    per_image = rng.integers(0, 50, (20, 5, 5))
    per_image[:, 3], per_image[:, :, 3] = 0, 0  # nowhere
    per_image[1:, 4], per_image[1:, :, 4] = 0, 0  # in one image
    groups = np.arange(20) // 2
    found = iou_intervals(per_image, groups, draws=200, seed=5, classes=classes, absent=(2,))
    drawn = np.random.default_rng(5).multinomial(10, np.full(10, 0.1), size=200)
    sums = [np.add.reduce([k * (per_image[2 * g] + per_image[2 * g + 1]) for g, k in enumerate(d)]) for d in drawn]
    ious = [scores(matrix, classes, (2,)).iou for matrix in sums]
    first = 5 - len(found)
    for label, interval in enumerate(found, first):
        values = [iou[label - first] for iou in ious if iou[label - first] is not None]
        if label in (2, 3):
            assert interval is None
            assert not values
        else:
            assert (len(values) < 200) == (label == 4)
            assert interval == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), rel=1e-12)


@pytest.mark.parametrize("bad", [-1, 5, 255])
@pytest.mark.parametrize("which", ["truth", "prediction"])
def test_labels_outside_the_classes_are_an_error_and_no_count(which: str, bad: int) -> None:
    """Added to another class's or image's count before, or read as the end of the table."""
    arrays = {"truth": np.ones((2, 3, 4), np.int64), "prediction": np.ones((2, 3, 4), np.int64)}
    arrays[which][0, 1, 2] = bad
    for function in (confusion_matrix, confusion_per_image):
        with pytest.raises(
            ValueError, match=rf"{function.__name__}: {which} holds {bad} at \(0, 1, 2\), expected 0 to 4"
        ):
            function(*arrays.values())
        with pytest.raises(
            TypeError, match=rf"{function.__name__}: {which} is float64, expected (an integer array|int)"
        ):
            function(*{**arrays, which: np.ones((2, 3, 4))}.values())


def test_statistics_of_float16_are_summed_in_float32() -> None:
    """A hundred rows of 1,000 do not fit float16; the squares of deviations of 300 do not either."""
    from kernels.norm import batch_norm_statistics

    x = np.resize(np.array([700, 1300], np.float16), (512, 3, 2)).transpose(0, 2, 1)[..., :1]
    mean, variance = batch_norm_statistics(np.ascontiguousarray(x))
    np.testing.assert_allclose((mean[0], variance[0]), (1000, 90_000), rtol=1e-6)


# -- planted mistakes --------------------------------------------------------------------------------------------------


MUTANTS = [
    Mutant(
        "metric: class 0 left out of Keras's mean",
        "engine.training.metrics:scores",
        "iou[valid].sum() / (valid.sum() + _EPS)",
        "iou[1:][valid[1:]].sum() / (valid[1:].sum() + _EPS)",
        test_one_pixel_predicted_as_class_0_costs_a_fifth_in_keras,
    ),
    Mutant(
        "metric: truth and prediction swapped",
        "kernels.metric.reference:confusion_per_image",
        "truth.astype(xp.int64) * classes + prediction",
        "prediction.astype(xp.int64) * classes + truth",
        test_confusion_matrix_by_hand,
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
