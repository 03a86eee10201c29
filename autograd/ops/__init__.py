"""All operators, under the field's names. Layout NHWC; semantics are PyTorch's wherever it has the operator."""

from autograd.ops.arithmetic import add, div, exp, log, mul, neg, power, sqrt, sub, where
from autograd.ops.attention import polarized_channel, polarized_spatial, scaled_dot_product_attention
from autograd.ops.conv import conv2d, conv2d_relu, conv_transpose2d
from autograd.ops.conv_norm import conv2d_batch_norm
from autograd.ops.gate import blend, gate
from autograd.ops.linear import matmul
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
from autograd.ops.reduction import max, mean, sum
from autograd.ops.resample import adaptive_avg_pool2d, avg_pool2d, resize_bilinear, resize_nearest, strip_pool2d
from autograd.ops.shape import broadcast_to, concat, getitem, pad, reshape, split, transpose

__all__ = [
    "REPORT_TERMS",
    "adaptive_avg_pool2d",
    "add",
    "add_relu",
    "avg_pool2d",
    "batch_norm",
    "blend",
    "broadcast_to",
    "combined_loss",
    "concat",
    "conv2d",
    "conv2d_batch_norm",
    "conv2d_relu",
    "conv_transpose2d",
    "cross_entropy",
    "dice_loss",
    "div",
    "dropout",
    "exp",
    "focal_loss",
    "gate",
    "gelu",
    "getitem",
    "iou_loss",
    "layer_norm",
    "leaky_relu",
    "log",
    "log_softmax",
    "lovasz_softmax",
    "make_spec",
    "margin_loss",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "mul",
    "neg",
    "pad",
    "polarized_channel",
    "polarized_spatial",
    "power",
    "relu",
    "reshape",
    "resize_bilinear",
    "resize_nearest",
    "scaled_dot_product_attention",
    "segmentation_loss",
    "sigmoid",
    "silu",
    "softmax",
    "split",
    "sqrt",
    "strip_pool2d",
    "sub",
    "sum",
    "tanh",
    "transpose",
    "where",
]
