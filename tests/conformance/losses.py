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
    return case(
        d,
        [x, labels(d, dims, classes, ignore)],
        weight=weight,
        ignore_index=ignore,
        label_smoothing=d.pick((0.0, 0.0, 0.1, 1.0, 0.5)),
    )


def _torch_cross_entropy(x: Any, t: Any, weight: Any, ignore_index: Any, label_smoothing: float) -> Any:
    w = None if weight is None else torch.tensor(weight, dtype=x.dtype)
    flat, t = x.reshape(-1, x.shape[-1]), t.reshape(-1)
    kept = torch.ones_like(t, dtype=torch.bool) if ignore_index is None else t != ignore_index
    return F.cross_entropy(flat[kept], t[kept], w, ignore_index=-(1 << 40), label_smoothing=label_smoothing)


def _segmentation(**settings: Sequence[Any]) -> Callable[[Choices], Case]:
    """Logits and labels of losses that PyTorch has not: finite logits and cotangents, since a composition is no
    authority on others.
    """

    def draw(d: Choices) -> Case:
        dims, classes = shape(d, 0, 3), d.integer(2, 6)
        ignore = d.pick((None, None, 0, 1, 255, -100))
        x = tensor(d, (*dims, classes), dtype(d), d.pick(PALETTES[:3]))
        weight = (
            None if d.chance(60) else tuple(d.pick((0.5, 1.0, 2.0, 0.0, 3.0)) for _ in range(classes + d.chance(3)))
        )
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


def _overlap(z: Any, t: Any, w: Any, alpha: float, beta: float, smooth: float, absent: str) -> tuple[Any, Any]:
    """1 - Tversky's index of every class, and what the classes weigh, 1 together."""
    p = z.softmax(1)
    w = w * (t.sum(0) > 0) if absent == "present" else w
    wrong = alpha * (p * (1 - t)).sum(0) + beta * ((1 - p) * t).sum(0)
    return wrong / ((p * t).sum(0) + wrong + smooth), w / w.sum()


def _torch_tversky(x: Any, t: Any, weight: Any, ignore_index: Any, power: float = 1.0, **settings: Any) -> Any:
    missed, w = _overlap(*_pixels(x, t, weight, ignore_index), **settings)
    return (w * missed**power).sum()


def _torch_generalized_dice(x: Any, t: Any, weight: Any, ignore_index: Any, absent: str) -> Any:
    z, t, w = _pixels(x, t, weight, ignore_index)
    w = w * (t.sum(0) > 0) if absent == "present" else w
    v = w / t.sum(0).clip(1) ** 2
    p = z.softmax(1)
    return 1 - 2 * (v * (p * t).sum(0)).sum() / (v * (p.sum(0) + t.sum(0))).sum()


def _torch_mcc(x: Any, t: Any, weight: Any, ignore_index: Any) -> Any:
    """Class by class the covariance of probability and truth,
    over the spread of two binary variables of their means.
    """
    z, t, w = _pixels(x, t, weight, ignore_index)
    p = z.softmax(1)
    some = (t.sum(0) > 0) & (t.sum(0) < len(t))
    p, t, w = p[:, some], t[:, some], w[some]
    a, b = p - p.mean(0), t - t.mean(0)
    q, r = p.mean(0), t.mean(0)
    c = (a * b).mean(0) / (q * (1 - q) * r * (1 - r)).sqrt()
    return (w * (1 - c)).sum() / w.sum()


def _torch_margin(
    x: Any, t: Any, weight: Any, ignore_index: Any, power: int, false_positive: float, reduction: str
) -> Any:
    """From logarithms: the n-th power of a probability is below every number of float32 where its logarithm is still
    one of two digits.
    """
    z, t, w = _pixels(x, t, weight, ignore_index)
    logp = z.log_softmax(1)
    wrong = torch.logsumexp((power * logp).masked_fill(t > 0, -torch.inf), 1) / power
    missed = (t @ w) * (wrong.exp() - (logp.exp() * t).sum(1))
    instead = ((power * z).softmax(1) * (1 - t)) @ w
    total = ((1 - false_positive) * missed + false_positive * instead).sum()
    return total / {"mean": len(z), "sum": 1, "weighted": (t @ w).sum()}[reduction]


def _torch_lovasz(x: Any, t: Any, weight: Any, ignore_index: Any) -> Any:
    """Berman's: the errors of a class in descending order, times the steps of the Jaccard loss along it."""
    z, t, w = _pixels(x, t, weight, ignore_index)
    errors, order = torch.sort((t - z.softmax(1)).abs(), dim=0, descending=True, stable=True)
    truth = t.gather(0, order)
    jaccard = 1 - (t.sum(0) - truth.cumsum(0)) / (t.sum(0) + (1 - truth).cumsum(0))
    losses = (errors * torch.diff(jaccard, dim=0, prepend=jaccard.new_zeros(1, t.shape[1]))).sum(0)
    w = w * (t.sum(0) > 0)
    return (w * losses.nan_to_num()).sum() / w.sum()


