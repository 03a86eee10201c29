"""Augmented batches that can be computed by hand, for the kernels of every device. A test on another device puts
its own `augment_batch` in place of this module's.
"""

from __future__ import annotations

import numpy as np

from engine.training.augmentation import affine_matrices
from kernels.augment import augment_batch

N, H, W = 6, 16, 24


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Images and masks of noise."""
    rng = np.random.default_rng(0)
    return rng.random((N, H, W)).astype(np.float32), rng.integers(0, 5, (N, H, W)).astype(np.uint8)


def moved(batch, outside=0, **changes):
    settings = {"flip_x": 1.0, "flip_y": 1.0, "angle": 0.0, "zoom": 1.0, "dx": 0.0, "dy": 0.0, **changes}
    matrices = affine_matrices(
        (H, W), *(np.full(N, settings[k]) for k in ("flip_x", "flip_y", "angle", "zoom", "dx", "dy"))
    )
    one = np.ones(N, np.float32)
    return augment_batch(*batch, matrices, one, 0 * one, one, outside)


def identity_is_exact(batch) -> None:
    images, masks = moved(batch)
    assert (images == batch[0]).all()
    assert (masks == batch[1]).all()
    assert images.dtype == np.float32
    assert masks.dtype == np.uint8


def half_turn_equals_both_flips(batch) -> None:
    turned, masks = moved(batch, angle=np.pi)
    np.testing.assert_allclose(turned, batch[0][:, ::-1, ::-1], atol=1e-6)
    assert (masks == batch[1][:, ::-1, ::-1]).all()


def integer_shift_equals_slicing(batch) -> None:
    images, masks = moved(batch, dx=3.0, dy=-2.0)
    assert (images[:, 2:, :-3] == batch[0][:, :-2, 3:]).all()
    assert (masks[:, 2:, :-3] == batch[1][:, :-2, 3:]).all()
    assert not masks[:, :2].any(), "outside is unlabelled"
    assert not masks[:, :, -3:].any()
    assert (images[:, 0, :-3] == batch[0][:, 2, 3:]).all(), "the image is mirrored outside, without repeating the edge"
    assert (images[:, 5, -1] == batch[0][:, 3, W - 4]).all(), "at the far side too"
    _, mirrored = moved(batch, outside=None, dx=3.0, dy=-2.0)
    assert (mirrored[:, 0, :-3] == batch[1][:, 2, 3:]).all()


def bilinear_between_pixels(batch) -> None:
    images, _ = moved(batch, dx=0.25)
    np.testing.assert_allclose(images[:, :, :-1], 0.75 * batch[0][:, :, :-1] + 0.25 * batch[0][:, :, 1:], atol=1e-6)


def zoom_magnifies_about_the_centre(batch) -> None:
    ramp = np.broadcast_to(np.arange(W, dtype=np.float32) / W, (N, H, W)).copy()
    images, _ = moved((ramp, batch[1]), zoom=2.0)
    centre = (W - 1) / 2
    np.testing.assert_allclose(images[0, 0], (centre + (np.arange(W) - centre) / 2) / W, atol=1e-6)
