"""Max pooling, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

from autograd import Tensor, ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, STAGES, array


def cases() -> list[Case]:
    """2x2 stride 2 between the stages, 3x3 stride 1 in the inception blocks."""
    out = []
    for h, w, c in STAGES[:3]:
        for name, k, stride, pad in (("2x2", 2, 2, 0), ("3x3 s1", 3, 1, 1)):
            size = BATCH * h * w * c
            out_size = BATCH * h * w * c // stride**2
            traffic = 2 * 4 * (size + out_size) + 2 * out_size
            text = f"{BATCH}x{h}x{w}x{c}"
            data = partial(_arrays, h, w, c)
            sides = [partial(side, k, stride, pad) for side in (_ours, _theirs, _jax)]
            out.append(
                forward_backward(f"max_pool2d {name}", text, sides[0], sides[1], data, bytes=traffic, jax=sides[2])
            )
    return out


def _arrays(h: int, w: int, c: int) -> list[Any]:
    return [array(BATCH, h, w, c)]


def _ours(k: int, stride: int, pad: int, x: Tensor) -> Tensor:
    return ops.max_pool2d(x, k, stride, pad)


def _theirs(k: int, stride: int, pad: int, x: Any) -> Any:
    import torch.nn.functional as F

    return F.max_pool2d(x, k, stride, pad)


def _jax(k: int, stride: int, pad: int, x: Any) -> Any:
    from bench.jax_twin import max_pool2d

    return max_pool2d(x, k, stride, pad)
