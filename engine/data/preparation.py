"""Tiles ready to train on: loaded, cleaned, split, and checked for missing classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.config import Config
from engine.data import MARS, Classes, DataError, DataSet, Tiles, cleaned_by, folds, load, split
from engine.data.classes import FILE, read_classes
from engine.data.stored import joined, padded


@dataclass(frozen=True)
class Prepared:
    """Cleaned and split data. notes: what was done to it, a line each.

    classes: what the labels mean.  absent: labels that never occur in training: they are barred from predictions and
        not scored.
    """

    train: Tiles
    val: Tiles
    test: Tiles | None
    notes: list[str]
    classes: Classes = MARS
    absent: tuple[int, ...] = ()


def prepare(
    config: Config, source: str | None = None, classes: Classes | None = None, memory: int = 0, masks: str = ""
) -> Prepared:
    """Load, clean and split as the settings say; DataError with one line when the source is bad.

    source: other data than the settings', on which nothing is trained: no class is absent for not being in it.
    masks: the folder of its masks, where that is a separate one.
    classes: those of a trained network, for data that does not say what its own are.
    memory: MiB that a folder's decoded tiles may take in memory (see `load`).
    """
    data, tiles, notes = _cleaned(config, source, classes, memory, masks)
    train = tiles
    val = data.val
    if val is None:
        if config.folds:
            parts = folds(tiles, config.folds, by=config.split, classes=data.classes)[config.fold]
        else:
            parts = split(tiles, config.val_fraction, config.seed, config.split, data.classes)
        train = tiles[parts.train]
        val = tiles[parts.val]
        notes.append(parts.note)
    absent = _absent(train, data.classes, notes) if source is None else ()
    place = config.data if source is None else source
    check_scored(val, data.classes, absent, f"--data {place}: nothing to validate: the {len(val)} tiles held out")
    test = None if data.test is None else at_least(data.test, config.crop)
    train, val = (at_least(part, config.crop) for part in (train, val))
    return Prepared(
        train, val, test, notes, replace(data.classes, ignores=True) if train.classes.ignores else data.classes, absent
    )


def unsplit(
    config: Config, source: str | None = None, classes: Classes | None = None, memory: int = 0, masks: str = ""
) -> tuple[Tiles, list[str]]:
    """All tiles but those of a test set, loaded and cleaned as `prepare` does it, and its notes."""
    data, tiles, notes = _cleaned(config, source, classes, memory, masks)
    if data.val is None:
        return tiles, notes
    parts = [at_least(at_least(part, tiles.size), data.val.size) for part in (tiles, data.val)]
    arrays = [[getattr(part, name) for part in parts] for name in ("images", "masks", "groups", "sizes")]
    together = (None if any(a is None for a in some) else joined(some) for some in arrays)
    known = next((part.classes for part in parts if part.classes.ignores), parts[0].classes)
    return Tiles(*together, classes=known, known=np.concatenate([part.counts for part in parts])), notes


def _cleaned(
    config: Config, source: str | None, classes: Classes | None, memory: int, masks: str
) -> tuple[DataSet, Tiles, list[str]]:
    """The data set, its training tiles without those that cleaning removes, and notes."""
    place = config.data if source is None else source
    masks = config.masks if source is None else masks
    data = load(place, config.seed, config.tiles, _known(config, place, classes), masks, config.ignore, memory)
    if data.train.masks is None:
        raise DataError(f"--data {place}: its tiles have no masks")
    tiles, reasons = cleaned_by(config.clean, data.train, data.original, data.classes)
    return data, tiles, [*data.notes, *reasons]


def _known(config: Config, place: str, classes: Classes | None) -> Classes | str:
    """The classes to pass to `load`: those of the network, unless the folder of other data declares its own, which must
    be the same.
    """
    if classes is None:
        return config.classes
    if place == "synthetic" and classes.names != MARS.names:
        raise DataError(
            f"--data {place}: its classes are {', '.join(MARS.names)}, but the network knows "
            f"{', '.join(classes.names[:8])}"
        )
    own = Path(place) / FILE
    if not own.is_file():
        return classes
    found = read_classes(own)
    if (found.names, found.single) != (classes.names, classes.single):
        raise DataError(
            f"{own}: its classes are {', '.join(found.names[:8])}, but the network knows {', '.join(classes.names[:8])}"
        )
    return found


def check_scored(tiles: Tiles, classes: Classes, absent: Sequence[int], what: str) -> None:
    """Raise DataError where no pixel of the tiles belongs to a class that is scored. what: the tiles, in words."""
    counts = tiles.counts.sum(0)
    if not any(counts[label] for label in classes.scored if label not in absent):
        names = [classes.names[label] for label in classes.scored if label not in absent]
        raise DataError(f"{what} hold no pixel of {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")


def _absent(train: Tiles, classes: Classes, notes: list[str]) -> tuple[int, ...]:
    """The scored labels without a pixel in training; a note where there are any."""
    counts = train.counts.sum(0)
    absent = tuple(label for label in classes.scored if not counts[label])
    if len(absent) == len(classes.scored):
        names = ", ".join(classes.scored_names[:8])
        raise DataError(
            f"the {len(train)} tiles to train on hold no pixel of {names}{', ...' if len(absent) > 8 else ''}"
        )
    if absent:
        names = ", ".join(classes.names[label] for label in absent[:8]) + (", ..." if len(absent) > 8 else "")
        rest = f"{len(classes.scored) - len(absent)} of {len(classes.scored)} classes occur in training"
        notes.append(f"warning: {rest}; without a pixel, and so barred from predictions and not in the mean: {names}")
    return absent


def at_least(tiles: Tiles, size: tuple[int, int]) -> Tiles:
    """The tiles, padded where they are smaller than a size (H, W): a crop's, or other tiles'."""
    h, w = tiles.size
    below, right = max(0, size[0] - h), max(0, size[1] - w)
    if not below and not right:
        return tiles
    size = (h + below, w + right)
    ignored = tiles.classes.ignored
    images = padded(tiles.images, size, None)
    masks = None if tiles.masks is None else padded(tiles.masks, size, ignored)
    sizes = np.tile(np.array([[h, w]], np.int64), (len(tiles), 1)) if tiles.sizes is None else tiles.sizes
    return tiles.having(images=images, masks=masks, sizes=sizes, classes=replace(tiles.classes, ignores=True))
