"""A run folder: what lies in it, and the claim that keeps a second process out.

The claim is a lock that the system holds for the process on the file `.lock`: it ends with the process, however that
ends, so that a killed run can be resumed at once. (Over NFS it is as good as the server's locks.)
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.errors import InputError
from engine.files import PART, remove, sync_folder

SETTINGS, METRICS, SUMMARY = "config.toml", "metrics.jsonl", "summary.json"
BEST, LAST = "best.safetensors", "last.safetensors"
CURVES, PREDICTIONS = "curves.png", "predictions.png"
REPORT = "report.html"
PROFILE, TRACE = "profile.json", "trace.json"  # of training steps, by engine.profile
EVENTS = "tensorboard"  # a folder of event files
VALIDATION = "validation.npz"  # confusion matrices, by engine.experiment
STATES = ("state-0.safetensors", "state-1.safetensors")
_LOCK = ".lock"
# In the order of their removal.
_ALL = (*STATES, SETTINGS, BEST, LAST, METRICS, SUMMARY, CURVES, PREDICTIONS, REPORT, PROFILE, TRACE)


class FolderError(InputError):
    """A folder cannot be a run's; the message names it and says why."""


def holds_run(folder: Path) -> bool:
    """Whether a run has left anything there that another would overwrite."""
    return any((folder / name).exists() for name in (*STATES, SETTINGS, BEST, LAST))


def holds_state(folder: Path) -> bool:
    """Whether a run there can be resumed (if its states can be read)."""
    return any((folder / name).exists() for name in STATES)


def check_run(folder: Path) -> None:
    """Raise FolderError for a folder that is no run's."""
    if not (folder / SETTINGS).exists():
        raise FolderError(f"{folder}: is no run folder (it holds no {SETTINGS})")


def known_summary(folder: Path) -> dict[str, Any]:
    """The summary.json that is there; empty where none is, or where it cannot be read."""
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class RunFolder:
    """A folder that this process alone may write results to, for the length of a `with` block.

    It is created if need be; a folder that was created for it and that nothing was put into is removed when the block
    ends. Raises FolderError when it cannot be created or written to, or when another process has claimed it. argument:
    what the command line calls it.
    """

    def __init__(self, path: Path, argument: str = "--out", new: bool = False) -> None:
        self.path, self.argument, self.new = path, argument, new
        self._lock = -1

    def __enter__(self) -> RunFolder:
        self.new = self.new or not self.path.exists()
        try:
            while not self._claim():
                pass
        except OSError as error:
            self._release()
            raise FolderError(f"{self.argument} {self.path}: cannot write there ({error.strerror or error})") from None
        return self

    def _claim(self) -> bool:
        """Lock the folder; False when its former owner has just removed what was locked."""
        _make(self.path)
        try:
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            return False
        if not _locked(self._lock):
            owner = os.read(self._lock, 20).decode("ascii", "replace").strip()
            self._release()
            raise FolderError(f"{self.argument} {self.path}: another process ({owner or 'unknown'}) is writing there")
        try:
            ours = os.path.samestat(os.fstat(self._lock), os.stat(self.path / _LOCK))
        except FileNotFoundError:
            ours = False
        if not ours:
            self._release()
            return False
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"{os.getpid()}\n".encode())
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path / _LOCK)
        self._release()
        if self.new:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # fails unless it is empty

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def clear(folder: Path, everything: bool = True) -> None:
    """Remove the results of an earlier run, and nothing else; or only what an interrupted write has left.

    States and settings go first: what is left is no run any more.
    """
    for name in _ALL:
        for path in (folder / name, folder / (name + PART)):
            if everything or path.suffix == PART:
                remove(path)
    for path in event_files(folder) if everything else ():
        remove(path)
    sync_folder(folder)


def event_files(folder: Path) -> list[Path]:
    """The TensorBoard event files of a run, in the order of their writing."""
    return sorted((folder / EVENTS).glob("events.out.tfevents.*"))


def _make(folder: Path) -> None:
    """Create a folder and its parents durably."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in made:
        sync_folder(path.parent)


def _locked(descriptor: int) -> bool:
    """Lock an open file for this process; False when another has done so."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except (BlockingIOError, PermissionError):
        return False
    return True


def next_folder(parent: Path, name: str) -> Path:
    """Create parent/NAME-1, or the first number that is free, and return it: no two processes get the same."""
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise FolderError(f"--out {path}: cannot write there ({error.strerror or error})") from None
