"""Activations, softmax and dropout, forward and backward."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from autograd import ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, STAGES, array

SHAPE = (BATCH, *STAGES[0])


def cases() -> list[Case]:
    """One full-resolution map."""
    n = math.prod(SHAPE)
    text = "x".join(map(str, SHAPE))
    names = ("relu", "sigmoid", "tanh", "silu", "gelu", "softmax", "dropout")
    return [
        forward_backward(
            name,
            text,
            partial(_ours, name),
            partial(_theirs, name),
            _arrays,
            (),
            bytes=5 * 4 * n,
            modes=("eager", "compile"),
            cupy=partial(_cupy, name) if name in ("relu", "sigmoid", "tanh", "softmax") else None,
        )
        for name in names
    ]


def _arrays() -> list[Any]:
    return [array(*SHAPE)]


def _ours(name: str, x: Any) -> Any:
    return getattr(ops, name)(x)


def _cupy(name: str, x: Any) -> Any:
    """(y, dx) for dy = 1, as CuPy's users write them."""
    import cupy

    if name == "relu":
        return cupy.maximum(x, 0), (x > 0).astype(x.dtype)
    if name == "softmax":
        e = cupy.exp(x - x.max(-1, keepdims=True))
        y = e / e.sum(-1, keepdims=True)
        return y, y * (1 - y.sum(-1, keepdims=True))
    y = cupy.tanh(x) if name == "tanh" else 1 / (1 + cupy.exp(-x))
    return y, 1 - y * y if name == "tanh" else y * (1 - y)


def _theirs(name: str, x: Any) -> Any:
    import torch
    import torch.nn.functional as F

    if name == "softmax":
        return x.softmax(-1)
    return getattr(torch, name)(x) if name in ("sigmoid", "tanh") else getattr(F, name)(x)
