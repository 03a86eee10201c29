"""One representative, aligned call per CUDA kernel, small enough to trace: what ceilings, counters and the launch table are made from.

Maps are (2, 8, 16, 32): channels and pixels fill whole warps, so the counters show a kernel's access pattern and not a ragged edge (those are
tested elsewhere). `CALLS` maps a name to a function of a dtype that builds inputs on the device, calls kernels and returns nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from kernels import attention, augment, conv, gate, loss, norm, optimizer, pointwise, pool, resample, shape
from kernels.core.device import to_device
from kernels.core.geometry import Window
from kernels.loss.spec import LossSpec
from kernels.resample.reference import adaptive_matrix, bilinear_matrix

Call = Callable[[str], None]
N, H, W, C = 2, 8, 16, 32


def on_device(array: np.ndarray) -> Any:
    """A copy on the device."""
    return to_device(np.ascontiguousarray(array), "cuda")


def normal(dtype: str, *dims: int, seed: int = 0) -> Any:
    """Standard normal numbers on the device."""
    return on_device(np.random.default_rng(seed).standard_normal(dims).astype(dtype))


def maps(dtype: str, channels: int = C, scale: int = 1, seed: int = 0) -> Any:
    """(N, H, W, channels), `scale` times as high and wide."""
    return normal(dtype, N, H * scale, W * scale, channels, seed=seed)


def _conv(kernel: int, dilation: int, stride: int, cin: int, cout: int, groups: int, dtype: str) -> None:
    window = Window.of("conv2d", kernel, stride, dilation * (kernel - 1) // 2, dilation)
    x, w, b = maps(dtype, cin), normal(dtype, kernel, kernel, cin // groups, cout), normal(dtype, cout)
    y = conv.conv2d_forward(x, w, b, window, groups)
    conv.conv2d_backward_data(y, w, (H, W), window, groups)
    conv.conv2d_backward_filter(x, y, window, groups)


def _transposed(dtype: str) -> None:
    window = Window((2, 2), (2, 2))
    x, w, b = maps(dtype), normal(dtype, 2, 2, C, C), normal(dtype, C)
    y = conv.conv_transpose2d_forward(x, w, b, (2 * H, 2 * W), window)
    conv.conv_transpose2d_backward_data(y, w, window)
    conv.conv_transpose2d_backward_filter(x, y, window)


def _pool(kernel: int, stride: int, pad: int, dtype: str) -> None:
    window = Window.of("max_pool2d", kernel, stride, pad)
    y, offset = pool.max_pool2d_forward(maps(dtype), window)
    pool.max_pool2d_backward(y, offset, (H, W), window)


def _batch_norm(residual: bool, dtype: str) -> None:
    x, weight, bias, dy = maps(dtype), normal(dtype, C), normal(dtype, C), maps(dtype, seed=1)
    mean, variance = norm.batch_norm_statistics(x)
    inverse = 1 / (variance + 1e-5) ** 0.5
    _, mask = norm.batch_norm_forward(x, weight, bias, mean, inverse, dy if residual else None, "relu")
    norm.batch_norm_backward(dy, x, mask, weight, bias, mean, inverse, True, "relu", residual)
    norm.sum_pixels(x)


def _layer_norm(dtype: str) -> None:
    x, weight, bias = normal(dtype, 256, C), normal(dtype, C), normal(dtype, C)
    norm.layer_norm_forward(x, weight, bias, 1e-5)
    norm.layer_norm_backward(x, x, weight, 1e-5)


def _attention(dtype: str) -> None:
    q, k, v = (normal(dtype, 2, 2, 64, 32, seed=seed) for seed in range(3))
    o = attention.attention_forward(q, k, v, None, 32**-0.5)
    attention.attention_backward(q, q, k, v, o, None, 32**-0.5)


def _polarized(dtype: str) -> None:
    x = normal(dtype, N, H * W, C)
    wq, wv, wz = normal(dtype, C), normal(dtype, C, C // 2), normal(dtype, C // 2, C)
    half, full = normal(dtype, C // 2), normal(dtype, C)
    y = attention.polarized_channel_forward(x, wq, wv, half, wz, full, full, full, 1e-5)
    attention.polarized_channel_backward(y, x, wq, wv, half, wz, full, full, full, 1e-5)
    y = attention.polarized_spatial_forward(x, wv, half, wv, half)
    attention.polarized_spatial_backward(y, x, wv, half, wv, half)


def _resample(size: tuple[int, int], mean: bool, dtype: str) -> None:
    make = adaptive_matrix if mean else partial(bilinear_matrix, align_corners=False)
    a, b = make(H, size[0]), make(W, size[1])
    y = resample.resample2d_forward(maps(dtype), a, b)
    resample.resample2d_backward(y, a, b)


TERMS = tuple((name, 1.0) for name in ("margin", "dice", "focal", "iou", "cross_entropy"))


def _loss(background: str, classes: int, dtype: str) -> None:
    labels = on_device(np.random.default_rng(0).integers(0, classes, (N, 16, 32)))
    spec = LossSpec(TERMS, background=background)
    logits = normal(dtype, N, 16, 32, classes)
    _, _, state = loss.loss_forward(logits, labels, spec)
    loss.loss_backward(on_device(np.ones((), dtype)), logits, labels, spec, state)


def _pointwise(dtype: str) -> None:
    x = maps(dtype)
    for name in ("relu", "sigmoid", "tanh", "silu", "gelu"):
        y = getattr(pointwise, f"{name}_forward")(x)
        getattr(pointwise, f"{name}_backward")(x, y)
    pointwise.leaky_relu_forward(x, 0.1)
    pointwise.leaky_relu_backward(x, x, 0.1)
    pointwise.dropout_forward(x, 0.25, 1, 0)


def _softmax(dtype: str) -> None:
    x = maps(dtype)
    for name in ("softmax", "log_softmax"):
        y = getattr(pointwise, f"{name}_forward")(x, -1)
        getattr(pointwise, f"{name}_backward")(x, y, -1)


def _optimizer(count: int, dtype: str) -> None:
    p, g, m, v, decay, average = (on_device(np.full(count, 0.1 * k, dtype)) for k in range(1, 7))
    squared = optimizer.squared_norm(g)
    clip = optimizer.clip_factor(squared, 1.0, p.dtype) if hasattr(optimizer, "clip_factor") else 1.0
    settings = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    optimizer.adamw_step(p, g, m, v, decay, average, step=1, clip=clip, average_decay=0.9, **settings)


def _augment(dtype: str) -> None:
    ones = on_device(np.ones(N, dtype))
    matrices = on_device(np.tile(np.array([[-1.0, 0, 63], [0, 1, 0]]), (N, 1, 1)))
    masks = on_device(np.zeros((N, 32, 64), np.uint8))
    augment.augment_batch(normal(dtype, N, 32, 64), masks, matrices, ones, 0 * ones, ones, 0)


def _gate(channels: int, dtype: str) -> None:
    x, other, z = maps(dtype), maps(dtype, seed=1), maps(dtype, channels, seed=2)
    gate.gate_forward(x, z)
    gate.gate_backward(x, x, z)
    gate.blend_forward(x, other, z)
    gate.blend_backward(x, x, other, z)


def _shape(dtype: str) -> None:
    x, other = maps(dtype), maps(dtype, seed=1)
    both = shape.concat_channels([x, other])
    shape.split_channels(both, (C, C))
    shape.accumulate(x, other)


CALLS: dict[str, Call] = {
    "conv 3x3": partial(_conv, 3, 1, 1, C, C, 1),
    "conv 3x3 stride 2": partial(_conv, 3, 1, 2, C, C, 1),
    "conv 3x3 dilated": partial(_conv, 3, 2, 1, C, C, 1),
    "conv 5x5": partial(_conv, 5, 1, 1, C, C, 1),
    "conv 1x1": partial(_conv, 1, 1, 1, C, C, 1),
    "conv stem": partial(_conv, 3, 1, 1, 1, C, 1),
    "conv depthwise": partial(_conv, 3, 1, 1, C, C, C),
    "conv transposed": _transposed,
    "max pool 2x2": partial(_pool, 2, 2, 0),
    "max pool 3x3": partial(_pool, 3, 1, 1),
    "max pool 5x5": partial(_pool, 5, 1, 2),
    "batch norm": partial(_batch_norm, False),
    "batch norm residual": partial(_batch_norm, True),
    "layer norm": _layer_norm,
    "attention": _attention,
    "polarized": _polarized,
    "bilinear": partial(_resample, (2 * H, 2 * W), False),
    "adaptive": partial(_resample, (2, 4), True),
    "strips": partial(_resample, (1, W), True),
    "loss": partial(_loss, "train", 5),
    "loss masked": partial(_loss, "mask", 5),
    "loss of 4": partial(_loss, "train", 4),
    "loss of 7": partial(_loss, "train", 7),
    "pointwise": _pointwise,
    "softmax": _softmax,
    "optimizer": partial(_optimizer, 4096),
    "optimizer odd": partial(_optimizer, 4095),
    "augment": _augment,
    "gate per pixel": partial(_gate, 1),
    "gate per value": partial(_gate, C),
    "shape": _shape,
}
DTYPES = ("float32", "float64")
