"""How PyTorch computes what each operator computes: NHWC in, NHWC out. Written from the definitions, naively, as an independent oracle.

PyTorch is imported inside the functions, so the table of cases can be read without it.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from typing import Any


def _torch() -> Any:
    import torch

    return torch


def _functional() -> Any:
    return _torch().nn.functional


def nchw(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def add(x: Any, y: Any) -> Any:
    return x + y


def sub(x: Any, y: Any) -> Any:
    return x - y


def mul(x: Any, y: Any) -> Any:
    return x * y


def div(x: Any, y: Any) -> Any:
    return x / y


def remainder(x: Any, y: Any) -> Any:
    return x % y


def neg(x: Any) -> Any:
    return -x


def power(x: Any, exponent: float) -> Any:
    return x**exponent


def exp(x: Any) -> Any:
    return x.exp()


def log(x: Any) -> Any:
    return x.log()


def sqrt(x: Any) -> Any:
    return x.sqrt()


def where(condition: Any, x: Any, y: Any) -> Any:
    return _torch().where(condition, x, y)


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return x.sum() if axis is None else x.sum(axis, keepdim=keepdims)


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return x.mean() if axis is None else x.mean(axis, keepdim=keepdims)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return x.amax() if axis is None else x.amax(axis, keepdim=keepdims)


def matmul(x: Any, y: Any) -> Any:
    return x @ y


def reshape(x: Any, shape: Any) -> Any:
    return x.reshape(shape)


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    return x.flatten(start_dim, end_dim)


def squeeze(x: Any, axis: Any = None) -> Any:
    return x.squeeze() if axis is None else x.squeeze(axis)


def unsqueeze(x: Any, axis: int) -> Any:
    return x.unsqueeze(axis)


def swapaxes(x: Any, axis0: int, axis1: int) -> Any:
    return x.swapaxes(axis0, axis1)


def transpose(x: Any, axes: Any = None) -> Any:
    return x.permute(axes or tuple(reversed(range(x.ndim))))


def broadcast_to(x: Any, shape: Any) -> Any:
    return x.expand(shape)


def getitem(x: Any, index: Any) -> Any:
    return x[index]


def pad(x: Any, widths: Any, value: float = 0.0) -> Any:
    return _functional().pad(x, [w for pair in reversed(widths) for w in pair], value=value)


def concat(*xs: Any, axis: int = -1) -> Any:
    return _torch().cat(xs, axis)


def split(x: Any, sizes: Any) -> Any:
    first, *others = x.split(list(sizes), -1)
    return _torch().cat([2 * first, *others], -1)


def relu(x: Any) -> Any:
    return _functional().relu(x)


def add_relu(x: Any, other: Any) -> Any:
    return _functional().relu(x + other)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    return _functional().leaky_relu(x, negative_slope)


def sigmoid(x: Any) -> Any:
    return x.sigmoid()


def tanh(x: Any) -> Any:
    return x.tanh()


def silu(x: Any) -> Any:
    return _functional().silu(x)


def gelu(x: Any) -> Any:
    return _functional().gelu(x)


def softmax(x: Any, axis: int = -1) -> Any:
    return x.softmax(axis)


def log_softmax(x: Any, axis: int = -1) -> Any:
    return x.log_softmax(axis)


def conv2d(x: Any, w: Any, b: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Any:
    x = nchw(x)
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        x, padding = _functional().pad(x, [*padding[1], *padding[0]]), 0
    return nhwc(_functional().conv2d(x, w.permute(3, 2, 0, 1), b, stride, padding, dilation, groups))


def conv_transpose2d(x: Any, w: Any, b: Any, **settings: Any) -> Any:
    return nhwc(_functional().conv_transpose2d(nchw(x), w.permute(2, 3, 0, 1), b, **settings))


def max_pool2d(x: Any, **settings: Any) -> Any:
    return nhwc(_functional().max_pool2d(nchw(x), **settings))


def avg_pool2d(x: Any, **settings: Any) -> Any:
    return nhwc(_functional().avg_pool2d(nchw(x), **settings))


def adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    return nhwc(_functional().adaptive_avg_pool2d(nchw(x), output_size))


def strip_pool2d(x: Any, strips: int = 1, axis: int = 1) -> Any:
    return adaptive_avg_pool2d(x, (strips, None) if axis == 1 else (None, strips))


def resize_bilinear(x: Any, size: Any, align_corners: bool = False) -> Any:
    return nhwc(_functional().interpolate(nchw(x), size, mode="bilinear", align_corners=align_corners))


def resize_nearest(x: Any, size: Any) -> Any:
    return nhwc(_functional().interpolate(nchw(x), size, mode="nearest"))


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float = 0.1, eps: float = 1e-5) -> Any:
    moved = x.movedim(-1, 1)
    return _functional().batch_norm(moved, mean, var, weight, bias, training, momentum, eps).movedim(1, -1)


def batch_norm_training(x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any = None, **settings: Any) -> Any:
    y = _batch_norm(x, weight, bias, mean.detach().clone(), var.detach().clone(), True, **settings)
    return y if residual is None else y + residual


def batch_norm_relu(*arrays: Any, **settings: Any) -> Any:
    return batch_norm_training(*arrays, **settings).relu()


def batch_norm_evaluation(x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any = None, **settings: Any) -> Any:
    y = _batch_norm(x, weight, bias, mean.detach(), var.detach(), False, **settings)
    return y if residual is None else y + residual


def conv_batch_norm(x: Any, w: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any = None, relu: bool = False, **settings: Any) -> Any:
    y = batch_norm_training(conv2d(x, w, None, **settings), weight, bias, mean, var, residual)
    return y.relu() if relu else y


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    return _functional().layer_norm(x, weight.shape, weight, bias, eps)


def gate(x: Any, z: Any) -> Any:
    return x * z.sigmoid()


def blend(x: Any, other: Any, z: Any) -> Any:
    return z.sigmoid() * x + (1 - z.sigmoid()) * other


def attention(q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None) -> Any:
    mask = None if mask is None else _torch().as_tensor(mask)
    return _functional().scaled_dot_product_attention(q, k, v, mask, scale=scale)


def polarized_channel(x: Any, wq: Any, wv: Any, bv: Any, wz: Any, bz: Any, gain: Any, offset: Any, eps: float = 1e-5) -> Any:
    """The paper's order of operations: all values V = Wv X first, then their attention-weighted mean."""
    weights = (x @ wq).softmax(1)
    u = _torch().einsum("nl,nlh->nh", weights, x @ wv + bv)
    o = _functional().layer_norm(u @ wz + bz, gain.shape, gain, offset, eps)
    return x * o.sigmoid()[:, None]


