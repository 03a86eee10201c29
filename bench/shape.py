"""Concatenation of channels, forward and backward, as in the inception block and the bottleneck."""

from __future__ import annotations

from functools import partial
from typing import Any

from autograd import Tensor, ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, STAGES, array


def cases() -> list[Case]:
    """Four quarters of the channels at full size and at the bottleneck."""
    out = []
    for h, w, c in (STAGES[0], STAGES[3]):
        shape = (BATCH, h, w, c // 4)
        out.append(
            forward_backward(
                "concat of 4",
                "x".join(map(str, shape)),
                _ours,
                _theirs,
                partial(_arrays, shape),
                range(4),
                bytes=64 * BATCH * h * w * c,
                cupy=_cupy,
            )
        )
    return out


def _arrays(shape: tuple[int, ...]) -> list[Any]:
    return [array(*shape, seed=k) for k in range(4)]


def _ours(*parts: Tensor) -> Tensor:
    return ops.concat(parts)


def _cupy(*parts: Any) -> Any:
    import cupy

    y = cupy.concatenate(parts, -1)
    return [cupy.ascontiguousarray(part) for part in cupy.split(cupy.ones_like(y), len(parts), -1)]


def _theirs(*parts: Any) -> Any:
    import torch

    return torch.cat(parts, 1)
