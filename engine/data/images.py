"""Image files, opened without trusting them: by content, never by name, and only after a look at their size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
