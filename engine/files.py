"""Files that appear whole or not at all, and that survive a power cut: every file of a run folder is written here.

A file is written under a temporary name, flushed to the disk, and renamed; then the folder is flushed, so that the new
name lasts, too. A kill or a power cut at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PART = ".part"  # ends the temporary names


class OutputError(RuntimeError):
    """A file cannot be written; the message names it and says why."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file durably and atomically. Raises OutputError when that fails; then the file is what it was."""
    part = path.with_name(path.name + PART)
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, path)
        sync_folder(path.parent)
    except BaseException as error:  # Ctrl-C, too, leaves no part of a file
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
        raise


class OutputFile:
    """A file that is written in parts, and gets its name, durably, by `commit`. Until then, and after `discard`,
    nothing is there under that name but what was before. Its folder is created.

    file: open for bytes. What writes to it does so in a `with reported():`. Raises OutputError when that fails.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(path.name + PART)
        with self.reported():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.part, "wb")  # noqa: SIM115 - commit and discard close it

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Raise OutputError for an OSError in the block."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None

    def commit(self) -> None:
        """Give the file its name; where that fails, remove it."""
        try:
            with self.reported():
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.part, self.path)
                sync_folder(self.path.parent)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written, unless it is committed."""
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            os.unlink(self.part)


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[IO[bytes]]:
    """An open file that appears under its name when the block ends, or not at all; see `OutputFile`."""
    output = OutputFile(path)
    try:
        with output.reported():
            yield output.file
        output.commit()
    except BaseException:
        output.discard()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file durably and atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file; numbers that JSON lacks (NaN, infinities) become null."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n")


def remove(path: Path) -> None:
    """Remove a file if it is there. Raises OutputError when that fails."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror or error}") from None


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can do that (Windows cannot, and need not)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: Any) -> Any:
    """The value with None in place of every number that JSON lacks."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
