"""Decoded tiles in a file without a name, for data that is larger than memory.

Worker processes decode every image and mask once (decoding.py), their pixels are written here as they are, and a
batch, or the rows of a crop, is read where it lies. The alternative, decoding on demand with a cache in memory, would
decode again in every epoch whatever does not fit, on the cores that train. It would also need a cache with a limit,
shared memory, an order in which samples are handed over, and an answer to files that change while a run goes on. The
price is space on a disk. Here the operating system's page cache is the cache: it belongs to no process and is given
back as soon as anyone needs memory. Nothing is mapped, so a process's own memory stays as small as its batches.

The file has no name from the start: it is gone with the process, however that ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

from engine.data.tiles import DataError
from kernels.core.cpu.cores import available_memory

Size = tuple[int, int]


def place() -> str:
    """The folder for the file: TMPDIR, else /var/tmp, which is on a disk more often than /tmp is."""
    return os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir())


class TileFile:
    """A file of arrays, one after the other. Raises DataError when the disk has no room for `size` bytes."""

    def __init__(self, size: int) -> None:
        folder = place()
        try:
            free = shutil.disk_usage(folder).free
            if free < size:
                raise OSError(errno.ENOSPC, f"{free >> 20} MiB are free")
            self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - as long as its tiles live
        except OSError as error:
            raise DataError(
                f"{folder}: no temporary file of {size >> 20} MiB for the decoded tiles ({error.strerror}); {_HINT}"
            ) from None
        self.end = 0

    def append(self, array: np.ndarray) -> int:
        """Write an array; returns where it begins."""
        start = self.end
        content = memoryview(np.ascontiguousarray(array)).cast("B")
        try:
            while content:
                content = content[self.file.write(content) :]
        except OSError as error:
            raise DataError(
                f"{place()}: the decoded tiles cannot be written there ({error.strerror}); {_HINT}"
            ) from None
        self.end += array.nbytes
        return start

    def read(self, out: np.ndarray, start: int) -> None:
        """Fill a contiguous array from the bytes that begin at `start`."""
        if not out.size:
            return
        content = memoryview(out).cast("B")
        while content:
            count = os.preadv(self.file.fileno(), [content], start)
            if not count:
                raise DataError(f"{place()}: the temporary file of decoded tiles ends early")
            content = content[count:]
            start = start + count

    def ahead(self, start: int, size: int) -> None:
        """Let the system fetch what will be read soon."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.file.fileno(), start, size, os.POSIX_FADV_WILLNEED)


_HINT = "TMPDIR names another folder, --memory allows more memory"


