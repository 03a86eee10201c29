"""Rows: normalisation and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autograd import Tensor, ops

from .choices import Choices
from .operands import (
    Case,
    array,
    broadcastable,
    case,
    dtype,
    finite_cotangent,
    length,
    other_dtype,
    palette,
    shape,
    tensor,
)
from .table import Difference, Row
from .windows import MAPS, NOT_FINITE, conv2d, conv_arguments

F = torch.nn.functional
MEAN = "values less their mean, and the gradient less its part along them"


def _vectors(d: Choices, channels: int, name: str) -> list[Any]:
    """gain, offset, running mean, running variance."""
    made = [tensor(d, (channels + d.chance(1),), other_dtype(d, name, 1), palette(d, 8)) for _ in range(2)]
    mean = array(d, (channels,), name, "normal")
    return [*made, mean, array(d, (channels,), name, "positive")]


def _batch_norm(d: Choices) -> Case:
    name, dims = dtype(d, 0, 6), (*shape(d, 1, 3), length(d, 20 if d.chance(30) else 5))
    x = tensor(d, dims, name, palette(d, 15))
    residual = tensor(d, dims, name) if d.chance(25) else None
    settings = {"training": d.chance(65), "momentum": d.pick((0.1, 0.5, 1.0, 0.0)), "eps": d.pick((1e-5, 1e-3, 0.1))}
    return case(d, [x, *_vectors(d, dims[-1], name), residual], **settings, activation="relu" if d.chance(25) else None)


def _our_batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any, **settings: Any) -> Any:
    running = Tensor(np.array(mean)), Tensor(np.array(var))
    return ops.batch_norm(x, weight, bias, *running, residual=residual, **settings), *running


def torch_batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    residual: Any,
    training: bool,
    momentum: float,
    eps: float,
    activation: Any,
) -> Any:
    """PyTorch's over the last axis, and what became of the running statistics."""
    mean, var = mean.clone(), var.clone()
    y = F.batch_norm(x.movedim(-1, 1), mean, var, weight, bias, training, momentum, eps).movedim(1, -1)
    y = y if residual is None else y + residual
    return (y.relu() if activation else y), mean, var


def _conv_batch_norm(d: Choices) -> Case:
    (x, w, _), settings = conv_arguments(d)
    x, w = (tensor(d, o.values.shape, "float64" if d.chance(30) else "float32", palette(d, 6)) for o in (x, w))
    vectors = _vectors(d, w.values.shape[3], w.values.dtype.name)
    return case(
        d,
        [x, w, *vectors],
        momentum=0.1,
        eps=d.pick((1e-5, 1e-3)),
        activation="relu" if d.chance(50) else None,
        **settings,
    )


def _our_conv_batch_norm(x: Any, w: Any, weight: Any, bias: Any, mean: Any, var: Any, **settings: Any) -> Any:
    running = Tensor(np.array(mean)), Tensor(np.array(var))
    return ops.conv2d_batch_norm(x, w, weight, bias, *running, **settings), *running


def _torch_conv_batch_norm(
    x: Any,
    w: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    momentum: float,
    eps: float,
    activation: Any,
    **settings: Any,
) -> Any:
    return torch_batch_norm(
        conv2d(x, w, None, **settings), weight, bias, mean, var, None, True, momentum, eps, activation
    )


def _layer_norm(d: Choices) -> Case:
    name, dims = dtype(d, 2), (*shape(d, 0, 3), length(d, 40 if d.chance(30) else 6))
    vectors = [tensor(d, (dims[-1] + d.chance(1),), other_dtype(d, name, 1), palette(d, 8)) for _ in range(2)]
    return case(d, [tensor(d, dims, name, palette(d, 15)), *vectors], eps=d.pick((1e-5, 1e-3, 0.1)))


def _mask(d: Choices, full: tuple[int, ...], name: str) -> Any:
    k = d.integer(0, 9)
    if k < 4:
        return None
    dims = broadcastable(d, full)
    if k < 7:
        return array(d, dims, "bool")
    return array(d, dims, d.pick(("int64", "uint8", "float64")) if d.chance(10) else name, palette(d, 10))


def _attention(d: Choices) -> Case:
    name = dtype(d, 0, 6)
    n, heads, t, s, width, wide = (
        length(d, 3),
        length(d, 3),
        length(d, 9),
        length(d, 9),
        length(d, 17 if d.chance(20) else 5),
        length(d, 5),
    )
    q, k, v = (
        tensor(d, (n, heads, rows, columns), name, palette(d, 8))
        for rows, columns in ((t, width), (s, width), (s, wide))
    )
    return case(d, [q, k, v, _mask(d, (n, heads, t, s), name)], scale=d.pick((None, None, 1.0, 0.3, 0.0, -1.0)))


