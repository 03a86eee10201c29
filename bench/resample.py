"""Average, adaptive and strip pooling and bilinear resizing, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

from autograd import Tensor, ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, array


def cases() -> list[Case]:
    """Strips and their upsampling at the bottleneck, a 2x bilinear upsampling at full size, global pooling."""
    table = [
        ("strips of rows", (8, 16, 256), partial(_pool, (4, None)), partial(_their_pool, (4, None))),
        ("strips of columns", (8, 16, 256), partial(_pool, (None, 4)), partial(_their_pool, (None, 4))),
        ("global pooling", (8, 16, 256), partial(_pool, 1), partial(_their_pool, 1)),
        ("resize strips back", (4, 16, 64), partial(_resize, (8, 16)), partial(_their_resize, (8, 16))),
        ("resize x2", (32, 64, 32), partial(_resize, (64, 128)), partial(_their_resize, (64, 128))),
    ]
    return [
        forward_backward(name, "x".join(map(str, (BATCH, *shape))), ours, theirs, partial(_arrays, shape))
        for name, shape, ours, theirs in table
    ]


def _arrays(shape: tuple[int, ...]) -> list[Any]:
    return [array(BATCH, *shape)]


def _pool(size: Any, x: Tensor) -> Tensor:
    return ops.adaptive_avg_pool2d(x, size)


def _their_pool(size: Any, x: Any) -> Any:
    import torch.nn.functional as F

    return F.adaptive_avg_pool2d(x, size)


def _resize(size: tuple[int, int], x: Tensor) -> Tensor:
    return ops.resize_bilinear(x, size)


def _their_resize(size: tuple[int, int], x: Any) -> Any:
    import torch.nn.functional as F

    return F.interpolate(x, size, mode="bilinear")