def polarized_spatial(x: Any, wq: Any, bq: Any, wv: Any, bv: Any) -> Any:
    b = (x @ wq + bq).mean(1).softmax(1)
    return x * _torch().einsum("nh,nlh->nl", b, x @ wv + bv).sigmoid()[:, :, None]


# -- losses: from probabilities, with one-hot targets, one term after the other ---------------------------------------------


def _pixels(logits: Any, labels: Any, weight: Any, ignore_index: int | None, background: str) -> tuple[Any, Any, Any]:
    """Probabilities (P, C), one-hot (P, C) and weights (C,) of the valid pixels only."""
    torch = _torch()
    first = 1 if background == "mask" else 0
    keep = labels >= first
    if ignore_index is not None:
        keep &= labels != ignore_index
    w = torch.ones(logits.shape[-1], dtype=logits.dtype) if weight is None else torch.tensor(weight, dtype=logits.dtype)
    z = logits[..., first:][keep]
    return z, torch.eye(z.shape[1], dtype=z.dtype)[labels[keep] - first], w[first:]


def cross_entropy(
    logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, label_smoothing: float = 0.0, background: str = "train"
) -> Any:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    return _functional().cross_entropy(z, t.argmax(1), w, label_smoothing=label_smoothing)


def focal(logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, gamma: float = 2.0, background: str = "train") -> Any:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    p = (z.softmax(1) * t).sum(1)
    return ((t @ w) * (1 - p) ** gamma * -p.log()).mean()


def _region(logits: Any, labels: Any, weight: Any, ignore_index: int | None, absent: str, background: str) -> tuple[Any, Any, Any]:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    p = z.softmax(1)
    if absent == "present":
        w = w * (t.sum(0) > 0)
    return (p * t).sum(0), p.sum(0) + t.sum(0), w / w.sum()


