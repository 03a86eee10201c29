"""Tiles and data sets: what the engine trains on, and how it is read, checked and written.

A data set comes from one of three sources, all through `load`: the word 'synthetic' (synthetic.py), an .npz file in the form of
the original homework file, or a folder of image / mask PNG pairs (folder.py). Whatever is wrong with the data is a `DataError`
of one line that says where, what came, and what was expected: the command line prints it as it stands.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("background", "soil", "bedrock", "sand", "big rock")
ROCK = CLASSES.index("big rock")

_POOLINGS = 3
_KEYS = ("training_set", "test_set", "train_group", "test_group", "test_labels")
_CHUNK = 256  # tiles converted at a time: the float64 file is large, its temporaries need not be
_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class DataError(ValueError):
    """Bad data or a bad request for data. The message is one line: where, what came, what was expected."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """N grey tiles of one size with their labels, and the image each was cut from.

    images: uint8 (N, H, W), grey levels 0..255.
    masks: uint8 (N, H, W), labels 0..4 in the order of `CLASSES`, or None where nobody labelled.
    groups: str (N,), the source image of each tile, '' where unknown; or None where no tile's source is known.
    Raises DataError when the arrays do not fit together.
    """

    images: np.ndarray
    masks: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 3 or self.images.dtype != np.uint8:
            raise DataError(f"images: got {_described(self.images)}, expected uint8 (N, H, W)")
        if self.masks is not None and (self.masks.shape != self.images.shape or self.masks.dtype != np.uint8):
            raise DataError(f"masks: got {_described(self.masks)}, expected uint8 {self.images.shape} like the images")
        if self.groups is not None and (self.groups.shape != (len(self),) or self.groups.dtype.kind != "U"):
            raise DataError(f"groups: got {_described(self.groups)}, expected str ({len(self)},), one per image")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Tiles:
        """The tiles at `index`: an integer or bool array, a list, a slice, or one integer (one tile, still 3-D)."""
        rows = np.atleast_1d(np.arange(len(self))[index])
        return Tiles(self.images[rows], *(None if a is None else a[rows] for a in (self.masks, self.groups)))

    take = __getitem__

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def sources(self) -> np.ndarray:
        """The source image of each tile, '' where unknown: str (N,), whether or not there are groups."""
        return np.full(len(self), "") if self.groups is None else self.groups

    @property
    def sources_known(self) -> bool:
        """Whether the source image of at least one tile is known."""
        return bool((self.sources != "").any())

    def labels(self) -> np.ndarray:
        """The masks; DataError when there are none."""
        if self.masks is None:
            raise DataError(f"masks: these {len(self)} tiles have no masks, but labels are needed here")
        return self.masks


@dataclass(frozen=True, eq=False)
class DataSet:
    """Tiles to train on, tiles to test on (None when the source has none; their masks may be None), and lines worth printing."""

    name: str
    train: Tiles
    test: Tiles | None = None
    notes: tuple[str, ...] = ()


def pixel_counts(masks: np.ndarray) -> np.ndarray:
    """Pixels of each class in each mask. masks: labels 0..4 (N, H, W) -> int64 (N, 5)."""
    return np.stack([np.count_nonzero(masks == label, axis=(1, 2)) for label in range(len(CLASSES))], axis=1).astype(np.int64)


def load(source: str | Path, seed: int = 0, count: int = 2000) -> DataSet:
    """Read a data set, checked to the last pixel.

    source: 'synthetic' (`count` training tiles and a tenth as many test tiles, made from `seed`);
      a .npz file in the original form: training_set (N, 2, H, W) with [:, 0] the image, grey levels 0..255, and [:, 1] the mask,
      labels 0..4; optional test_set (M, H, W), test_labels (M, H, W), train_group (N,) and test_group (M,); any real dtype;
      or a folder of PNG pairs (see folder.py).
    Fractional grey levels are rounded to the nearest; a fractional label is an error. H and W must be divisible by 8.
    seed and count matter to 'synthetic' only. Raises DataError.
    """
    if str(source) == "synthetic":
        from engine.data.synthetic import synthetic

        return synthetic(count, test=max(1, count // 10), seed=seed)
    path = Path(source)
    if path.is_dir():
        from engine.data.folder import load_folder

        return _finished(path.resolve().name, load_folder(path), None)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder; expected 'synthetic', an .npz file or a folder of PNG pairs")
    if path.suffix.lower() != ".npz":
        raise DataError(f"{source}: got a file named *{path.suffix}, expected 'synthetic', an .npz file or a folder of PNG pairs")
    return _finished(path.stem, *_load_npz(path))


def save_npz(dataset: DataSet, path: str | Path, dtype: Any = np.uint8) -> None:
    """Write a data set in the original form (see `load`), compressed; float64 is the homework file's own dtype.

    The file is written under a temporary name beside `path` and then renamed: a reader sees the old file or the whole new one.
    Raises DataError for a name without .npz, a dtype other than uint8, float32 and float64, and training tiles without masks.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if path.suffix.lower() != ".npz":
        raise DataError(f"{path}: got a file named *{path.suffix}, expected *.npz")
    if dtype not in (np.uint8, np.float32, np.float64):
        raise DataError(f"save_npz: got dtype {dtype}, expected uint8, float32 or float64")
    train, test = dataset.train, dataset.test
    arrays: dict[str, Any] = {"training_set": np.stack([train.images, train.labels()], axis=1).astype(dtype), "train_group": train.groups}
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


