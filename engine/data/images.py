"""Image files, opened without trusting them: by content, never by name, and only after a look at their size."""

from __future__ import annotations

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


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """A PIL image (not decoded yet) of at most MOST_PIXELS. Raises DataError for whatever goes wrong, in the block too."""
    from PIL import Image, UnidentifiedImageError

    with reading(DataError, f"{path}: cannot be read as a {path.suffix[1:].upper()}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged or unusual metadata, which nobody asks for here
        check_regular(path)
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, expected at most {_MOST_BYTES}")
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise DataError(f"{path}: not an image, or none of PNG, JPEG, TIFF, WebP and PGM") from None
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{path}: got {image.height} x {image.width} pixels, expected at most {MOST_PIXELS} in all")
            yield image


MODES: dict[str, tuple[int, type]] = {  # Pillow's modes that are images: channels without alpha, and what a level is
    **dict.fromkeys(("1", "L", "LA"), (1, np.uint8)),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"), (3, np.uint8)),
    **dict.fromkeys(("I;16", "I;16B", "I"), (1, np.uint16)),
    "F": (1, np.float32),
}


@dataclass(frozen=True)
class Header:
    """What an image file says of itself: (height, width), channels without alpha (1 or 3), a level's dtype, whether it has alpha."""

    size: tuple[int, int]
    channels: int
    dtype: np.dtype
    alpha: bool


def read_header(path: Path) -> Header:
    """The header of an image, which is not decoded. DataError for modes that are no images."""
    with open_image(path) as image:
        if image.mode not in MODES:
            raise DataError(f"{path}: got an image of mode {image.mode}, expected {', '.join(MODES)}")
        channels, dtype = MODES[image.mode]
        alpha = image.mode in ("LA", "RGBA", "PA") or (image.mode == "P" and "transparency" in image.info)
        return Header((image.height, image.width), channels, np.dtype(dtype), alpha)


_DEPTH = 24  # of a PNG: the byte of its header that holds the bits per sample


def read_pixels(path: Path) -> np.ndarray:
    """The levels of an image: uint8, uint16 or float32, (H, W), or (H, W, 3) in colour; without alpha."""
    with open_image(path) as image:
        channels, dtype = MODES[image.mode]
        if dtype == np.uint8:
            return np.asarray(image.convert("L" if channels == 1 else "RGB"))
        pixels = np.asarray(image)
        if dtype == np.float32 and not np.isfinite(pixels).all():
            raise DataError(f"{path}: got levels that are NaN or infinite")
        if image.mode == "I" and (pixels.min() < 0 or pixels.max() >= 1 << 16):
            raise DataError(f"{path}: got levels {pixels.min()} to {pixels.max()}, expected 0 to 65535")
        return pixels.astype(dtype)


def read_stored(path: Path) -> np.ndarray:
    """What a mask file stores for each pixel: numbers (H, W), of grey levels or of the entries of a palette, or colours (H, W, 3)."""
    with open_image(path) as image:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I"):
            raise DataError(f"{path}: got a mask of mode {image.mode}, expected grey levels, a palette or RGB")
        if image.format == "JPEG":
            raise DataError(f"{path}: got a mask that is a JPEG, which changes labels; expected a PNG or TIFF")
        mode, is_png = image.mode, image.format == "PNG"
        pixels = np.asarray(image.convert(mode[:-1]) if mode in ("LA", "RGBA") else image)
    if mode == "1":
        return pixels.astype(np.uint8)
    if mode == "L" and is_png:
        with path.open("rb") as stream:
            depth = stream.read(_DEPTH + 1)[_DEPTH]
        if depth < 8:  # Pillow scales grey levels of 2 and 4 bits to 0..255
            return pixels // (255 // (2**depth - 1))
    return pixels
