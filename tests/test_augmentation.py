"""Augmentation: exact where it can be exact, deterministic, labels never invented; batches in which rare classes
appear.
"""

from __future__ import annotations

import numpy as np
import pytest

from engine.training.augmentation import Augmentation, affine_matrices
from engine.training.batches import rare_tiles, stratified_batches
from kernels.augment import augment_batch

N, H, W = 6, 16, 24


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.random((N, H, W)).astype(np.float32), rng.integers(0, 5, (N, H, W)).astype(np.uint8)


def moved(batch, outside=0, **changes):
    settings = {"flip_x": 1.0, "flip_y": 1.0, "angle": 0.0, "zoom": 1.0, "dx": 0.0, "dy": 0.0, **changes}
    matrices = affine_matrices(
        (H, W), *(np.full(N, settings[k]) for k in ("flip_x", "flip_y", "angle", "zoom", "dx", "dy"))
    )
    one = np.ones(N, np.float32)
    return augment_batch(*batch, matrices, one, 0 * one, one, outside)


def test_identity_is_exact(batch) -> None:
    images, masks = moved(batch)
    assert (images == batch[0]).all()
    assert (masks == batch[1]).all()
    assert images.dtype == np.float32
    assert masks.dtype == np.uint8


@pytest.mark.parametrize(("flip_x", "flip_y"), [(-1, 1), (1, -1), (-1, -1)])
def test_flips_equal_slicing_and_undo_themselves(batch, flip_x, flip_y) -> None:
    once = moved(batch, flip_x=flip_x, flip_y=flip_y)
    for got, plain in zip(once, batch, strict=True):
        assert (got == plain[:, ::flip_y, ::flip_x]).all()
    twice = moved(once, flip_x=flip_x, flip_y=flip_y)
    assert (twice[0] == batch[0]).all()
    assert (twice[1] == batch[1]).all()


def test_half_turn_equals_both_flips(batch) -> None:
    turned, masks = moved(batch, angle=np.pi)
    np.testing.assert_allclose(turned, batch[0][:, ::-1, ::-1], atol=1e-6)
    assert (masks == batch[1][:, ::-1, ::-1]).all()


def test_integer_shift_equals_slicing(batch) -> None:
    images, masks = moved(batch, dx=3.0, dy=-2.0)
    assert (images[:, 2:, :-3] == batch[0][:, :-2, 3:]).all()
    assert (masks[:, 2:, :-3] == batch[1][:, :-2, 3:]).all()
    assert not masks[:, :2].any(), "outside is unlabelled"
    assert not masks[:, :, -3:].any()
    assert (images[:, 0, :-3] == batch[0][:, 2, 3:]).all(), "the image is mirrored outside, without repeating the edge"
    assert (images[:, 5, -1] == batch[0][:, 3, W - 4]).all(), "at the far side too"
    _, mirrored = moved(batch, outside=None, dx=3.0, dy=-2.0)
    assert (mirrored[:, 0, :-3] == batch[1][:, 2, 3:]).all()


def test_bilinear_between_pixels(batch) -> None:
    images, _ = moved(batch, dx=0.25)
    np.testing.assert_allclose(images[:, :, :-1], 0.75 * batch[0][:, :, :-1] + 0.25 * batch[0][:, :, 1:], atol=1e-6)


def test_zoom_magnifies_about_the_centre(batch) -> None:
    ramp = np.broadcast_to(np.arange(W, dtype=np.float32) / W, (N, H, W)).copy()
    images, _ = moved((ramp, batch[1]), zoom=2.0)
    centre = (W - 1) / 2
    np.testing.assert_allclose(images[0, 0], (centre + (np.arange(W) - centre) / 2) / W, atol=1e-6)


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
