"""All operators, under the field's names. Layout NHWC; semantics are PyTorch's wherever it has the operator."""

from autograd.ops.arithmetic import add, div, exp, log, mul, neg, power, sqrt, sub, where
from autograd.ops.attention import polarized_channel, polarized_spatial, scaled_dot_product_attention
from autograd.ops.conv import conv2d, conv2d_relu, conv_transpose2d
from autograd.ops.conv1d import conv1d
from autograd.ops.conv_norm import conv2d_batch_norm
from autograd.ops.einsum import einsum
from autograd.ops.elementary import abs, clip, cos, erf, maximum, minimum, sin, softplus
from autograd.ops.gate import blend, gate
from autograd.ops.group_norm import group_norm, instance_norm, rms_norm
from autograd.ops.indexing import embedding, gather, scatter_add, take
from autograd.ops.linear import linear, matmul
from autograd.ops.loss import (
    REPORT_TERMS,
    combined_loss,
    cross_entropy,
    dice_loss,
    focal_loss,
    iou_loss,
    lovasz_softmax,
    make_spec,
    margin_loss,
    segmentation_loss,
)
from autograd.ops.norm import batch_norm, layer_norm
from autograd.ops.pointwise import add_relu, dropout, gelu, leaky_relu, log_softmax, relu, sigmoid, silu, softmax, tanh
from autograd.ops.pool import max_pool2d
from autograd.ops.reduction import cumsum, logsumexp, max, mean, min, prod, std, sum, var
from autograd.ops.regression import binary_cross_entropy_with_logits, l1_loss, mse_loss, smooth_l1_loss
from autograd.ops.resample import adaptive_avg_pool2d, avg_pool2d, resize_bilinear, resize_nearest, strip_pool2d
from autograd.ops.shape import broadcast_to, concat, flip, getitem, pad, reshape, split, stack, transpose
from autograd.ops.sorting import argmax, argmin, argsort, sort, topk

__all__ = [
    "REPORT_TERMS",
    "abs",
    "adaptive_avg_pool2d",
    "add",
    "add_relu",
    "argmax",
    "argmin",
    "argsort",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "blend",
    "broadcast_to",
    "clip",
    "combined_loss",
    "concat",
    "conv1d",
    "conv2d",
    "conv2d_batch_norm",
    "conv2d_relu",
    "conv_transpose2d",
    "cos",
    "cross_entropy",
    "cumsum",
    "dice_loss",
    "div",
    "dropout",
    "einsum",
    "embedding",
    "erf",
    "exp",
    "flip",
    "focal_loss",
    "gate",
    "gather",
    "gelu",
    "getitem",
    "group_norm",
    "instance_norm",
    "iou_loss",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log",
    "log_softmax",
    "logsumexp",
    "lovasz_softmax",
    "make_spec",
    "margin_loss",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mse_loss",
    "mul",
    "neg",
    "pad",
    "polarized_channel",
    "polarized_spatial",
    "power",
    "prod",
    "relu",
    "reshape",
    "resize_bilinear",
    "resize_nearest",
    "rms_norm",
    "scaled_dot_product_attention",
    "scatter_add",
    "segmentation_loss",
    "sigmoid",
    "silu",
    "sin",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "sort",
    "split",
    "sqrt",
    "stack",
    "std",
    "strip_pool2d",
    "sub",
    "sum",
    "take",
    "tanh",
    "topk",
    "transpose",
    "var",
    "where",
]
