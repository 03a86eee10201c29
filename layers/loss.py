"""The losses as modules. Calling one gives a 0-d Tensor;
`.terms` then holds every term's value by name (0-d arrays).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autograd import Tensor, ops
from layers.module import Module


class SegmentationLoss(Module):
    """Any weighted sum of terms over logits (N, H, W, C) and labels (N, H, W): a 0-d Tensor. `.terms` then holds every
    term's value by name (0-d arrays).

    terms: coefficients by name.  weight: a number per class.  ignore_index: the label of pixels that count nowhere.
    settings: see kernels.loss.LossSpec.
    background: 'train' (the default: class 0 is a class like any other) or 'mask' (class 0 means "unlabelled": it is
    not learnt, and its logit counts nowhere), for all terms or one per term.
    Raises ValueError for unknown terms and policies, TypeError for unknown settings; a call raises what
    `ops.segmentation_loss` does.
    """

    def __init__(
        self,
        terms: Mapping[str, float],
        weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        background: str | Mapping[str, str] = "train",
        **settings: Any,
    ) -> None:
        self.spec = ops.make_spec(terms, weight, ignore_index, background, **settings)
        self.terms: dict[str, Any] = {}

    def forward(self, logits: Tensor, labels: Any) -> Tensor:
        loss, self.terms = ops.segmentation_loss(logits, labels, self.spec, type(self).__name__)
        return loss


class _SingleTerm(SegmentationLoss):
    """One term with coefficient 1."""

    term = ""

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        background: str = "train",
        **settings: Any,
    ) -> None:
        super().__init__({self.term: 1.0}, weight, ignore_index, background, **settings)


class CrossEntropyLoss(_SingleTerm):
    """`ops.cross_entropy` of logits (..., C) and labels (...).  Settings: label_smoothing."""

    term = "cross_entropy"


class FocalLoss(_SingleTerm):
    """`ops.focal_loss` of logits (..., C) and labels (...).  Settings: gamma.  (arXiv 1708.02002)"""

    term = "focal"


class DiceLoss(_SingleTerm):
    """`ops.dice_loss` of logits (..., C) and labels (...).  Settings: smooth, absent."""

    term = "dice"


class IoULoss(_SingleTerm):
    """`ops.iou_loss` of logits (..., C) and labels (...).  Settings: smooth, absent."""

    term = "iou"


class TverskyLoss(_SingleTerm):
    """`ops.tversky_loss` of logits (..., C) and labels (...).  Settings: alpha, beta, smooth, absent.  (arXiv
    1706.05721)
    """

    term = "tversky"


class FocalTverskyLoss(_SingleTerm):
    """`ops.focal_tversky_loss` of logits (..., C) and labels (...).  Settings: alpha, beta, tversky_power, smooth,
    absent.  (arXiv 1810.07842)
    """

    term = "focal_tversky"


class GeneralizedDiceLoss(_SingleTerm):
    """`ops.generalized_dice_loss` of logits (..., C) and labels (...).  Settings: absent.  (arXiv 1707.03237)"""

    term = "generalized_dice"


class MCCLoss(_SingleTerm):
    """`ops.mcc_loss` of logits (..., C) and labels (...). 1 - Matthews' correlation coefficient.  (arXiv 2010.13454)"""

    term = "mcc"


class JaccardMetricLoss(_SingleTerm):
    """`ops.jaccard_metric_loss` of logits (..., C) and labels (...).  Settings: label_smoothing, smooth, absent.
    (arXiv 2302.05666)
    """

    term = "jaccard_metric"


class DiceSemimetricLoss(_SingleTerm):
    """`ops.dice_semimetric_loss` of logits (..., C) and labels (...).  Settings: label_smoothing, smooth, absent.
    (arXiv 2303.16296)
    """

    term = "dice_semimetric"


class TopKLoss(_SingleTerm):
    """`ops.top_k_loss` of logits (..., C) and labels (...).  Settings: hardest (their share), label_smoothing.  (arXiv
    1605.06457)
    """

    term = "top_k"


class BoundaryLoss(_SingleTerm):
    """`ops.boundary_loss` of logits (..., H, W, C) and labels (..., H, W): probabilities times signed distances.
    (arXiv 1812.07032)
    """

    term = "boundary"


class LovaszLoss(_SingleTerm):
    """`ops.lovasz_softmax` of logits (..., C) and labels (...).  (arXiv 1705.08790)"""

    term = "lovasz"


class MarginLoss(_SingleTerm):
    """`ops.margin_loss` of logits (..., C) and labels (...). The report's.  Settings: power, false_positive,
    margin_reduction.
    """

    term = "margin"


class CombinedLoss(SegmentationLoss):
    """The report's loss, .4 margin + .2 Dice + .2 focal + .2 IoU: `ops.combined_loss` of logits (..., C) and labels
    (...).

    terms: other coefficients by name.  settings: further fields of kernels.loss.LossSpec.
    """

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        background: str | Mapping[str, str] = "train",
        terms: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(terms or ops.REPORT_TERMS, weight, ignore_index, background, **settings)


class UnifiedFocalLoss(SegmentationLoss):
    """balance F + (1 - balance) T, a focal loss and a focal Tversky loss with common settings.  (Yeung et al., arXiv
    2102.04525)

        F = mean over valid pixels of delta w_y (1 - p_y)^(1 - gamma) (-log p_y)
        T = weighted mean over classes of (1 - K_c)^gamma,  K = (I + s) / (I + (1 - delta) FP + delta FN + s)

    delta, above 1/2: the weight of misses.   gamma, 0.1 to 1: the smaller, the more F turns to hard pixels and T away
    from classes that are nearly right. (The paper's symmetric form.)
    """

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        background: str = "train",
        balance: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        smooth: float = 1.0,
    ) -> None:
        for name, value in {"balance": balance, "delta": delta, "gamma": gamma}.items():
            low = 0.1 if name == "gamma" else 0
            if not low <= value <= 1:
                raise ValueError(f"UnifiedFocalLoss: {name} is {value}, expected {low} to 1")
        terms = {"focal": balance * delta, "focal_tversky": 1 - balance}
        settings = {"gamma": 1 - gamma, "alpha": 1 - delta, "beta": delta, "tversky_power": gamma, "smooth": smooth}
        super().__init__(terms, weight, ignore_index, background, **settings)
