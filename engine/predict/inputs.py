"""What the command line names: checkpoints, and images in files, folders, globs and .npz files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.build import Form
from engine.cli import UsageError
from engine.data import DataError
from engine.data.images import Header, read_header, read_pixels
from engine.data.npz import load_images
from engine.data.pairs import images_of, is_image_name
from engine.data.stored import Size, as_channels
from engine.errors import reading
from engine.training.run_folder import BEST, holds_run

MOST_PIXELS = 1 << 28  # of one image: decoded, and with its mask, it is in memory
_EXPECTED = "expected a run folder, a .safetensors file, an image, a folder of images, an .npz file, or a glob of these"


@dataclass(frozen=True, eq=False)
class Source:
    """An image file, or the tiles of an .npz file.

    name: of what is written for it.   header: of an image file.   tiles: uint8 (N, H, W).   key: where they were.
    """

    name: str
    path: Path
    header: Header | None = None
    tiles: np.ndarray | None = None
    key: str = ""

    def __len__(self) -> int:
        return 1 if self.tiles is None else len(self.tiles)

    @property
    def size(self) -> Size:
        """(H, W) of its images."""
        if self.header is not None:
            return self.header.size
        return (0, 0) if self.tiles is None else (self.tiles.shape[1], self.tiles.shape[2])

    def images(self, channels: int) -> Iterator[np.ndarray]:
        """Its images as a network of so many channels sees them. Raises DataError."""
        if self.tiles is not None:
            yield from self.tiles
            return
        pixels = read_pixels(self.path, MOST_PIXELS)
        if pixels.shape[:2] != self.size:
            raise DataError(f"{self.path}: has changed while it was read")
        yield as_channels(pixels, 0 if channels == 1 else channels)


def sorted_out(arguments: Sequence[str], out: Path) -> tuple[list[Path], list[tuple[str, Path]]]:
    """The checkpoints among the arguments, and the images and .npz files, each with the name of what is written for it.

    A folder with a best.safetensors and a file called *.safetensors are checkpoints; every other folder is one of
    images, every other file called *.npz holds tiles, and every other file is an image. Images in `out` are passed
    over. Raises UsageError for an argument that is nothing of these, and where checkpoints or images are missing.
    """
    checkpoints: list[Path] = []
    images: list[tuple[str, Path]] = []
    for argument in arguments:
        with reading(UsageError, f"{argument}: cannot be read"):
            for name, path in _expanded(argument):
                if path.suffix.lower() == ".safetensors" or (path / BEST).is_file():
                    checkpoints.append(path)
                elif path.is_dir():
                    images += _in_folder(path, name, out)
                else:
                    images.append((name, path))
    if not checkpoints:
        raise UsageError(
            f"got no checkpoint among {len(arguments)} arguments, expected a run folder with a {BEST}, or a "
            ".safetensors file"
        )
    if not images:
        raise UsageError("got no images, expected files, folders, globs or .npz files beside the checkpoint")
    return checkpoints, images


def _expanded(argument: str) -> Iterator[tuple[str, Path]]:
    """(name, path) of an argument, or of all that match it. The name of a match begins after the folders that the
    pattern gives without wildcards.
    """
    path = Path(argument)
    if os.path.lexists(argument):
        yield ("" if path.is_dir() else path.stem), path
        return
    if path.suffix.lower() == ".safetensors" and not glob.has_magic(argument):
        yield path.stem, path  # reading it says what is wrong
        return
    if not glob.has_magic(argument):
        raise UsageError(f"{argument}: no such file or folder; {_EXPECTED}")
    fixed = Path(*next(path.parts[:k] for k, part in enumerate(path.parts) if glob.has_magic(part)))
    matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
    matches = [p for p in matches if p.is_dir() or is_image_name(p) or p.suffix.lower() in (".npz", ".safetensors")]
    if not matches:
        raise UsageError(f"{argument}: matches no image; {_EXPECTED}")
    for match in matches:
        name = match.relative_to(fixed)
        yield (name if match.is_dir() else name.with_suffix("")).as_posix(), match


def _in_folder(folder: Path, name: str, out: Path) -> list[tuple[str, Path]]:
    ours = out.resolve()
    if folder.resolve() == ours:
        raise UsageError(f"--out {out}: is a folder of images to predict, expected another one")
    found = [
        (f"{name}/{own}" if name else own, path)
        for own, path in images_of(folder).items()
        if not path.resolve().is_relative_to(ours)
    ]
    if not found:
        what = "a run folder in which no epoch is finished" if holds_run(folder) else "a folder without images"
        raise UsageError(f"{folder}: got {what}; {_EXPECTED}")
    return found


def opened(images: Sequence[tuple[str, Path]], form: Form) -> list[Source]:
    """The sources, with every header read and every .npz file loaded. Raises DataError for an image whose levels or
    channels are not those of the network's form.

    As in training, colours that are all grey count as grey, and grey images among colour ones as colour.
    """
    sources = [_source(name, path) for name, path in images]
    headers = [source.header for source in sources if source.header is not None]
    colour = any(header.channels == 3 for header in headers)
    for source in sources:
        if source.header is None:
            form.check(1, np.dtype(np.uint8), str(source.path))
            continue
        channels = source.header.channels
        if channels == 3 and form.channels == 1 and _is_grey(read_pixels(source.path, MOST_PIXELS)):
            channels = 1
        elif channels == 1 and colour:
            channels = form.channels
        form.check(channels, source.header.dtype, str(source.path))
    return sources


def notes_on(sources: Sequence[Source]) -> list[str]:
    """What is worth knowing about them, a line each."""
    notes = [
        f"{source.path}: has no test_set, so the {len(source)} images of its training_set are taken"
        for source in sources
        if source.key == "training_set"
    ]
    alpha = [source.path for source in sources if source.header is not None and source.header.alpha]
    if alpha:
        notes.append(f"{len(alpha)} images have an alpha channel, which is dropped (the first is {alpha[0]})")
    return notes


def _is_grey(pixels: np.ndarray) -> bool:
    """Whether all colours are grey."""
    return all(bool((pixels[..., 0] == pixels[..., c]).all()) for c in (1, 2))


def _source(name: str, path: Path) -> Source:
    if path.suffix.lower() == ".npz":
        key, tiles = load_images(path)
        if not len(tiles):
            raise DataError(f"{path}: {key}: got no tile, expected at least one")
        return Source(name, path, tiles=tiles, key=key)
    return Source(name, path, read_header(path, MOST_PIXELS))
