"""The folder of compiled kernels on disk. Its files are executed, so the store trusts only complete files that this
user wrote.

    store = Store(folder)
    store.write(name, key, payload)
    store.read(name, key)               the payload, or None: not there, damaged, of another key, or not to be trusted

A file holds a first line with the format's version and a checksum, then the key's length, the key and the payload. It
appears under its name when it is complete. The folder and the one it lies in must belong to this user (or root) and be
closed to the writing of others; the files, too.

On any fault of the folder, its files or the disk the caller compiles in memory; one `CacheWarning` per process says
why.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
import uuid
import warnings
from pathlib import Path

_FORMAT = b"areograd-cache 1 "
_HEADER = len(_FORMAT) + 2 * 32 + 1
_LARGEST = 64 << 20  # bytes; kernels take some ten thousand
_STALE = 3600.0  # seconds after which another process's unfinished file is litter,
# and after which a kernel may well be of a version that is gone; at worst it is compiled once more
_OLD = 90 * 24 * 3600.0


class CacheWarning(RuntimeWarning):
    """The kernel cache cannot be used, or not in full; results are right all the same."""


class Untrusted(OSError):
    """A file or folder that somebody else could have written."""


_noted: list[str] = []


def note(text: str) -> None:
    """Warn in one line, once per process."""
    if not _noted:
        _noted.append(text)
        warnings.warn_explicit(f"kernel cache: {text}", CacheWarning, "areograd", 1)


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


class Store:
    """Files of the kernel cache. folder: where they lie, None for nowhere (then `why` says why: the first look at it
    tells the user).
    """

    def __init__(self, folder: Path | None, why: str = "") -> None:
        self.folder, self._why = folder, why
        self._swept = False

    def read(self, name: str, key: str) -> bytes | None:
        """The payload that was written under this name and key, or None."""
        obstacle = self.obstacle()
        folder = self.folder
        if obstacle or folder is None:
            note(f"{obstacle}: kernels are compiled in memory")
            return None
        try:
            return _payload(_content(folder / _file(name, key)), key.encode())
        except FileNotFoundError:
            return None
        except Untrusted as error:
            note(f"{error}: not used, compiled anew")
        except (OSError, ValueError, MemoryError) as error:
            note(f"{folder / _file(name, key)}: not used, compiled anew ({_reason(error)})")
        return None

    def write(self, name: str, key: str, payload: bytes) -> None:
        """Keep a payload; a warning says why where that fails."""
        rest = len(key.encode()).to_bytes(4, "little") + key.encode() + payload
        why_not = self._keep(_file(name, key), _FORMAT + _digest(rest) + b"\n" + rest)
        if why_not:
            note(f"{why_not}: kernels are compiled in memory")

    def why_not_writable(self) -> str:
        """Why new files cannot be kept; '' where they can."""
        name = f"{uuid.uuid4().hex}.bin"
        why_not = self._keep(name, b"")
        if self.folder is not None and not why_not:
            (self.folder / name).unlink(missing_ok=True)
        return why_not

    def _keep(self, name: str, content: bytes) -> str:
        """Write a file. Returns why that failed, '' where it did not."""
        obstacle = self.obstacle()
        if obstacle or self.folder is None:
            return obstacle
        try:
            for part in (self.folder.parent, self.folder):  # closed to others' writing, whatever the umask says
                part.mkdir(mode=0o755, parents=True, exist_ok=True)
            _replace(self.folder / name, content)
        except OSError as error:
            return f"{self.folder}: cannot be written ({_reason(error)})"
        if not self._swept:
            self._swept = True
            _sweep(self.folder)
        return ""

    def described(self) -> str:
        """The contents of the folder in words, or why it is not used."""
        obstacle = self.obstacle()
        if obstacle or self.folder is None:
            return obstacle
        try:
            sizes = [path.stat().st_size for path in self.folder.glob("*.bin")]
        except OSError as error:
            return f"{self.folder}: {_reason(error)}"
        return f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB in {self.folder}"

    def obstacle(self) -> str:
        """Why the folder is not used: '' where it is, or does not exist yet."""
        try:
            if self.folder is not None:
                _trust(self.folder.parent, shared=True)
                _trust(self.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            return str(error) if isinstance(error, Untrusted) else f"{self.folder}: {_reason(error)}"
        return self._why


def _file(name: str, key: str) -> str:
    """A file's name: of its own for each key, so that machines,
    versions and signatures do not overwrite each other's.
    """
    return (
        f"{re.sub(r'[^0-9A-Za-z_]+', '_', name)[:120]}-{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}.bin"
    )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).hexdigest().encode()


def _payload(content: bytes, key: bytes) -> bytes:
    """The payload of a file. Raises ValueError unless it was written for this key."""
    if content[: len(_FORMAT)] != _FORMAT:
        raise ValueError("no file of this format")
    rest = content[_HEADER:]
    if content[len(_FORMAT) : _HEADER] != _digest(rest) + b"\n":
        raise ValueError("its checksum is wrong")
    start = 4 + int.from_bytes(rest[:4], "little")
    if rest[4:start] != key:
        raise ValueError("made for something else")
    return rest[start:]


def _content(path: Path) -> bytes:
    """A file of this user's, read whole. O_NONBLOCK: a pipe of that name would wait for a writer."""
    handle = os.open(
        path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no file")
        _own(status, path)
        if status.st_size > _LARGEST:
            raise ValueError(f"{status.st_size} bytes")
        return file.read(_LARGEST)


def _own(status: os.stat_result, path: Path, shared: bool = False) -> None:
    """Untrusted where another user could have written it. shared: a folder such as /tmp will do, where nobody can
    change another user's files.
    """
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (os.geteuid(), 0):  # root could change this program itself
        raise Untrusted(f"{path} belongs to user {status.st_uid}, not to you (user {os.geteuid()})")
    if status.st_mode & 0o022 and not (shared and status.st_mode & stat.S_ISVTX):
        raise Untrusted(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}; chmod go-w closes it)"
        )


def _trust(folder: Path, shared: bool = False) -> None:
    status = folder.stat() if shared else folder.lstat()  # a link to a folder of this user's could be another user's
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(None, "not a folder")
    _own(status, folder, shared)


def _replace(path: Path, content: bytes) -> None:
    """Write a file under a name of its own, then rename it: readers see the old file or the whole new one."""
    part = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _sweep(folder: Path) -> None:
    """Remove unfinished files of processes that were killed while they wrote, and old kernels."""
    for pattern, age in (("*.part", _STALE), ("*.bin", _OLD)):
        with contextlib.suppress(OSError):
            for path in folder.glob(pattern):
                if time.time() - path.stat().st_mtime > age:
                    path.unlink()
