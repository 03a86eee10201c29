"""Scaled dot-product attention and polarized self-attention."""

from __future__ import annotations

import math

from autograd.checks import check_floats
from autograd.function import Function
from autograd.operands import Operand
from autograd.tensor import Tensor, as_array
from kernels import attention as kernels
from kernels.core.device import Array, to_device

__all__ = ["polarized_channel", "polarized_spatial", "scaled_dot_product_attention"]


class Attention(Function):
    """O = P V, P = softmax(scale Q K^T + mask);  backward computes P again.

    dV = P^T dO    dP = dO V^T    dS = P (dP - rowsum(dO O))    dQ = scale dS K    dK = scale dS^T Q
    """

    def __init__(self, mask: Array | None, scale: float) -> None:
        super().__init__()
        self.mask, self.scale = mask, scale

    def forward(self, q: Array, k: Array, v: Array) -> Array:
        o, lse = kernels.attention_forward(q, k, v, self.mask, self.scale)
        self.save(q, k, v, o, lse)
        return o

    def backward(self, do: Array) -> tuple[Array | None, ...]:
        return kernels.attention_backward(do, *self.saved, self.mask, self.scale)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        q, k, v = inputs
        return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])

    def backward_flops(self, forward: int) -> int:
        q, k, v, *_ = self.saved  # five products: P again, dP and dV, dQ and dK
        return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])


class PolarizedChannel(Function):
    """y = x s[c]: one gate per image and channel from an attention-weighted mean of the pixels.

    a = softmax_L(x wq)    u = (a^T x) wv + bv    s = sigmoid(layer_norm(u wz + bz)).  The gradient is in
    kernels/attention/reference.py.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, *arrays: Array) -> Array:
        self.save(*arrays)
        return kernels.polarized_channel_forward(*arrays, self.eps)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return kernels.polarized_channel_backward(dy, *self.saved, self.eps)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 5 * inputs[0].size + 4 * inputs[0].shape[0] * inputs[2].size


class PolarizedSpatial(Function):
    """y = x s[l]: one gate per pixel from a softmax over mean features.

    b = softmax_h(mean_L(x) wq + bq)    s = sigmoid(x (wv b) + <bv, b>).  The gradient is in
    kernels/attention/reference.py.
    """

    def forward(self, *arrays: Array) -> Array:
        self.save(*arrays)
        return kernels.polarized_spatial_forward(*arrays)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return kernels.polarized_spatial_backward(dy, *self.saved)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 4 * inputs[0].size + 4 * inputs[0].shape[0] * inputs[1].size


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Operand | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale q k^T + mask) v: q (N, heads, T, d), k (N, heads, T', d), v (N, heads, T', e) -> (N, heads, T, e).

    mask broadcasts to (N, heads, T, T'): boolean keeps where True, float (of any width) is added; it gets no gradient.
    scale defaults to 1 / sqrt(d). Raises TypeError for a mask that is neither boolean nor float and for q, k, v of
    different dtypes, ValueError where shapes do not fit.
    """
    name = "scaled_dot_product_attention"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"{name}: q {q.shape}, k {k.shape}, v {v.shape}; expected 4 axes (N, heads, T, d) each")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"{name}: q {q.shape}, k {k.shape}, v {v.shape} do not fit (N, heads, T, d), (N, heads, T', d), (N, "
            "heads, T', e)"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"{name}: q is {q.dtype}, k is {k.dtype} and v is {v.dtype}, expected one dtype")
    check_floats(name, q.dtype, "q")
    if not (k.shape[2] and q.shape[3] and v.shape[3]):
        raise ValueError(
            f"{name}: q {q.shape}, k {k.shape}, v {v.shape}; expected at least one key, and vectors of at least one "
            "entry"
        )
    array = None if mask is None else to_device(as_array(mask), q.device)
    if array is not None and array.dtype.kind not in "bf":
        raise TypeError(f"{name}: the mask is {array.dtype}, expected bool (True: keep) or float (added to the scores)")
    full = (*q.shape[:3], k.shape[2])
    if array is not None and (
        array.ndim > 4 or any(m not in (1, f) for m, f in zip(array.shape[::-1], full[::-1], strict=False))
    ):
        raise ValueError(f"{name}: the mask has shape {array.shape}, which does not broadcast to {full}")
    if array is not None and array.dtype.kind == "f":
        array = array.astype(q.dtype)
    return Attention(array, q.shape[3] ** -0.5 if scale is None else float(scale))(q, k, v)


def polarized_channel(
    x: Tensor,
    wq: Tensor,
    wv: Tensor,
    bv: Tensor,
    wz: Tensor,
    bz: Tensor,
    gain: Tensor,
    offset: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """x s, one gate per image and channel: the channel branch of polarized self-attention.

        a = softmax_L(x wq)    s = sigmoid(gain standardised(((a^T x) wv + bv) wz + bz) + offset)

    x (N, L, C), wq (C,), wv (C, h), bv (h,), wz (h, C), bz, gain, offset (C,) -> (N, L, C).  Source: Liu et al., arXiv
    2107.00782.
    """
    c, h = x.shape[-1], wv.shape[-1]
    _check(
        "polarized_channel",
        x,
        wq=(wq, (c,)),
        wv=(wv, (c, h)),
        bv=(bv, (h,)),
        wz=(wz, (h, c)),
        bz=(bz, (c,)),
        gain=(gain, (c,)),
        offset=(offset, (c,)),
    )
    return PolarizedChannel(eps)(x, wq, wv, bv, wz, bz, gain, offset)


def polarized_spatial(x: Tensor, wq: Tensor, bq: Tensor, wv: Tensor, bv: Tensor) -> Tensor:
    """x s, one gate per pixel: the spatial branch of polarized self-attention.

        b = softmax_h(mean_L(x) wq + bq)    s = sigmoid((x wv + bv) b)

    x (N, L, C), wq, wv (C, h), bq, bv (h,) -> (N, L, C).  Source: Liu et al., arXiv 2107.00782.
    """
    c, h = x.shape[-1], wq.shape[-1]
    _check("polarized_spatial", x, wq=(wq, (c, h)), bq=(bq, (h,)), wv=(wv, (c, h)), bv=(bv, (h,)))
    return PolarizedSpatial()(x, wq, bq, wv, bv)


def _check(name: str, x: Tensor, **parameters: tuple[Tensor, tuple[int, ...]]) -> None:
    if x.ndim != 3:
        raise ValueError(f"{name}: x has shape {x.shape}, expected 3 axes (N, L, C)")
    check_floats(name, x.dtype)
    for key, (tensor, shape) in parameters.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: {key} has shape {tensor.shape}, expected {shape} for x {x.shape}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}: {key} is {tensor.dtype} but x is {x.dtype}")
