"""AdamW and SGD with gradient clipping and a moving average of the weights, over flat vectors.

Source: Loshchilov & Hutter, arXiv 1711.05101; clipping by global norm, Pascanu et al., arXiv 1211.5063.
Bytes per parameter, ideally: 5 reads, 4 writes of float32 with the average, in one pass (plus 1 read for the norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernels.core.device import Array, array_module
from kernels.optimizer.layout import LINE


def squared_norm(g: Array) -> Array:
    """sum g^2 as float64: g (P,) -> 0-d array."""
    return (g.astype(array_module(g).float64) ** 2).sum()


def clip_factor(squared: Array, largest: float, dtype: Any) -> Array:
    """min(1, largest / sqrt(squared)) as a 0-d array of `dtype`, 1 where the norm is 0, NaN where it is NaN: the
    argument `clip` of `adamw_step`.
    """
    xp = array_module(squared)
    norm = xp.sqrt(squared)
    factor = xp.where(norm == 0, 1, xp.minimum(1, largest / xp.where(norm == 0, 1, norm)))
    return xp.asarray(factor, dtype)


def gather(parts: Sequence[Array | None], out: Array, offsets: Sequence[int], sizes: Sequence[int]) -> None:
    """out[offset : offset + size] = part, flattened; 0 for a part that is None. out (P,); numbers between the parts are
    left alone.
    """
    for part, offset, size in zip(parts, offsets, sizes, strict=True):
        out[offset : offset + size] = 0 if part is None else part.reshape(-1)


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
    clip: Any,
    average_decay: float,
) -> None:
    """One AdamW step, in place on p, m, v and `average`; all (P,).  `decay` (ceil(P / LINE),) is the weight decay of
    every LINE parameters (0: none), `clip` a number or a 0-d array of p's dtype.

    g' = clip g    m <- b1 m + (1 - b1) g'    v <- b2 v + (1 - b2) g'^2
    p <- p (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    average <- d average + (1 - d) p
    """
    xp = array_module(p)
    decay = xp.repeat(decay, LINE)[: p.size]
    g = g * clip
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mhat, vhat = m / (1 - beta1**step), v / (1 - beta2**step)
    p *= 1 - learning_rate * decay
    p -= learning_rate * mhat / (xp.sqrt(vhat) + eps)
    if average is not None:
        average += (1 - average_decay) * (p - average)


def sgd_step(
    p: Array,
    g: Array,
    buffer: Array | None,
    decay: Array,
    average: Array | None,
    *,
    learning_rate: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    clip: Any,
    average_decay: float,
) -> None:
    """One step of stochastic gradient descent, in place on p, buffer and `average`; all (P,), decay and clip as in
    `adamw_step`.

    d = clip g + decay p    without a buffer: p <- p - lr d
    buffer <- momentum buffer + (1 - dampening) d    p <- p - lr (d + momentum buffer if nesterov, else buffer)
    average <- a average + (1 - a) p
    """
    xp = array_module(p)
    d = g * clip + xp.repeat(decay, LINE)[: p.size] * p
    if buffer is not None:
        buffer *= momentum
        buffer += (1 - dampening) * d
        d = d + momentum * buffer if nesterov else buffer
    p -= learning_rate * d
    if average is not None:
        average += (1 - average_decay) * (p - average)
