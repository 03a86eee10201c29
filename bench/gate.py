"""Attention gates, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

from autograd import ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, STAGES, array


def cases() -> list[Case]:
    """One gate per pixel at the three skips."""
    out = []
    for h, w, c in STAGES[:3]:
        traffic = 4 * BATCH * h * w * c * 5
        out.append(forward_backward("gate", f"{BATCH}x{h}x{w}x{c}", ops.gate, _theirs, partial(_arrays, h, w, c), (0, 1), bytes=traffic))
    return out


def _arrays(h: int, w: int, c: int) -> list[Any]:
    return [array(BATCH, h, w, c), array(BATCH, h, w, 1, seed=1)]


def _theirs(x: Any, z: Any) -> Any:
    return x * z.sigmoid()
