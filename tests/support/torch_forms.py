"""How PyTorch computes what each operator computes: NHWC in, NHWC out. Written from the definitions, naively, as an
independent oracle.

PyTorch is imported inside the functions, so the table of cases can be read without it.
"""

from __future__ import annotations

import operator
from typing import Any


def _torch() -> Any:
    import torch

    return torch


def _functional() -> Any:
    return _torch().nn.functional


def function_named(path: str) -> Any:
    """PyTorch's function of that path within torch, `nn.functional.silu`."""

    def call(*inputs: Any) -> Any:
        return operator.attrgetter(path)(_torch())(*inputs)

    return call


def nchw(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def add(x: Any, y: Any) -> Any:
    return x + y


def mul(x: Any, y: Any) -> Any:
    return x * y


def remainder(x: Any, y: Any) -> Any:
    return x % y


def power(x: Any, exponent: float) -> Any:
    return x**exponent


def where(condition: Any, x: Any, y: Any) -> Any:
    return _torch().where(condition, x, y)


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return x.sum() if axis is None else x.sum(axis, keepdim=keepdims)


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return x.mean() if axis is None else x.mean(axis, keepdim=keepdims)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return x.amax() if axis is None else x.amax(axis, keepdim=keepdims)


def matmul(x: Any, y: Any) -> Any:
    return x @ y


def reshape(x: Any, shape: Any) -> Any:
    return x.reshape(shape)


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    return x.flatten(start_dim, end_dim)


def squeeze(x: Any, axis: Any = None) -> Any:
    return x.squeeze() if axis is None else x.squeeze(axis)


def unsqueeze(x: Any, axis: int) -> Any:
    return x.unsqueeze(axis)


def swapaxes(x: Any, axis0: int, axis1: int) -> Any:
    return x.swapaxes(axis0, axis1)


def transpose(x: Any, axes: Any = None) -> Any:
    return x.permute(axes or tuple(reversed(range(x.ndim))))


def broadcast_to(x: Any, shape: Any) -> Any:
    return x.expand(shape)


def getitem(x: Any, index: Any) -> Any:
    return x[index]


def pad(x: Any, widths: Any, value: float = 0.0) -> Any:
    return _functional().pad(x, [w for pair in reversed(widths) for w in pair], value=value)


def concat(*xs: Any, axis: int = -1) -> Any:
    return _torch().cat(xs, axis)


def split(x: Any, sizes: Any) -> Any:
    first, *others = x.split(list(sizes), -1)
    return _torch().cat([2 * first, *others], -1)


def relu(x: Any) -> Any:
    return _functional().relu(x)


def add_relu(x: Any, other: Any) -> Any:
    return _functional().relu(x + other)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    return _functional().leaky_relu(x, negative_slope)


def sigmoid(x: Any) -> Any:
    return x.sigmoid()


def gelu(x: Any) -> Any:
    return _functional().gelu(x)


def softmax(x: Any, axis: int = -1) -> Any:
    return x.softmax(axis)


def log_softmax(x: Any, axis: int = -1) -> Any:
    return x.log_softmax(axis)


def conv2d(x: Any, w: Any, b: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Any:
    x = nchw(x)
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        x, padding = _functional().pad(x, [*padding[1], *padding[0]]), 0
    return nhwc(_functional().conv2d(x, w.permute(3, 2, 0, 1), b, stride, padding, dilation, groups))


def conv_transpose2d(x: Any, w: Any, b: Any, **settings: Any) -> Any:
    return nhwc(_functional().conv_transpose2d(nchw(x), w.permute(2, 3, 0, 1), b, **settings))


def max_pool2d(x: Any, **settings: Any) -> Any:
    return nhwc(_functional().max_pool2d(nchw(x), **settings))


def avg_pool2d(x: Any, **settings: Any) -> Any:
    return nhwc(_functional().avg_pool2d(nchw(x), **settings))


def adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    return nhwc(_functional().adaptive_avg_pool2d(nchw(x), output_size))


def strip_pool2d(x: Any, strips: int = 1, axis: int = 1) -> Any:
    return adaptive_avg_pool2d(x, (strips, None) if axis == 1 else (None, strips))


def resize_bilinear(x: Any, size: Any, align_corners: bool = False) -> Any:
    return nhwc(_functional().interpolate(nchw(x), size, mode="bilinear", align_corners=align_corners))


def resize_nearest(x: Any, size: Any) -> Any:
    return nhwc(_functional().interpolate(nchw(x), size, mode="nearest"))


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float = 0.1, eps: float = 1e-5
) -> Any:
    moved = x.movedim(-1, 1)
    return _functional().batch_norm(moved, mean, var, weight, bias, training, momentum, eps).movedim(1, -1)


def batch_norm_training(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any = None, **settings: Any
) -> Any:
    y = _batch_norm(x, weight, bias, mean.detach().clone(), var.detach().clone(), True, **settings)
    return y if residual is None else y + residual


def batch_norm_relu(*arrays: Any, **settings: Any) -> Any:
    return batch_norm_training(*arrays, **settings).relu()


def batch_norm_evaluation(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any = None, **settings: Any
) -> Any:
    y = _batch_norm(x, weight, bias, mean.detach(), var.detach(), False, **settings)
    return y if residual is None else y + residual


def conv_batch_norm(
    x: Any,
    w: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    residual: Any = None,
    relu: bool = False,
    **settings: Any,
) -> Any:
    y = batch_norm_training(conv2d(x, w, None, **settings), weight, bias, mean, var, residual)
    return y.relu() if relu else y


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    return _functional().layer_norm(x, weight.shape, weight, bias, eps)


def gate(x: Any, z: Any) -> Any:
    return x * z.sigmoid()


def blend(x: Any, other: Any, z: Any) -> Any:
    return z.sigmoid() * x + (1 - z.sigmoid()) * other


def attention(q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None) -> Any:
    mask = None if mask is None else _torch().as_tensor(mask)
    return _functional().scaled_dot_product_attention(q, k, v, mask, scale=scale)


def polarized_channel(
    x: Any, wq: Any, wv: Any, bv: Any, wz: Any, bz: Any, gain: Any, offset: Any, eps: float = 1e-5
) -> Any:
    """The paper's order of operations: all values V = Wv X first, then their attention-weighted mean."""
    weights = (x @ wq).softmax(1)
    u = _torch().einsum("nl,nlh->nh", weights, x @ wv + bv)
    o = _functional().layer_norm(u @ wz + bz, gain.shape, gain, offset, eps)
    return x * o.sigmoid()[:, None]


def polarized_spatial(x: Any, wq: Any, bq: Any, wv: Any, bv: Any) -> Any:
    b = (x @ wq + bq).mean(1).softmax(1)
    return x * _torch().einsum("nh,nlh->nl", b, x @ wv + bv).sigmoid()[:, :, None]
