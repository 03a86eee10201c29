"""The modes of the tape: recording or not, checking for non-finite numbers or not. One state per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Any

from kernels.core.held import holding


class _Modes(threading.local):
    recording = True
    inference = False
    anomaly = False

    def __init__(self) -> None:
        self.observers: list[Callable[..., None]] = []
        self.writers: list[Callable[..., None]] = []  # called with each Tensor that is about to be changed in place


modes = _Modes()


class _Set(ContextDecorator):
    """Sets modes of this thread within a block, or within the calls of a function that it decorates; may be entered
    repeatedly.
    """

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.before: list[dict[str, Any]] = []  # one for each block that has been entered

    def __enter__(self) -> None:
        self.before.append({name: getattr(modes, name) for name in self.values})
        for name, value in self.values.items():
            setattr(modes, name, value)

    def __exit__(self, *error: object) -> None:
        for name, value in self.before.pop().items():
            setattr(modes, name, value)

    def _recreate_cm(self) -> _Set:  # a decorated function may run in several threads at once
        return _Set(**self.values)


def no_grad() -> Any:
    """Within the block nothing is recorded: results do not require gradients."""
    return _Set(recording=False)


def enable_grad() -> Any:
    """Within the block recording is on again (inside `no_grad`)."""
    return _Set(recording=True, inference=False)


@contextmanager
def inference() -> Iterator[None]:
    """`no_grad`, and stricter: results may never enter a recorded computation later, so operators may fuse or reuse
    freely.

    Layers keep their packed and folded weights within the block, and for later blocks if the weights are still the
    same. The weights' arrays are read-only until the outermost block ends, so that NumPy raises on `p.data -= 1` (see
    kernels/core/held.py).
    """
    with holding(), _Set(recording=False, inference=True):
        yield


def is_inference() -> bool:
    """Whether this is inside `inference()`."""
    return modes.inference


def anomaly_mode(enabled: bool = True) -> Any:
    """Within the block every output and gradient is checked; the first non-finite one raises FloatingPointError.

    The message names the operator, its shapes, the first bad index, and for gradients the line that created the
    operator.
    """
    return _Set(anomaly=enabled)


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
