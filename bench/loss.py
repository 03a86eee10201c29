"""The combined loss with all four terms, forward and backward, and its terms alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from autograd import Tensor, ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, STAGES, array

WEIGHTS = (0.0, 0.3, 0.4, 0.4, 2.9)


def cases() -> list[Case]:
    """Full-size logits of 5 classes, batch 16 and 32."""
    out = []
    for n in (BATCH, 2 * BATCH):
        h, w, _ = STAGES[0]
        pixels = n * h * w
        text = f"{n}x{h}x{w}x5"
        out.append(
            forward_backward(
                "combined loss", text, _ours, _theirs, partial(_arrays, n), (0,), bytes=pixels * (3 * 20 + 2), jax=_jax
            )
        )
    return out


def _arrays(n: int) -> list[np.ndarray]:
    h, w, _ = STAGES[0]
    return [array(n, h, w, 5), np.random.default_rng(0).integers(0, 5, (n, h, w))]


def _ours(logits: Tensor, labels: Tensor) -> Tensor:
    return ops.combined_loss(logits, labels, WEIGHTS, background="mask")


def _theirs(logits: Any, labels: Any) -> Any:
    import torch

    from bench.twin import combined_loss

    return combined_loss(logits, labels, torch.tensor(WEIGHTS, device=logits.device))


def _jax(logits: Any, labels: Any) -> Any:
    from bench.jax_twin import combined_loss

    return combined_loss(logits, labels, np.array(WEIGHTS, np.float32))
