"""The original homework file's form: an .npz archive, read without trusting it.

Sizes are looked at before memory is taken: of the archive's directory, of each array's header, of its values. Arrays
are decompressed a few tiles at a time and become uint8 at once, so that reading needs the memory of the result and
little more.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from engine.data.classes import MARS, Classes
from engine.data.tiles import DataError, GreyLevels, Labels, Tiles
from engine.errors import check_regular, quoted, reading

KEYS = ("training_set", "test_set", "train_group", "test_group", "test_labels")

MOST_PIXELS = 1 << 27  # of all tiles together, in a file of whatever size,
DENSEST = 64  # pixels for each byte of a larger file (pictures take a byte for 2 to 5), and
MOST_TILE = 1 << 24  # pixels of one tile
_MOST_TEXT = 1 << 26  # bytes of all names
_MOST_NAME = 1000  # characters of a source image's name
_DIRECTORY = 1 << 20  # bytes of the archive's directory; five arrays take some hundred
_HEADER = 10_000  # bytes of an array's header, as numpy limits them
_PART = 1 << 21  # values decompressed at a time
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others ask for as much memory as the file says


def load_npz(path: Path, classes: Classes = MARS) -> tuple[Tiles, Tiles | None]:
    """Training tiles and test tiles (None where the file has none). Raises DataError, naming the file and the key."""
    with reading(DataError, f"{path}: not a readable .npz file, is it whole?"):
        check_regular(path)
        with open(path, "rb") as file:
            _check_form(path, file)
            with zipfile.ZipFile(file) as archive:
                return _tiles(Archive(path, archive), classes)


def load_images(path: Path) -> tuple[str, np.ndarray]:
    """The images to predict: the key 'test_set', else 'training_set', and its images, uint8 (N, H, W). Labels are not
    read. Raises DataError, naming the file and the key.
    """
    with reading(DataError, f"{path}: not a readable .npz file, is it whole?"):
        check_regular(path)
        with open(path, "rb") as file:
            _check_form(path, file)
            with zipfile.ZipFile(file) as opened:
                archive = Archive(path, opened)
                _check_keys(archive)
                if "test_set" in archive.files:
                    return "test_set", _converted(archive, "test_set", GreyLevels, MARS)
                return "training_set", _pairs(archive)[0]


class Archive:
    """The arrays of an .npz file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        self.files = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def member(self, key: str, form: str, axes: int) -> Member:
        """One array, its header read. form: its shape in words."""
        with reading(DataError, f"{self.path}: {key}: cannot be read, is the file whole?"):
            member = Member(self.archive, self.files[key])
        if len(member.shape) != axes:
            raise DataError(
                f"{self.path}: {key}: got {len(member.shape)} axes {quoted(member.shape)}, expected {axes}: {form}"
            )
        return member


