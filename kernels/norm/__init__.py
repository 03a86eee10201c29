"""Batch norm (statistics, fused forward and backward) and layer norm."""

from kernels.core.dispatch import operator
from kernels.core.reduction import sum_pixels as _sum_pixels
from kernels.norm import reference

_FAST = {"cpu": "kernels.norm.cpu", "cuda": "kernels.norm.cuda"}
_LAYER = {"cpu": "kernels.norm.layer_cpu", "cuda": "kernels.norm.cuda"}

sum_pixels = operator(_sum_pixels, **_FAST)
batch_norm_statistics = operator(reference.batch_norm_statistics, **_FAST)
batch_norm_running = operator(reference.batch_norm_running, **_FAST)
batch_norm_inverse = operator(reference.batch_norm_inverse, **_FAST)
batch_norm_forward = operator(reference.batch_norm_forward, **_FAST)
batch_norm_backward = operator(reference.batch_norm_backward, **_FAST)
layer_norm_forward = operator(reference.layer_norm_forward, **_LAYER)
layer_norm_backward = operator(reference.layer_norm_backward, **_LAYER)
