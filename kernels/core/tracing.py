"""What runs inside what: the places that do the work tell a tracer of it, if there is one.

    with trace(tracer): step()      # this thread's layers, operators and launches go through tracer.run

A layer's `forward`, a Function's `forward` and `backward`, an operator of kernels/ and a launch are told, each within
the one that called it; `phase` names what a training step does. Without a tracer such a place costs one look at
`current.tracer`, and a launch one more call: 0.1 to 0.3 ms in all for the 1,500 places of a step at width 16. While
there is a tracer, nothing is captured or replayed (kernels/core/dispatch.py, `is_plain`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

STEP, PHASE, LAYER, FORWARD, BACKWARD, OPERATOR, KERNEL = (
    "step",
    "phase",
    "layer",
    "forward",
    "backward",
    "operator",
    "kernel",
)


class Tracer(Protocol):
    """What is told."""

    def run(self, kind: str, subject: Any, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return call(*args, **kwargs), which `subject` does: a Module (LAYER), a Function (FORWARD, BACKWARD), an
        Operator (OPERATOR), or the name of a kernel (KERNEL).
        """

    def within(self, kind: str, name: str) -> AbstractContextManager[Any]:
        """A block of the step (STEP, PHASE)."""


class _Current(threading.local):
    tracer: Tracer | None = None


current = _Current()


@contextmanager
def trace(tracer: Tracer) -> Iterator[None]:
    """Within the block this thread tells `tracer`. Raises RuntimeError where another tracer is told already."""
    if current.tracer is not None:
        raise RuntimeError("trace: another tracer is told already (two profiles cannot be recorded at once)")
    current.tracer = tracer
    try:
        yield
    finally:
        current.tracer = None


def phase(name: str) -> AbstractContextManager[Any]:
    """A part of a step, such as "forward": a block that is told by this name."""
    return nullcontext() if current.tracer is None else current.tracer.within(PHASE, name)