class Member:
    """An array in an archive: dtype and shape are known, its values are not in memory."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        if info.flag_bits & 1:
            raise ValueError("it is encrypted")
        if info.compress_type not in _METHODS:
            raise ValueError(f"compressed by method {info.compress_type}, expected {' or '.join(map(str, _METHODS))}")
        self._file: IO[bytes] = archive.open(info)
        self.shape, self.fortran, self.dtype = _header(self._file)
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects, and allow_pickle=False")
        size = math.prod(self.shape) * self.dtype.itemsize
        if min(self.shape, default=0) < 0 or size > info.file_size:
            raise ValueError(f"its header says {quoted(size)} bytes, the archive {info.file_size}")
        if self.fortran and size > MOST_PIXELS:
            raise ValueError("it is large and in Fortran order, expected C order")

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, values), a few rows of the first axis at a time; all of them where the file has another order in
        memory.
        """
        count = self.shape[0]
        values = math.prod(self.shape[1:])
        step = max(1, count if self.fortran else min(256, _PART // max(values, 1)))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            shape = (rows.stop - start, *self.shape[1:])
            flat = np.frombuffer(self._bytes(math.prod(shape) * self.dtype.itemsize), self.dtype)
            yield rows, flat.reshape(shape, order="F" if self.fortran else "C")
        while self._file.read(1 << 16):  # to its end: the checksum is compared there
            pass

    def _bytes(self, count: int) -> bytearray:
        content = bytearray()
        while len(content) < count:
            more = self._file.read(min(count - len(content), 1 << 22))
            if not more:
                raise ValueError(f"{count - len(content)} bytes are missing")
            content += more
        return content


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype. Raises ValueError for what is no array."""
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\1\0", b"\2\0"):
        raise ValueError("it is no NumPy array")
    size = file.read(2 if start[6] == 1 else 4)
    length = int.from_bytes(size, "little")
    if length > _HEADER:
        raise ValueError(f"a header of {length} bytes")
    read = np.lib.format.read_array_header_1_0 if start[6] == 1 else np.lib.format.read_array_header_2_0
    return read(io.BytesIO(size + file.read(length)))


def _check_form(path: Path, file: IO[bytes]) -> None:
    """Refuse files that zipfile would read without a limit, or report under another name."""
    start = file.read(8)
    if start[:6] == b"\x93NUMPY":
        file.seek(0)
        shape, _, _ = _header(file)
        raise DataError(
            f"{path}: got a single array of shape {quoted(shape)}, expected an .npz file with the key 'training_set'"
        )
    file.seek(0, io.SEEK_END)
    file.seek(max(0, file.tell() - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at >= 0 and int.from_bytes(tail[at + 12 : at + 16], "little") > _DIRECTORY:
        raise ValueError("its directory is too long")
    file.seek(0)


def _check_keys(archive: Archive) -> None:
    unknown = [key for key in archive.files if key not in KEYS]
    if unknown:  # a misspelt train_group, ignored, would be a leak between training and validation
        raise DataError(f"{archive.path}: unknown key {quoted(unknown[0])}, expected only {', '.join(KEYS)}")


def _tiles(archive: Archive, classes: Classes) -> tuple[Tiles, Tiles | None]:
    _check_keys(archive)
    images, masks = _pairs(archive, classes)
    groups = _groups(archive, "train_group", len(images))
    return Tiles(images, masks, groups, classes=classes), _test(archive, classes)


def _pairs(archive: Archive, classes: Classes | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Images of the training set, and, where classes are given, its masks."""
    if "training_set" not in archive.files:
        raise DataError(f"{archive.path}: no key 'training_set', found {', '.join(archive.files) or 'no key at all'}")
    where = f"{archive.path}: training_set"
    pairs = archive.member("training_set", "(N, 2, H, W)", 4)
    if pairs.shape[1] != 2:
        raise DataError(
            f"{where}: got shape {quoted(pairs.shape)}, expected (N, 2, H, W), an image and a mask per sample"
        )
    shape = (pairs.shape[0], *pairs.shape[2:])
    _check_size(shape, archive, where)
    images = GreyLevels(shape, pairs.dtype, f"{where} images")
    masks = None if classes is None else Labels(shape, pairs.dtype, f"{where} masks", classes)
    with reading(DataError, f"{where}: cannot be read, is the file whole?"):
        for rows, part in pairs.parts():
            images.put(rows, part[:, 0])
            if masks is not None:
                masks.put(rows, part[:, 1])
    return images.finished(), None if masks is None else masks.finished()


def _test(archive: Archive, classes: Classes) -> Tiles | None:
    path = archive.path
    if "test_set" not in archive.files:
        orphan = next((key for key in ("test_labels", "test_group") if key in archive.files), None)
        if orphan:
            raise DataError(f"{path}: got '{orphan}' without 'test_set'")
        return None
    images = _converted(archive, "test_set", GreyLevels, classes)
    masks = (
        _converted(archive, "test_labels", Labels, classes, images.shape) if "test_labels" in archive.files else None
    )
    return Tiles(images, masks, _groups(archive, "test_group", len(images)), classes=classes)


def _converted(
    archive: Archive,
    key: str,
    kind: type[GreyLevels | Labels],
    classes: Classes,
    expected: tuple[int, ...] | None = None,
) -> np.ndarray:
    """uint8 (M, H, W); labels of 256 classes are uint16."""
    member = archive.member(key, "(M, H, W)", 3)
    where = f"{archive.path}: {key}"
    if expected is not None and member.shape != expected:
        raise DataError(f"{where}: got shape {quoted(member.shape)}, expected {expected} like test_set")
    _check_size(member.shape, archive, where)
    result = kind(member.shape, member.dtype, where, classes)
    with reading(DataError, f"{where}: cannot be read, is the file whole?"):
        for rows, part in member.parts():
            result.put(rows, part)
    return result.finished()


def _check_size(shape: tuple[int, ...], archive: Archive, where: str) -> None:
    """Raise DataError where a small file says that it is a large one, before memory is taken for it."""
    count, *size = shape
    most = max(MOST_PIXELS, DENSEST * archive.path.stat().st_size)
    if math.prod(size) > MOST_TILE or math.prod(shape) > most:
        got = f"{quoted(count)} tiles of {' x '.join(map(quoted, size))} pixels"
        raise DataError(
            f"{where}: got {got}, expected at most {MOST_TILE} pixels a tile and {most} in a file of this size"
        )


def _groups(archive: Archive, key: str, count: int) -> np.ndarray | None:
    if key not in archive.files:
        return None
    where = f"{archive.path}: {key}"
    member = archive.member(key, "(N,)", 1)
    if member.dtype.kind != "U":
        raise DataError(f"{where}: got dtype {member.dtype}, expected strings")
    if member.shape[0] != count:
        raise DataError(f"{where}: got {quoted(member.shape[0])} names, expected {count}, one per tile")
    if member.dtype.itemsize > 4 * _MOST_NAME or count * member.dtype.itemsize > _MOST_TEXT:
        raise DataError(
            f"{where}: got {count} names of up to {member.dtype.itemsize // 4} characters, expected {_MOST_NAME} "
            "characters at most"
        )
    if not member.dtype.itemsize:
        return np.zeros(count, "U1")
    names = np.zeros(count, member.dtype.newbyteorder("="))
    with reading(DataError, f"{where}: cannot be read, is the file whole?"):
        for rows, part in member.parts():
            names[rows] = part
    codes = names.view(np.uint32)
    if ((codes > 0x10FFFF) | (codes >> 11 == 0xD800 >> 11)).any():
        raise DataError(f"{where}: got names that are no text")
    return names
