"""The losses as modules. Calling one gives a 0-d Tensor;
`.terms` then holds every term's value by name (0-d arrays).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autograd import Tensor, ops
from layers.module import Module


class SegmentationLoss(Module):
    """Any weighted sum of terms over logits (N, H, W, C) and labels (N, H, W); see kernels.loss.LossSpec for the
    settings.

    background: 'train' (the default: class 0 is a class like any other) or 'mask' (class 0 means "unlabelled": it is
    not learnt, and its logit counts nowhere), for all terms or one per term.
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
    """Weighted cross-entropy; label_smoothing is a setting."""

    term = "cross_entropy"


class FocalLoss(_SingleTerm):
    """Class-weighted focal loss; gamma is a setting.  (arXiv 1708.02002)"""

    term = "focal"


class DiceLoss(_SingleTerm):
    """Weighted Dice loss over the batch; smooth and absent are settings."""

    term = "dice"


class IoULoss(_SingleTerm):
    """Weighted soft IoU loss over the batch; smooth and absent are settings."""

    term = "iou"


class TverskyLoss(_SingleTerm):
    """Weighted Tversky loss over the batch; alpha, beta, smooth and absent are settings.  (arXiv 1706.05721)"""

    term = "tversky"


class FocalTverskyLoss(_SingleTerm):
    """Focal Tversky loss; alpha, beta, tversky_power, smooth and absent are settings.  (arXiv 1810.07842)"""

    term = "focal_tversky"


class GeneralizedDiceLoss(_SingleTerm):
    """Generalized Dice loss; absent is a setting.  (arXiv 1707.03237)"""

    term = "generalized_dice"


class MCCLoss(_SingleTerm):
    """1 - Matthews' correlation coefficient.  (arXiv 2010.13454)"""

    term = "mcc"


class JaccardMetricLoss(_SingleTerm):
    """IoU loss of soft labels; label_smoothing, smooth and absent are settings.  (arXiv 2302.05666)"""

    term = "jaccard_metric"


class DiceSemimetricLoss(_SingleTerm):
    """Dice loss of soft labels; label_smoothing, smooth and absent are settings.  (arXiv 2303.16296)"""

    term = "dice_semimetric"


class TopKLoss(_SingleTerm):
    """Cross-entropy of the hardest pixels; hardest (their share) and label_smoothing are settings.
    (arXiv 1605.06457)
    """

    term = "top_k"


class BoundaryLoss(_SingleTerm):
    """Boundary loss of maps (..., H, W): probabilities times signed distances in pixels.  (arXiv 1812.07032)"""

    term = "boundary"


class LovaszLoss(_SingleTerm):
    """Lovasz-softmax.  (arXiv 1705.08790)"""

    term = "lovasz"


class MarginLoss(_SingleTerm):
    """The report's margin loss; power, false_positive and margin_reduction are settings."""

    term = "margin"


class CombinedLoss(SegmentationLoss):
    """The report's loss: .4 margin + .2 Dice + .2 focal + .2 IoU."""

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
