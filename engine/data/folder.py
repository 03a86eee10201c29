"""A folder of images and masks (layouts: pairs.py) as tiles.

Images are grey or colour; alpha is dropped. Of grey images of up to 8 bits the darkest and brightest levels become 0
and 255; those of 16 bits and of floating point keep their numbers. Masks are grey of any depth, or with a palette,
where the number that is stored for a pixel is looked up among the values of the classes, or RGB, where its colour is.
Images of different sizes are padded to one, a multiple of 8: mirrored, with labels that count nowhere. An optional
`groups.csv` with the columns `name,group` gives the source image of each.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.classes import Classes
from engine.data.decoding import Task, decoded
from engine.data.images import Header, read_header
from engine.data.npz import DENSEST, MOST_PIXELS
from engine.data.pairs import Pair, parts_of
from engine.data.stored import Stored, TileFile, as_channels, fits, pad, place
from engine.data.tiles import DataError, Tiles
from engine.errors import check_regular, quoted, read_bytes, reading

_MOST_BYTES = 1 << 26  # of a groups.csv
_MULTIPLE = 8  # of the sides of what the network sees: three poolings

Loaded = tuple[Classes, Tiles, Tiles | None, Tiles | None, list[str]]
Pairs = list[tuple[Pair, Header]]


def load_folder(path: Path, classes: Classes, masks: str = "", memory: int | None = None) -> Loaded:
    """Classes, tiles to train on, to validate on and to test on (None where there are none), and notes. masks: see
    `parts_of`.

    memory: MiB that the decoded tiles may take; where they take more, they are in a file (stored.py). 0: half of what
    is available; None: any. Raises DataError, naming files, for orphans, unreadable files, sizes of a pair that differ,
    and labels that the classes do not know.
    """
    parts = parts_of(path, masks)
    pairs = {part: [(pair, read_header(pair.image)) for pair in some] for part, (_, some) in parts.items()}
    everything = [entry for some in pairs.values() for entry in some]
    _check_depths(everything)
    channels = max(header.channels for _, header in everything)
    bytes_of = {part: _bytes_in_memory(some, channels, classes) for part, some in pairs.items()}
    stored = None
    if memory is not None and not fits(sum(bytes_of.values()), memory):
        stored = TileFile(sum(_bytes_in_file(some, classes) for some in pairs.values()))
    filled = {part: _Part(some, channels, classes, stored) for part, some in pairs.items()}
    notes = (
        []
        if stored is None
        else [f"{stored.end >> 20} MiB of decoded tiles are in a temporary file in {place()}, not in memory"]
    )
    if channels == 3 and all(part.is_grey for part in filled.values()):  # grey, stored as colour
        for part in filled.values():
            part.drop_colour()
    if len(classes) == 2 and classes.plain and not classes.single and _is_black_and_white(filled.values()):
        classes = replace(classes, values=(0, 255), ignore=(), plain=False)
        for part in filled.values():
            part.take_ignored_as(1)
        notes.append(f"masks hold 0 and 255 only: 255 is taken for '{classes.names[1]}'")
    if alpha := [pair.image for pair, header in everything if header.alpha]:
        notes.append(f"{len(alpha)} images have an alpha channel, which is dropped (the first is {alpha[0]})")
    if not all(part.is_whole for part in filled.values()):
        classes = replace(classes, ignores=True)
    tiles = {part: filled[part].tiles(root, classes) for part, (root, _) in parts.items()}
    return classes, tiles["train"], tiles.get("val"), tiles.get("test"), notes


def _check_depths(pairs: Pairs) -> None:
    (first, header), *others = pairs
    for pair, other in others:
        if other.dtype != header.dtype:
            raise DataError(f"{pair.image}: got {other.dtype} levels, expected {header.dtype} like {first.image}")


def _padded_size(pairs: Pairs) -> tuple[int, int]:
    """(H, W) of all: the largest, rounded up."""
    h, w = (-(-max(header.size[axis] for _, header in pairs) // _MULTIPLE) * _MULTIPLE for axis in (0, 1))
    return h, w


def _bytes_in_memory(pairs: Pairs, channels: int, classes: Classes) -> int:
    """The bytes that tiles and labels take at their padded size."""
    h, w = _padded_size(pairs)
    return len(pairs) * h * w * (channels * pairs[0][1].dtype.itemsize + np.dtype(classes.dtype).itemsize)


def _bytes_in_file(pairs: Pairs, classes: Classes) -> int:
    """The bytes that tiles and labels take as they are, without padding."""
    label = np.dtype(classes.dtype).itemsize
    return sum(
        header.size[0] * header.size[1] * (header.channels * header.dtype.itemsize + label) for _, header in pairs
    )


def _check_pixels(pairs: Pairs, pixels: int, got: str, hint: str = "") -> None:
    """Raise DataError where a small folder would take much memory, or much of a disk. got: the pixels, in words."""
    most = max(MOST_PIXELS, DENSEST * sum(pair.image.stat().st_size for pair, _ in pairs))
    if pixels > most:
        folder = pairs[0][0].image.parent
        raise DataError(
            f"{folder}: got {len(pairs)} images of {got}, expected at most {most} in all in files of this size{hint}"
        )


class _Part:
    """The decoded pairs of one part, in arrays or in a file."""

    def __init__(self, pairs: Pairs, channels: int, classes: Classes, file: TileFile | None) -> None:
        self.names = [pair.name for pair, _ in pairs]
        self.folders = [pair.folder for pair, _ in pairs]
        self.sizes = np.array([header.size for _, header in pairs], np.int64)
        self.size = _padded_size(pairs)
        self.ignored = classes.ignored
        self.is_whole = bool((self.sizes == self.size).all())
        self.is_grey, self.zeros_only = True, True  # colours that are all grey; labels that are all 0 or ignored
        labelled = any(pair.mask is not None for pair, _ in pairs)
        self.counts = np.zeros((len(pairs), len(classes)), np.int64) if labelled else None
        dtype = pairs[0][1].dtype
        label = np.dtype(classes.dtype)
        self.images: Any
        self.masks: Any = None
        if file is None:
            each = self.size[0] * self.size[1]
            _check_pixels(pairs, len(pairs) * each, f"{each} pixels", " (smaller ones are padded to the largest)")
            self.images = np.empty((len(pairs), *self.size, *([3] if channels == 3 else [])), dtype)
            self.masks = np.full((len(pairs), *self.size), self.ignored, label) if labelled else None
        else:
            total = int(self.sizes.prod(1).sum())
            _check_pixels(pairs, total, f"{total} pixels together")
            colour = np.array([header.channels == 3 for _, header in pairs])
            own = [np.zeros(len(pairs), np.int64) for _ in range(2)]
            self.images = Stored(file, dtype, own[0], self.sizes, colour, 3 if channels == 3 else 0, (self.size,))
            if labelled:
                self.masks = Stored(file, label, own[1], self.sizes, colour & False, 0, (self.size,), self.ignored)
        tasks = [Task(pair.image, pair.mask, header.size) for pair, header in pairs]
        for k, (pixels, labels) in enumerate(decoded(tasks, classes)):
            self._put(k, pixels, labels)

    def _put(self, k: int, pixels: np.ndarray, labels: np.ndarray | None) -> None:
        self.is_grey = self.is_grey and (pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all()))
        if isinstance(self.images, Stored):
            self.images.offsets[k] = self.images.file.append(pixels)
        else:
            self.images[k] = pad(
                as_channels(pixels, self.images.shape[3] if self.images.ndim == 4 else 0), self.size, None
            )
        if labels is None or self.counts is None:
            return
        counts = np.bincount(labels.ravel(), minlength=self.counts.shape[1])
        self.counts[k] = counts[: self.counts.shape[1]]
        self.zeros_only = (
            self.zeros_only and self.counts[k, 0] + counts[self.ignored : self.ignored + 1].sum() == labels.size
        )
        if isinstance(self.masks, Stored):
            self.masks.offsets[k] = self.masks.file.append(labels)
        else:
            self.masks[k, : labels.shape[0], : labels.shape[1]] = labels

    def drop_colour(self) -> None:
        """The images as grey ones, where all colours are grey."""
        stored = isinstance(self.images, Stored)
        self.images = replace(self.images, channels=0) if stored else np.ascontiguousarray(self.images[..., 0])

    @property
    def has_ignored(self) -> bool:
        """Whether labels, padding aside, are ignored."""
        return self.counts is not None and int(self.counts.sum()) < int(self.sizes.prod(1).sum())

    def take_ignored_as(self, label: int) -> None:
        """Give ignored pixels, padding aside, a label."""
        if self.counts is None:
            return
        self.counts[:, label] += self.sizes.prod(1) - self.counts.sum(1)
        if isinstance(self.masks, Stored):
            self.masks = replace(self.masks, instead=label)
            return
        for mask, (h, w) in zip(self.masks, self.sizes.tolist(), strict=True):
            mask[:h, :w][mask[:h, :w] == self.ignored] = label

    def tiles(self, root: Path, classes: Classes) -> Tiles:
        """The part as tiles."""
        folders = np.array(self.folders, np.str_)
        groups = _groups(root / "groups.csv", self.names)
        own = bool((folders != "").any())
        sizes = None if self.is_whole else self.sizes
        return Tiles(self.images, self.masks, groups, sizes, folders if own else None, classes, self.counts)


def _is_black_and_white(parts: Collection[_Part]) -> bool:
    """Whether masks of two classes hold only the first one and 255, padding aside."""
    return all(part.zeros_only for part in parts) and any(part.has_ignored for part in parts)


def _groups(file: Path, names: list[str]) -> np.ndarray | None:
    """The group of each name, '' for names the file does not list; None without a file."""
    known = dict.fromkeys(names, "")
    seen: set[str] = set()
    with reading(DataError, f"{file}: cannot be read as CSV"):
        try:
            check_regular(file)
        except FileNotFoundError:
            return None
        rows = list(csv.reader(read_bytes(file, _MOST_BYTES).decode("utf-8-sig").splitlines()))
    if not rows or rows[0] != ["name", "group"]:
        raise DataError(f"{file}: got the header {quoted(','.join(rows[0]) if rows else '')}, expected 'name,group'")
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != 2:
            raise DataError(f"{file}: line {line} has {len(row)} columns, expected 2: name,group")
        name, group = row
        if name not in known or name in seen:
            again = "for the second time" if name in seen else "but no image has that name"
            raise DataError(f"{file}: line {line} names {quoted(name)}, {again}")
        seen.add(name)
        known[name] = group
    return np.array([known[name] for name in names], dtype=np.str_)
