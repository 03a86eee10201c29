"""Scaled dot-product attention, forward and backward."""

from __future__ import annotations

from typing import Any

from kernels import attention as kernels
from kernels.core.device import Array
from kernels.nn.checks import FLOATS, check_array, check_arrays, check_device, check_shape, real
from kernels.nn.layout import in_c_order


def attention(
    q: Array, k: Array, v: Array, *, mask: Array | None = None, scale: float | None = None
) -> tuple[Array, Array]:
    """(o, lse): softmax(scale q k^T + mask) v, and the logarithm of every row's sum, which the backward pass needs.

    S = scale q k^T + mask      lse = log sum_j e^S[..., j]      o = e^(S - lse) v

    q (N, heads, T, D), k (N, heads, T', D), v (N, heads, T', E), of one dtype, float16, float32 or float64 -> o
    (N, heads, T, E) of that dtype, lse (N, heads, T), of float32 for float16. mask broadcasts to (N, heads, T, T'):
    booleans keep where True, floats are added. scale defaults to 1 / sqrt(D). A row that keeps nothing has o = 0 and
    lse = inf.
    Raises TypeError for other dtypes and for arrays on two devices, ValueError for shapes that do not fit.
    CuPy had no such call. Source: Vaswani et al., arXiv 1706.03762.
    """
    name = "nn.attention"
    mask, scale = _checked(name, q, k, v, mask, scale)
    o, lse = kernels.attention_forward(q, k, v, mask, scale)
    return in_c_order(o), in_c_order(lse)


def attention_backward(
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    *,
    mask: Array | None = None,
    scale: float | None = None,
) -> tuple[Array, Array, Array]:
    """(dq, dk, dv): the gradients of attention; the mask gets none.

    P = e^(S - lse)    dv = P^T do    dS = P (do v^T - rowsum(do o))    dq = scale dS k    dk = scale dS^T q

    do (N, heads, T, E); q, k, v, mask and scale as attention's, o and lse as it returned them -> gradients of the
    shapes and the dtype of q, k and v. Raises TypeError and ValueError as attention, and for a do, o or lse of another
    shape or dtype.
    """
    name = "nn.attention_backward"
    mask, scale = _checked(name, q, k, v, mask, scale)
    check_arrays(name, q=q, do=do, o=o)
    shape = (*q.shape[:3], v.shape[3])
    for argument, array in (("do", do), ("o", o)):
        check_shape(name, argument, array, shape, f"q {q.shape} and v {v.shape}")
    check_array(name, "lse", lse, ("float32" if q.dtype.name == "float16" else q.dtype.name,))
    check_device(name, "lse", lse, "q", q)
    check_shape(name, "lse", lse, q.shape[:3], f"q {q.shape}")
    dq, dk, dv = kernels.attention_backward(do, q, k, v, o, lse, mask, scale)
    return in_c_order(dq), in_c_order(dk), in_c_order(dv)


def _checked(name: str, q: Array, k: Array, v: Array, mask: Any, scale: Any) -> tuple[Array | None, float]:
    """The mask, a float one in q's dtype, and the scale."""
    check_arrays(name, q=q, k=k, v=v)
    for argument, array, axes in (
        ("q", q, "(N, heads, T, D)"),
        ("k", k, "(N, heads, T', D)"),
        ("v", v, "(N, heads, T', E)"),
    ):
        if array.ndim != 4 or 0 in array.shape[(3 if array is q else 2) :]:
            raise ValueError(f"{name}: {argument}: got shape {array.shape}, expected {axes} with T', D and E above 0")
    check_shape(name, "k", k, (*q.shape[:2], k.shape[2], q.shape[3]), f"q {q.shape}")
    check_shape(name, "v", v, (*k.shape[:3], v.shape[3]), f"k {k.shape}")
    if mask is not None:
        check_array(name, "mask", mask, ("bool", *FLOATS))
        check_device(name, "mask", mask, "q", q)
        full = (*q.shape[:3], k.shape[2])
        pairs = zip(mask.shape[::-1], full[::-1], strict=False)
        if mask.ndim > 4 or any(size not in (1, whole) for size, whole in pairs):
            raise ValueError(f"{name}: mask: got shape {mask.shape}, expected one that broadcasts to {full}")
        if mask.dtype != bool:
            mask = mask.astype(q.dtype.newbyteorder("="), copy=False)
    return mask, q.shape[3] ** -0.5 if scale is None else real(name, "scale", scale)
