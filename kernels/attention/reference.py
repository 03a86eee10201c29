"""Scaled dot-product attention and the two branches of polarized self-attention.

Dot-product: q, k (N, heads, T, d), v (N, heads, T, e).  FLOPs: forward 2 T T' (d + e) per head, backward 2.5 times
    that.
Polarized: x (N, L, C) with L = H W pixels; each branch is re-associated so that it costs about 4 C L operations
instead of C^2 L (the pooling commutes with the 1x1 convolution), i.e. it reads x and writes y and little else.
Source: Vaswani et al., arXiv 1706.03762; Liu et al., arXiv 2107.00782.
"""

from __future__ import annotations

from kernels.core.device import Array, array_module
from kernels.core.reduction import halves_in_float32, wide_type
from kernels.norm.reference import layer_norm_backward, layer_norm_forward
from kernels.pointwise.reference import sigmoid, softmax_backward, softmax_forward


def attention_scores(q: Array, k: Array, mask: Array | None, scale: float) -> Array:
    """S = scale q k^T + mask (N, heads, T, T'). A boolean mask keeps where True (-inf elsewhere), a float mask is
    added.
    """
    xp = array_module(q)
    s = scale * (q @ k.swapaxes(-1, -2))
    if mask is not None:
        s = xp.where(mask, s, xp.asarray(-xp.inf, s.dtype)) if mask.dtype == bool else s + mask
    return s


def attention_forward(q: Array, k: Array, v: Array, mask: Array | None, scale: float) -> tuple[Array, Array]:
    """(O, L): O = P V with P = softmax(S); L (N, heads, T) = log sum exp S, so that P = exp(S - L).

    A row with nothing to keep has P = 0 and L = inf. float16 is computed in float32, and L stays so.
    """
    xp = array_module(q)
    dtype = q.dtype
    q, k, v = (a.astype(wide_type(a.dtype), copy=False) for a in (q, k, v))
    s = attention_scores(q, k, mask, scale)
    top = s.max(-1, keepdims=True)
    top = xp.where(top == -xp.inf, xp.zeros((), s.dtype), top)
    e = xp.exp(s - top)
    total = e.sum(-1, keepdims=True)
    some = total != 0
    total = xp.where(some, total, xp.ones((), s.dtype))
    return ((e / total) @ v).astype(dtype, copy=False), xp.where(
        some, top + xp.log(total), xp.asarray(xp.inf, s.dtype)
    )[..., 0]


def attention_backward(
    do: Array, q: Array, k: Array, v: Array, o: Array, lse: Array, mask: Array | None, scale: float
) -> tuple[Array, Array, Array]:
    """(dq, dk, dv), with P = exp(S - L) computed again:

    dV = P^T dO     dP = dO V^T     dS = P (dP - rowsum(dO O))     dQ = scale dS K     dK = scale dS^T Q
    """
    dtype = q.dtype
    do, q, k, v, o = (a.astype(wide_type(a.dtype), copy=False) for a in (do, q, k, v, o))
    p = array_module(q).exp(attention_scores(q, k, mask, scale) - lse[..., None])
    ds = scale * p * (do @ v.swapaxes(-1, -2) - (do * o).sum(-1, keepdims=True))
    gradients = ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ do
    return tuple(g.astype(dtype, copy=False) for g in gradients)  # type: ignore[return-value]


@halves_in_float32
def polarized_channel_forward(
    x: Array, wq: Array, wv: Array, bv: Array, wz: Array, bz: Array, gain: Array, offset: Array, eps: float
) -> Array:
    """Channel branch: y = x * s, one gate s[c] per image and channel.

    a = softmax_L(x wq)    u = (a^T x) wv + bv    s = sigmoid(layer_norm(u wz + bz) gain + offset)
    Shapes: x (N, L, C), wq (C,), wv (C, h), wz (h, C).
    """
    return x * _channel_gates(x, wq, wv, bv, wz, bz, gain, offset, eps)[-1][:, None]


