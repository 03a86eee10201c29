"""What all command lines share: errors are one line and exit code 2; Ctrl-C and SIGTERM end quietly, with 130 and 143."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from engine.checkpoint import CheckpointError
from engine.config import ConfigError
from engine.data import DataError
from engine.files import OutputError
from engine.run_folder import FolderError
from engine.run_state import StateError
from engine.signals import Terminated, terminated_by_exception
from kernels.core.device import DeviceError


class UsageError(ValueError):
    """The command line asks for something that cannot be; the message names the argument."""


EXPECTED = (UsageError, ConfigError, DataError, CheckpointError, DeviceError, FolderError, StateError, OutputError)


def run_command(main: Callable[[], int | None]) -> None:
    """Run `main` and exit: 0 or what it returns; 2 with one line for bad input; 130 after Ctrl-C, 143 after SIGTERM."""
    try:
        with terminated_by_exception():
            code = main()
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Terminated:
        code = 143
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of our output has gone; that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def use_threads(count: int) -> None:
    """Let CPU kernels use `count` threads (0: as many as AREOGRAD_THREADS says, else one per core); UsageError below 0."""
    if count < 0:
        raise UsageError(f"--threads: got {count}, expected the number of threads, or 0 (one per core)")
    if count:
        from kernels.core.threads import set_threads

        set_threads(count)


def make_folder(path: Path, argument: str = "--out") -> None:
    """Create a folder and make sure that it can be written to; UsageError otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{argument} {path}: cannot write there ({error.strerror})") from None
