"""Segmentation losses from logits: any weighted sum of terms, forward and backward."""

from kernels.core.dispatch import operator
from kernels.loss import reference
from kernels.loss.spec import BACKGROUNDS, TERMS, LossSpec

__all__ = ["BACKGROUNDS", "TERMS", "LossSpec", "loss_backward", "loss_forward"]

_SHAPES = "logits (*S, C); labels int (*S); where spec.class_weights is None or len(spec.class_weights) == C"

loss_forward = operator(reference.loss_forward, _SHAPES, cpu="kernels.loss.cpu", cuda="kernels.loss.cuda")
loss_backward = operator(reference.loss_backward, f"{_SHAPES}; dy ()", cpu="kernels.loss.cpu", cuda="kernels.loss.cuda")