def grey_levels(array: np.ndarray, where: str) -> np.ndarray:
    """Any real (N, H, W) as uint8 grey levels, rounded to the nearest. DataError naming `where` for NaN, inf or levels outside 0..255."""
    out = np.empty(array.shape, np.uint8)
    largest, fractional = 0.0, False
    for rows, part in _chunks(array, where):
        _reject(~np.isfinite(part) | (part < 0) | (part > 255), rows, part, where, "grey levels 0..255")
        rounded = np.rint(part)
        fractional = fractional or bool((rounded != part).any())
        largest = max(largest, float(part.max(initial=0)))
        out[rows] = rounded
    if fractional and largest <= 1:  # rounding would leave black and white
        raise DataError(f"{where}: got fractional levels of at most {largest:.4g}, expected grey levels 0..255 (scale by 255)")
    return out


def label_values(array: np.ndarray, where: str) -> np.ndarray:
    """Any real (N, H, W) as uint8 labels. DataError naming `where` for anything but whole numbers 0..4."""
    out = np.empty(array.shape, np.uint8)
    last = len(CLASSES) - 1
    for rows, part in _chunks(array, where):
        valid = np.isfinite(part) & (part >= 0) & (part <= last) & (np.rint(part) == part)
        _reject(~valid, rows, part, where, f"whole labels 0..{last}")
        out[rows] = part
    return out


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _chunks(array: np.ndarray, where: str) -> Iterator[tuple[slice, np.ndarray]]:
    if array.dtype.kind not in "uif":
        raise DataError(f"{where}: got dtype {array.dtype}, expected uint8, float32 or float64")
    for start in range(0, len(array), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield rows, array[rows]


def _reject(bad: np.ndarray, rows: slice, part: np.ndarray, where: str, expected: str) -> None:
    """DataError naming the first offending value and its index."""
    if bad.any():
        tile, y, x = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(f"{where}: got {part[tile, y, x]:.6g} in tile {rows.start + tile} at row {y}, column {x}, expected {expected}")


def _load_npz(path: Path) -> tuple[Tiles, Tiles | None]:
    with _archive(path) as archive:
        unknown = [key for key in archive.files if key not in _KEYS]
        if unknown:  # a misspelt train_group, ignored, would be a leak between training and validation
            raise DataError(f"{path}: unknown key '{unknown[0]}', expected only {', '.join(_KEYS)}")
        if "training_set" not in archive.files:
            raise DataError(f"{path}: no key 'training_set', found {', '.join(archive.files) or 'no key at all'}")
        where = f"{path}: training_set"
        pairs = _member(archive, path, "training_set", "(N, 2, H, W)", 4)
        if pairs.shape[1] != 2:
            raise DataError(f"{where}: got shape {pairs.shape}, expected (N, 2, H, W), an image and a mask per sample")
        images, masks = grey_levels(pairs[:, 0], f"{where} images"), label_values(pairs[:, 1], f"{where} masks")
        del pairs  # a third of a gigabyte in the homework file
        return Tiles(images, masks, _groups(archive, path, "train_group", len(images))), _npz_test(archive, path)


def _npz_test(archive: Any, path: Path) -> Tiles | None:
    if "test_set" not in archive.files:
        orphan = next((key for key in ("test_labels", "test_group") if key in archive.files), None)
        if orphan:
            raise DataError(f"{path}: got '{orphan}' without 'test_set'")
        return None
    images = grey_levels(_member(archive, path, "test_set", "(M, H, W)", 3), f"{path}: test_set")
    masks = None
    if "test_labels" in archive.files:
        labels = _member(archive, path, "test_labels", "(M, H, W)", 3)
        if labels.shape != images.shape:
            raise DataError(f"{path}: test_labels: got shape {labels.shape}, expected {images.shape} like test_set")
        masks = label_values(labels, f"{path}: test_labels")
    return Tiles(images, masks, _groups(archive, path, "test_group", len(images)))


def _archive(path: Path) -> Any:
    try:
        archive = np.load(path, allow_pickle=False)
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a readable .npz file, is it whole? ({_first_line(error)})") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: got a single array of shape {archive.shape}, expected an .npz file with the key 'training_set'")
    return archive