def dice(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Any:
    inter, total, w = _region(logits, labels, weight, ignore_index, absent, background)
    return (w * (1 - (2 * inter + smooth) / (total + smooth))).sum()


def iou(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Any:
    inter, total, w = _region(logits, labels, weight, ignore_index, absent, background)
    return (w * (1 - (inter + smooth) / (total - inter + smooth))).sum()


def _index(z: Any, t: Any, alpha: float, beta: float, smooth: float) -> Any:
    """Tversky's index of every class."""
    p = z.softmax(1)
    tp, fp, fn = (p * t).sum(0), (p * (1 - t)).sum(0), ((1 - p) * t).sum(0)
    return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


def focal_tversky(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    power: float = 0.75,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Any:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    if absent == "present":
        w = w * (t.sum(0) > 0)
    return (w / w.sum() * (1 - _index(z, t, alpha, beta, smooth)) ** power).sum()


def tversky(logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, **settings: Any) -> Any:
    return focal_tversky(logits, labels, weight, ignore_index, power=1, **settings)


def generalized_dice(
    logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, absent: str = "present", background: str = "train"
) -> Any:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    overlap = total = z.new_zeros(())
    for p, truth, share in zip(z.softmax(1).T, t.T, w, strict=True):
        if absent == "all" or truth.sum() > 0:
            v = share / truth.sum().clip(1) ** 2
            overlap, total = overlap + v * (p * truth).sum(), total + v * (p + truth).sum()
    return 1 - 2 * overlap / total


def mcc(logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, background: str = "train") -> Any:
    """Pearson's correlation of probability and truth, class by class, from the four counts."""
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    values, weights = [], []
    for p, truth, share in zip(z.softmax(1).T, t.T, w, strict=True):
        if 0 < truth.sum() < len(truth):
            tp, fp, fn, tn = (p * truth).sum(), (p * (1 - truth)).sum(), ((1 - p) * truth).sum(), ((1 - p) * (1 - truth)).sum()
            values.append((tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt())
            weights.append(share)
    torch = _torch()
    return (torch.stack(weights) * (1 - torch.stack(values))).sum() / torch.stack(weights).sum()


def _metric(logits: Any, labels: Any, weight: Any, ignore_index: int | None, e: float, absent: str, background: str) -> tuple[Any, Any, Any]:
    """|p| + |t|, |p - t| of every class, t soft, and the classes' shares."""
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    if absent == "present":
        w = w * (t.sum(0) > 0)
    soft = t * (1 - e) + e / z.shape[1]
    p = z.softmax(1)
    return (p + soft).sum(0), (p - soft).abs().sum(0), w / w.sum()


def jaccard_metric(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Any:
    """By the papers' norms: the intersection is half of |p| + |t| - |p - t|, the union half of |p| + |t| + |p - t|."""
    total, apart, w = _metric(logits, labels, weight, ignore_index, label_smoothing, absent, background)
    return (w * (1 - (total - apart + 2 * smooth) / (total + apart + 2 * smooth))).sum()


def dice_semimetric(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Any:
    total, apart, w = _metric(logits, labels, weight, ignore_index, label_smoothing, absent, background)
    return (w * (1 - (total - apart + smooth) / (total + smooth))).sum()


def top_k(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    hardest: float = 0.25,
    label_smoothing: float = 0.0,
    background: str = "train",
) -> Any:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    losses = _functional().cross_entropy(z, t.argmax(1), w, label_smoothing=label_smoothing, reduction="none")
    return losses.topk(builtins.max(1, math.ceil(hardest * len(losses) - 1e-6))).values.mean()


def lovasz(logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, background: str = "train") -> Any:
    torch = _torch()
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    p = z.softmax(1)
    losses, weights = [], []
    for c in range(t.shape[1]):
        if t[:, c].sum() == 0:
            continue
        errors, order = torch.sort((t[:, c] - p[:, c]).abs(), descending=True, stable=True)
        truth = t[order, c]
        jaccard = 1 - (truth.sum() - truth.cumsum(0)) / (truth.sum() + (1 - truth).cumsum(0))
        losses.append(errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1)))
        weights.append(w[c])
    return (torch.stack(losses) * torch.stack(weights)).sum() / torch.stack(weights).sum()


def margin(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    power: int = 5,
    false_positive: float = 0.01,
    reduction: str = "mean",
    background: str = "train",
) -> Any:
    """As the report writes it, in probabilities."""
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    p = z.softmax(1)
    strongest_wrong = ((p * (1 - t)) ** power).sum(1) ** (1 / power)
    fn = (t @ w) * (strongest_wrong - (p * t).sum(1))
    q = p**power / (p**power).sum(1, keepdim=True)
    fp = (q * (1 - t)) @ w
    total = ((1 - false_positive) * fn + false_positive * fp).sum()
    return total / {"mean": len(z), "sum": 1, "weighted": (t @ w).sum()}[reduction]


def combined(logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, background: Any = "train", terms: Any = None) -> Any:
    functions: Any = {"margin": margin, "dice": dice, "focal": focal, "iou": iou, "lovasz": lovasz, "cross_entropy": cross_entropy}
    total = 0
    for name, coefficient in (terms or {"margin": 0.4, "dice": 0.2, "focal": 0.2, "iou": 0.2}).items():
        policy = background.get(name, "train") if isinstance(background, Mapping) else background
        total = total + coefficient * functions[name](logits, labels, weight=weight, ignore_index=ignore_index, background=policy)
    return total
