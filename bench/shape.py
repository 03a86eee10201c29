"""Concatenation of channels, forward and backward, as in the inception block and the bottleneck."""

from __future__ import annotations

from functools import partial
from typing import Any

from autograd import Tensor, ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, array


def cases() -> list[Case]:
    """Four quarters of the channels at full size and at the bottleneck."""
    out = []
    for h, w, c in ((64, 128, 32), (8, 16, 256)):
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
            )
        )
    return out


def _arrays(shape: tuple[int, ...]) -> list[Any]:
    return [array(*shape, seed=k) for k in range(4)]


def _ours(*parts: Tensor) -> Tensor:
    return ops.concat(parts)


def _theirs(*parts: Any) -> Any:
    import torch

    return torch.cat(parts, 1)
