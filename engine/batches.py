"""Which tiles make a batch: a shuffled pass over the set in which rare classes appear in every batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.data import MARS, Classes, pixel_counts
from kernels.core.device import Array, array_module
from kernels.core.labels import check_labels

RARE = 0.1  # a class is rare when fewer than this share of the tiles contain it


def rare_tiles(masks: np.ndarray, classes: Classes = MARS) -> tuple[np.ndarray, list[int]]:
    """Indices of the tiles (N, H, W) that contain a rare class among those scored, and the rare classes' labels.

    DataError for labels that are no classes.
    """
    presence = pixel_counts(masks, classes)[:, list(classes.scored)] > 0  # (N, scored classes)
    share = presence.mean(0)
    rare = (share > 0) & (share < RARE)
    return np.flatnonzero(presence[:, rare].any(1)), [classes.scored[k] for k in np.flatnonzero(rare)]


def crops(images: Array, masks: Array, crop: tuple[int, int], sizes: np.ndarray | None, rng: np.random.Generator) -> tuple[Array, Array]:
    """A random window of height and width `crop` of every tile (N, H, W, ...) and its mask; within its own size (N, 2), padding aside."""
    (h, w), xp = crop, array_module(images)
    extents = np.tile([images.shape[1:3]], (len(images), 1)) if sizes is None else sizes
    room = np.maximum(extents - [[h, w]], 0) + 1
    corners = rng.integers(0, room)  # (N, 2)
    windows = [(i, slice(y, y + h), slice(x, x + w)) for i, (y, x) in enumerate(corners.tolist())]
    return xp.stack([images[window] for window in windows]), xp.stack([masks[window] for window in windows])


def stratified_batches(count: int, rare: np.ndarray, batch: int, share: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Index arrays of one epoch: `count` tiles in batches; `share` of each batch (at least one) is drawn from `rare`, the rest from a
    permutation of all. Without rare tiles, or with share 0, this is a plain shuffle. The last batch may be smaller, but not below 2.
    ValueError for indices in `rare` that are no tiles.
    """
    check_labels("stratified_batches", "rare", rare, count)
    special = min(batch - 1, max(1, round(share * batch))) if len(rare) and share > 0 else 0
    order = rng.permutation(count)
    queue = np.concatenate([rng.permutation(rare) for _ in range(1 + special * count // (batch * len(rare)) + 1)]) if special else order[:0]
    regular, taken = 0, 0
    for start in range(0, count, batch):
        size = min(batch, count - start)
        if size < 2 and start:
            return
        rares = min(special, size - 1)
        yield np.concatenate([queue[taken : taken + rares], order[regular : regular + size - rares]])
        taken, regular = taken + rares, regular + size - rares
