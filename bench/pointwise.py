"""Activations, softmax and dropout, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

from autograd import ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, array

SHAPE = (BATCH, 64, 128, 32)


def cases() -> list[Case]:
    """One full-resolution map."""
    n = BATCH * 64 * 128 * 32
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
        )
        for name in names
    ]


def _arrays() -> list[Any]:
    return [array(*SHAPE)]


def _ours(name: str, x: Any) -> Any:
    return getattr(ops, name)(x)


def _theirs(name: str, x: Any) -> Any:
    import torch
    import torch.nn.functional as F

    if name == "softmax":
        return x.softmax(-1)
    return getattr(torch, name)(x) if name in ("sigmoid", "tanh") else getattr(F, name)(x)