def _channel_gates(
    x: Array, wq: Array, wv: Array, bv: Array, wz: Array, bz: Array, gain: Array, offset: Array, eps: float
) -> tuple[Array, Array, Array, Array, Array]:
    a = softmax_forward(x @ wq, 1)  # (N, L)
    pooled = (a[:, None] @ x)[:, 0]  # (N, 1, L) @ (N, L, C) -> (N, C)
    u = pooled @ wv + bv
    o = u @ wz + bz
    return a, pooled, u, o, sigmoid(layer_norm_forward(o, gain, offset, eps))


@halves_in_float32
def polarized_channel_backward(
    dy: Array, x: Array, wq: Array, wv: Array, bv: Array, wz: Array, bz: Array, gain: Array, offset: Array, eps: float
) -> tuple[Array, ...]:
    """(dx, dwq, dwv, dbv, dwz, dbz, dgain, doffset):

    ds = sum_L dy x    do = layer norm's gradient of ds s (1 - s)    dwz = u^T do    du = do wz^T    dwv = pooled^T du
    dpooled = du wv^T    da = x dpooled    dl = a (da - <a, da>)    dwq = sum x dl    dx = s dy + a dpooled^T + dl wq^T
    """
    a, pooled, u, o, s = _channel_gates(x, wq, wv, bv, wz, bz, gain, offset, eps)
    ds = (dy * x).sum(1)  # (N, C)
    do, dgain, doffset = layer_norm_backward(ds * s * (1 - s), o, gain, eps)
    du = do @ wz.T
    dpooled = du @ wv.T
    da = (x @ dpooled[:, :, None])[:, :, 0]  # (N, L, C) @ (N, C, 1) -> (N, L)
    dl = softmax_backward(da, a, 1)
    dx = dy * s[:, None] + a[:, :, None] * dpooled[:, None] + dl[:, :, None] * wq
    dwq = (dl[:, None] @ x)[:, 0].sum(0)
    return dx, dwq, pooled.T @ du, du.sum(0), u.T @ do, do.sum(0), dgain, doffset


@halves_in_float32
def polarized_spatial_forward(x: Array, wq: Array, bq: Array, wv: Array, bv: Array) -> Array:
    """Spatial branch: y = x * s, one gate s[l] per pixel.

    b = softmax_h(mean_L(x) wq + bq)    c = wv b    s = sigmoid(x c + <bv, b>).  Shapes: x (N, L, C), wq (C, h), wv (C,
    h).
    """
    return x * _pixel_gates(x, wq, bq, wv, bv)[-1][:, :, None]


def _pixel_gates(x: Array, wq: Array, bq: Array, wv: Array, bv: Array) -> tuple[Array, Array, Array, Array]:
    mean = x.mean(1)  # (N, C)
    b = softmax_forward(mean @ wq + bq, 1)  # (N, h)
    c = b @ wv.T  # (N, C)
    return mean, b, c, sigmoid((x @ c[:, :, None])[:, :, 0] + (b @ bv)[:, None])


@halves_in_float32
def polarized_spatial_backward(dy: Array, x: Array, wq: Array, bq: Array, wv: Array, bv: Array) -> tuple[Array, ...]:
    """(dx, dwq, dbq, dwv, dbv):

    do = s (1 - s) sum_C dy x    dc = sum_L x do    dwv = dc^T b    dbv = sum do b    db = dc wv + bv sum do
    dl = b (db - <b, db>)    dwq = mean^T dl    dbq = sum dl    dx = s dy + do c^T + (dl wq^T) / L
    """
    mean, b, c, s = _pixel_gates(x, wq, bq, wv, bv)
    do = (dy * x).sum(2) * s * (1 - s)  # (N, L)
    total = do.sum(1, keepdims=True)  # (N, 1)
    dc = (do[:, None] @ x)[:, 0]  # (N, 1, L) @ (N, L, C) -> (N, C)
    dl = softmax_backward(dc @ wv + total * bv, b, 1)
    dx = dy * s[:, :, None] + do[:, :, None] * c[:, None] + (dl @ wq.T)[:, None] / x.shape[1]
    return dx, mean.T @ dl, dl.sum(0), dc.T @ b, (total * b).sum(0)
