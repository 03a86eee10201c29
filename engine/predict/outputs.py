"""What a prediction writes: masks, overlays, probabilities and the submission file, each file whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np

from engine.cli import UsageError
from engine.data import Classes
from engine.data.stored import Size
from engine.ensemble import Strip
from engine.files import OutputFile, output_file
from engine.predict.inputs import Source
from engine.training.plots import channels

KINDS = ("masks", "overlays", "probabilities")  # folders of results
SUBMISSION = "submission.csv"
_TINT = 0.5  # of an overlay: the share of the class's colour
_SAMPLE = 1 << 20  # pixels from which an overlay's contrast is found
_SPELT = 1 << 16  # values of a row of the submission that are text at a time


@dataclass(frozen=True)
class Wanted:
    """What is to be written. masks: 'auto' (PNG for image files, .npz for the tiles of an .npz file), 'png', 'npz' or
    'none'.  probabilities: 'none', 'float16' or 'float32'.
    """

    masks: str = "auto"
    overlay: bool = False
    probabilities: str = "none"
    csv: bool = False

    def png(self, source: Source) -> bool:
        """Whether the masks of a source are PNG files."""
        return self.masks == "png" or (self.masks == "auto" and source.tiles is None)

    def npz(self, source: Source) -> bool:
        """Whether they are in an .npz file."""
        return self.masks == "npz" or (self.masks == "auto" and source.tiles is not None)


class Item(NamedTuple):
    """An image: its source, its number in it, and what is written for it alone or for its source, by kind."""

    source: Source
    index: int
    paths: dict[str, Path]

    @property
    def size(self) -> Size:
        return self.source.size


def planned(sources: Sequence[Source], wanted: Wanted, out: Path) -> list[Item]:
    """Every image, with the files that will be written for it. Raises UsageError where two would get one name, and
    where the submission's images differ in size.
    """
    items = []
    owners: dict[Path, Source] = {}
    for source in sources:
        shared = {
            kind: out / folder / f"{source.name}.npz"
            for kind, folder, there in (
                ("masks", "masks", wanted.npz(source)),
                ("probabilities", "probabilities", wanted.probabilities != "none"),
            )
            if there
        }
        digits = len(str(len(source) - 1))
        for index in range(len(source)):
            name = source.name if source.tiles is None else f"{source.name}/{index:0{digits}d}"
            own = {
                kind: out / folder / f"{name}.png"
                for kind, folder, there in (
                    ("mask", "masks", wanted.png(source)),
                    ("overlay", "overlays", wanted.overlay),
                )
                if there
            }
            items.append(Item(source, index, own | shared))
            for path in (own | shared).values():
                if owners.setdefault(path, source) is not source:
                    raise UsageError(
                        f"{source.path} and {owners[path].path} would both be written to {path}; a common folder, or a "
                        "glob in quotes, tells them apart by their paths"
                    )
    if wanted.csv:
        odd = next((source for source in sources if source.size != sources[0].size), None)
        if odd is not None:
            sizes = (" x ".join(map(str, source.size)) for source in (odd, sources[0]))
            raise UsageError(
                f"--csv: {odd.path}: got {next(sizes)} pixels, expected {next(sizes)} like the first image"
            )
    return items


def check_free(items: Sequence[Item], wanted: Wanted, out: Path, overwrite: bool) -> None:
    """Raise UsageError where a file would be overwritten, unless `overwrite` is set; an input never is."""
    inputs = {item.source.path.resolve() for item in items}
    paths = dict.fromkeys(path for item in items for path in item.paths.values())
    if wanted.csv:
        paths[out / SUBMISSION] = None
    there = [path for path in paths if path.exists()]
    ours = next((path for path in there if path.resolve() in inputs), None)
    if ours is not None:
        raise UsageError(f"--out {out}: {ours} is an input, expected another folder")
    if there and not overwrite:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise UsageError(f"--out {out}: {there[0]} exists{more}, expected a free name, or --overwrite")


class Outputs:
    """Takes strips in order and writes what is wanted. As a context: where the block raises, what is not whole goes.

    A mask holds, for every class, the value that the class has in the masks it was trained with.
    """

    def __init__(self, items: Sequence[Item], wanted: Wanted, classes: Classes, out: Path) -> None:
        self.items, self.wanted, self.classes, self.out = items, wanted, classes, out
        values = np.array(classes.values)
        self.values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
        self.total = np.zeros(len(classes), np.int64)
        self.archives: dict[str, _Npz] = {}
        self.csv = Submission(out / SUBMISSION) if wanted.csv else None
        self.image: _Image | None = None

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.csv is not None:
            self.csv.output.commit()
        elif kind is not None:
            for output in (*self.archives.values(), *([] if self.csv is None else [self.csv.output])):
                output.discard()

    def put(self, strip: Strip) -> dict[str, Any] | None:
        """Take the next strip. Returns the record of an image that is finished and written."""
        item = self.items[strip.number]
        if self.image is None:
            self.image = _Image(strip.image, self.wanted.overlay, self.classes, self.values)
            self._begin(item)
        if "probabilities" in self.archives:
            self.archives["probabilities"].write(strip.probabilities)
        self.image.put(strip)
        if not strip.is_last:
            return None
        image, self.image = self.image, None
        return self._finish(item, image)

    def _begin(self, item: Item) -> None:
        """Open the archives of a source, when its first image arrives."""
        if item.index:
            return
        shape = (*([] if item.source.tiles is None else [len(item.source)]), *item.size)
        if "masks" in item.paths:
            self.archives["masks"] = _Npz(item.paths["masks"], ZIP_DEFLATED)
            self.archives["masks"].begin("masks" if item.source.tiles is not None else "mask", shape, self.values.dtype)
        if "probabilities" in item.paths:
            self.archives["probabilities"] = archive = _Npz(item.paths["probabilities"], ZIP_STORED)
            archive.begin("classes", (len(self.classes),), np.array(self.classes.names).dtype)
            archive.write(np.array(self.classes.names))
            archive.begin("probabilities", (*shape, len(self.classes)), np.dtype(self.wanted.probabilities))

    def _finish(self, item: Item, image: _Image) -> dict[str, Any]:
        if "mask" in item.paths:
            with output_file(item.paths["mask"]) as file:
                self._palette_image(image.mask).save(file, "PNG")
        if "overlay" in item.paths:
            with output_file(item.paths["overlay"]) as file:
                image.canvas.save(file, "PNG")
        if "masks" in self.archives:
            self.archives["masks"].write(image.mask)
        if self.csv is not None:
            self.csv.write(image.mask)
        if item.index == len(item.source) - 1:
            for archive in self.archives.values():
                archive.commit()
            self.archives.clear()
        self.total += image.counts
        where = {"image": str(item.source.path)} | ({} if item.source.tiles is None else {"index": item.index})
        return {
            **where,
            "height": item.size[0],
            "width": item.size[1],
            "shares": self.shares(image.counts),
            "confidence": round(image.confidence / image.mask.size, 6),
            **{kind: str(path) for kind, path in item.paths.items()},
        }

    def shares(self, counts: np.ndarray) -> dict[str, float]:
        """The share of every class by name."""
        return dict(zip(self.classes.names, (counts / counts.sum()).round(6).tolist(), strict=True))

    def _palette_image(self, mask: np.ndarray) -> Any:
        """A PIL image that stores the values of a mask, shown in the classes' colours; grey of 16 bits where a value
        exceeds 255.
        """
        from PIL import Image

        image = Image.fromarray(mask)
        if mask.dtype == np.uint8:
            palette = np.zeros((int(self.values.max()) + 1, 3), np.uint8)
            palette[self.values] = _colours(self.classes)
            image.putpalette(palette.tobytes())
        return image


class _Image:
    """The image that strips arrive of: so far its mask, the pixels of each class, the sum of the confidences, and the
    overlay.
    """

    def __init__(self, pixels: np.ndarray, overlay: bool, classes: Classes, values: np.ndarray) -> None:
        self.values = values
        self.mask = np.empty(pixels.shape[:2], values.dtype)
        self.counts = np.zeros(len(classes), np.int64)
        self.confidence = 0.0
        self.canvas: Any = None
        if overlay:
            from PIL import Image

            self.canvas = Image.new("RGB", (pixels.shape[1], pixels.shape[0]))
            step = max(1, int((pixels.size / _SAMPLE) ** 0.5))
            self.low, self.high = np.percentile(pixels[::step, ::step], (1, 99)).tolist()
            self.colours = _colours(classes)
            self.tints = np.full(len(classes), np.float32(_TINT))
            self.tints[[label for label in range(len(classes)) if label not in classes.scored]] = 0

    def put(self, strip: Strip) -> None:
        """Take rows."""
        self.mask[strip.rows] = self.values[strip.labels]
        self.counts += np.bincount(strip.labels.ravel(), minlength=len(self.counts))
        self.confidence += float(strip.probabilities.max(-1).sum(dtype=np.float64))
        if self.canvas is not None:
            from PIL import Image

            self.canvas.paste(Image.fromarray(self._tinted(strip.image[strip.rows], strip.labels)), (0, strip.top))

    def _tinted(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """uint8 (h, W, 3): the pixels, with their 1st to 99th percentile stretched for the eye, and the colours."""
        grey = ((pixels - np.float32(self.low)) * np.float32(255 / max(self.high - self.low, 1e-6))).clip(0, 255)
        tint = self.tints[labels][..., None]
        mixed = (1 - tint) * (grey if grey.ndim == 3 else grey[..., None]) + tint * self.colours[labels]
        return mixed.round().astype(np.uint8)


def _colours(classes: Classes) -> np.ndarray:
    """uint8 (C, 3)."""
    return np.array([channels(colour) for colour in classes.colours], np.uint8)


class _Npz:
    """An .npz file whose arrays are written a part at a time. compression: of zipfile."""

    def __init__(self, path: Path, compression: int) -> None:
        self.output = OutputFile(path)
        self.zip = ZipFile(self.output.file, "w", compression)
        self.member: IO[bytes] | None = None

    def begin(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Begin the next array."""
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        self.dtype = dtype
        with self.output.reported():
            self._end()
            self.member = self.zip.open(f"{name}.npy", "w", force_zip64=True)
            np.lib.format.write_array_header_1_0(self.member, header)

    def write(self, part: np.ndarray) -> None:
        """Append values, in C order."""
        if self.member is not None:
            with self.output.reported():
                self.member.write(np.ascontiguousarray(part, self.dtype).tobytes())

    def _end(self) -> None:
        member, self.member = self.member, None
        if member is not None:
            member.close()

    def commit(self) -> None:
        """The file is whole."""
        with self.output.reported():
            self._end()
            self.zip.close()
        self.output.commit()

    def discard(self) -> None:
        """Nothing is left of it."""
        for close in (self._end, self.zip.close):  # else zipfile would try it later, and complain
            with contextlib.suppress(Exception):
                close()
        self.output.discard()


class Submission:
    """The CSV of masks: the header id,0,1,..., and a row per image in order, its number and its mask in row-major
    order.
    """

    def __init__(self, path: Path) -> None:
        self.output = OutputFile(path)
        self.rows = 0

    def write(self, mask: np.ndarray) -> None:
        """The row of the next image; before the first one the header."""
        values = mask.ravel()
        if not self.rows:
            self._row("id", np.arange(len(values)))
        self._row(str(self.rows), values)
        self.rows += 1

    def _row(self, first: str, values: np.ndarray) -> None:
        with self.output.reported():
            self.output.file.write(first.encode())
            for start in range(0, len(values), _SPELT):
                text = "".join(f",{value}" for value in values[start : start + _SPELT].tolist())
                self.output.file.write(text.encode())
            self.output.file.write(b"\n")
