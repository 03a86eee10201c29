"""Batch normalisation (with optional residual addition and ReLU) and layer normalisation.

Batch norm treats x (N, H, W, C) as M = N H W rows of C channels. Statistics are float64 vectors of length C.
Bytes per element, ideally: statistics 1 read; forward 1 read, 1 write; backward 2 reads for the sums, 2 reads and 1
    write for dx.
Source: Ioffe & Szegedy, arXiv 1502.03167; Ba, Kiros & Hinton, arXiv 1607.06450.
"""

from __future__ import annotations

from kernels.core.device import Array, array_module
from kernels.core.reduction import halves_in_float32, sum_pixels, wide_type
from kernels.norm.records import SavedBatchNorm


def batch_norm_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance per channel, float64, in two passes: x (..., C) -> (C,), (C,)."""
    rows = x.size // x.shape[-1]
    x = x.astype(wide_type(x.dtype), copy=False)
    mean = sum_pixels(x) / rows
    return mean, sum_pixels((x - mean.astype(x.dtype)) ** 2) / rows


def batch_norm_running(
    running_mean: Array, running_var: Array, mean: Array, variance: Array, rows: int, momentum: float
) -> None:
    """running = (1 - momentum) running + momentum value in place, the value of the variance being the unbiased one:
    variance rows / (rows - 1).

    running + momentum (value - running) would give NaN for two infinities of one sign.
    """
    for running, value in ((running_mean, mean), (running_var, variance * (rows / (rows - 1)))):
        wide = wide_type(running.dtype)
        running[...] = (1 - momentum) * running.astype(wide, copy=False) + momentum * value.astype(wide)


def batch_norm_inverse(variance: Array, eps: float) -> Array:
    """1 / sqrt(variance + eps), float64."""
    return 1 / array_module(variance).sqrt(variance + eps)


def batch_norm_forward(
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    inverse: Array,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, Array | None]:
    """y = act(xhat weight + bias + residual), xhat = (x - mean) inverse, inverse = 1 / sqrt(var + eps).  act: None or
    'relu'.

    y has x's dtype (float16 is computed in float32 and rounded once); the vectors may be of any float type.

    Also returns the mask from which backward knows where the ReLU was open, in the implementation's own form (here:
    whether not y <= 0, or None).
    """
    dtype = x.dtype
    x = x.astype(wide_type(x.dtype), copy=False)
    y = (x - mean.astype(x.dtype)) * (weight * inverse).astype(x.dtype) + bias.astype(x.dtype, copy=False)
    if residual is not None:
        y = y + residual
    if activation is None:
        return y.astype(dtype, copy=False), None
    return y.clip(0, None).astype(dtype, copy=False), ~(y <= 0)


def batch_norm_backward(
    dy: Array,
    x: Array,
    norm: SavedBatchNorm,
    training: bool,
    with_residual: bool,
    donated: bool = False,
) -> tuple[Array, Array, Array, Array | None]:
    """(dx, dweight, dbias, dresidual), of the dtypes of x, weight, bias and dy.
    donated: dx may be written over dy (it isn't, here).

    g = dy where the ReLU was open      dresidual = g      dbias = sum g      dweight = sum g xhat
    dx = weight inverse (g - (dbias + xhat dweight) / M)    in training (mean and variance depend on x)
    dx = weight inverse g                                   in evaluation
    """
    xp = array_module(x)
    mask, weight, bias, mean, inverse, activation = norm
    if activation is not None and (mask is None or mask.shape != x.shape):
        raise ValueError(
            "batch_norm_backward: the mask comes from another implementation; run forward and backward under the same "
            "use_kernels"
        )
    g = dy if activation is None else xp.where(mask, dy, xp.zeros((), dy.dtype))
    dtype = x.dtype
    dresidual = g if with_residual else None
    x, g = (a.astype(wide_type(a.dtype), copy=False) for a in (x, g))
    xhat = (x - mean.astype(x.dtype)) * inverse.astype(x.dtype)
    dbias = sum_pixels(g)
    dweight = sum_pixels(g * xhat)
    scale = (weight * inverse).astype(x.dtype)
    if training:
        rows = x.size // x.shape[-1]
        dx = scale * (g - ((dbias / rows).astype(x.dtype) + xhat * (dweight / rows).astype(x.dtype)))
    else:
        dx = scale * g
    return dx.astype(dtype, copy=False), dweight.astype(weight.dtype), dbias.astype(bias.dtype), dresidual


@halves_in_float32
def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """y = xhat weight + bias, xhat = (x - mean) / sqrt(var + eps), over the last axis."""
    return _xhat(x, eps)[0] * weight + bias


@halves_in_float32
def layer_norm_backward(dy: Array, x: Array, weight: Array, eps: float) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias): with g = dy weight, dx = inverse (g - mean(g) - xhat mean(g xhat))."""
    xhat, inverse = _xhat(x, eps)
    g = dy * weight
    dx = inverse * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    return dx, sum_pixels(dy * xhat).astype(x.dtype), sum_pixels(dy).astype(x.dtype)


def _xhat(x: Array, eps: float) -> tuple[Array, Array]:
    centred = x - x.mean(-1, keepdims=True)
    inverse = 1 / array_module(x).sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return centred * inverse, inverse
