"""The handling of Ctrl-C (SIGINT) and SIGTERM: an exception that ends a command, or, while a network trains, a request
to end in order.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It ends a command as KeyboardInterrupt does."""


class Stop:
    """signal: the number of the signal that requested the end; 0 before that."""

    signal = 0

    @property
    def name(self) -> str:
        """SIGINT or SIGTERM."""
        return signal.Signals(self.signal).name


@contextmanager
def requests() -> Iterator[Stop]:
    """Within the block the first SIGINT or SIGTERM is noted in the Stop; a second one ends the process at once, with
    130 or 143.
    """
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.signal:
            if sys.stdout.isatty():
                os.write(1, b"\x1b[?25h\n")  # a live view hides the cursor
            os._exit(128 + number)
        stop.signal = number

    with _handled({signal.SIGINT: note, signal.SIGTERM: note}):
        yield stop


@contextmanager
def terminated_by_exception() -> Iterator[None]:
    """Within the block SIGTERM raises Terminated, as SIGINT raises KeyboardInterrupt."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    with _handled({signal.SIGTERM: end}):
        yield


@contextmanager
def _handled(handlers: dict[signal.Signals, _Handler]) -> Iterator[None]:
    """Install handlers for the length of a block; outside the main thread, where Python allows none, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
