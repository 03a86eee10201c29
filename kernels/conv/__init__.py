"""Convolution, transposed convolution: forward, data gradient, filter gradient."""

from kernels.conv import reference
from kernels.core.dispatch import operator

_FAST = {"cpu": "kernels.conv.cpu", "cuda": "kernels.conv.cuda"}

conv2d_forward = operator(reference.conv2d_forward, **_FAST)
conv2d_norm_forward = operator(reference.conv2d_norm_forward, **_FAST)
conv2d_backward_data = operator(reference.conv2d_backward_data, **_FAST)
conv2d_backward_filter = operator(reference.conv2d_backward_filter, **_FAST)
conv2d_norm_backward = operator(reference.conv2d_norm_backward, **_FAST)
backward_bias = operator(reference.backward_bias, **_FAST)
conv_transpose2d_forward = operator(reference.conv_transpose2d_forward, **_FAST)
conv_transpose2d_backward_data = operator(reference.conv_transpose2d_backward_data, **_FAST)
conv_transpose2d_backward_filter = operator(reference.conv_transpose2d_backward_filter, **_FAST)
