"""Tiles and data sets: what the engine trains on, and how it is checked and written.

A data set comes from one of three sources, all through `load` (loading.py): the word 'synthetic' (synthetic/), an
.npz file in the form of the original homework file, or a folder of images and masks (folder.py). Any fault of the data
is a `DataError` of one line that says where, what came, and what was expected; the command line prints it unchanged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.classes import MARS, Classes
from engine.errors import InputError
from kernels.core.labels import check_labels

CLASSES = MARS.names
ROCK = CLASSES.index("big rock")

_POOLINGS = 3


class DataError(InputError):
    """Bad data or a bad request for data. The message is one line: where, what came, what was expected."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """N tiles with their labels, and the image each was cut from.

    images: uint8 or uint16 levels, or float32, of one channel (N, H, W) or several (N, H, W, C).
    masks: uint8 (N, H, W), labels of a `Classes`, or None where nobody labelled; uint16 for 256 classes.
    groups: str (N,), the source image of each tile, '' where unknown; or None where no tile's source is known.
    sizes: int (N, 2), height and width where tiles are smaller than the array: the rest is padding, whose labels count
        nowhere; or None.
    folders: str (N,), the folder that each tile lay in; or None.
    classes: what the labels mean.   known: the pixels of each class in each tile, where they have been counted already
        (see `counts`).
    images and masks may lie in a file (stored.py): then a tile, a batch or a window is in memory when it is read.
    Raises DataError when the arrays do not fit together, and for other labels.
    """

    images: np.ndarray
    masks: np.ndarray | None = None
    groups: np.ndarray | None = None
    sizes: np.ndarray | None = None
    folders: np.ndarray | None = None
    classes: Classes = MARS
    known: InitVar[np.ndarray | None] = None

    def __post_init__(self, known: np.ndarray | None) -> None:
        if self.images.ndim not in (3, 4) or self.images.dtype not in (np.uint8, np.uint16, np.float32):
            raise DataError(
                f"images: got {_described(self.images)}, expected uint8, uint16 or float32 (N, H, W) or (N, H, W, C)"
            )
        shape = self.images.shape[:3]
        if self.masks is not None and (self.masks.shape != shape or self.masks.dtype not in (np.uint8, np.uint16)):
            raise DataError(f"masks: got {_described(self.masks)}, expected uint8 {shape} like the images")
        if self.masks is not None and known is None:
            check_masks("masks", self.masks, self.classes)
            known = _counted(self.masks, self.classes)
        object.__setattr__(self, "_counts", known)
        for name, names in (("groups", self.groups), ("folders", self.folders)):
            if names is not None and (names.shape != (len(self),) or names.dtype.kind != "U"):
                raise DataError(f"{name}: got {_described(names)}, expected str ({len(self)},), one per image")
        if self.sizes is not None and (self.sizes.shape != (len(self), 2) or self.sizes.dtype.kind != "i"):
            raise DataError(
                f"sizes: got {_described(self.sizes)}, expected int ({len(self)}, 2), height and width per image"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Tiles:
        """The tiles at `index`: an integer or bool array, a list, a slice, or one integer (one tile, still 3-D)."""
        rows = np.atleast_1d(np.arange(len(self))[index])
        others = (None if a is None else _rows(a, rows) for a in (self.masks, self.groups, self.sizes, self.folders))
        return Tiles(_rows(self.images, rows), *others, self.classes, None if self.masks is None else self.counts[rows])

    take = __getitem__

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels, padding included."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def channels(self) -> int:
        """How many numbers a pixel has."""
        return 1 if self.images.ndim == 3 else self.images.shape[3]

    @property
    def counts(self) -> np.ndarray:
        """Pixels of each class in each tile: int64 (N, C). Raises DataError when there are no masks."""
        self.labels()
        return self.__dict__["_counts"]

    def having(self, **changes: Any) -> Tiles:
        """The same tiles with other groups, sizes or classes of the same labels, or other padding;
        not counted again.
        """
        return replace(self, **changes, known=self.__dict__["_counts"])

    def loaded(self) -> Tiles:
        """The same, in memory."""
        return self.having(images=self.images[:], masks=None if self.masks is None else self.masks[:])

    @property
    def sources(self) -> np.ndarray:
        """The source image of each tile, '' where unknown: str (N,), whether or not there are groups."""
        return np.full(len(self), "") if self.groups is None else self.groups

    @property
    def sources_known(self) -> bool:
        """Whether the source image of at least one tile is known."""
        return bool((self.sources != "").any())

    @property
    def ignored(self) -> int | None:
        """The label of pixels that count nowhere, where there are any."""
        some = self.masks is not None and int(self.counts.sum()) < math.prod(self.masks.shape)
        return self.classes.ignored if some else None

    @property
    def unit(self) -> str:
        """The unit that is independent of the others, as far as that is known: 'source image' or 'tile'."""
        return "source image" if self.sources_known else "tile"

    @property
    def units(self) -> np.ndarray | None:
        """The groups to resample by; None where every tile stands for itself."""
        return self.groups if self.sources_known else None

    def labels(self) -> np.ndarray:
        """The masks; DataError when there are none."""
        if self.masks is None:
            raise DataError(f"masks: these {len(self)} tiles have no masks, but labels are needed here")
        return self.masks


@dataclass(frozen=True, eq=False)
class DataSet:
    """Tiles to train on, tiles to test on (None when the source has none; their masks may be None), and lines worth
    printing.

    classes: what their labels mean.  val: tiles to validate on, where the source has them.
    original: whether it has the form of the original file, whose rule tells planted samples.
    """

    name: str
    train: Tiles
    test: Tiles | None = None
    notes: tuple[str, ...] = ()
    classes: Classes = MARS
    val: Tiles | None = None
    original: bool = False


def check_masks(name: str, masks: np.ndarray, classes: Classes = MARS) -> None:
    """Raise DataError unless all labels are of the classes, for the Mars tiles 0..4, or what they ignore; TypeError
    unless they are integers.
    """
    check_labels(name, "masks", masks, len(classes), classes.allowed, error=DataError)


def pixel_counts(masks: np.ndarray, classes: Classes = MARS) -> np.ndarray:
    """Pixels of each class in each mask. masks: labels (N, H, W) -> int64 (N, C). Raises DataError for other labels
    than the classes'.
    """
    check_masks("pixel_counts", masks, classes)
    return _counted(masks, classes)


def _counted(masks: np.ndarray, classes: Classes) -> np.ndarray:
    count = len(classes)
    if count <= 16:
        return np.stack([np.count_nonzero(masks == label, axis=(1, 2)) for label in range(count)], axis=1).astype(
            np.int64
        )
    return np.array([np.bincount(mask.ravel(), minlength=count)[:count] for mask in masks], np.int64).reshape(
        len(masks), count
    )


def parts_of(array: Any) -> Iterator[np.ndarray]:
    """An array (N, ...), or one in a file, a few tiles at a time: 4 MiB of them, or one."""
    step = max(1, (1 << 22) // max(1, math.prod(array.shape[1:]) * array.dtype.itemsize))
    return (array[start : min(start + step, len(array))] for start in range(0, len(array), step))


def _rows(array: Any, rows: np.ndarray) -> Any:
    """Some tiles of an array, or of a file, which are not read."""
    return array.subset(rows) if hasattr(array, "subset") else array[rows]


def save_npz(dataset: DataSet, path: str | Path, dtype: Any = np.uint8) -> None:
    """Write a data set in the original form (see `load`), compressed; float64 is the homework file's own dtype.

    The file is written under a temporary name beside `path` and then renamed: a reader sees the old file or the whole
    new one. Raises DataError for a name without .npz, a dtype other than uint8, float32 and float64, and training tiles
    without masks.
    """
    path = Path(path)
    dtype = np.dtype(dtype)
    if path.suffix.lower() != ".npz":
        raise DataError(f"{path}: got a file named *{path.suffix}, expected *.npz")
    if dtype not in (np.uint8, np.float32, np.float64):
        raise DataError(f"save_npz: got dtype {dtype}, expected uint8, float32 or float64")
    train = dataset.train
    test = dataset.test
    arrays: dict[str, Any] = {
        "training_set": np.stack([train.images, train.labels()], axis=1).astype(dtype),
        "train_group": train.groups,
    }
    if test is not None:
        labels = None if test.masks is None else test.masks.astype(dtype)
        arrays |= {"test_set": test.images.astype(dtype), "test_labels": labels, "test_group": test.groups}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **{key: array for key, array in arrays.items() if array is not None})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Converted:
    """uint8 (N, H, W), made of any real dtype a few tiles at a time. Raises DataError for another dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, where: str, classes: Classes = MARS) -> None:
        if dtype.kind not in "uif" or dtype.itemsize > 8:
            raise DataError(f"{where}: got dtype {dtype}, expected uint8, float32 or float64")
        self.where, self.classes = where, classes
        self.out = np.empty(shape, self.kind())

    def kind(self) -> type[np.unsignedinteger]:
        """The dtype of the result."""
        return np.uint8


