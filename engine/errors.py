"""Bad input is one line and exit code 2, whatever a library raises about it.

    with reading(DataError, f"{path}: not a readable .npz file, is it whole?"):
        ...                                      # any exception becomes DataError("... is it whole? (the reason)"), the
        cause is kept

Each reader has one such edge. Lists of the exceptions that a library raises on bad input are always too short: parsers
run out of recursion, decoders index out of range, numbers overflow.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 600  # characters of a message


class InputError(ValueError):
    """The user gave something unusable; the message is one printable line, whatever file names it holds."""

    def __init__(self, message: str) -> None:
        super().__init__(_escaped(message))


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and why."""


@contextmanager
def reading(kind: type[Exception], what: str) -> Iterator[None]:
    """Raise kind(f"{what} (the reason)") for any exception in the block; one that is such a message already passes
    unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise kind(f"{what} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """An exception's message as part of a line: the system's words for an OSError, else its first line, cut."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return cut(_escaped((text.strip().splitlines() or [type(error).__name__])[0]), 160)


def cut(text: str, most: int) -> str:
    """The text, or its start and three dots."""
    return text if len(text) <= most else text[: most - 3] + "..."


def quoted(value: object, most: int = 60) -> str:
    """A value as Python writes it, cut; its type where Python does not write it (a number of 5,000 digits, lists
    without end).
    """
    try:
        return cut(repr(value[: most + 1] if isinstance(value, (str, bytes)) else value), most)
    except (ValueError, RecursionError):
        return f"{type(value).__name__} (too large to show)"


def printable(text: str) -> str:
    """A message as one line for any terminal: characters that would move the cursor, or cannot be encoded, are escaped;
    a very long message is cut in the middle.
    """
    line = _escaped(text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def read_bytes(path: Path, most: int) -> bytes:
    """A small file, or a pipe, whole. Raises InputError where it is larger than `most` bytes (/dev/zero is); OSError
    where it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path}: more than {most:,} bytes")
    return content


def check_regular(path: Path) -> None:
    """Raise OSError unless this is an ordinary file: a pipe may never deliver, a device never ends."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(None, "not an ordinary file")
