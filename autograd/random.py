"""The random stream that dropout draws from: two integers, so that it can be saved, restored and replayed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kernels.core.random import Stream

stream = Stream(seed=0)


def seed(value: int) -> None:
    """Restart the stream at `value`."""
    stream.seed = int(value) & (2**64 - 1)
    stream.offset = 0


def state() -> tuple[int, int]:
    """(seed, offset): the whole state of the stream."""
    return stream.seed, stream.offset


def set_state(value: tuple[int, int]) -> None:
    """Continue from a saved state."""
    stream.seed, stream.offset = int(value[0]), int(value[1])


@contextmanager
def replay(value: tuple[int, int]) -> Iterator[None]:
    """Within the block draw again the numbers from state `value` on; afterwards continue where the stream was."""
    before = state()
    set_state(value)
    try:
        yield
    finally:
        set_state(before)