def _torch_combined(x: Any, t: Any, weight: Any, ignore_index: Any, terms: dict[str, float]) -> Any:
    given = x, t, weight, ignore_index
    values = {
        "margin": lambda: _torch_margin(*given, 5, 0.01, "mean"),
        "dice": lambda: _torch_region(2)(*given, 1.0, "present"),
        "focal": lambda: _torch_focal(*given, 2.0),
        "iou": lambda: _torch_region(1)(*given, 1.0, "present"),
        "lovasz": lambda: _torch_lovasz(*given),
    }
    return sum(coefficient * values[name]() for name, coefficient in terms.items())


def _is_uniform(c: Case) -> bool:
    """Whether no class that weighs something has a pixel and lacks one."""
    t, ignore, weight = c.operands[1].values, c.settings["ignore_index"], c.settings["weight"]
    t = t.reshape(-1) if ignore is None else t[t != ignore]
    counts = [
        (t == k).sum()
        for k in range(c.operands[0].values.shape[-1])
        if weight is None or (k < len(weight) and weight[k])
    ]
    return all(n in (0, t.size) for n in counts)


def _errors_tie(c: Case) -> bool:
    """Whether two errors of a class are as good as equal."""
    x, t, ignore = c.operands[0].values, c.operands[1].values, c.settings["ignore_index"]
    z, t = x.reshape(-1, x.shape[-1]).astype(np.float64), t.reshape(-1)
    z, t = (z, t) if ignore is None else (z[t != ignore], t[t != ignore])
    p = np.exp(z - z.max(1, keepdims=True)) if z.size else z
    p = p / p.sum(1, keepdims=True)
    errors = np.sort(np.abs((t[:, None] == np.arange(z.shape[1])) - p), 0)
    return bool((np.diff(errors, axis=0) <= 16 * np.finfo(x.dtype if x.dtype != np.float16 else np.float32).eps).any())


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
LIMIT = Difference(
    "cross-entropy where a class of probability 0 weighs nothing",
    "0 log 0 is 0, the limit; PyTorch multiplies 0 by infinity, which gives NaN",
    "infinite",
    lambda c: (
        bool((c.operands[0].values == -np.inf).any())
        and bool(c.settings["label_smoothing"] or 0 in (c.settings["weight"] or ()))
    ),
)
NO_CORRELATION = Difference(
    "Matthews' loss where every class has no pixel, or all of them",
    "there is nothing to correlate: it is 0, as a loss of no pixels; a quotient of nothing is NaN",
    "other",
    _is_uniform,
)
EQUAL_ERRORS = Difference(
    "the gradient of the Lovasz-softmax loss where two errors of a class are equal",
    "the loss has a kink there, and its gradient depends on which comes first",
    "value",
    lambda c: ("lovasz" in c.settings.get("terms", ("lovasz",))) and _errors_tie(c),
)
_region = _segmentation(smooth=(1.0, 0.1, 10.0), absent=("present", "all"))

ONE_HOT = "p - t, in the gradient"
SHARES = "sums of shares of both signs: 1 - a quotient near 1, and p (dp - <p, dp>)"
_absent = {"absent": ("present", "all")}
_overlaps = {"alpha": (0.3, 0.5, 1.0, 0.0), "beta": (0.7, 0.5, 1.0), "smooth": (1.0, 0.1, 10.0), **_absent}
_terms = ops.REPORT_TERMS, {"margin": 1.0, "dice": 0.5}, {"lovasz": 0.5, "focal": 1.0}, {"iou": 2.0, "lovasz": -0.5}


def _row(name: str, theirs: Callable[..., Any], draw: Callable[[Choices], Case], **settings: Any) -> Row:
    return Row(
        name, draw, getattr(ops, name), theirs, differences=(NOTHING, *settings.pop("differences", ())), **settings
    )


ROWS = [
    _row(
        "cross_entropy", _torch_cross_entropy, finite_cotangent(_cross_entropy), cancels=ONE_HOT, differences=(LIMIT,)
    ),
    _row("focal_loss", _torch_focal, _segmentation(gamma=(2.0, 0.0, 1.0, 0.5, 3.0, 5.0)), cancels=ONE_HOT),
    _row("dice_loss", _torch_region(2), _region, cancels=SHARES),
    _row("iou_loss", _torch_region(1), _region, cancels=SHARES),
    _row("tversky_loss", _torch_tversky, _segmentation(**_overlaps)),
    _row(
        "focal_tversky_loss",
        _torch_tversky,
        _segmentation(power=(0.75, 1.0, 1.5), **(_overlaps | {"alpha": (0.3, 0.5, 1.0)})),
        cancels=SHARES,
    ),
    _row("generalized_dice_loss", _torch_generalized_dice, _segmentation(**_absent)),
    _row("mcc_loss", _torch_mcc, _segmentation(), differences=(NO_CORRELATION,)),
    _row(
        "margin_loss",
        _torch_margin,
        _segmentation(
            power=(5, 1, 2, 3, 10), false_positive=(0.01, 0.0, 0.5, 1.0), reduction=("mean", "sum", "weighted")
        ),
        cancels=SHARES,
    ),
    _row("lovasz_softmax", _torch_lovasz, _segmentation(), differences=(EQUAL_ERRORS,)),
    _row(
        "combined_loss",
        _torch_combined,
        _segmentation(terms=_terms),
        words=("combined_loss", "loss"),
        cancels=SHARES,
        differences=(EQUAL_ERRORS,),
    ),
]
