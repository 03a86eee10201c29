"""Image files, opened without trusting them: by content, never by name, and only after a look at their size."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.tiles import DataError
from engine.errors import check_regular, reading

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "PPM")  # no format whose reader starts another program, or seldom sees a file
MOST_PIXELS = 1 << 26
_MOST_BYTES = 1 << 29
_PLANES, _BITS = 284, 258  # tags of a TIFF; Pillow reads planes of more than 8 bits wrongly


@contextmanager
def open_image(path: Path, most: int = MOST_PIXELS) -> Iterator[Any]:
    """A PIL image (not decoded yet) of at most so many pixels.
    Raises DataError for whatever goes wrong, in the block too.
    """
    from PIL import Image, UnidentifiedImageError

    with reading(DataError, f"{path}: cannot be read as a {path.suffix[1:].upper()}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged or unusual metadata, which is not used here
        check_regular(path)
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, expected at most {_MOST_BYTES}")
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise DataError(f"{path}: not an image, or none of PNG, JPEG, TIFF, WebP and PGM") from None
        with image:
            if image.width * image.height > most:
                raise DataError(f"{path}: got {image.height} x {image.width} pixels, expected at most {most} in all")
            if image.format == "TIFF" and image.tag_v2.get(_PLANES) == 2 and max(image.tag_v2.get(_BITS, (8,))) > 8:
                raise DataError(
                    f"{path}: got a TIFF with a plane of {image.tag_v2[_BITS][0]} bits for each channel, expected "
                    "channels side by side"
                )
            yield image


MODES: dict[str, tuple[int, type]] = {  # Pillow's modes that are images: channels without alpha, and what a level is
    **dict.fromkeys(("1", "L", "LA"), (1, np.uint8)),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"), (3, np.uint8)),
    **dict.fromkeys(("I;16", "I;16B", "I"), (1, np.uint16)),
    "F": (1, np.float32),
}


@dataclass(frozen=True)
class Header:
    """The header of an image file: (height, width), channels without alpha (1 or 3), a level's dtype, whether it has
    alpha.
    """

    size: tuple[int, int]
    channels: int
    dtype: np.dtype
    alpha: bool


def read_header(path: Path, most: int = MOST_PIXELS) -> Header:
    """The header of an image of at most so many pixels, which is not decoded. Raises DataError for modes that are no
    images.
    """
    with open_image(path, most) as image:
        if image.mode not in MODES:
            raise DataError(f"{path}: got an image of mode {image.mode}, expected {', '.join(MODES)}")
        channels, dtype = (3, np.uint16) if _deep(image) else MODES[image.mode]
        alpha = image.mode in ("LA", "RGBA", "PA") or (image.mode == "P" and "transparency" in image.info)
        return Header((image.height, image.width), channels, np.dtype(dtype), alpha)


def _deep(image: Any) -> str | None:
    """How the samples of 16 bits of an RGB or RGBA image are stored, as Pillow names it; None where they have 8."""
    kinds = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile}
    kind = kinds.pop() if len(kinds) == 1 else None
    return (
        kind
        if image.mode in ("RGB", "RGBA") and isinstance(kind, str) and kind[-4:] in (";16B", ";16L", ";16N")
        else None
    )


def _deep_bytes(path: Path, order: str, most: int) -> np.ndarray:
    """One byte of each sample of such an image, (H, W, 3): the first that is stored (order 'B') or the second ('L')."""
    with open_image(path, most) as image:
        kind = _deep(image)
        if kind is None:
            raise DataError(f"{path}: has changed while it was read")
        name = kind[:-1] + order
        image.tile = [
            tile._replace(args=name if isinstance(tile.args, str) else (name, *tile.args[1:])) for tile in image.tile
        ]
        return np.asarray(image)[..., :3]


_DEPTH = 24  # of a PNG: the byte of its header that holds the bits per sample


def read_pixels(path: Path, most: int = MOST_PIXELS) -> np.ndarray:
    """The levels of an image of at most so many pixels: uint8, uint16 or float32, (H, W), or (H, W, 3) in colour;
    without alpha.

    Pillow has no mode for colour of 16 bits: it keeps one byte of each sample, depending on the byte order. So the
    image is read in both orders.
    """
    with open_image(path, most) as image:
        channels, dtype = MODES[image.mode]
        kind = _deep(image)
        if kind is None:
            return _shallow(path, image, channels, dtype)
    first, second = (_deep_bytes(path, order, most).astype(np.uint16) for order in "BL")
    big = kind.endswith("B") or (kind.endswith("N") and sys.byteorder == "big")
    return first << 8 | second if big else second << 8 | first


def _shallow(path: Path, image: Any, channels: int, dtype: type) -> np.ndarray:
    """The levels of an image of one of Pillow's modes."""
    if dtype == np.uint8:
        return _converted(image, "L" if channels == 1 else "RGB")
    pixels = np.asarray(image)
    if dtype == np.float32 and not np.isfinite(pixels).all():
        raise DataError(f"{path}: got levels that are NaN or infinite")
    if image.mode == "I" and (pixels.min() < 0 or pixels.max() >= 1 << 16):
        raise DataError(f"{path}: got levels {pixels.min()} to {pixels.max()}, expected 0 to 65535")
    return pixels.astype(dtype)


_BAND = 1 << 22  # pixels


def _converted(image: Any, mode: str) -> np.ndarray:
    """The image in a mode of 8 bits, band after band: Pillow would convert and hand over copies of the whole."""
    out = np.empty((image.height, image.width, *([] if mode == "L" else [3])), np.uint8)
    step = max(1, _BAND // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        out[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)).convert(mode))
    return out


def read_stored(path: Path) -> np.ndarray:
    """The values that a mask file stores: numbers (H, W), grey levels or palette entries, or colours (H, W, 3)."""
    with open_image(path) as image:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I"):
            raise DataError(f"{path}: got a mask of mode {image.mode}, expected grey levels, a palette or RGB")
        if image.format == "JPEG":
            raise DataError(f"{path}: got a mask that is a JPEG, which changes labels; expected a PNG or TIFF")
        mode = image.mode
        is_png = image.format == "PNG"
        pixels = np.asarray(image.convert(mode[:-1]) if mode in ("LA", "RGBA") else image)
    if mode == "1":
        return pixels.astype(np.uint8)
    if mode == "L" and is_png:
        with path.open("rb") as stream:
            depth = stream.read(_DEPTH + 1)[_DEPTH]
        if depth < 8:  # Pillow scales grey levels of 2 and 4 bits to 0..255
            return pixels // (255 // (2**depth - 1))
    return pixels
