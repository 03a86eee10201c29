"""Augmentation that mixes tiles: copy-paste of rare classes (Ghiasi et al., arXiv 2012.07177) and CutMix (Yun et al.,
arXiv 1905.04899).

Both work on a batch of images in [0, 1] and its labels. All random numbers come from a generator on the host, so that
every device sees the same tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.data.tiles import check_masks
from engine.training.augmentation import Augmentation, affine_matrices, log_uniform, moved
from kernels.core.device import CPU, Array, array_module, device_of, to_device

# pixels around a pasted component that are pasted with it and unlabelled: masks are coarse, and its edge is unlike its
# new ground
RING = 2
SMALLEST = 9  # pixels of a component that is worth pasting
_ZOOM = 1.4  # pasted components are scaled by 1 / _ZOOM to _ZOOM
_OUTSIDE, _AROUND, _WITHIN = 0, 1, 2  # the codes of a patch


@dataclass(frozen=True, eq=False)
class Patch:
    """A connected component cut out of a tile. image (h, w) or (h, w, C) in [0, 1]; code uint8 (h, w): 0 outside, 1 the
    ring, 2 the component.
    """

    image: np.ndarray
    code: np.ndarray
    label: int


@dataclass(frozen=True, eq=False)
class Mixing:
    """Copy-paste, then the augmentation of each tile, then CutMix. __call__ as `Augmentation`'s.

    alone: of each tile alone.   paste: None pastes nothing.   cutmix_share: of the tiles that get a rectangle of
    another. Raises DataError for labels that are no classes, before anything is pasted (on CUDA the loss does: see
    `Augmentation`).
    """

    alone: Augmentation
    paste: CopyPaste | None = None
    cutmix_share: float = 0.0

    def __call__(self, images: Array, masks: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        if device_of(masks) == CPU:
            check_masks("augmentation", masks, self.alone.classes)
        if self.paste is not None:
            images, masks = self.paste(images, masks, rng)
        images, masks = self.alone(images, masks, rng)
        return cutmix(images, masks, self.cutmix_share, rng) if self.cutmix_share else (images, masks)

    def flips_only(self) -> Augmentation:
        """Flips and nothing else: for the last epochs."""
        return self.alone.flips_only()


@dataclass(frozen=True, eq=False)
class CopyPaste:
    """Pastes a component of a rare class, mirrored and scaled at random, onto a share of the tiles, at a random place.

    patches: what is pasted, each as likely as any other.   share: of the tiles.   unlabelled: the label of the ring;
        None leaves the ring out.
    forbidden: a label onto which nothing is pasted (padding has it), or None.
    """

    patches: list[Patch]
    share: float
    unlabelled: int | None = 0
    forbidden: int | None = None

    def __call__(self, images: Array, masks: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """images (N, H, W) or (N, H, W, C) float32 in [0, 1] and masks (N, H, W) -> the same with components pasted;
        new arrays.
        """
        rows = np.flatnonzero(rng.random(len(images)) < self.share) if self.patches else np.arange(0)
        size = images.shape[1:3]
        device = device_of(images)
        xp = array_module(images)
        chosen = [self.patches[k] for k in rng.integers(len(self.patches), size=len(rows))] if len(rows) else []
        matrices = self._draw(len(rows), size, rng)
        if not len(rows):
            return images, masks
        canvas, codes = (to_device(a, device) for a in _centred(chosen, images.shape[1:], images.dtype))
        pasted, codes = moved(canvas, codes, to_device(matrices, device))
        labels = to_device(np.array([patch.label for patch in chosen], masks.dtype), device)[:, None, None]
        rows = to_device(rows, device)
        images, masks = images.copy(), masks.copy()
        there = masks[rows]
        free = xp.ones(there.shape, bool) if self.forbidden is None else there != self.forbidden
        on = free & ((codes == _WITHIN) if self.unlabelled is None else (codes != _OUTSIDE))
        images[rows] = xp.where(on if images.ndim == 3 else on[..., None], pasted, images[rows])
        ring = labels if self.unlabelled is None else xp.asarray(self.unlabelled, masks.dtype)
        masks[rows] = xp.where(on, xp.where(codes == _WITHIN, labels, ring), there)
        return images, masks

    def _draw(self, n: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """n inverse maps (n, 2, 3): mirrored, scaled, and moved so that the centre of the patch lies anywhere in the
        tile.
        """
        flip_x, flip_y = (np.where(rng.random(n) < 0.5, -1.0, 1.0) for _ in range(2))
        zoom = log_uniform(rng, _ZOOM, n)
        to_x, to_y = (rng.uniform(-0.5, 0.5, n) * extent for extent in (size[1], size[0]))
        return affine_matrices(size, flip_x, flip_y, np.zeros(n), zoom, -flip_x * to_x / zoom, -flip_y * to_y / zoom)


def cutmix(images: Array, masks: Array, share: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """A share of the tiles gets a rectangle of another tile of the batch, at the same place, with its labels.

    images (N, H, W) or (N, H, W, C), masks (N, H, W); new arrays. The rectangle has the tile's aspect. Its share of the
    tile's area is uniform in (0, 1), its centre uniform in the tile, and what reaches beyond the tile is cut.
    """
    n = len(images)
    h, w = images.shape[1:3]
    xp = array_module(images)
    partner = (np.arange(n) + rng.integers(1, max(n, 2), n)) % n  # another tile, each as likely
    side = np.sqrt(rng.random(n)) * (rng.random(n) < share)  # of the rectangle, as a share of the tile's
    near_y, near_x = (
        np.abs(np.arange(extent) + 0.5 - (centre * extent)[:, None]) < (side * extent / 2)[:, None]
        for extent, centre in zip((h, w), rng.random((2, n)), strict=True)
    )
    box = to_device(near_y[:, :, None] & near_x[:, None, :], device_of(images))
    partner = to_device(partner, device_of(images))
    return xp.where(box if images.ndim == 3 else box[..., None], images[partner], images), xp.where(
        box, masks[partner], masks
    )


def patches_of(
    images: Iterable[np.ndarray], masks: np.ndarray, classes: list[int], largest: tuple[int, int], ring: int = RING
) -> list[Patch]:
    """The connected components of the labels `classes` in tiles (N, H, W[, C]) in [0, 1], with a ring around each.

    Left out are components below SMALLEST pixels, and those that with their ring exceed the height and width `largest`.
    """
    found = []
    for image, mask in zip(images, masks, strict=True):
        for label in classes:
            parts = components(mask == label)
            for number in np.unique(parts[parts > 0]):
                part = parts == number
                if np.count_nonzero(part) < SMALLEST:
                    continue
                around = dilated(part, ring)
                # One pixel more, of which nothing is pasted: interpolation at the ring's edge takes it.
                window = tuple(slice(max(hit.min() - 1, 0), hit.max() + 2) for hit in np.nonzero(around))
                code = np.where(part, _WITHIN, np.where(around, _AROUND, _OUTSIDE)).astype(np.uint8)[window]
                if code.shape[0] <= largest[0] and code.shape[1] <= largest[1]:
                    found.append(Patch(np.ascontiguousarray(image[window]), code, label))
    return found


def components(inside: np.ndarray) -> np.ndarray:
    """Connected components of a bool (H, W), by the four neighbours: int (H, W), 0 outside, one number above 0 for each
    component.

    Every pixel takes the largest number among its neighbours until nothing changes: as many passes as the longest way
    within a component.
    """
    numbers = np.where(inside, np.arange(1, inside.size + 1).reshape(inside.shape), 0)
    while True:
        spread = np.where(inside, _largest_neighbour(numbers), 0)
        if (spread == numbers).all():
            return numbers
        numbers = spread


def dilated(inside: np.ndarray, times: int) -> np.ndarray:
    """A bool (H, W) and its four neighbours, `times` over."""
    for _ in range(times):
        inside = _largest_neighbour(inside)
    return inside


def _largest_neighbour(values: np.ndarray) -> np.ndarray:
    """The largest of each pixel and its four neighbours, (H, W)."""
    padded = np.pad(values, 1)
    moved = (padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.maximum.reduce(moved)


def _centred(patches: list[Patch], shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Patches in the middle of empty tiles of shape (H, W[, C]): images (n, H, W[, C]) and codes uint8 (n, H, W)."""
    images = np.zeros((len(patches), *shape), dtype)
    codes = np.zeros((len(patches), *shape[:2]), np.uint8)
    for image, code, patch in zip(images, codes, patches, strict=True):
        h, w = patch.code.shape
        top = (shape[0] - patch.code.shape[0]) // 2
        left = (shape[1] - patch.code.shape[1]) // 2
        window = slice(top, top + h), slice(left, left + w)
        image[window] = patch.image
        code[window] = patch.code
    return images, codes
