"""Augmentation: exact where it can be exact, deterministic, labels never invented; batches in which rare classes
appear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.training.augmentation import Augmentation, affine_matrices
from engine.training.batches import rare_tiles, stratified_batches
from kernels.augment import augment_batch
from kernels.core.dispatch import use_kernels
from tests.support import augmentation_checks
from tests.support.augmentation_checks import H, N, W, moved
from tests.support.misprints import Mutant, assert_caught, planted


@pytest.fixture
def batch():
    return augmentation_checks.batch()


def test_identity_is_exact(batch) -> None:
    augmentation_checks.identity_is_exact(batch)


@pytest.mark.parametrize(("flip_x", "flip_y"), [(-1, 1), (1, -1), (-1, -1)])
def test_flips_equal_slicing_and_undo_themselves(batch, flip_x, flip_y) -> None:
    once = moved(batch, flip_x=flip_x, flip_y=flip_y)
    for got, plain in zip(once, batch, strict=True):
        assert (got == plain[:, ::flip_y, ::flip_x]).all()
    twice = moved(once, flip_x=flip_x, flip_y=flip_y)
    assert (twice[0] == batch[0]).all()
    assert (twice[1] == batch[1]).all()


def test_half_turn_equals_both_flips(batch) -> None:
    augmentation_checks.half_turn_equals_both_flips(batch)


def test_integer_shift_equals_slicing(batch) -> None:
    augmentation_checks.integer_shift_equals_slicing(batch)


def test_bilinear_between_pixels(batch) -> None:
    augmentation_checks.bilinear_between_pixels(batch)


def test_zoom_magnifies_about_the_centre(batch) -> None:
    augmentation_checks.zoom_magnifies_about_the_centre(batch)


def test_photometric_formula(batch) -> None:
    images, masks = batch
    contrast, brightness, gamma = (
        np.linspace(a, b, N).astype(np.float32) for a, b in ((0.8, 1.3), (-0.1, 0.1), (0.7, 1.4))
    )
    eye = affine_matrices((H, W), *(np.full(N, v) for v in (1.0, 1.0, 0.0, 1.0, 0.0, 0.0)))
    got, same = augment_batch(images, masks, eye, contrast, brightness, gamma, 0)
    for k in range(N):
        mean = images[k].mean(dtype=np.float64)
        expected = np.clip(contrast[k] * (images[k] - mean) + mean + brightness[k], 0, 1) ** gamma[k]
        np.testing.assert_allclose(got[k], expected, atol=2e-6)
    assert (same == masks).all()


def test_same_seed_same_batch_and_no_new_labels(batch) -> None:
    augment = Augmentation(affine=1.0, photometric=1.0, rotate=40, scale=2, shift=0.4)
    first = augment(*batch, np.random.default_rng(5))
    again = augment(*batch, np.random.default_rng(5))
    other = augment(*batch, np.random.default_rng(6))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()
    assert set(np.unique(first[1])) <= set(range(5))
    assert first[0].min() >= 0
    assert first[0].max() <= 1
    plain = Augmentation(flip_horizontal=0, flip_vertical=0, affine=0, photometric=0)(*batch, np.random.default_rng(0))
    assert (plain[0] == batch[0]).all()
    flips = Augmentation(affine=1, photometric=1).flips_only()(*batch, np.random.default_rng(0))
    assert all(any((flips[0][k] == batch[0][k, ::a, ::b]).all() for a in (1, -1) for b in (1, -1)) for k in range(N))


def test_rare_tiles() -> None:
    masks = np.ones((40, 2, 2), np.uint8)
    masks[3, 0, 0] = 4
    masks[:20, 1, 1] = 2
    tiles, labels = rare_tiles(masks)
    assert (tiles.tolist(), labels) == ([3], [4])
    tiles, labels = rare_tiles(np.ones((5, 2, 2), np.uint8))
    assert (tiles.tolist(), labels) == ([], [])


@pytest.mark.parametrize(("count", "batch", "rare"), [(100, 16, 5), (97, 16, 3), (33, 16, 1), (64, 8, 40), (10, 4, 0)])
def test_every_batch_has_its_share_of_rare_tiles(count: int, batch: int, rare: int) -> None:
    index = np.arange(rare)
    rng = np.random.default_rng(0)
    batches = list(stratified_batches(count, index, batch, 0.125, rng))
    assert all(len(b) <= batch for b in batches)
    assert count - 1 <= sum(len(b) for b in batches) <= count
    drawn = np.concatenate(batches)
    assert drawn.min() >= 0
    assert drawn.max() < count
    if rare:
        assert all(np.isin(b, index).any() for b in batches)
        counts = np.array([np.isin(np.concatenate([b[: max(1, batch // 8)] for b in batches]), i).sum() for i in index])
        assert counts.max() - counts.min() <= len(batches), "rare tiles take turns"
    else:
        assert len(np.unique(drawn)) == count


# -- planted mistakes --------------------------------------------------------------------------------------------------


def on_the_reference(test: Callable) -> Callable[[], None]:
    def run() -> None:
        with use_kernels("reference"):  # the definition is what is mutated
            test(augmentation_checks.batch())

    return run


MUTANTS = [
    Mutant(
        "augmentation: x and y swapped",
        "kernels.augment.reference:augment_batch",
        "x, y = (matrices",
        "y, x = (matrices",
        on_the_reference(test_integer_shift_equals_slicing),
    ),
    Mutant(
        "augmentation: labels interpolated",
        "kernels.augment.reference:augment_batch",
        "xp.floor(x + 0.5)",
        "xp.floor(x)",
        on_the_reference(test_half_turn_equals_both_flips),
    ),
    Mutant(
        "augmentation: edge pixel repeated",
        "kernels.augment.reference:mirror",
        "2 * n - 2",
        "2 * n - 1",
        on_the_reference(test_integer_shift_equals_slicing),
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
