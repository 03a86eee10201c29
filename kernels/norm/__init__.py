"""Batch norm (statistics, fused forward and backward) and layer norm."""

from kernels.core.dispatch import operator
from kernels.core.reduction import sum_pixels as _sum_pixels
from kernels.norm import reference

_BATCH = "x (*S, C); weight (C); bias (C); mean (C); inverse (C)"
_BACKWARD = "x (*S, C); norm.weight (C); norm.bias (C); norm.mean (C); norm.inverse (C); dy (*S, C)"
_RUNNING = "running_mean! (C); running_var! (C); mean (C); variance (C)"
_FAST = {"cpu": "kernels.norm.cpu.batch_norm", "cuda": "kernels.norm.cuda"}
_LAYER = {"cpu": "kernels.norm.cpu.layer_norm", "cuda": "kernels.norm.cuda"}

sum_pixels = operator(_sum_pixels, "x (*S, C)", **_FAST)
batch_norm_statistics = operator(reference.batch_norm_statistics, "x (*S, C)", **_FAST)
batch_norm_running = operator(reference.batch_norm_running, _RUNNING, **_FAST)
batch_norm_inverse = operator(reference.batch_norm_inverse, "variance (*S)", **_FAST)
batch_norm_forward = operator(reference.batch_norm_forward, f"{_BATCH}; residual? (*S, C)", **_FAST)
batch_norm_backward = operator(reference.batch_norm_backward, _BACKWARD, **_FAST)
layer_norm_forward = operator(reference.layer_norm_forward, "x (*S, C); weight (C); bias (C)", **_LAYER)
layer_norm_backward = operator(reference.layer_norm_backward, "x (*S, C); weight (C); dy (*S, C)", **_LAYER)