def _torch_attention(q: Any, k: Any, v: Any, mask: Any, scale: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _gain_is_infinite(c: Case) -> bool:
    """Whether a gain is: the operand behind x, and behind the filter if there is one."""
    gain = c.operands[2 if "stride" in c.settings else 1]
    return gain is not None and bool(np.isinf(gain.values).any())


def _slope_underflows(x: np.ndarray, gain: np.ndarray) -> bool:
    if gain.shape != x.shape[-1:] or not x.size or x.dtype == np.float64:
        return False
    with np.errstate(all="ignore"):
        slope = np.abs(gain.astype(np.float64)) / x.reshape(-1, x.shape[-1]).astype(np.float64).var(0)
    return bool(((slope > 0) & (slope < np.finfo(np.float32).smallest_normal)).any())


def _scores(c: Case) -> np.ndarray:
    """scale q k^T, and a float mask, in float32."""
    q, k, mask = (None if o is None else o.values for o in (*c.operands[:2], c.operands[3]))
    scale = q.shape[-1] ** -0.5 if c.settings["scale"] is None else c.settings["scale"]
    with np.errstate(all="ignore"):
        s = np.float32(scale) * (q.astype(np.float32) @ k.swapaxes(-1, -2).astype(np.float32))
        return s + mask if mask is not None and mask.dtype != bool and _fits(mask, s) else s


def _kept(c: Case) -> np.ndarray:
    """Which scores a boolean mask keeps."""
    mask, s = c.operands[3], _scores(c)
    return np.broadcast_to(
        mask.values if mask is not None and mask.values.dtype == bool and _fits(mask.values, s) else True, s.shape
    )


def _fits(mask: np.ndarray, s: np.ndarray) -> bool:
    return mask.ndim <= 4 and all(m in (1, n) for m, n in zip(mask.shape[::-1], s.shape[::-1], strict=False))


OTHER_VECTORS = Difference(
    "batch norm with a gain or offset of another floating dtype",
    "they are converted to that of x; PyTorch takes float32 for float16 only",
    "allow",
    lambda c: len({o.values.dtype for o in c.operands if o is not None}) > 1,
)
NO_STATISTICS = Difference(
    "batch norm in training over no values",
    "there are no statistics to take; PyTorch makes the running ones NaN",
    "refuse",
    lambda c: c.settings["training"] and 0 in c.operands[0].values.shape[:-1],
)
INFINITE_GAIN = Difference(
    "norms with an infinite gain",
    "gain times normalised value, so that it is infinite; PyTorch's CPU kernels compute x a + (b - mean a), NaN, and "
    "differ in the order of the"
    " gradient's terms, among which infinities cancel",
    "infinite",
    lambda c: c.settings.get("activation") is None and _gain_is_infinite(c),
)
INFINITE_GAIN_RELU = Difference(
    "batch norm with an infinite gain, and a ReLU",
    "the ReLU is closed for our -infinity and open for PyTorch's NaN",
    "other",
    lambda c: c.settings.get("activation") is not None and _gain_is_infinite(c),
)
UNCHECKED = Difference(
    "arrays that do not fit, with an x or q without values",
    "they are checked all the same; PyTorch does not",
    "may refuse",
    lambda c: 0 in c.operands[0].values.shape,
)
UNDERFLOW = Difference(
    "the gradient of batch norm where gain / variance lies below the smallest normal number",
    "it is the slope by which x enters the gradient; PyTorch scales x first",
    "value",
    lambda c: _slope_underflows(*(c.operands[k].values for k in (0, 1))),
)
SHORT_MASK = Difference(
    "an attention mask with less than two axes",
    "it broadcasts as all arrays do; PyTorch raises",
    "allow",
    lambda c: c.operands[3] is not None and c.operands[3].values.ndim < 2,
)
DOUBLE_MASK = Difference(
    "a float mask of another dtype than the query",
    "it is converted, since float64 is NumPy's default; PyTorch refuses",
    "allow",
    lambda c: (
        c.operands[3] is not None
        and c.operands[3].values.dtype.kind == "f"
        and c.operands[3].values.dtype != c.operands[0].values.dtype
    ),
)
MASKED_SCORES = Difference(
    "a score of NaN or +infinity that a boolean mask leaves out",
    "a score that is left out counts nowhere, whatever its value; PyTorch adds -inf to it, which gives NaN",
    "other",
    lambda c: (
        c.operands[3] is not None
        and c.operands[3].values.dtype == bool
        and bool((~_kept(c) & ~(_scores(c) < np.inf)).any())
    ),
)
ONLY_NAN = Difference(
    "attention of a query to which every key scores NaN or -infinity",
    "NaN, as elsewhere; PyTorch gives 0 for fewer keys than a vector register holds",
    "other",
    lambda c: (
        bool((np.isnan(_scores(c)) & _kept(c)).any()) and not bool((_kept(c) & (_scores(c) > -np.inf)).any(-1).all())
    ),
)
NO_KEYS = Difference(
    "attention over no keys, or of vectors without entries",
    "there is nothing to attend to; PyTorch gives 0 or NaN",
    "refuse",
    lambda c: 0 in c.operands[1].values.shape[2:] or 0 in c.operands[2].values.shape[2:],
)

ROWS = [
    Row(
        "batch_norm",
        finite_cotangent(_batch_norm),
        _our_batch_norm,
        torch_batch_norm,
        cancels=MEAN,
        differences=(NO_STATISTICS, OTHER_VECTORS, UNCHECKED, INFINITE_GAIN, INFINITE_GAIN_RELU, UNDERFLOW),
    ),
    Row(
        "conv2d_batch_norm",
        finite_cotangent(_conv_batch_norm),
        _our_conv_batch_norm,
        _torch_conv_batch_norm,
        cancels=MEAN,
        words=("conv2d", "batch_norm"),
        differences=(*MAPS, OTHER_VECTORS, INFINITE_GAIN, INFINITE_GAIN_RELU, NOT_FINITE),
    ),
    Row(
        "layer_norm",
        finite_cotangent(_layer_norm),
        ops.layer_norm,
        lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, eps),
        cancels=MEAN,
        differences=(INFINITE_GAIN,),
    ),
    Row(
        "scaled_dot_product_attention",
        finite_cotangent(_attention),
        ops.scaled_dot_product_attention,
        _torch_attention,
        cancels="p (dp - <p, dp>), in the gradient",
        differences=(NO_KEYS, UNCHECKED, DOUBLE_MASK, SHORT_MASK, MASKED_SCORES, ONLY_NAN),
    ),
]