def _member(archive: Any, path: Path, key: str, shape: str, axes: int) -> np.ndarray:
    """One array of the file, read now: a truncated file is found at the key that is damaged."""
    try:
        array = archive[key]
    except _READ_ERRORS as error:
        raise DataError(f"{path}: {key}: cannot be read, is the file whole? ({_first_line(error)})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key}: got raw bytes, expected a NumPy array {shape}")
    if array.ndim != axes:
        raise DataError(f"{path}: {key}: got {array.ndim} axes {array.shape}, expected {axes}: {shape}")
    return array


def _groups(archive: Any, path: Path, key: str, count: int) -> np.ndarray | None:
    if key not in archive.files:
        return None
    groups = _member(archive, path, key, "(N,)", 1)
    if groups.dtype.kind != "U":
        raise DataError(f"{path}: {key}: got dtype {groups.dtype}, expected strings")
    if len(groups) != count:
        raise DataError(f"{path}: {key}: got {len(groups)} names, expected {count}, one per tile")
    return groups


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _finished(name: str, train: Tiles, test: Tiles | None) -> DataSet:
    """The data set with its sizes checked and described."""
    parts = [("train", train)] if test is None else [("train", train), ("test", test)]
    for part, tiles in parts:
        (h, w), divisor = tiles.size, 2**_POOLINGS
        if not len(tiles):
            raise DataError(f"{name}: got no {part} tile, expected at least one")
        if h % divisor or w % divisor or not h * w:
            raise DataError(f"{name}: {part} tiles are {h} x {w}, expected sides divisible by {divisor} ({_POOLINGS} poolings)")
        if tiles.size != train.size:
            raise DataError(f"{name}: {part} tiles are {h} x {w}, expected {train.size[0]} x {train.size[1]} like the training tiles")
    return DataSet(name, train, test, tuple(_description(part, tiles) for part, tiles in parts))


def _description(part: str, tiles: Tiles) -> str:
    known = f"{len(np.unique(tiles.sources[tiles.sources != '']))} source images" if tiles.sources_known else "source images unknown"
    labelled = "" if tiles.masks is not None else ", no masks"
    return f"{part}: {len(tiles)} tiles of {tiles.size[0]} x {tiles.size[1]}, {known}{labelled}"