class GreyLevels(_Converted):
    """Grey levels, rounded to the nearest. `put` raises DataError for NaN, inf or levels outside 0..255."""

    largest = 0.0
    fractional = False

    def put(self, rows: slice, part: np.ndarray) -> None:
        """The tiles `rows` from their values."""
        _reject(~np.isfinite(part) | (part < 0) | (part > 255), rows, part, self.where, "grey levels 0..255")
        rounded = np.rint(part)
        self.fractional = self.fractional or bool((rounded != part).any())
        self.largest = max(self.largest, float(part.max(initial=0)))
        self.out[rows] = rounded

    def finished(self) -> np.ndarray:
        """The levels; DataError where rounding has left black and white."""
        if self.fractional and self.largest <= 1:
            raise DataError(
                f"{self.where}: got fractional levels of at most {self.largest:.4g}, expected grey levels 0..255 "
                "(scale by 255)"
            )
        return self.out


class Labels(_Converted):
    """Labels. `put` raises DataError for anything but whole numbers that the classes know, for the Mars tiles 0..4."""

    def kind(self) -> type[np.unsignedinteger]:
        """The dtype of the result."""
        return self.classes.dtype

    def put(self, rows: slice, part: np.ndarray) -> None:
        """The tiles `rows` from their values."""
        table = self.classes.table
        last = int(np.flatnonzero(table >= 0)[-1])
        whole = np.isfinite(part) & (part >= 0) & (part <= last) & (np.rint(part) == part)
        labels = table[np.where(whole, part, 0).astype(np.int64)]
        _reject(~whole | (labels < 0), rows, part, self.where, self.classes.expected)
        self.out[rows] = labels

    def finished(self) -> np.ndarray:
        """The labels."""
        return self.out


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _reject(bad: np.ndarray, rows: slice, part: np.ndarray, where: str, expected: str) -> None:
    """Raise DataError naming the first offending value and its index."""
    if bad.any():
        tile, y, x = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{where}: got {part[tile, y, x]:.6g} in tile {rows.start + tile} at row {y}, column {x}, expected "
            f"{expected}"
        )


