"""NaN and infinity come out exactly where PyTorch has them: every operator of tests/support/cases.py, one special value
at a time, value and gradients.

A fast kernel that loses a NaN lets a diverged network train on; one that spreads it finds fault where there is none. On
CUDA: tests/cuda/test_special_values.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autograd import Tensor, ops
from kernels.core.dispatch import use_kernels
from kernels.loss import TERMS
from tests.support.cases import SAMPLE_IDS, SAMPLES, Case, Sample
from tests.support.fast_rule import forced_algorithm
from tests.support.special_values import SPECIAL, UNLIKE, differences

torch = pytest.importorskip("torch")

BACKENDS = ("reference", "fast")

WITH_TORCH = [
    (case, sample, name)
    for (case, sample), name in zip(SAMPLES, SAMPLE_IDS, strict=True)
    if case.torch is not None and case.name not in UNLIKE
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "sample"), [row[:2] for row in WITH_TORCH], ids=[row[2] for row in WITH_TORCH])
def test_special_values_come_out_where_pytorch_has_them(case: Case, sample: Sample, backend: str) -> None:
    assert not (wrong := differences(case, sample, backend)), "\n".join(wrong[:10])


# -- Winograd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (2, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_winograd_spreads_a_special_value_over_its_tile_and_no_farther(
    m: int, r: int, dilation: int, value: float
) -> None:
    """Where PyTorch has NaN or infinity, ours is one or the other; tiles that do not read the value have the bits that
    they have without it.
    """
    rng = np.random.default_rng(0)
    images, filters = (
        rng.standard_normal((2, 27, 29, 8)).astype(np.float32),
        rng.standard_normal((r, r, 8, 8)).astype(np.float32),
    )
    at, padding, reach = (13, 14), (r // 2) * dilation, (m + r - 1) * dilation
    changed = images.copy()
    changed[1, *at, 3] = value
    results = []
    with forced_algorithm(f"winograd{m}"), np.errstate(all="ignore"):
        for x in (images, changed):
            results.append(ops.conv2d(Tensor(x), Tensor(filters), padding=padding, dilation=dilation).data)
    x, w = torch.tensor(changed).permute(0, 3, 1, 2), torch.tensor(filters).permute(3, 2, 0, 1)
    theirs = torch.nn.functional.conv2d(x, w, padding=padding, dilation=dilation).permute(0, 2, 3, 1).numpy()
    without, got = results
    assert not np.isfinite(theirs).all()
    assert not np.isfinite(got[~np.isfinite(theirs)]).any()
    # all of a tile of 2x2 hangs on what it reads, but for the ends of its rows
    assert (np.isfinite(theirs) & ~np.isfinite(got)).any() == (m > 2)
    far = np.ones((27, 29), bool)
    far[max(0, at[0] - reach) : at[0] + reach + 1, max(0, at[1] - reach) : at[1] + reach + 1] = False
    assert far.any()
    np.testing.assert_array_equal(got[0], without[0])
    np.testing.assert_array_equal(got[1][far], without[1][far])


# -- losses ------------------------------------------------------------------------------------------------------------


OPERATORS = {
    "cross_entropy": ops.cross_entropy,
    "focal": ops.focal_loss,
    "dice": ops.dice_loss,
    "iou": ops.iou_loss,
    "margin": ops.margin_loss,
    "lovasz": ops.lovasz_softmax,
    "tversky": ops.tversky_loss,
    "focal_tversky": ops.focal_tversky_loss,
    "generalized_dice": ops.generalized_dice_loss,
    "mcc": ops.mcc_loss,
    "jaccard_metric": ops.jaccard_metric_loss,
    "dice_semimetric": ops.dice_semimetric_loss,
    "top_k": ops.top_k_loss,
    "boundary": ops.boundary_loss,
}


def loss_of(term: str, logits: np.ndarray, labels: np.ndarray, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient."""
    z = Tensor(logits.copy(), requires_grad=True)
    value = OPERATORS[term](z, labels, **settings)
    value.backward()
    return value.data, z.grad.data


def pixels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 5, 7, 4)).astype(np.float32), rng.integers(0, 4, (2, 5, 7))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("value", SPECIAL)
def test_what_an_ignored_pixel_holds_counts_nowhere(term: str, value: float, backend: str) -> None:
    logits, labels = pixels()
    labels[0, 1, 2] = 9
    changed = logits.copy()
    changed[0, 1, 2, 1:3] = value
    with use_kernels(backend):
        want, got = (loss_of(term, z, labels, ignore_index=9) for z in (logits, changed))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert np.isfinite(got[0])
    assert not got[1][0, 1, 2].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("where", ["another class", "the label", "all but the label"])
@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_a_logit_of_minus_infinity_is_the_limit(term: str, where: str, gamma: float, backend: str) -> None:
    """The oracle: the same in float64 with -600 in its place, where e^-600 is a normal number, 3e-261. At the label
    three terms are infinite.
    """
    logits, labels = pixels(1)
    settings = {"gamma": gamma} if term == "focal" else {}
    far = logits.astype(np.float64)
    label = labels[1, 2, 3]
    places = {
        "another class": [(label + 1) % 4],
        "the label": [label],
        "all but the label": [c for c in range(4) if c != label],
    }[where]
    logits[1, 2, 3, places], far[1, 2, 3, places] = -np.inf, -600
    with use_kernels(backend), np.errstate(all="raise", under="ignore"):
        value, gradient = loss_of(term, logits, labels, **settings)
    with use_kernels("reference"):
        want, slope = loss_of(term, far, labels, **settings)
    if where == "the label" and term in ("cross_entropy", "focal", "top_k"):
        assert value == np.inf
    else:
        np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_float16_logits_are_summed_in_float32(term: str) -> None:
    """Value and gradient are float32's, rounded to float16: a thousand and more pixels add up to more than 2,048 in no
    sum of 11 bits.
    """
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((1, 64, 128, 3)).astype(np.float16), rng.integers(0, 3, (1, 64, 128))
    value, gradient = loss_of(term, logits, labels)
    want, slope = loss_of(term, logits.astype(np.float32), labels)
    assert value.dtype == gradient.dtype == np.float16
    np.testing.assert_allclose(value, want, rtol=2.0**-10)
    np.testing.assert_allclose(gradient, slope, rtol=2.0**-9, atol=2.0**-24)


def test_float16_keeps_what_is_small_beside_the_sums() -> None:
    """By hand, p = 1/2 everywhere: Dice has I = 2048 and U = 8192 in both classes, 1 - 4097 / 8193; the cross-entropy
    is log 2.
    """
    zeros = np.zeros((8192, 2), np.float16)
    halves = np.arange(8192) % 2
    assert abs(float(loss_of("dice", zeros, halves)[0]) - 0.5) < 1e-3
    many = np.zeros((65_536, 2), np.float16)
    assert abs(float(loss_of("cross_entropy", many, np.arange(65_536) % 2)[0]) - np.log(2)) < 1e-3
