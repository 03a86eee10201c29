"""How PyTorch computes the segmentation losses: from probabilities, with one-hot targets, one term after the other; the
rules of torch_forms.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tests.support.torch_forms import _functional, _torch


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
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    background: str = "train",
) -> Any:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    return _functional().cross_entropy(z, t.argmax(1), w, label_smoothing=label_smoothing)


def focal(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    gamma: float = 2.0,
    background: str = "train",
) -> Any:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    p = (z.softmax(1) * t).sum(1)
    return ((t @ w) * (1 - p) ** gamma * -p.log()).mean()


def _region(
    logits: Any, labels: Any, weight: Any, ignore_index: int | None, absent: str, background: str
) -> tuple[Any, Any, Any]:
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
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    absent: str = "present",
    background: str = "train",
) -> Any:
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    overlap = total = z.new_zeros(())
    for p, truth, share in zip(z.softmax(1).T, t.T, w, strict=True):
        if absent == "all" or truth.sum() > 0:
            v = share / truth.sum().clip(1) ** 2
            overlap, total = overlap + v * (p * truth).sum(), total + v * (p + truth).sum()
    return 1 - 2 * overlap / total


def mcc(
    logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, background: str = "train"
) -> Any:
    """Pearson's correlation of probability and truth, class by class, from the four counts."""
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    values, weights = [], []
    for p, truth, share in zip(z.softmax(1).T, t.T, w, strict=True):
        if 0 < truth.sum() < len(truth):
            tp, fp, fn, tn = (
                (p * truth).sum(),
                (p * (1 - truth)).sum(),
                ((1 - p) * truth).sum(),
                ((1 - p) * (1 - truth)).sum(),
            )
            values.append((tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt())
            weights.append(share)
    torch = _torch()
    return (torch.stack(weights) * (1 - torch.stack(values))).sum() / torch.stack(weights).sum()


def _metric(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    absent: str = "present",
    background: str = "train",
) -> tuple[Any, Any, Any]:
    """|p| + |t|, |p - t| of every class, t soft, and the classes' shares."""
    z, t, w = _pixels(logits, labels, weight, ignore_index, background)
    if absent == "present":
        w = w * (t.sum(0) > 0)
    soft = t * (1 - label_smoothing) + label_smoothing / z.shape[1]
    p = z.softmax(1)
    return (p + soft).sum(0), (p - soft).abs().sum(0), w / w.sum()


def jaccard_metric(logits: Any, labels: Any, smooth: float = 1.0, **settings: Any) -> Any:
    """By the papers' norms: the intersection is half of |p| + |t| - |p - t|, the union half of |p| + |t| + |p - t|."""
    total, apart, w = _metric(logits, labels, **settings)
    return (w * (1 - (total - apart + 2 * smooth) / (total + apart + 2 * smooth))).sum()


def dice_semimetric(logits: Any, labels: Any, smooth: float = 1.0, **settings: Any) -> Any:
    total, apart, w = _metric(logits, labels, **settings)
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
    return losses.topk(max(1, math.ceil(hardest * len(losses) - 1e-6))).values.mean()


def boundary(
    logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, background: str = "train"
) -> Any:
    """Distances by comparing every pixel with every other one."""
    torch = _torch()
    _, t, w = _pixels(logits, labels, weight, ignore_index, background)
    first = 1 if background == "mask" else 0
    keep = (labels >= first) & (labels != (-1 if ignore_index is None else ignore_index))
    h, w_ = labels.shape[-2:]
    places = (
        torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w_), indexing="ij"), -1)
        .reshape(-1, 2)
        .to(logits.dtype)
    )
    apart = (places[:, None] - places[None]).square().sum(-1).sqrt()
    total = logits.new_zeros(())
    for z, y, valid in zip(
        logits.reshape(-1, h * w_, logits.shape[-1]), labels.reshape(-1, h * w_), keep.reshape(-1, h * w_), strict=True
    ):
        p = z[valid, first:].softmax(1)
        for c in range(p.shape[1]):
            inside, other = valid & (y == c + first), valid & (y != c + first)
            if inside.any() and other.any():
                phi = torch.where(inside, 1 - apart[:, other].amin(1), apart[:, inside].amin(1))
                total = total + w[c] / w.sum() * (phi[valid] * p[:, c]).sum()
    return total / len(t)


def lovasz(
    logits: Any, labels: Any, weight: Any = None, ignore_index: int | None = None, background: str = "train"
) -> Any:
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


def combined(
    logits: Any,
    labels: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    background: Any = "train",
    terms: Any = None,
) -> Any:
    functions: Any = {
        "margin": margin,
        "dice": dice,
        "focal": focal,
        "iou": iou,
        "lovasz": lovasz,
        "cross_entropy": cross_entropy,
    }
    total = 0
    for name, coefficient in (terms or {"margin": 0.4, "dice": 0.2, "focal": 0.2, "iou": 0.2}).items():
        policy = background.get(name, "train") if isinstance(background, Mapping) else background
        total = total + coefficient * functions[name](
            logits, labels, weight=weight, ignore_index=ignore_index, background=policy
        )
    return total