def finished(name: str, train: Tiles, test: Tiles | None, classes: Classes) -> DataSet:
    """The data set with its sizes checked and described."""
    parts = [("train", train)] if test is None else [("train", train), ("test", test)]
    for part, tiles in parts:
        h, w = tiles.size
        divisor = 2**_POOLINGS
        if not len(tiles):
            raise DataError(f"{name}: got no {part} tile, expected at least one")
        if h % divisor or w % divisor or not h * w:
            raise DataError(
                f"{name}: {part} tiles are {h} x {w}, expected sides divisible by {divisor} ({_POOLINGS} poolings)"
            )
        if tiles.size != train.size:
            raise DataError(
                f"{name}: {part} tiles are {h} x {w}, expected {train.size[0]} x {train.size[1]} like the training "
                "tiles"
            )
    return DataSet(
        name, train, test, tuple(described(part, tiles) for part, tiles in parts), classes, original=classes == MARS
    )


def described(part: str, tiles: Tiles) -> str:
    """One line about the tiles of a part: how many, of what size and kind, of how many source images."""
    known = (
        f"{len(np.unique(tiles.sources[tiles.sources != '']))} source images"
        if tiles.sources_known
        else "source images unknown"
    )
    labelled = "" if tiles.masks is not None else ", no masks"
    colour = "" if tiles.channels == 1 else f" and {tiles.channels} channels"
    depth = {np.dtype(np.uint16): ", 16 bits", np.dtype(np.float32): ", floating point"}.get(tiles.images.dtype, "")
    size = f"{tiles.size[0]} x {tiles.size[1]}"
    if tiles.sizes is not None:
        low, high = (" x ".join(map(str, extreme)) for extreme in (tiles.sizes.min(0), tiles.sizes.max(0)))
        size = f"{low if low == high else f'{low} to {high}'}, padded to {size}"
    return f"{part}: {len(tiles)} tiles of {size}{colour}{depth}, {known}{labelled}"
