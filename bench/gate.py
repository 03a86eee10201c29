"""Attention gates, forward and backward."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from autograd import ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, STAGES, array


def cases() -> list[Case]:
    """One gate per pixel at the three skips; a gate per channel, and a blend of two maps, at the first."""
    out = []
    for h, w, c in STAGES[:3]:
        out.append(_case("gate", ops.gate, _their_gate, (h, w, c), 1, 5))
    out.append(_case("gate per channel", ops.gate, _their_gate, STAGES[0], STAGES[0][2], 8))
    out.append(_case("blend", ops.blend, _their_blend, STAGES[0], 1, 8))
    return out


def _case(name: str, ours: Any, theirs: Any, size: tuple[int, int, int], gates: int, passes: int) -> Case:
    """passes: how many maps have to be read or written."""
    shape = "x".join(map(str, (BATCH, *size)))
    maps = 2 if name == "blend" else 1
    traffic = 4 * BATCH * math.prod(size) * passes
    arrays = partial(_arrays, size, maps, gates)
    return forward_backward(name, shape, ours, theirs, arrays, tuple(range(maps + 1)), bytes=traffic)


def _arrays(size: tuple[int, int, int], maps: int, gates: int) -> list[Any]:
    return [*(array(BATCH, *size, seed=2 * k) for k in range(maps)), array(BATCH, *size[:2], gates, seed=1)]


def _their_gate(x: Any, z: Any) -> Any:
    return x * z.sigmoid()


def _their_blend(x: Any, other: Any, z: Any) -> Any:
    s = z.sigmoid()
    return s * x + (1 - s) * other
