"""Initial weights, from one seeded generator so that a network is a function of its seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_generator = np.random.Generator(np.random.Philox(0))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Within the block, initial weights are drawn from `seed` (None: go on with the current generator)."""
    global _generator
    before = _generator
    if seed is not None:
        _generator = np.random.Generator(np.random.Philox(seed))
    try:
        yield
    finally:
        _generator = before


def normal(shape: tuple[int, ...], std: float) -> np.ndarray:
    """float32 from N(0, std^2)."""
    return (_generator.standard_normal(shape) * std).astype(np.float32)


def uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    """float32, uniform from -bound to bound."""
    return _generator.uniform(-bound, bound, shape).astype(np.float32)


def he_normal(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """float32 from N(0, 2 / fan_in): keeps the variance through ReLU layers.  (He et al., arXiv 1502.01852)"""
    return normal(shape, math.sqrt(2 / fan_in))


def xavier_normal(shape: tuple[int, ...], fan_in: int, fan_out: int) -> np.ndarray:
    """float32 from N(0, 2 / (fan_in + fan_out)), for layers without ReLU.  (Glorot & Bengio, 2010)"""
    return normal(shape, math.sqrt(2 / (fan_in + fan_out)))


def equal_taps(shape: tuple[int, ...]) -> np.ndarray:
    """He-normal filter (R, S, C, K) whose R x S taps are equal: a k = s transposed convolution starts as
    nearest-neighbour upsampling.

    Source: ICNR, Aitken et al., arXiv 1707.02937.
    """
    r, s, c, k = shape
    return np.broadcast_to(he_normal((1, 1, c, k), c), (r, s, c, k)).copy()
