"""Masks of dot-product attention that the tests of its kernels share."""

from __future__ import annotations

import numpy as np

MASKS = ("none", "causal", "random", "empty row", "added", "broadcast")


def masks(kind: str, n: int, heads: int, t: int, k: int, rng: np.random.Generator) -> np.ndarray | None:
    """A mask of so many images, heads, queries and keys: boolean, or (added) float64."""
    if kind == "causal":
        return np.tril(np.ones((t, k), bool))
    if kind == "random":
        return rng.random((n, heads, t, k)) < 0.7
    if kind == "empty row":
        keep = rng.random((t, k)) < 0.7
        keep[t // 2] = False
        return keep
    if kind == "added":
        return rng.standard_normal((n, 1, t, k))
    return rng.random((heads, 1, k)) < 0.9 if kind == "broadcast" else None
