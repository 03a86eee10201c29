"""Rows: losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from autograd import ops

from .choices import Choices
from .operands import INTEGERS, PALETTES, Case, Operand, case, dtype, finite_cotangent, laid_out, palette, shape, tensor
from .table import Difference, Row

F = torch.nn.functional


def labels(d: Choices, dims: tuple[int, ...], classes: int, ignore: int | None, wrong: int = 4) -> Operand:
    """Labels of any integer dtype; some are ignored, and in `wrong` of a hundred cases one lies outside."""
    rng = d.generator()
    values = np.asarray(rng.integers(0, classes, dims))
    if ignore is not None:
        values = np.where(rng.random(dims) < (1.0 if d.chance(5) else 0.3), ignore, values)
    if values.size and d.chance(wrong):
        values.flat[0] = d.pick((-1, classes, -100, 200))
    name = d.pick(INTEGERS) if d.chance(30) else "int64"
    given = laid_out(values.astype(name), d.pick(("C", "strided", "F", "swapped", "read-only")))
    return Operand(np.array(given, np.int64), given, "array", False)


def _cross_entropy(d: Choices) -> Case:
    dims, classes, name = shape(d, 0, 3), d.integer(2, 6), dtype(d, 0)
    ignore = d.pick((None, None, 0, 1, 255, -100))
    x = tensor(d, (*dims, classes), name, palette(d, 15))
    weight = None if d.chance(60) else tuple(d.pick((0.5, 1.0, 2.0, 0.0, 3.0)) for _ in range(classes + d.chance(3)))
    return case(d, [x, labels(d, dims, classes, ignore)], weight=weight, ignore_index=ignore, label_smoothing=d.pick((0.0, 0.0, 0.1, 1.0, 0.5)))


def _torch_cross_entropy(x: Any, t: Any, weight: Any, ignore_index: Any, label_smoothing: float) -> Any:
    w = None if weight is None else torch.tensor(weight, dtype=x.dtype)
    flat, t = x.reshape(-1, x.shape[-1]), t.reshape(-1)
    kept = torch.ones_like(t, dtype=torch.bool) if ignore_index is None else t != ignore_index
    return F.cross_entropy(flat[kept], t[kept], w, ignore_index=-(1 << 40), label_smoothing=label_smoothing)


def _segmentation(**settings: Sequence[Any]) -> Callable[[Choices], Case]:
    """Logits and labels of losses that PyTorch has not: finite logits and cotangents, since a composition is no authority on others."""

    def draw(d: Choices) -> Case:
        dims, classes = shape(d, 0, 3), d.integer(2, 6)
        ignore = d.pick((None, None, 0, 1, 255, -100))
        x = tensor(d, (*dims, classes), dtype(d), d.pick(PALETTES[:3]))
        weight = None if d.chance(60) else tuple(d.pick((0.5, 1.0, 2.0, 0.0, 3.0)) for _ in range(classes + d.chance(3)))
        drawn = {key: d.pick(options) for key, options in settings.items()}
        return case(d, [x, labels(d, dims, classes, ignore)], weight=weight, ignore_index=ignore, **drawn)

    return finite_cotangent(draw)


def _pixels(x: Any, t: Any, weight: Any, ignore_index: Any) -> tuple[Any, Any, Any]:
    """Logits (M, C), labels (M,) as one-hot rows, class weights (C,); only what counts."""
    flat, t, classes = x.reshape(-1, x.shape[-1]), t.reshape(-1), x.shape[-1]
    if weight is not None and len(weight) != classes:
        raise ValueError("one weight for each class")
    kept = torch.ones_like(t, dtype=torch.bool) if ignore_index is None else t != ignore_index
    w = torch.ones(classes, dtype=x.dtype) if weight is None else torch.tensor(weight, dtype=x.dtype)
    return flat[kept], F.one_hot(t[kept], classes).to(x.dtype), w


def _torch_focal(x: Any, t: Any, weight: Any, ignore_index: Any, gamma: float) -> Any:
    z, t, w = _pixels(x, t, weight, ignore_index)
    logp = (F.log_softmax(z, 1) * t).sum(1)
    return (-(t @ w) * (-torch.expm1(logp)) ** gamma * logp).mean()


def _torch_region(factor: int) -> Callable[..., Any]:
    """1 - the mean over classes of the Dice coefficient (factor 2), or of the intersection over union (factor 1)."""

    def call(x: Any, t: Any, weight: Any, ignore_index: Any, smooth: float, absent: str) -> Any:
        z, t, w = _pixels(x, t, weight, ignore_index)
        p, truth = z.softmax(1), t.sum(0)
        w = w * (truth > 0) if absent == "present" else w
        both = (p * t).sum(0)
        size = p.sum(0) + truth - (2 - factor) * both
        return 1 - (w * (factor * both + smooth) / (size + smooth)).sum() / w.sum()

    return call


def _weighs_nothing(c: Case) -> bool:
    """Whether no pixel counts: there is none, all are ignored, or all have a class of weight 0."""
    t, s = c.operands[1].values, c.settings
    kept = t if s["ignore_index"] is None else t[t != s["ignore_index"]]
    if s["weight"] is None or not kept.size or kept.min() < 0 or kept.max() >= len(s["weight"]):
        return not kept.size
    return not np.asarray(s["weight"])[kept].any()


NOTHING = Difference(
    "a loss of no pixels, or of such as weigh nothing",
    "it is 0, so that a tile without labels does not end a training run; PyTorch's is NaN",
    "other",
    _weighs_nothing,
)
_region = _segmentation(smooth=(1.0, 0.1, 10.0), absent=("present", "all"))

ROWS = [
    Row("cross_entropy", finite_cotangent(_cross_entropy), ops.cross_entropy, _torch_cross_entropy, differences=(NOTHING,)),
    Row("focal_loss", _segmentation(gamma=(2.0, 0.0, 1.0, 0.5, 3.0, 5.0)), ops.focal_loss, _torch_focal, differences=(NOTHING,)),
    Row("dice_loss", _region, ops.dice_loss, _torch_region(2), cancels=True, differences=(NOTHING,)),
    Row("iou_loss", _region, ops.iou_loss, _torch_region(1), cancels=True, differences=(NOTHING,)),
]
