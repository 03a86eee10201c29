"""Random augmentation of a batch: the parameters that are drawn, and the affine maps that follow from them.
kernels/augment moves the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data import MARS, Classes
from engine.data.tiles import check_masks
from kernels import augment as kernels
from kernels.core.device import CPU, Array, array_module, device_of, to_device


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of the random changes.

    flip_horizontal, flip_vertical: probabilities.   affine: probability of the rotation + scaling + shift.
    rotate: largest angle in degrees.   scale: from 1 / scale to scale.   shift: largest translation as a share of the
        size.
    photometric: probability of contrast + brightness + gamma.   contrast: from 1 / contrast to contrast.   brightness:
    largest addition to grey levels in [0, 1].   gamma: from 1 / gamma to gamma.
    outside: the label of pixels that come from outside the tile (0: unlabelled); None mirrors the mask like the image.
        classes: what labels mean.
    """

    flip_horizontal: float = 0.5
    flip_vertical: float = 0.5
    affine: float = 0.5
    rotate: float = 15.0
    scale: float = 1.25
    shift: float = 0.1
    photometric: float = 0.5
    contrast: float = 1.25
    brightness: float = 0.1
    gamma: float = 1.4
    outside: int | None = 0
    classes: Classes = MARS

    def flips_only(self) -> Augmentation:
        """The same flips and nothing else: for the last epochs."""
        return Augmentation(
            self.flip_horizontal,
            self.flip_vertical,
            affine=0,
            photometric=0,
            outside=self.outside,
            classes=self.classes,
        )

    def __call__(self, images: Array, masks: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """images (N, H, W) or (N, H, W, C) float32 in [0, 1], masks (N, H, W) -> augmented images and masks, on the
        device of the images.

        The channels of an image are moved and recoloured alike. Raises DataError for labels that are no classes; on
        CUDA it does not look at them,
        which would stop the stream: the loss does.
        All random numbers come from `rng` on the host, so that every device sees the same tiles.
        """
        n, h, w = images.shape[:3]
        if device_of(masks) == CPU:
            check_masks("augmentation", masks, self.classes)
        matrices = self.draw_matrices(n, (h, w), rng)
        on = rng.random(n) < self.photometric
        contrast = np.where(on, log_uniform(rng, self.contrast, n), 1).astype(np.float32)
        brightness = np.where(on, rng.uniform(-self.brightness, self.brightness, n), 0).astype(np.float32)
        gamma = np.where(on, log_uniform(rng, self.gamma, n), 1).astype(np.float32)
        settings = [to_device(drawn, device_of(images)) for drawn in (matrices, contrast, brightness, gamma)]
        return _channel_by_channel(images, masks, *settings, self.outside)

    def draw_matrices(self, n: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """n random inverse maps (n, 2, 3) in pixels: source = C R(angle) S F C^-1 output + shift, C the centre of an
        (H, W) tile.
        """
        flip_x = np.where(rng.random(n) < self.flip_horizontal, -1.0, 1.0)
        flip_y = np.where(rng.random(n) < self.flip_vertical, -1.0, 1.0)
        on = rng.random(n) < self.affine
        angle = np.where(on, np.deg2rad(rng.uniform(-self.rotate, self.rotate, n)), 0)
        zoom = np.where(on, log_uniform(rng, self.scale, n), 1)
        dx, dy = (np.where(on, rng.uniform(-self.shift, self.shift, n) * extent, 0) for extent in (size[1], size[0]))
        return affine_matrices(size, flip_x, flip_y, angle, zoom, dx, dy)


def affine_matrices(
    size: tuple[int, int],
    flip_x: np.ndarray,
    flip_y: np.ndarray,
    angle: np.ndarray,
    zoom: np.ndarray,
    dx: np.ndarray,
    dy: np.ndarray,
) -> np.ndarray:
    """Inverse maps (n, 2, 3) about the centre of an (H, W) tile; flips are +-1, angles in radians, shifts in pixels;
    zoom > 1 magnifies.
    """
    cos = np.cos(angle) / zoom
    sin = np.sin(angle) / zoom
    a = cos * flip_x
    b = -sin * flip_y
    c = sin * flip_x
    d = cos * flip_y
    cx, cy = (size[1] - 1) / 2, (size[0] - 1) / 2
    rows = [[a, b, cx - a * cx - b * cy + dx], [c, d, cy - c * cx - d * cy + dy]]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def log_uniform(rng: np.random.Generator, largest: float, n: int) -> np.ndarray:
    """n factors from 1 / largest to largest, uniform in their logarithm."""
    return np.exp(rng.uniform(-1, 1, n) * np.log(largest))


def moved(images: Array, codes: Array, matrices: Array) -> tuple[Array, Array]:
    """The geometric part alone: images (N, H, W) or (N, H, W, C) in [0, 1] by bilinear interpolation, mirrored outside;
    codes uint8 (N, H, W) by
    the nearest pixel, 0 outside. matrices: inverse maps (N, 2, 3), on the images' device.
    """
    one = array_module(images).ones(len(images), np.float32)
    return _channel_by_channel(images, codes, matrices, one, 0 * one, one, 0)


def _channel_by_channel(images: Array, masks: Array, *settings: Any) -> tuple[Array, Array]:
    """The kernel on images (N, H, W), or on every channel of images (N, H, W, C) alike."""
    if images.ndim == 3:
        return kernels.augment_batch(images, masks, *settings)
    xp = array_module(images)
    channels = range(images.shape[3])
    parts = [kernels.augment_batch(xp.ascontiguousarray(images[..., c]), masks, *settings) for c in channels]
    return xp.stack([part[0] for part in parts], -1), parts[0][1]


def inverse_maps(matrices: np.ndarray) -> np.ndarray:
    """The maps (n, 2, 3) that undo affine maps (n, 2, 3)."""
    linear = np.linalg.inv(matrices[:, :, :2])
    return np.concatenate([linear, -linear @ matrices[:, :, 2:]], 2)
