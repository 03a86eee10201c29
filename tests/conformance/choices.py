"""Where the choices of a generated case come from: hypothesis, a seed, or the record of an earlier case."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np


class Choices:
    """Choices from a seed, recorded. The first option of every choice is the simplest one:
    shrinking moves towards it.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.record: list[int] = []

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        value = self._integer(low, high)
        self.record.append(value - low)
        return value

    def _integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        """True in `percent` of a hundred cases."""
        return self.integer(0, 99) >= 100 - percent

    def generator(self) -> np.random.Generator:
        """A NumPy generator with a drawn seed, for values of arrays."""
        return np.random.Generator(np.random.PCG64(self.integer(0, 999)))


class Replayed(Choices):
    """The choices of a record; where it has ended, or a choice lies outside its range, the simplest one."""

    def __init__(self, record: Sequence[int]) -> None:
        super().__init__()
        self._left = list(record)

    def _integer(self, low: int, high: int) -> int:
        choice = self._left.pop(0) if self._left else 0
        return low + choice if low + choice <= high else low


class Drawn(Choices):
    """Choices that hypothesis makes, and shrinks."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        from hypothesis import strategies

        self._draw, self._integers = data.draw, strategies.integers

    def _integer(self, low: int, high: int) -> int:
        return self._draw(self._integers(low, high))
