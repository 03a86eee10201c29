"""The record of a profile: spans of time, one within the other, and samples of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

RECORDING = "recording"  # the kind of the span around all others; the other kinds are kernels/core/tracing.py's


@dataclass(slots=True)
class Span:
    """Work from `start` to `end`, nanoseconds since the recording began, within span number `parent` (-1: none).

    layer: the dotted name of the layer that it belongs to.  shape: of the (first) result of a Function or an operator.
    flops, bytes: as engine/profile/counting.py counts them; None where nothing is stated.  algorithm: of an operator,
    what served it.
    """

    kind: str
    name: str
    parent: int
    layer: str = ""
    start: int = 0
    end: int = 0
    shape: tuple[int, ...] = ()
    flops: int | None = None
    bytes: int | None = None
    algorithm: str = ""

    @property
    def duration(self) -> int:
        """Nanoseconds."""
        return self.end - self.start


class Sample(NamedTuple):
    """Memory at a time, when span number `span` ended: bytes of the pool of buffers that arrays use, and the process's
    resident bytes (0 where the system does not say).
    """

    time: int
    in_use: int
    resident: int
    span: int
