"""AdamW with gradient clipping and a moving average of the weights, over flat vectors.

Source: Loshchilov & Hutter, arXiv 1711.05101; clipping by global norm, Pascanu et al., arXiv 1211.5063.
Bytes per parameter, ideally: 5 reads, 4 writes of float32 with the average, in one pass (plus 1 read for the norm).
"""

from __future__ import annotations

from kernels.core.device import Array, array_module


def squared_norm(g: Array) -> Array:
    """sum g^2 as float64: g (P,) -> 0-d array."""
    return (g.astype(array_module(g).float64) ** 2).sum()


def adamw_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    decay: Array,
    average: Array | None,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    clip: float,
    average_decay: float,
) -> None:
    """One AdamW step, in place on p, m, v and `average`; all (P,).  `decay` is the weight decay per parameter (0: none).

    g' = clip g    m <- b1 m + (1 - b1) g'    v <- b2 v + (1 - b2) g'^2
    p <- p (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    average <- d average + (1 - d) p
    """
    xp = array_module(p)
    g = g * clip
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mhat, vhat = m / (1 - beta1**step), v / (1 - beta2**step)
    p *= 1 - learning_rate * decay
    p -= learning_rate * mhat / (xp.sqrt(vhat) + eps)
    if average is not None:
        average += (1 - average_decay) * (p - average)
