"""Convolution, transposed convolution: forward, data gradient, filter gradient."""

from kernels.conv import reference
from kernels.core.dispatch import operator

conv2d_forward = operator(reference.conv2d_forward)
conv2d_backward_data = operator(reference.conv2d_backward_data)
conv2d_backward_filter = operator(reference.conv2d_backward_filter)
conv_transpose2d_forward = operator(reference.conv_transpose2d_forward)
conv_transpose2d_backward_data = operator(reference.conv_transpose2d_backward_data)
conv_transpose2d_backward_filter = operator(reference.conv_transpose2d_backward_filter)
