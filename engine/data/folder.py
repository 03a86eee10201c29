"""A folder of PNG pairs as tiles.

Two layouts: `images/NAME.png` with `masks/NAME.png`, or `NAME.png` with `NAME_mask.png` side by side. Images are grey, of up to 8 bits (or
RGB with equal channels), and their darkest and brightest levels become 0 and 255. Masks are label images with values 0..4, grey of any depth
or with a palette: the number that is stored for a pixel is its label. An optional `groups.csv` with the columns `name,group` gives the source
image of each tile.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.data.images import open_image
from engine.data.npz import DENSEST, MOST_PIXELS
from engine.data.tiles import DataError, Tiles, label_values
from engine.errors import check_regular, quoted, read_bytes, reading

_MASK = "_mask"
_MOST_BYTES = 1 << 26  # of a groups.csv
_IMAGES, _MASKS = ("L", "1", "RGB"), ("L", "1", "P", "I;16")  # Pillow's modes
_DEPTH = 24  # of a PNG: the byte of its header that holds the bits per sample


def load_folder(path: Path) -> Tiles:
    """All pairs below `path`, sorted by name. Raises DataError, naming files, for orphans, unreadable files and sizes that differ."""
    images, masks = _pairs(path)
    for have, lack, what in ((images, masks, "mask"), (masks, images, "image")):
        orphans = sorted(have.keys() - lack.keys())
        if orphans:
            shown = ", ".join(orphans[:5]) + (", ..." if len(orphans) > 5 else "")
            raise DataError(f"{path}: got {len(orphans)} without {what}: {shown}; expected a pair for every name")
    names = sorted(images)
    groups = _groups(path / "groups.csv", names)
    return Tiles(
        _stacked([images[name] for name in names], _levels),
        label_values(_stacked([masks[name] for name in names], _labels), f"{path}: masks, sorted by name"),
        groups,
    )


def _pairs(path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files by name: images, masks."""
    if (path / "images").is_dir():
        images, masks = _pngs(path / "images"), _pngs(path / "masks")
    else:
        files = _pngs(path)
        masks = {name.removesuffix(_MASK): file for name, file in files.items() if name.endswith(_MASK)}
        images = {name: file for name, file in files.items() if not name.endswith(_MASK)}
    if not images:
        raise DataError(f"{path}: no image, expected images/NAME.png with masks/NAME.png, or NAME.png with NAME_mask.png")
    return images, masks


def _pngs(folder: Path) -> dict[str, Path]:
    """PNG files by name; DataError where two of them have one name."""
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*")):
        if file.suffix.lower() == ".png" and file.is_file():
            if file.stem in files:
                raise DataError(f"{file}: got the name '{file.stem}' twice, here and in {files[file.stem].name}; expected one file of each name")
            files[file.stem] = file
    return files


def _stacked(files: list[Path], read: Callable[[Path], np.ndarray]) -> np.ndarray:
    """(N, H, W) of the first file's dtype, or of a wider one that another has; every file must have the size of the first."""
    first = read(files[0])
    most = max(MOST_PIXELS, DENSEST * sum(file.stat().st_size for file in files))  # before memory is taken for all
    if len(files) * first.size > most:
        raise DataError(f"{files[0].parent}: got {len(files)} images of {first.size} pixels, expected at most {most} in all in files of this size")
    out = np.empty((len(files), *first.shape), first.dtype)
    for i, file in enumerate(files):
        pixels = first if i == 0 else read(file)
        if pixels.shape != first.shape:
            raise DataError(f"{file}: got {pixels.shape[0]} x {pixels.shape[1]} pixels, expected {first.shape[0]} x {first.shape[1]} like {files[0]}")
        if not np.can_cast(pixels.dtype, out.dtype):
            out = out.astype(pixels.dtype)
        out[i] = pixels
    return out


def _levels(file: Path) -> np.ndarray:
    """uint8 (H, W): the levels 0..255 of a grey image, or of equal channels of a colour image."""
    mode, pixels, _ = _decoded(file, _IMAGES)
    if mode == "RGB":
        if (pixels != pixels[..., :1]).any():
            raise DataError(f"{file}: got a colour image, expected a grey one")
        return pixels[..., 0]
    return pixels * np.uint8(255) if mode == "1" else pixels


def _labels(file: Path) -> np.ndarray:
    """uint8 or uint16 (H, W): the numbers stored in a grey image, or the indices of a palette image."""
    mode, pixels, depth = _decoded(file, _MASKS)
    if mode == "1":
        return pixels.astype(np.uint8)
    # Pillow scales grey levels of 2 and 4 bits to 0..255.
    return pixels // (255 // (2**depth - 1)) if mode == "L" and depth < 8 else pixels


def _decoded(file: Path, modes: tuple[str, ...]) -> tuple[str, np.ndarray, int]:
    """(Pillow's mode, pixels, bits per sample in the file)."""
    with open_image(file) as image:
        mode = image.mode
        if mode not in modes:
            raise DataError(f"{file}: got an image of mode {mode}, expected {', '.join(modes[:-1])} or {modes[-1]}")
        pixels, is_png = np.asarray(image), image.format == "PNG"
        with file.open("rb") as stream:
            depth = stream.read(_DEPTH + 1)[_DEPTH] if is_png else 8
    return mode, pixels, depth


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
