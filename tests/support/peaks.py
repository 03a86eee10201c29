"""A machine of round numbers in place of a measurement, which takes a second or two: nothing depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from kernels.core.cpu import peaks


class Peaks(NamedTuple):
    """Ten FLOPs per byte."""

    gflops: float = 100.0
    gbytes: float = 10.0


@contextmanager
def not_measured() -> Iterator[None]:
    """Within the block no peaks are measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peaks, "measure", Peaks)
        yield
