"""What a device has no kernel of its own for, by the operators that it has."""

from __future__ import annotations

from typing import Any

from kernels import conv, norm
from kernels.conv import reference


def conv2d_norm_forward(*arguments: Any) -> Any:
    """As kernels.conv.reference.conv2d_norm_forward: the convolution, statistics of its result, batch norm."""
    steps = (conv.conv2d_forward, norm.batch_norm_statistics, norm.batch_norm_running, norm.batch_norm_inverse, norm.batch_norm_forward)
    return reference.conv2d_norm_forward(*arguments, steps=steps)


def conv2d_norm_backward(*arguments: Any) -> Any:
    """As kernels.conv.reference.conv2d_norm_backward: batch norm's gradient, then the filter's, then the map's."""
    steps = norm.batch_norm_backward, conv.conv2d_backward_filter, conv.conv2d_backward_data
    return reference.conv2d_norm_backward(*arguments, steps=steps)


def backward_bias(dy: Any) -> Any:
    """As kernels.conv.reference.backward_bias."""
    return norm.sum_pixels(dy).astype(dy.dtype)
