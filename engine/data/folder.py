"""A folder of images and masks (layouts: pairs.py) as tiles.

Images are grey or colour; alpha is dropped. Of grey images of up to 8 bits the darkest and brightest levels become 0 and 255; those of 16 bits and of
floating point keep their numbers. Masks are grey of any depth, or with a palette, where the number that is stored for a pixel is looked up among the
values of the classes, or RGB, where its colour is. Images of different sizes are padded to one, a multiple of 8: mirrored, with labels that count
nowhere. An optional `groups.csv` with the columns `name,group` gives the source image of each.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.data.classes import MARS, VALUES, Classes
from engine.data.images import MODES, open_image, read_pixels, read_stored
from engine.data.npz import DENSEST, MOST_PIXELS
from engine.data.pairs import Pair, parts_of
from engine.data.tiles import DataError, Tiles
from engine.errors import check_regular, quoted, read_bytes, reading

_MOST_BYTES = 1 << 26  # of a groups.csv
_MULTIPLE = 8  # of the sides of what the network sees: three poolings

Loaded = tuple[Classes, Tiles, Tiles | None, Tiles | None, list[str]]


def load_folder(path: Path, classes: Classes, masks: str = "") -> Loaded:
    """Classes, tiles to train on, to validate on and to test on (None where there are none), and notes. masks: see `parts_of`.

    DataError, naming files, for orphans, unreadable files, sizes of a pair that differ, and labels that the classes do not know.
    """
    parts = parts_of(path, masks)
    shapes = {part: [_Header.of(pair) for pair in pairs] for part, (_, pairs) in parts.items()}
    headers = [header for some in shapes.values() for header in some]
    _check_depths(headers)
    channels = max(header.channels for header in headers)
    images = {part: _images(shapes[part], channels) for part in parts}
    if channels == 3 and all((a[..., :1] == a).all() for a in images.values()):  # grey, stored as colour
        images = {part: np.ascontiguousarray(a[..., 0]) for part, a in images.items()}
    labels = {part: _labels(shapes[part], classes) for part in parts}
    notes = []
    if len(classes) == 2 and classes.plain and not classes.single and _is_black_and_white(labels, shapes, classes):
        classes = replace(classes, values=(0, 255), ignore=(), plain=False)
        labels = {part: _labels(shapes[part], classes) for part in parts}
        notes.append(f"masks hold 0 and 255 only: 255 is taken for '{classes.names[1]}'")
    if alpha := sum(header.alpha for header in headers):
        notes.append(f"{alpha} images have an alpha channel, which is dropped (the first is {next(h.pair.image for h in headers if h.alpha)})")
    if any(header.size != a.shape[1:3] for part, a in images.items() for header in shapes[part]):
        classes = replace(classes, ignores=True)
    tiles = {part: _tiles(root, shapes[part], images[part], labels[part], classes) for part, (root, _) in parts.items()}
    return classes, tiles["train"], tiles.get("val"), tiles.get("test"), notes


@dataclass(frozen=True)
class _Header:
    """What is known of a pair before it is decoded."""

    pair: Pair
    size: tuple[int, int]
    channels: int
    dtype: np.dtype
    alpha: bool

    @classmethod
    def of(cls, pair: Pair) -> _Header:
        with open_image(pair.image) as image:
            if image.mode not in MODES:
                raise DataError(f"{pair.image}: got an image of mode {image.mode}, expected {', '.join(MODES)}")
            channels, dtype = MODES[image.mode]
            alpha = image.mode in ("LA", "RGBA", "PA") or (image.mode == "P" and "transparency" in image.info)
            return cls(pair, (image.height, image.width), channels, np.dtype(dtype), alpha)


def _check_depths(headers: list[_Header]) -> None:
    first = headers[0]
    for header in headers:
        if header.dtype != first.dtype:
            raise DataError(f"{header.pair.image}: got {header.dtype} levels, expected {first.dtype} like {first.pair.image}")


def _padded_size(headers: list[_Header]) -> tuple[int, int]:
    """(H, W) of all; DataError where a small folder would take much memory."""
    h, w = (-(-max(header.size[axis] for header in headers) // _MULTIPLE) * _MULTIPLE for axis in (0, 1))
    most = max(MOST_PIXELS, DENSEST * sum(header.pair.image.stat().st_size for header in headers))
    if len(headers) * h * w > most:
        many = f"got {len(headers)} images of {h * w} pixels, expected at most {most} in all in files of this size"
        raise DataError(f"{headers[0].pair.image.parent}: {many} (smaller ones are padded to the largest)")
    return h, w


def _images(headers: list[_Header], channels: int) -> np.ndarray:
    """(N, H, W) or (N, H, W, 3), padded by mirroring."""
    h, w = _padded_size(headers)
    shape = (len(headers), h, w) if channels == 1 else (len(headers), h, w, channels)
    out = np.empty(shape, headers[0].dtype)
    for i, header in enumerate(headers):
        pixels = read_pixels(header.pair.image)
        if channels == 3 and pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, 2)
        widths = [(0, h - pixels.shape[0]), (0, w - pixels.shape[1]), (0, 0)][: pixels.ndim]
        out[i] = np.pad(pixels, widths, "symmetric")
    return out


def _labels(headers: list[_Header], classes: Classes) -> np.ndarray | None:
    """(N, H, W), padded by what is ignored; None without masks."""
    masks = [header.pair.mask for header in headers if header.pair.mask is not None]
    if not masks:
        return None
    out = np.full((len(headers), *_padded_size(headers)), classes.ignored, classes.dtype)
    for i, (header, mask) in enumerate(zip(headers, masks, strict=True)):
        labels = _mask(mask, classes)
        (h, w), (y, x) = header.size, labels.shape
        if (h, w) != (y, x):
            raise DataError(f"{mask}: got {y} x {x} pixels, expected {h} x {w} like {header.pair.image}")
        out[i, :h, :w] = labels
    return out


def _mask(file: Path, classes: Classes) -> np.ndarray:
    """The labels of a mask file (H, W). DataError naming the file and the first pixel that the classes do not know."""
    stored = read_stored(file)
    if stored.ndim == 3 and not classes.own_colours:
        if (stored != stored[..., :1]).any():
            raise DataError(f"{file}: got a colour mask, but the classes have no colours: classes.toml (or --classes FILE) can name them")
        stored = stored[..., 0]
    if stored.ndim == 3:
        codes, meaning = classes.colour_table
        code = stored.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        place = np.searchsorted(codes, code).clip(0, len(codes) - 1)
        labels = np.where(codes[place] == code, meaning[place], -1)
    else:
        code = stored.astype(np.int64)
        labels = np.where((code >= 0) & (code < VALUES), classes.table[code.clip(0, VALUES - 1)], -1)
    if (bad := labels < 0).any():
        y, x = (int(i) for i in np.argwhere(bad)[0])
        value = f"#{code[y, x]:06x}" if stored.ndim == 3 else str(code[y, x])
        expected = "a colour of the classes" if stored.ndim == 3 else classes.expected
        hint = " (the Mars tiles' classes; classes.toml or --classes names others)" if classes == MARS else ""
        raise DataError(f"{file}: got {value} at row {y}, column {x}, expected {expected}{hint}")
    return labels


def _is_black_and_white(labels: Mapping[str, np.ndarray | None], shapes: Mapping[str, list[_Header]], classes: Classes) -> bool:
    """Whether of two classes only the first occurs, and 255, padding aside."""
    own = [a[i, : header.size[0], : header.size[1]] for part, a in labels.items() if a is not None for i, header in enumerate(shapes[part])]
    return not any((a == 1).any() for a in own) and any((a == classes.ignored).any() for a in own)


def _tiles(root: Path, headers: list[_Header], images: np.ndarray, labels: np.ndarray | None, classes: Classes) -> Tiles:
    names, sizes = [header.pair.name for header in headers], np.array([header.size for header in headers], np.int64)
    folders = np.array([header.pair.folder for header in headers], np.str_)
    whole = bool((sizes == images.shape[1:3]).all())
    groups, own = _groups(root / "groups.csv", names), (folders != "").any()
    return Tiles(images, labels, groups, None if whole else sizes, folders if own else None, classes)


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
