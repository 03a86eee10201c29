"""What the tape does right now: recording or not, checking for non-finite numbers or not. One state per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kernels.core.held import holding


class _Modes(threading.local):
    recording = True
    inference = False
    anomaly = False

    def __init__(self) -> None:
        self.observers: list[Callable[..., None]] = []


modes = _Modes()


@contextmanager
def _set(**values: Any) -> Iterator[None]:
    before = {name: getattr(modes, name) for name in values}
    for name, value in values.items():
        setattr(modes, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(modes, name, value)


def no_grad() -> Any:
    """Within the block nothing is recorded: results do not require gradients."""
    return _set(recording=False)


def enable_grad() -> Any:
    """Within the block recording is on again (inside `no_grad`)."""
    return _set(recording=True, inference=False)


@contextmanager
def inference() -> Iterator[None]:
    """`no_grad`, and stricter: results may never enter a recorded computation later, so operators may fuse or reuse freely.

    What layers make of their weights (packed, folded) is kept within the block, and for later blocks if the weights are the same then.
    The weights' arrays are read-only until the outermost block ends, so that NumPy raises on `p.data -= 1` (see kernels/core/held.py).
    """
    with holding(), _set(recording=False, inference=True):
        yield


def is_inference() -> bool:
    """Whether this is inside `inference()`."""
    return modes.inference


def anomaly_mode(enabled: bool = True) -> Any:
    """Within the block every output and gradient is checked; the first non-finite one raises FloatingPointError.

    The message names the operator, its shapes, the first bad index, and for gradients the line that created the operator.
    """
    return _set(anomaly=enabled)


def is_recording() -> bool:
    """Whether operators record themselves on the tape."""
    return modes.recording


@contextmanager
def observe(callback: Callable[..., None]) -> Iterator[None]:
    """Call `callback(function, input_arrays, output_arrays)` after every operator within the block."""
    modes.observers.append(callback)
    try:
        yield
    finally:
        modes.observers.remove(callback)
