"""Ctrl-C and SIGTERM wait until a function has been compiled: numba and llvmlite do not survive exceptions in the
middle of their work.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Within the block, Python's handlers of these signals are called at its end; a second signal calls its handler at
    once.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread
        yield
        return
    handlers: dict[int, Any] = {}
    came: list[int] = []

    def keep(number: int, frame: Any) -> None:
        if number in came:
            handlers[number](number, frame)
        else:
            came.append(number)

    try:
        for deferred in _SIGNALS:
            handler = signal.getsignal(deferred)
            if callable(handler):
                handlers[deferred] = handler
                signal.signal(deferred, keep)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def deferring(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, within `signals_deferred`."""

    @functools.wraps(function)
    def deferred(*arguments: Any, **options: Any) -> Any:
        with signals_deferred():
            return function(*arguments, **options)

    return deferred
