"""Makers of input arrays: a maker is a function of a random generator. Values keep away from kinks, or hit them, as the
name says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Maker = Callable[[np.random.Generator], Any]


def normal(*shape: int) -> Maker:
    """float64 standard normal."""
    return lambda rng: rng.standard_normal(shape)


def positive(*shape: int) -> Maker:
    """float64 in [0.5, 2]."""
    return lambda rng: rng.uniform(0.5, 2, shape)


def away(*shape: int) -> Maker:
    """float64 with 0.2 < |x| < 2: no kink at 0 within reach of a step."""
    return lambda rng: rng.choice((-1.0, 1.0), shape) * rng.uniform(0.2, 2, shape)


def distinct(*shape: int) -> Maker:
    """float64, all values at least 0.1 apart: no tie within reach of a step."""
    return lambda rng: rng.permutation(int(np.prod(shape))).reshape(shape) * 0.1 - 0.05 * np.prod(shape)


def halves(*shape: int) -> Maker:
    """float64 from -1, 0, 1, the first always 0: kinks at 0, and ties, at the point itself."""

    def make(rng: np.random.Generator) -> np.ndarray:
        values = rng.integers(-1, 2, shape).astype(np.float64)
        values.flat[:1] = 0
        return values

    return make


def pairs(*shape: int) -> Maker:
    """float64, distinct, but along the last axis the two largest are equal: ties of two."""

    def make(rng: np.random.Generator) -> np.ndarray:
        values = distinct(*shape)(rng)
        order = values.argsort(-1)
        np.put_along_axis(values, order[..., -2:-1], values.max(-1, keepdims=True), -1)
        return values

    return make


def labels(*shape: int, classes: int = 5, ignored: int | None = None) -> Maker:
    """int64 class labels; every class occurs, and a tenth is `ignored` when given."""

    def make(rng: np.random.Generator) -> np.ndarray:
        values = rng.permutation(np.arange(int(np.prod(shape))) % classes).reshape(shape)
        if ignored is not None:
            values[rng.random(shape) < 0.1] = ignored
        return values

    return make


def constant(value: Any) -> Maker:
    """Always the same."""
    return lambda rng: value


@dataclass(frozen=True)
class Sample:
    """inputs: makers of arrays (float64 ones are differentiated).  settings: keyword arguments.  note: for the test's
    name.
    """

    inputs: Sequence[Maker]
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def arrays(self, seed: int = 0) -> list[Any]:
        """The inputs, made from a seed."""
        rng = np.random.default_rng(seed)
        return [make(rng) for make in self.inputs]


def sample(*inputs: Maker, note: str = "", **settings: Any) -> Sample:
    """A Sample, shortly."""
    return Sample(inputs, settings, note)
