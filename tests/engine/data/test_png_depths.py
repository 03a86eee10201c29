"""PNGs of every depth as images and as masks; the files are written here, bit by bit, and not by the library that reads
them.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from engine.data import DataError, load
from tests.fuzz.pictures import tiff16

GREY, PALETTE = 0, 3
H, W = 8, 16  # and a row of 16 samples of 1, 2, 4, 8 or 16 bits is whole bytes


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray, depth: int, colour: int = GREY) -> bytes:
    """A PNG file that stores these very numbers, `depth` bits each."""
    rows = b"".join(
        b"\0" + int("".join(format(int(v), f"0{depth}b") for v in row), 2).to_bytes(W * depth // 8, "big")
        for row in samples
    )
    palette = (
        chunk(b"PLTE", bytes(range(3 * 2**depth)) if depth < 8 else bytes(range(15))) if colour == PALETTE else b""
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def numbers(most: int) -> np.ndarray:
    return np.random.default_rng(most).integers(0, most + 1, (H, W))


def folder(path: Path, image: bytes, mask: bytes) -> Path:
    (path / "a.png").write_bytes(image)
    (path / "a_mask.png").write_bytes(mask)
    return path


@pytest.mark.parametrize(
    ("depth", "colour"),
    [(1, GREY), (2, GREY), (4, GREY), (8, GREY), (16, GREY), (1, PALETTE), (2, PALETTE), (4, PALETTE), (8, PALETTE)],
)
def test_a_mask_s_stored_numbers_are_its_labels(tmp_path, depth, colour) -> None:
    labels = numbers(min(2**depth - 1, 4))
    tiles = load(folder(tmp_path, png(numbers(255), 8), png(labels, depth, colour))).train
    assert tiles.masks.dtype == np.uint8
    np.testing.assert_array_equal(tiles.masks[0], labels)


def test_masks_of_different_depths_stand_side_by_side(tmp_path) -> None:
    labels = {f"{depth}": numbers(min(2**depth - 1, 4)) for depth in (1, 16, 2, 4, 8)}
    for name, values in labels.items():
        (tmp_path / f"{name}.png").write_bytes(png(numbers(255), 8))
        (tmp_path / f"{name}_mask.png").write_bytes(png(values, int(name)))
    np.testing.assert_array_equal(load(tmp_path).train.masks, [labels[name] for name in sorted(labels)])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_an_image_s_levels_span_0_to_255(tmp_path, depth) -> None:
    levels = numbers(2**depth - 1)
    tiles = load(folder(tmp_path, png(levels, depth), png(numbers(4), 8))).train
    assert tiles.images.dtype == np.uint8
    np.testing.assert_array_equal(tiles.images[0], levels * 255 // (2**depth - 1))


@pytest.mark.parametrize(("depth", "value"), [(4, 5), (4, 15), (8, 255), (16, 5), (16, 65535), (16, 256)])
def test_what_is_no_label_is_named_as_it_is_stored(tmp_path, depth, value) -> None:
    labels = numbers(4)
    labels[3, 7] = value
    with pytest.raises(DataError, match=f"got {value} at row 3, column 7, expected whole labels 0..4"):
        load(folder(tmp_path, png(numbers(255), 8), png(labels, depth)))


# --- colour of 16 bits ------------------------------------------------------------------------------------------------

RGB, RGBA = 2, 6


def filtered(kind: int, row: bytes, above: bytes, unit: int) -> bytes:
    """A row as PNG's specification filters it: none, sub, up, average, Paeth. unit: bytes of a pixel."""
    out = bytearray([kind])
    for k, byte in enumerate(row):
        a, b, c = (row[k - unit] if k >= unit else 0), above[k], (above[k - unit] if k >= unit else 0)
        paeth = min((a, b, c), key=lambda value: abs(a + b - c - value))
        out.append((byte - (0, a, b, (a + b) // 2, paeth)[kind]) & 255)
    return bytes(out)


def deep(levels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, whose rows have all filters in turn."""
    rows = [row.astype(">u2").tobytes() for row in levels]
    packed = b"".join(
        filtered(k % 5, row, above, 2 * levels.shape[2])
        for k, (row, above) in enumerate(zip(rows, [bytes(len(rows[0])), *rows]))
    )
    header = struct.pack(">IIBBBBB", W, H, 16, RGB if levels.shape[2] == 3 else RGBA, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["RGB", "RGBA", "TIFF <", "TIFF >", "TIFF deflated"])
def test_colour_of_16_bits_is_read_in_full(tmp_path, form) -> None:
    levels = np.random.default_rng(1).integers(0, 1 << 16, (H, W, 4 if form == "RGBA" else 3))
    content = (
        deep(levels)
        if form.startswith("RGB")
        else tiff16(">" if form[-1] == ">" else "<", levels, 1, deflated="deflated" in form)
    )
    found = load(folder(tmp_path, content, png(numbers(4), 8)))
    assert found.train.images.dtype == np.uint16
    np.testing.assert_array_equal(found.train.images[0], levels[..., :3])
    assert any("alpha channel, which is dropped" in note for note in found.notes) == (form == "RGBA")


@pytest.mark.parametrize("deflated", [False, True])
def test_planes_of_16_bits_are_refused(tmp_path, deflated) -> None:
    """Pillow gives other numbers for them without a word."""
    levels = np.random.default_rng(1).integers(0, 1 << 16, (H, W, 3))
    with pytest.raises(
        DataError, match="got a TIFF with a plane of 16 bits for each channel, expected channels side by side"
    ):
        load(folder(tmp_path, tiff16("<", levels, 2, deflated), png(numbers(4), 8)))
