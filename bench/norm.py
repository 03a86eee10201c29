"""Batch norm + ReLU, with and without residual, forward and backward; layer norm."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from autograd import Tensor, ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, STAGES, array, ours


def cases() -> list[Case]:
    """Batch norm at every stage; layer norm at the bottleneck."""
    out = []
    for h, w, c in STAGES:
        for residual in (False, True):
            n = BATCH * h * w * c
            # forward: 2 reads, 1 write; backward: 4 reads, 1 write; the residual: 1 and 1
            traffic = 4 * n * (3 + residual + 5 + residual)
            name = "batch_norm relu" + (" residual" if residual else "")
            data = partial(_arrays, h, w, c, residual)
            images = (0, 3) if residual else (0,)
            out.append(
                forward_backward(name, f"{BATCH}x{h}x{w}x{c}", _ours, _theirs, data, images, bytes=traffic, jax=_jax)
            )
    h, w, c = STAGES[3]
    data = partial(_arrays, h, w, c, False)
    text = f"{BATCH}x{h}x{w}x{c}"
    modes = ("eager", "compile")
    out.append(
        forward_backward(
            "layer_norm", text, ops.layer_norm, _their_layer_norm, data, images=(), modes=modes, jax=_jax_layer_norm
        )
    )
    return out


def _arrays(h: int, w: int, c: int, residual: bool) -> list[np.ndarray]:
    x = array(BATCH, h, w, c)
    return [x, np.ones(c, np.float32), np.zeros(c, np.float32), *([array(BATCH, h, w, c, seed=1)] if residual else [])]


def _ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    mean, var = (Tensor(ours(make(weight.size, np.float32))) for make in (np.zeros, np.ones))
    return ops.batch_norm(x, weight, bias, mean, var, training=True, residual=residual, activation="relu")


def _theirs(x: Any, weight: Any, bias: Any, residual: Any = None) -> Any:
    import torch
    import torch.nn.functional as F

    mean = torch.zeros_like(weight)
    var = torch.ones_like(weight)
    y = F.batch_norm(x, mean, var, weight, bias, training=True)
    return F.relu(y if residual is None else y + residual)


def _their_layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    import torch.nn.functional as F

    return F.layer_norm(x, weight.shape, weight, bias)


def _jax(*arrays: Any) -> Any:
    from bench.jax_twin import batch_norm_relu

    return batch_norm_relu(*arrays)


def _jax_layer_norm(*arrays: Any) -> Any:
    from bench.jax_twin import layer_norm

    return layer_norm(*arrays)
