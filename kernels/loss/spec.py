"""The description of a segmentation loss: immutable, and read by every implementation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

TERMS = (
    *(
        "margin",
        "dice",
        "focal",
        "iou",
        "cross_entropy",
        "lovasz",
        "tversky",
        "focal_tversky",
        "generalized_dice",
        "mcc",
    ),
    *("jaccard_metric", "dice_semimetric", "top_k", "boundary"),
)
BACKGROUNDS = ("train", "mask")


@dataclass(frozen=True)
class LossSpec:
    """A weighted sum of terms over logits (..., C) and labels (...).

    terms: (name, coefficient) pairs, names from TERMS.   class_weights: one per class (None: all 1).
    ignore_index: pixels with this label count nowhere.
    background: per term (or one for all), the reading of class 0: 'train', an ordinary class; 'mask', not a class at
        all: its pixels count nowhere and its logit is not in the softmax, so it gets no gradient.
    gamma: focal exponent.   smooth: added to numerator and denominator of Dice, IoU and Tversky, in pixels.
    alpha, beta: weights of false positives and false negatives in the Tversky terms.   tversky_power: exponent of the
        focal one.
    label_smoothing: of the cross-entropy (`top_k` too), and of the truth in `jaccard_metric` and `dice_semimetric`.
    power: exponent of the margin's norms.
    false_positive: share of f_p in the margin loss, 1 - share is f_n's.
    margin_reduction: 'mean' over valid pixels, 'sum', or 'weighted' (divided by the sum of the labels' weights).
    hardest: share of the valid pixels, the hardest ones, over which `top_k` is the mean.
    absent: the treatment of a class without a pixel in the batch by the region terms: 'present' leaves it out, 'all'
        keeps it as a pure false-positive penalty. Lovasz and MCC always leave it out.
    """

    terms: tuple[tuple[str, float], ...]
    class_weights: tuple[float, ...] | None = None
    ignore_index: int | None = None
    background: str | tuple[tuple[str, str], ...] = "train"
    gamma: float = 2.0
    smooth: float = 1.0
    label_smoothing: float = 0.0
    power: int = 5
    false_positive: float = 0.01
    margin_reduction: str = "mean"
    absent: str = "present"
    alpha: float = 0.3
    beta: float = 0.7
    tversky_power: float = 0.75
    hardest: float = 0.25

    def background_of(self, term: str) -> str:
        """The background policy of one term."""
        return self.background if isinstance(self.background, str) else dict(self.background).get(term, "train")

    @property
    def reads_distances(self) -> bool:
        """Whether a term needs the labels' `signed_distances`."""
        return any(name == "boundary" for name, _ in self.terms)

    def split(self, names: Collection[str]) -> tuple[LossSpec | None, LossSpec | None]:
        """The sum of the terms `names`, and that of the rest: a loss is the sum of both. None for a sum of nothing."""
        own, rest = ([term for term in self.terms if (term[0] in names) == inside] for inside in (True, False))
        return tuple(replace(self, terms=tuple(part)) if part else None for part in (own, rest))  # type: ignore[return-value]
