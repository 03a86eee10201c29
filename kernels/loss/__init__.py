"""Segmentation losses from logits: any weighted sum of terms, forward and backward."""

from kernels.core.dispatch import operator
from kernels.loss import reference
from kernels.loss.spec import BACKGROUNDS, TERMS, LossSpec

__all__ = ["BACKGROUNDS", "TERMS", "LossSpec", "loss_backward", "loss_forward", "signed_distances"]

_SHAPES = (
    "logits (*S, C); labels int (*S); distances? (*S, C); where spec.class_weights is None or len(spec.class_weights) "
    "== C;"
    "where distances is not None or not spec.reads_distances"
)

loss_forward = operator(
    reference.loss_forward, _SHAPES, cpu="kernels.loss.cpu.segmentation_loss", cuda="kernels.loss.cuda"
)
loss_backward = operator(
    reference.loss_backward, f"{_SHAPES}; dy ()", cpu="kernels.loss.cpu.segmentation_loss", cuda="kernels.loss.cuda"
)
signed_distances = operator(reference.signed_distances, "labels int (*S, H, W)", cpu="kernels.loss.cpu.distance_map")
