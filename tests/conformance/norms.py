"""Rows: normalisation and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autograd import Tensor, ops

from .choices import Choices
from .operands import Case, array, broadcastable, case, dtype, finite_cotangent, length, other_dtype, palette, shape, tensor
from .table import Difference, Row
from .windows import MAPS, conv2d, conv_arguments

F = torch.nn.functional


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
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any, training: bool, momentum: float, eps: float, activation: Any
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
    return case(d, [x, w, *vectors], momentum=0.1, eps=d.pick((1e-5, 1e-3)), activation="relu" if d.chance(50) else None, **settings)


def _our_conv_batch_norm(x: Any, w: Any, weight: Any, bias: Any, mean: Any, var: Any, **settings: Any) -> Any:
    running = Tensor(np.array(mean)), Tensor(np.array(var))
    return ops.conv2d_batch_norm(x, w, weight, bias, *running, **settings), *running


def _torch_conv_batch_norm(
    x: Any, w: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float, activation: Any, **settings: Any
) -> Any:
    return torch_batch_norm(conv2d(x, w, None, **settings), weight, bias, mean, var, None, True, momentum, eps, activation)


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
    n, heads, t, s, width, wide = (length(d, 3), length(d, 3), length(d, 9), length(d, 9), length(d, 17 if d.chance(20) else 5), length(d, 5))
    q, k, v = (tensor(d, (n, heads, rows, columns), name, palette(d, 8)) for rows, columns in ((t, width), (s, width), (s, wide)))
    return case(d, [q, k, v, _mask(d, (n, heads, t, s), name)], scale=d.pick((None, None, 1.0, 0.3, 0.0, -1.0)))


def _torch_attention(q: Any, k: Any, v: Any, mask: Any, scale: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


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
    "the gradient of batch norm with an infinite input or gain",
    "it is a difference of infinities; what is NaN there depends on the order of the terms",
    "value",
    lambda c: any(o is not None and np.isinf(o.values).any() for o in c.operands),
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
    lambda c: c.operands[3] is not None and c.operands[3].values.dtype.kind == "f" and c.operands[3].values.dtype != c.operands[0].values.dtype,
)
MASKED_SCORES = Difference(
    "NaN or infinity among masked scores of attention",
    "what a boolean mask leaves out counts nowhere, whatever it holds; PyTorch adds -inf to it",
    "other",
    lambda c: c.operands[3] is not None and c.operands[3].values.dtype == bool and not all(np.isfinite(o.values).all() for o in c.operands[:2]),
)
NO_KEYS = Difference(
    "attention over no keys, or of vectors without entries",
    "there is nothing to attend to; PyTorch gives 0 or NaN",
    "refuse",
    lambda c: 0 in c.operands[1].values.shape[2:] or 0 in c.operands[2].values.shape[2:],
)

NORMS = NO_STATISTICS, OTHER_VECTORS, INFINITE_GAIN
ROWS = [
    Row(
        "batch_norm",
        finite_cotangent(_batch_norm),
        _our_batch_norm,
        torch_batch_norm,
        cancels=True,
        differences=(NO_STATISTICS, OTHER_VECTORS, INFINITE_GAIN),
    ),
    Row(
        "conv2d_batch_norm",
        finite_cotangent(_conv_batch_norm),
        _our_conv_batch_norm,
        _torch_conv_batch_norm,
        cancels=True,
        words=("conv2d", "batch_norm"),
        differences=(*MAPS, OTHER_VECTORS, INFINITE_GAIN),
    ),
    Row("layer_norm", finite_cotangent(_layer_norm), ops.layer_norm, lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, eps), cancels=True),
    Row(
        "scaled_dot_product_attention",
        finite_cotangent(_attention),
        ops.scaled_dot_product_attention,
        _torch_attention,
        cancels=True,
        differences=(NO_KEYS, DOUBLE_MASK, MASKED_SCORES, SHORT_MASK),
    ),
]
