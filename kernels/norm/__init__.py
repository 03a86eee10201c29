"""Batch norm (statistics, fused forward and backward) and layer norm."""

from kernels.core.dispatch import operator
from kernels.core.reduction import sum_pixels as _sum_pixels
from kernels.norm import reference

sum_pixels = operator(_sum_pixels, cpu="kernels.norm.cpu")
batch_norm_statistics = operator(reference.batch_norm_statistics, cpu="kernels.norm.cpu")
batch_norm_forward = operator(reference.batch_norm_forward, cpu="kernels.norm.cpu")
batch_norm_backward = operator(reference.batch_norm_backward, cpu="kernels.norm.cpu")
layer_norm_forward = operator(reference.layer_norm_forward)
layer_norm_backward = operator(reference.layer_norm_backward)
