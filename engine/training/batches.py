"""Which tiles make a batch: a shuffled pass over the set in which rare classes appear in every batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from engine.data import MARS, Classes, Tiles, pixel_counts
from engine.data.stored import Stored
from kernels.core.device import Array, array_module, to_device
from kernels.core.labels import check_labels

RARE = 0.1  # a class is rare when fewer than this share of the tiles contain it


def rare_tiles(
    masks: np.ndarray, classes: Classes = MARS, counts: np.ndarray | None = None
) -> tuple[np.ndarray, list[int]]:
    """Indices of the tiles (N, H, W) that contain a rare class among those scored, and the rare classes' labels.

    counts: pixels of each class in each tile, where they are known.  Raises DataError for labels that are no classes.
    """
    presence = (pixel_counts(masks, classes) if counts is None else counts)[
        :, list(classes.scored)
    ] > 0  # (N, scored classes)
    share = presence.mean(0)
    rare = (share > 0) & (share < RARE)
    return np.flatnonzero(presence[:, rare].any(1)), [classes.scored[k] for k in np.flatnonzero(rare)]


Window = tuple[int, slice, slice]


def windows(
    index: np.ndarray, size: tuple[int, int], crop: tuple[int, int], sizes: np.ndarray | None, rng: np.random.Generator
) -> list[Window]:
    """A random window of height and width `crop` in each tile at `index`, as (tile, rows, columns). size: of all tiles,
    padding included.

    sizes: height and width of each tile (N, 2), within which the windows lie, padding aside; None: `size`.
    """
    h, w = crop
    extents = np.tile([size], (len(index), 1)) if sizes is None else sizes[index]
    corners = rng.integers(0, np.maximum(extents - [[h, w]], 0) + 1)  # (n, 2)
    return [
        (tile, slice(y, y + h), slice(x, x + w)) for tile, (y, x) in zip(index.tolist(), corners.tolist(), strict=True)
    ]


def cut(array: Array, places: list[Window]) -> Array:
    """The windows of tiles (N, H, W, ...), in memory or in a file -> (n, h, w, ...)."""
    parts = [array[place] for place in places]
    return array_module(parts[0]).stack(parts)


class BatchSource:
    """Batches of tiles, whole or as random windows, on a device. crop: a window's height and width; (0, 0): whole
    tiles.

    Tiles in memory are copied to the device once; those in a file (engine/data/stored.py) are read batch by batch.
    """

    def __init__(self, tiles: Tiles, crop: tuple[int, int], device: str) -> None:
        self.size = tiles.size
        self.sizes = tiles.sizes
        self.crop = crop
        self.device = device
        self.arrays: tuple[Any, Any] = tiles.images, tiles.labels()
        if not isinstance(tiles.images, Stored):
            self.arrays = to_device(self.arrays[0], device), to_device(self.arrays[1], device)

    def take(self, index: np.ndarray, rng: np.random.Generator) -> tuple[Array, Array]:
        """Images and masks of the tiles at `index`. Where windows are cut, `rng` says which."""
        if any(self.crop):
            places = windows(index, self.size, self.crop, self.sizes, rng)
            images, masks = (cut(array, places) for array in self.arrays)
        else:
            rows = index if isinstance(self.arrays[0], Stored) else to_device(index, self.device)
            images, masks = (array[rows] for array in self.arrays)
        return to_device(images, self.device), to_device(masks, self.device)

    def ahead(self, index: np.ndarray, rng: np.random.Generator) -> None:
        """Let the system fetch what `take` will read with these arguments; `rng` is left as it is."""
        if not isinstance(self.arrays[0], Stored):
            return
        if any(self.crop):
            places = windows(index, self.size, self.crop, self.sizes, copy.deepcopy(rng))
        else:
            places = [(tile, slice(None), slice(None)) for tile in index.tolist()]
        for array in self.arrays:
            for tile, rows, _ in places:
                array.ahead(tile, rows)


def stratified_batches(
    count: int, rare: np.ndarray, batch: int, share: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Index arrays of one epoch: `count` tiles in batches; `share` of each batch (at least one) is drawn from `rare`,
    the rest from a permutation of all. Without rare tiles, or with share 0, this is a plain shuffle. The last batch may
    be smaller, but not below 2. Raises ValueError for indices in `rare` that are no tiles.
    """
    check_labels("stratified_batches", "rare", rare, count)
    special = min(batch - 1, max(1, round(share * batch))) if len(rare) and share > 0 else 0
    order = rng.permutation(count)
    queue = (
        np.concatenate([rng.permutation(rare) for _ in range(1 + special * count // (batch * len(rare)) + 1)])
        if special
        else order[:0]
    )
    regular, taken = 0, 0
    for start in range(0, count, batch):
        size = min(batch, count - start)
        if size < 2 and start:
            return
        rares = min(special, size - 1)
        yield np.concatenate([queue[taken : taken + rares], order[regular : regular + size - rares]])
        taken = taken + rares
        regular = regular + size - rares
