"""Segmentation losses from logits. One operator serves them all: a weighted sum of terms, evaluated together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from autograd.checks import check_floats
from autograd.function import Function
from autograd.operands import Operand
from autograd.tensor import Tensor, as_array
from kernels import loss as kernels
from kernels.core.device import Array, to_device, to_numpy
from kernels.core.labels import check_labels
from kernels.core.reduction import wide_type
from kernels.loss import BACKGROUNDS, TERMS, LossSpec

__all__ = [
    "REPORT_TERMS",
    "boundary_loss",
    "combined_loss",
    "cross_entropy",
    "dice_loss",
    "dice_semimetric_loss",
    "focal_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "iou_loss",
    "jaccard_metric_loss",
    "lovasz_softmax",
    "make_spec",
    "margin_loss",
    "mcc_loss",
    "segmentation_loss",
    "top_k_loss",
    "tversky_loss",
]

REPORT_TERMS = {"margin": 0.4, "dice": 0.2, "focal": 0.2, "iou": 0.2}
_RANGES = {  # of a LossSpec's numbers
    "gamma": (0, 100),
    "smooth": (0, math.inf),
    "label_smoothing": (0, 1),
    "power": (1, 100),
    "false_positive": (0, 1),
    "alpha": (0, 100),
    "beta": (0, 100),
    "tversky_power": (0.1, 10),
    "hardest": (0, 1),
}


class Loss(Function):
    """value = sum of coefficient * term(softmax(logits), labels);  the gradient of each term is in
    kernels/loss/reference.py.

    Afterwards `.parts` holds the value of every term.
    """

    def __init__(self, spec: LossSpec, labels: Array, caller: str = "loss") -> None:
        super().__init__()
        self.spec, self.labels, self.caller = spec, labels, caller

    def _distances(self, logits: Array) -> Array | None:
        """The distance maps that the boundary loss reads."""
        if not self.spec.reads_distances:
            return None
        dtype = np.dtype(wide_type(logits.dtype)).name
        return kernels.signed_distances(
            self.labels, logits.shape[-1], self.spec.background_of("boundary"), self.spec.ignore_index, dtype
        )

    def forward(self, logits: Array) -> Array:
        try:
            self.distances = self._distances(logits)
            value, self.parts, state = kernels.loss_forward(logits, self.labels, self.spec, self.distances)
        except ValueError:  # perhaps a label that is no class, which the kernel found and reported under its own name
            check_labels(self.caller, "labels", self.labels, logits.shape[-1], self.spec.ignore_index)
            raise
        self.save(logits, state)
        return value

    def backward(self, dy: Array) -> Array:
        logits, state = self.saved
        return kernels.loss_backward(dy, logits, self.labels, self.spec, state, self.distances)

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 12 * inputs[0].size


def segmentation_loss(
    logits: Tensor, labels: Operand, spec: LossSpec, name: str = "segmentation_loss"
) -> tuple[Tensor, dict[str, Array]]:
    """Any weighted sum of terms: logits (..., C), labels integer (...) -> the loss (a 0-d Tensor) and every term by
    name (0-d arrays).

    spec: see `make_spec`.  name: for messages. Raises ValueError naming the numbers when shapes, labels or settings do
    not fit. Labels that are no classes (nor the ignored one) are found by the kernel, on the CPU at once, on CUDA when
    a value is next copied to the host (kernels/core/labels.py).
    """
    array = to_device(as_array(labels), logits.device)
    _check(name, logits, array, spec)
    loss = Loss(spec, array, name)
    return loss(logits), loss.parts


def cross_entropy(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    background: str = "train",
) -> Tensor:
    """Mean over valid pixels of -log p_label, weighted by the labels' class weights, as PyTorch's cross_entropy.

    label_smoothing e, 0 to 1 (else ValueError): the truth is 1 - e + e / C at the label and e / C elsewhere.
    """
    return _single("cross_entropy", logits, labels, weight, ignore_index, background, label_smoothing=label_smoothing)


def focal_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    gamma: float = 2.0,
    background: str = "train",
) -> Tensor:
    """Mean over valid pixels of w (1 - p)^gamma (-log p), p the label's probability, w its class weight.

    gamma: 0 to 100, else ValueError.  Source: Lin et al., arXiv 1708.02002.
    """
    return _single("focal", logits, labels, weight, ignore_index, background, gamma=gamma)


def dice_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Tensor:
    """1 - the weighted mean over classes of (2 I + smooth) / (U + smooth), I = sum p t, U = sum p + sum t over the
    batch, p the class's probability, t 1 at its pixels.

    smooth: pixels, at least 0.  absent: 'present' leaves out classes without a pixel in the batch, 'all' keeps them.
    Else ValueError.
    Source: Milletari et al., arXiv 1606.04797, with p and t not squared.
    """
    return _single("dice", logits, labels, weight, ignore_index, background, smooth=smooth, absent=absent)


def iou_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Tensor:
    """1 - the weighted mean over classes of (I + smooth) / (U - I + smooth), the soft Jaccard index, I and U as in
    `dice_loss`.

    smooth, absent: as in `dice_loss`.
    """
    return _single("iou", logits, labels, weight, ignore_index, background, smooth=smooth, absent=absent)


def tversky_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Tensor:
    """1 - the weighted mean over classes of (I + smooth) / (I + alpha FP + beta FN + smooth), I = sum p t, FP = sum p
    (1 - t), FN = sum (1 - p) t over the batch.

    alpha: weight of false positives; beta: of false negatives, above alpha for rare classes; 0 to 100, else ValueError.
    alpha = beta = 1 is `iou_loss`.  smooth, absent: as in `dice_loss`.
    Source: Salehi et al., arXiv 1706.05721.
    """
    return _single(
        "tversky",
        logits,
        labels,
        weight,
        ignore_index,
        background,
        alpha=alpha,
        beta=beta,
        smooth=smooth,
        absent=absent,
    )


def focal_tversky_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    power: float = 0.75,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Tensor:
    """The weighted mean over classes of (1 - T)^power, T the Tversky index of `tversky_loss`: below 1, classes that are
    nearly right get more.

    power: 0.1 to 10, else ValueError. alpha, beta, smooth, absent: as in `tversky_loss`.  Source: Abraham & Khan, arXiv
    1810.07842.
    """
    settings = {"alpha": alpha, "beta": beta, "tversky_power": power, "smooth": smooth, "absent": absent}
    return _single("focal_tversky", logits, labels, weight, ignore_index, background, **settings)


def generalized_dice_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    absent: str = "present",
    background: str = "train",
) -> Tensor:
    """1 - 2 sum v I / sum v U, one ratio for all classes, I and U as in `dice_loss`, v = weight / pixels^2.

    absent: as in `dice_loss`.  Source: Sudre et al., arXiv 1707.03237.
    """
    return _single("generalized_dice", logits, labels, weight, ignore_index, background, absent=absent)


def mcc_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    background: str = "train",
) -> Tensor:
    """1 - the weighted mean over classes of the correlation of probability and truth (Matthews).  (arXiv 2010.13454)

    Unlike overlaps it counts true negatives, too. Classes that no pixel of the batch has, or every one, are left out.
    """
    return _single("mcc", logits, labels, weight, ignore_index, background)


def jaccard_metric_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Tensor:
    """1 - the weighted mean over classes of (I + smooth) / (P + T - I + smooth), for soft labels.  (arXiv 2302.05666)

    The truth is t = 1 - label_smoothing + label_smoothing / C at a pixel's label and label_smoothing / C elsewhere,
    I = sum min(p, t), P = sum p, T = sum t over the batch: the loss is 0 where p = t, which `iou_loss` of soft labels
    is not. Without smoothing it is `iou_loss`. At p = t the gradient is the one from above.
    """
    settings = {"label_smoothing": label_smoothing, "smooth": smooth, "absent": absent}
    return _single("jaccard_metric", logits, labels, weight, ignore_index, background, **settings)


def dice_semimetric_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    smooth: float = 1.0,
    absent: str = "present",
    background: str = "train",
) -> Tensor:
    """1 - the weighted mean over classes of (2 I + smooth) / (P + T + smooth), for soft labels as in
    `jaccard_metric_loss`.  (arXiv 2303.16296)
    """
    settings = {"label_smoothing": label_smoothing, "smooth": smooth, "absent": absent}
    return _single("dice_semimetric", logits, labels, weight, ignore_index, background, **settings)


def top_k_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    hardest: float = 0.25,
    label_smoothing: float = 0.0,
    background: str = "train",
) -> Tensor:
    """Cross-entropy of the hardest pixels: the mean of the ceil(hardest * valid) largest weight_y (-log p_y) of the
    batch.  (arXiv 1605.06457)

    hardest: a share of the valid pixels, 0 to 1. Of equal losses the first are taken.
    """
    return _single(
        "top_k", logits, labels, weight, ignore_index, background, hardest=hardest, label_smoothing=label_smoothing
    )


def boundary_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    background: str = "train",
) -> Tensor:
    """Mean over valid pixels of sum_c W_c phi_c p_c, W the weights over their sum, phi the distance in pixels from
    class c.  (arXiv 1812.07032)

    logits (..., H, W, C), labels (..., H, W). phi is positive outside a class and negative within
    (kernels.loss.reference.signed_distances), so the loss is negative for good predictions. It knows nothing of a
    class that an image lacks, and is meant to be added to a region loss with a small coefficient, such as 0.01.
    """
    return _single("boundary", logits, labels, weight, ignore_index, background)


def lovasz_softmax(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    background: str = "train",
) -> Tensor:
    """The Lovasz extension of the Jaccard loss, the weighted mean over the classes present: errors |t - p| in
    descending order, times the increments of the Jaccard loss.

    Source: Berman et al., arXiv 1705.08790.
    """
    return _single("lovasz", logits, labels, weight, ignore_index, background)


def margin_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    power: int = 5,
    false_positive: float = 0.01,
    reduction: str = "mean",
    background: str = "train",
) -> Tensor:
    """The report's margin loss, the mean over valid pixels of (1 - false_positive) f_n + false_positive f_p. It lies in
    [-w, w] and is negative for good predictions.

        f_n = w_y (||p_{c != y}||_n - p_y)                the strongest wrong class against the right one, n = power
        f_p = sum_{c != y} w_c p_c^n / sum_c p_c^n        the weights of what is predicted instead

    power: 1 to 100.  false_positive: 0 to 1.  reduction: 'mean', 'sum', or 'weighted' (divided by the sum of the
    labels' weights). Else ValueError.
    """
    return _single(
        "margin",
        logits,
        labels,
        weight,
        ignore_index,
        background,
        power=power,
        false_positive=false_positive,
        margin_reduction=reduction,
    )


def combined_loss(
    logits: Tensor,
    labels: Operand,
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    background: str | Mapping[str, str] = "train",
    terms: Mapping[str, float] | None = None,
    return_terms: bool = False,
    **settings: Any,
) -> Any:
    """The report's loss: .4 margin + .2 Dice + .2 focal + .2 IoU, evaluated together.

    terms: other coefficients by name (see kernels.loss.TERMS). background: one policy, or one per term.
    settings: further fields of LossSpec (gamma, smooth, label_smoothing, ...).
    return_terms: also a dict of every term's value, 0-d arrays. Raises ValueError for unknown terms, TypeError for
    unknown settings.
    """
    spec = make_spec(terms or REPORT_TERMS, weight, ignore_index, background, **settings)
    loss, parts = segmentation_loss(logits, labels, spec, "combined_loss")
    return (loss, parts) if return_terms else loss


def make_spec(
    terms: Mapping[str, float],
    weight: Sequence[float] | None = None,
    ignore_index: int | None = None,
    background: str | Mapping[str, str] = "train",
    **settings: Any,
) -> LossSpec:
    """The LossSpec of these terms, for `segmentation_loss`.

    terms: coefficients by name, of kernels.loss.TERMS.  background: one policy, or one per term.  settings: further
    fields of LossSpec.
    Raises ValueError for unknown terms and policies, TypeError for unknown settings.
    """
    known = [field.name for field in fields(LossSpec)]
    for setting in settings:
        if setting not in known:
            raise TypeError(f"loss: unknown setting {setting!r}, expected some of {', '.join(known[4:])}")
    for term in terms:
        if term not in TERMS:
            raise ValueError(f"loss: unknown term {term!r}, expected some of {', '.join(TERMS)}")
    policies = background if isinstance(background, Mapping) else {"all terms": background}
    for key, policy in policies.items():
        if policy not in BACKGROUNDS:
            raise ValueError(f"loss: background of {key} is {policy!r}, expected one of {', '.join(BACKGROUNDS)}")
    values = weight.data if isinstance(weight, Tensor) else weight
    weights = (
        None
        if values is None
        else tuple(float(w) for w in (to_numpy(values) if hasattr(values, "__array__") else values))
    )
    per_term = tuple(sorted(background.items())) if isinstance(background, Mapping) else background
    return LossSpec(tuple((k, float(v)) for k, v in terms.items()), weights, ignore_index, per_term, **settings)


def _single(
    term: str, logits: Tensor, labels: Any, weight: Any, ignore_index: int | None, background: str, **settings: Any
) -> Tensor:
    spec = make_spec({term: 1.0}, weight, ignore_index, background, **settings)
    names = {"cross_entropy": "cross_entropy", "lovasz": "lovasz_softmax"}
    return segmentation_loss(logits, labels, spec, names.get(term, f"{term}_loss"))[0]


def _check(name: str, logits: Tensor, labels: Array, spec: LossSpec) -> None:
    check_floats(name, logits.dtype, "logits")
    classes = logits.shape[-1] if logits.ndim else 0
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name}: labels have shape {labels.shape}, expected {logits.shape[:-1]} for logits {logits.shape}"
        )
    if labels.ndim < 2 and spec.reads_distances:
        raise ValueError(f"{name}: labels have shape {labels.shape}, the boundary loss expects maps (..., H, W)")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name}: labels are {labels.dtype}, expected an integer array")
    if classes < 2 + (spec.background == "mask"):
        raise ValueError(f"{name}: logits have {classes} classes, expected at least {2 + (spec.background == 'mask')}")
    weights = spec.class_weights
    if weights is not None and len(weights) != classes:
        raise ValueError(f"{name}: got {len(weights)} class weights for {classes} classes")
    if weights is not None and not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(f"{name}: class weights must be finite and not negative, got {weights}")
    for key, (low, high) in _RANGES.items():
        if not low <= getattr(spec, key) <= high:
            raise ValueError(f"{name}: {key} is {getattr(spec, key)}, expected {low} to {high}")
    if spec.ignore_index is not None and not (
        isinstance(spec.ignore_index, (int, np.integer)) and abs(spec.ignore_index) < 2**63
    ):
        raise TypeError(f"{name}: ignore_index is {spec.ignore_index!r}, expected None or an integer of 64 bits")
    if spec.margin_reduction not in ("mean", "sum", "weighted"):
        raise ValueError(f"{name}: reduction is {spec.margin_reduction!r}, expected 'mean', 'sum' or 'weighted'")
    if spec.absent not in ("present", "all"):
        raise ValueError(f"{name}: absent is {spec.absent!r}, expected 'present' or 'all'")
