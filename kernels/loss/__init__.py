"""Segmentation losses from logits: any weighted sum of terms, forward and backward."""

from kernels.core.dispatch import operator
from kernels.loss import reference
from kernels.loss.spec import BACKGROUNDS, TERMS, LossSpec

__all__ = ["BACKGROUNDS", "TERMS", "LossSpec", "loss_backward", "loss_forward"]

loss_forward = operator(reference.loss_forward, cpu="kernels.loss.cpu", cuda="kernels.loss.cuda")
loss_backward = operator(reference.loss_backward, cpu="kernels.loss.cpu", cuda="kernels.loss.cuda")