@dataclass(frozen=True, eq=False)
class Stored:
    """Images or masks in a file. Behaves as an array (N, H, W) or (N, H, W, C) where a tile, a batch or a window is
    read, and loads just that.

    dtype: of the numbers.   offsets: int (N,), where tiles begin.   sizes: int (N, 2), their height and width as they
        are stored.
    colour: bool (N,), whether three channels are stored.   channels: of what is read, 0 for (N, H, W).
    padded: sizes (H, W) that a tile is padded to, one after the other.   fill: the padding's number; None mirrors.
    instead: a number that is read for each `fill` that is stored, or None.
    """

    file: TileFile
    dtype: np.dtype
    offsets: np.ndarray
    sizes: np.ndarray
    colour: np.ndarray
    channels: int
    padded: tuple[Size, ...]
    fill: int | None = None
    instead: int | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.padded[-1], *([self.channels] if self.channels else []))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def subset(self, rows: np.ndarray) -> Stored:
        """Some of the tiles, unread."""
        return replace(self, offsets=self.offsets[rows], sizes=self.sizes[rows], colour=self.colour[rows])

    def to(self, size: Size) -> Stored:
        """The same, padded to a size, unread."""
        return replace(self, padded=(*self.padded, size))

    def __getitem__(self, index: Any) -> np.ndarray:
        """A tile (an integer), a window of one (an integer and two slices), or several tiles (a slice, or integers),
        read into memory.
        """
        if isinstance(index, tuple):
            tile, rows, columns = index
            return self._window(
                int(tile), *(slice(*s.indices(n)) for s, n in zip((rows, columns), self.padded[-1], strict=True))
            )
        if np.ndim(index) == 0 and not isinstance(index, slice):
            return self._tile(int(index))
        numbers = np.arange(len(self))[index]
        out = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for into, tile in zip(out, numbers.tolist(), strict=True):
            self._tile(tile, into)
        return out

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[tile] for tile in range(len(self)))

    def ahead(self, tile: int, rows: slice = slice(None)) -> None:
        """Let the system fetch a tile, or rows of it, that will be read soon."""
        start, stop, _ = rows.indices(int(self.sizes[tile, 0]))
        row = self._row(tile)
        self.file.ahead(int(self.offsets[tile]) + start * row, max(0, stop - start) * row)

    def _row(self, tile: int) -> int:
        """Bytes of a row."""
        return int(self.sizes[tile, 1]) * (3 if self.colour[tile] else 1) * self.dtype.itemsize

    def _tile(self, tile: int, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty(self.shape[1:], self.dtype) if out is None else out
        h, w = self.sizes[tile].tolist()
        if (h, w) == self.padded[-1] and bool(self.colour[tile]) == (self.channels > 0) and self.instead is None:
            self.file.read(out, int(self.offsets[tile]))
            return out
        pixels = self._rows(tile, 0, h)
        for y, x in self.padded:
            pixels = pad(pixels, (y, x), self.fill)
        out[...] = pixels
        return out

    def _window(self, tile: int, rows: slice, columns: slice) -> np.ndarray:
        h, w = self.sizes[tile].tolist()
        if rows.stop <= h and columns.stop <= w:
            return self._rows(tile, rows.start, rows.stop)[:, columns]
        return self._tile(tile)[rows, columns]

    def _rows(self, tile: int, start: int, stop: int) -> np.ndarray:
        """Rows of a tile without padding, (rows, w) or (rows, w, 3)."""
        shape = (stop - start, int(self.sizes[tile, 1]), *([3] if self.colour[tile] else []))
        pixels = np.empty(shape, self.dtype)
        self.file.read(pixels, int(self.offsets[tile]) + start * self._row(tile))
        if self.instead is not None:
            pixels[pixels == self.fill] = self.instead
        return as_channels(pixels, self.channels)


def as_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """An image (h, w) or (h, w, 3) with three channels, or, where channels is 0, without: grey that was stored as
    colour.
    """
    if channels and pixels.ndim == 2:
        return np.repeat(pixels[..., None], channels, 2)
    return pixels if channels else pixels[..., 0] if pixels.ndim == 3 else pixels


def pad(array: np.ndarray, size: Size, fill: int | None) -> np.ndarray:
    """One tile (h, w, ...) below and to the right by a number, or mirrored (None)."""
    widths = [(0, size[0] - array.shape[0]), (0, size[1] - array.shape[1]), (0, 0)][: array.ndim]
    if not any(after for _, after in widths):
        return array
    return np.pad(array, widths, "symmetric") if fill is None else np.pad(array, widths, constant_values=fill)


def padded(array: Any, size: Size, fill: int | None) -> Any:
    """Tiles (N, H, W, ...) below and to the right by a number, or mirrored (None); those of a file stay there."""
    if isinstance(array, Stored):
        return array.to(size)
    widths = [(0, 0), (0, size[0] - array.shape[1]), (0, size[1] - array.shape[2]), (0, 0)][: array.ndim]
    return np.pad(array, widths, "symmetric") if fill is None else np.pad(array, widths, constant_values=fill)


def joined(arrays: list[Any]) -> Any:
    """Tiles of one size and dtype one after the other; those of a file stay there."""
    if isinstance(arrays[0], Stored):
        return _Joined(arrays)
    return np.concatenate(arrays)


class _Joined:
    """Stored tiles one after the other, read by slices only."""

    def __init__(self, parts: list[Stored]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self.ndim = parts[0].ndim
        self.shape = (sum(len(part) for part in parts), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        places = [(part, k) for part in self.parts for k in range(len(part))][index]
        return np.stack([part[k] for part, k in places]) if isinstance(index, slice) else places[0][places[1]]


def fits(size: int, memory: int) -> bool:
    """Whether decoded tiles of so many bytes are kept in memory. memory: MiB that they may take; 0: half of what is
    available.

    They take twice their size for a moment, when they are split.
    """
    return 2 * size <= (memory << 20 if memory else available_memory() // 2)
