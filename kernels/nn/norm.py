"""Batch normalisation, forward and backward.

x has two axes or more, the channels on axis 1 in the layouts "NCHW" and "NCL" and on the last axis in "NHWC" and "NLC";
M is the number of its values per channel. x is of float16, float32 or float64, and so is the result. The vectors (C,)
may be of any of the three; CUDA kernels serve those of x's dtype, array code the others.
"""

from __future__ import annotations

from typing import Any

from kernels import norm as kernels
from kernels.core.device import Array
from kernels.nn.checks import check_array, check_arrays, check_device, check_shape, flag, real
from kernels.nn.layout import IMAGES, SEQUENCES, Layout, layout_of
from kernels.norm.records import SavedBatchNorm


def batch_norm_training(
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    layout: str = "NCHW",
) -> tuple[Array, Array, Array]:
    """(y, mean, inverse): x normalised by its own statistics, and what the backward pass needs.

    y = weight (x - mean) inverse + bias,   inverse = 1 / sqrt(var + eps), mean and var of the channel's M values

    x (N, C, ...), weight and bias (C,) -> y of x's shape and dtype, mean and inverse (C,) of float64. The running
    statistics (C,), if given, are changed in place: running = (1 - momentum) running + momentum value, the variance's
    value being var M / (M - 1).
    Raises TypeError for no floats, for one of two running statistics and for arrays on two devices; ValueError for
    shapes that do not fit, for M below 2, and for running statistics that cannot be written to.
    Replaces cupyx.cudnn.batch_normalization_forward_training, whose decay is 1 - momentum.
    Source: Ioffe & Szegedy, arXiv 1502.03167.
    """
    name = "nn.batch_norm_training"
    form, c = _checked(name, x, layout, weight=weight, bias=bias)
    momentum = real(name, "momentum", momentum, 0, 1)
    eps = real(name, "eps", eps, 0)
    count = _count(name, x, c)
    running = {"running_mean": running_mean, "running_var": running_var}
    given = {argument: array for argument, array in running.items() if array is not None}
    if len(given) == 1:
        raise TypeError(f"{name}: got {next(iter(given))} alone, expected both running statistics or none")
    _checked(name, x, layout, **given)
    for argument, array in given.items():
        if not getattr(array.flags, "writeable", True):  # CuPy's arrays have no such flag
            raise ValueError(f"{name}: {argument}: got a read-only array, expected one that can be written to")
    z = form.channels_last(x)
    mean, variance = kernels.batch_norm_statistics(z)
    if given:
        kernels.batch_norm_running(running_mean, running_var, mean, variance, count, momentum)
    inverse = kernels.batch_norm_inverse(variance, eps)
    y, _ = kernels.batch_norm_forward(z, weight, bias, mean, inverse)
    return form.channels_back(y), mean, inverse


def batch_norm_inference(
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    eps: float = 1e-5,
    layout: str = "NCHW",
) -> Array:
    """x normalised by given statistics.

    y = weight (x - mean) / sqrt(variance + eps) + bias

    x (N, C, ...), the vectors (C,) -> y of x's shape and dtype. Its gradient is batch_norm_backward with
    training=False. Raises TypeError for no floats and for arrays on two devices, ValueError for shapes that do not fit.
    Replaces cupyx.cudnn.batch_normalization_forward_inference.
    """
    name = "nn.batch_norm_inference"
    form, _ = _checked(name, x, layout, weight=weight, bias=bias, mean=mean, variance=variance)
    inverse = kernels.batch_norm_inverse(variance.astype("float64"), real(name, "eps", eps, 0))
    y, _ = kernels.batch_norm_forward(form.channels_last(x), weight, bias, mean.astype("float64"), inverse)
    return form.channels_back(y)


def batch_norm_backward(
    dy: Array,
    x: Array,
    weight: Array,
    mean: Array,
    inverse: Array,
    *,
    training: bool = True,
    layout: str = "NCHW",
) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias): the gradients of batch_norm_training, or of batch_norm_inference for training=False.

    With xhat = (x - mean) inverse, and sums over the channel's M values:
    dbias = sum dy      dweight = sum dy xhat
    dx = weight inverse (dy - (dbias + xhat dweight) / M) in training, where mean and variance depend on x
    dx = weight inverse dy                                in inference

    dy and x (N, C, ...) of one dtype, mean and inverse (C,) as batch_norm_training returned them, or for inference
    1 / sqrt(variance + eps) -> dx of x's shape and dtype, dweight and dbias (C,) of weight's dtype.
    Raises TypeError for no floats and for arrays on two devices, ValueError for shapes that do not fit and, in
    training, for M below 2.
    Replaces cupyx.cudnn.batch_normalization_backward.
    """
    name = "nn.batch_norm_backward"
    form, c = _checked(name, x, layout, weight=weight, mean=mean, inverse=inverse)
    check_arrays(name, x=x, dy=dy)
    check_shape(name, "dy", dy, x.shape, f"x {x.shape}")
    training = flag(name, "training", training)
    if training:
        _count(name, x, c)
    mean, inverse = (v.astype("float64", copy=False) for v in (mean, inverse))
    # the bias has no part in it without an activation, and weight stands for its dtype
    saved = SavedBatchNorm(None, weight, weight, mean, inverse, None)
    z = form.channels_last(x)
    dx, dweight, dbias, _ = kernels.batch_norm_backward(form.channels_last(dy), z, saved, training, False)
    return form.channels_back(dx), dweight, dbias


def _count(name: str, x: Array, c: int) -> int:
    """M, the values per channel; ValueError for one or none, of which there are no statistics."""
    if x.size // c < 2:
        raise ValueError(f"{name}: x: got shape {x.shape}, expected more than one value per channel in training")
    return x.size // c


def _checked(name: str, x: Array, layout: Any, **vectors: Array) -> tuple[Layout, int]:
    """The layout and the number of channels of x, of which the vectors must hold one number each."""
    form = layout_of(name, layout, IMAGES + SEQUENCES)
    check_arrays(name, x=x)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"{name}: x: got shape {x.shape}, expected at least 2 axes, none but N empty")
    c = x.shape[-1] if form.is_last else x.shape[1]
    for argument, vector in vectors.items():
        check_array(name, argument, vector)
        check_device(name, argument, vector, "x", x)
        check_shape(name, argument, vector, (c,), f"x {x.shape}")
    return form, c
