"""Labels and confusion matrices on CUDA: integers, equal to the reference to the last count."""

from __future__ import annotations

import cupy
import numpy as np
import pytest

from kernels.core.cuda.module import launch_log
from kernels.core.device import to_numpy
from kernels.core.dispatch import kernel_log
from kernels.core.labels import reported
from kernels.metric import confusion_per_image, cuda, predicted_labels, reference
from tests.cuda.bounds import ANY, Mutant, assert_caught, clean, trace_only

SHAPES = [(1, 1, 1), (3, 17, 19), (2, 64, 65), (5, 3)]


def check_counts(shape: tuple[int, ...], classes: int) -> None:
    rng = np.random.default_rng(classes)
    truth, guess = (rng.integers(0, classes, shape).astype("u1") for _ in range(2))
    with clean(), launch_log() as log:
        counts = confusion_per_image(cupy.asarray(truth), cupy.asarray(guess), classes)
    assert [launch.kernel for launch in log] == ["confusion"]
    assert counts.dtype == np.int64
    assert (counts.get() == reference.confusion_per_image(truth, guess, classes)).all()


def check_labels(shape: tuple[int, ...], classes: int, first: int, dtype: str = "float32") -> None:
    logits = np.random.default_rng(0).integers(-2, 3, (*shape, classes)).astype(dtype)  # many ties
    with clean(), kernel_log() as served:
        labels = predicted_labels(cupy.asarray(logits), first)
    assert served[0].by == "fast"
    assert labels.dtype == np.uint8
    assert (labels.get() == reference.predicted_labels(logits, first)).all()


@pytest.mark.parametrize("classes", [2, 5, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_counts(shape: tuple[int, ...], classes: int) -> None:
    check_counts(shape, classes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("classes", "first"), [(5, 0), (5, 1), (2, 1), (9, 3)])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 4, 4)])
def test_labels(shape: tuple[int, ...], classes: int, first: int, dtype: str) -> None:
    check_labels(shape, classes, first, dtype)


def test_not_a_number_is_the_largest_as_in_numpy() -> None:
    logits = np.array([[0, np.nan, 5], [np.nan, np.nan, 1], [7, 2, np.nan]], "f4")
    assert (predicted_labels(cupy.asarray(logits), 0).get() == logits.argmax(-1)).all()


def plain_confusion(truth: cupy.ndarray, guess: cupy.ndarray, classes: int) -> cupy.ndarray:
    counts, pixels = cupy.zeros((len(truth), classes, classes), np.int64), truth.size // len(truth)
    notes = (reported("plain", key, labels, classes) for key, labels in (("truth", truth), ("prediction", guess)))
    cuda.MODULE.run(cuda.plain_launch(len(truth), pixels), truth, guess, counts, pixels, classes, *notes)
    return counts


@pytest.mark.parametrize("wrong", ["truth", "prediction"])
def test_labels_out_of_range_are_reported_by_the_copy_of_the_counts(wrong: str) -> None:
    labels = {"truth": np.zeros((2, 3, 4), "u1"), "prediction": np.ones((2, 3, 4), "u1")}
    labels[wrong][1, 1, 2:] = 9, 200
    for launch in (confusion_per_image, plain_confusion):
        counts = launch(cupy.asarray(labels["truth"]), cupy.asarray(labels["prediction"]), 3)
        with pytest.raises(ValueError, match=rf"{wrong} holds 9 at \(1, 1, 2\), expected 0 to 2"):
            to_numpy(counts)
        assert to_numpy(counts).sum() == 22  # reported once


def test_labels_of_other_types_fall_back() -> None:
    truth = np.array([[0, 1, 255, 2]], "u1")
    with kernel_log() as served:
        wide = confusion_per_image(cupy.asarray(truth[:, :2].astype("i8")), cupy.asarray(truth[:, :2].astype("i8")), 3)
    assert served[0].by == "reference"
    assert (wide.get()[0] == np.diag([1, 1, 0])).all()


def test_the_plain_kernel_gives_the_same() -> None:
    rng = np.random.default_rng(0)
    truth, guess = (cupy.asarray(rng.integers(0, 5, (3, 301)).astype("u1")) for _ in range(2))
    with clean():
        counts = plain_confusion(truth, guess, 5)
    assert (counts.get() == reference.confusion_per_image(truth.get(), guess.get(), 5)).all()


def test_launch_geometry() -> None:
    assert cuda.confusion_launch(32, 8192, 5) == cuda.Launch("confusion", (8, 32), (256,), 800)
    assert cuda.labels_launch(257, "float").grid == (2,)


@trace_only
def test_labels_are_read_in_whole_sectors() -> None:
    truth = cupy.zeros((1, 4096), "u1")
    with clean() as report:
        confusion_per_image(truth, truth, 5)
    assert report.kernel("confusion").sectors_per_request_of(kind="load") == 1  # 32 labels of a byte


def _counts() -> None:
    check_counts((2, 64, 65), 5)


MUTANTS = [
    Mutant(
        "counts without atomics",
        cuda.MODULE,
        "atomicAdd(mine + truth[at] * classes + prediction[at], 1u)",
        "++mine[truth[at] * classes + prediction[at]]",
        ("trace",),
        _counts,
    ),
    Mutant(
        "counted before the counts are 0",
        cuda.MODULE,
        "copies[k] = 0;\n  __syncthreads();",
        "copies[k] = 0;",
        ("trace",),
        _counts,
    ),
    Mutant("copies are not cleared", cuda.MODULE, "copies[k] = 0;", "", ANY, _counts),
    Mutant(
        "pixels beyond the last", cuda.MODULE, "i < pixels; i += gridDim.x", "i <= pixels; i += gridDim.x", ANY, _counts
    ),
    Mutant(
        "truth and prediction swapped",
        cuda.MODULE,
        "mine + truth[at] * classes + prediction[at]",
        "mine + prediction[at] * classes + truth[at]",
        ANY,
        _counts,
    ),
    Mutant(
        "the last of equal logits",
        cuda.MODULE,
        "z[c] > top ||",
        "z[c] >= top ||",
        ANY,
        lambda: check_labels((2, 64, 65), 5, 1),
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_planted_mistake_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(mutant, monkeypatch)
