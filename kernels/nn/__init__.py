"""Convolution, pooling, batch norm, softmax and attention as plain functions of NumPy or CuPy arrays, without a tape.

    from kernels import nn                                             areograd.kernels in an installation

    y = nn.conv2d(x, w, bias, padding=1)                               x (N, C, H, W), w (K, C, R, S), as cuDNN has them
    dx = nn.conv2d_backward_data(dy, w, x.shape[2:], padding=1)
    dw = nn.conv2d_backward_filter(x, dy, w.shape[2:], padding=1)
    db = nn.bias_backward(dy)

They stand where CuPy had cuDNN until version 13. A call computes where its arrays are and copies nothing between the
host and a device. Its result has the layout and the dtype of what it was given, is in C order, and is an array of its
own. A forward function returns what its backward needs beyond its arguments and its result: max_pool2d the places of
the maxima, batch_norm_training the statistics, attention the logarithms of its sums.

layout: "NCHW" is the default because it was that of the removed calls. The kernels take "NHWC", so that NCHW costs a
copy of every map on its way in and out; a program that keeps its maps in NHWC pays nothing.

Wrong arguments raise ValueError or TypeError before anything is computed or written:
`nn.conv2d: bias: got shape (3,), expected (4,) for w (4, 2, 3, 3)`.
"""

from kernels.nn.conv import (
    bias_backward,
    conv1d,
    conv1d_backward_data,
    conv1d_backward_filter,
    conv2d,
    conv2d_backward_data,
    conv2d_backward_filter,
)
from kernels.nn.conv_transpose import (
    conv_transpose2d,
    conv_transpose2d_backward_data,
    conv_transpose2d_backward_filter,
)
from kernels.nn.dot_product import attention, attention_backward
from kernels.nn.norm import batch_norm_backward, batch_norm_inference, batch_norm_training
from kernels.nn.pointwise import (
    dropout,
    log_softmax,
    log_softmax_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    softmax,
    softmax_backward,
    tanh,
    tanh_backward,
)
from kernels.nn.pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward

__all__ = [
    "attention",
    "attention_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_training",
    "bias_backward",
    "conv1d",
    "conv1d_backward_data",
    "conv1d_backward_filter",
    "conv2d",
    "conv2d_backward_data",
    "conv2d_backward_filter",
    "conv_transpose2d",
    "conv_transpose2d_backward_data",
    "conv_transpose2d_backward_filter",
    "dropout",
    "log_softmax",
    "log_softmax_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_backward",
    "tanh",
    "tanh_backward",
]
