"""Activations, softmax and dropout, forward and backward, of arrays of any number of axes.

Arrays are NumPy's or CuPy's, of float16, float32 or float64; results have their shape, dtype and device. Two arrays of
one call have one shape and one dtype. float16 is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels import pointwise as kernels
from kernels.core.device import Array
from kernels.nn.checks import check_arrays, check_shape, integer, real
from kernels.nn.layout import in_c_order


def relu(x: Array) -> Array:
    """y = max(x, 0); NaN stays NaN.

    Raises TypeError for no floats. Replaces cupyx.cudnn.activation_forward with CUDNN_ACTIVATION_RELU.
    """
    return _of("nn.relu", kernels.relu_forward, x=x)


def relu_backward(dy: Array, y: Array) -> Array:
    """dx = dy where y > 0, else 0, for y = relu(x).

    Raises TypeError for no floats and for two dtypes or devices, ValueError for two shapes.
    Replaces cupyx.cudnn.activation_backward with CUDNN_ACTIVATION_RELU.
    """
    return _of("nn.relu_backward", kernels.relu_backward, dy=dy, y=y)


def sigmoid(x: Array) -> Array:
    """y = 1 / (1 + e^-x), without overflow.

    Raises TypeError for no floats. Replaces cupyx.cudnn.activation_forward with CUDNN_ACTIVATION_SIGMOID.
    """
    return _of("nn.sigmoid", kernels.sigmoid_forward, x=x)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    """dx = dy y (1 - y), for y = sigmoid(x).

    Raises TypeError for no floats and for two dtypes or devices, ValueError for two shapes.
    Replaces cupyx.cudnn.activation_backward with CUDNN_ACTIVATION_SIGMOID.
    """
    return _of("nn.sigmoid_backward", kernels.sigmoid_backward, dy=dy, y=y)


def tanh(x: Array) -> Array:
    """y = tanh x.

    Raises TypeError for no floats. Replaces cupyx.cudnn.activation_forward with CUDNN_ACTIVATION_TANH.
    """
    return _of("nn.tanh", kernels.tanh_forward, x=x)


def tanh_backward(dy: Array, y: Array) -> Array:
    """dx = dy (1 - y^2), for y = tanh(x).

    Raises TypeError for no floats and for two dtypes or devices, ValueError for two shapes.
    Replaces cupyx.cudnn.activation_backward with CUDNN_ACTIVATION_TANH.
    """
    return _of("nn.tanh_backward", kernels.tanh_backward, dy=dy, y=y)


def softmax(x: Array, axis: int) -> Array:
    """y = e^(x - max x) / sum e^(x - max x) along `axis`; the channels of NCHW are axis 1.

    Raises TypeError for no floats, ValueError for an axis that x does not have.
    Replaces cupyx.cudnn.softmax_forward with CUDNN_SOFTMAX_ACCURATE, or _FAST.
    """
    return _along("nn.softmax", kernels.softmax_forward, axis, x=x)


def softmax_backward(dy: Array, y: Array, axis: int) -> Array:
    """dx = y (dy - sum dy y) along `axis`, for y = softmax(x, axis).

    Raises TypeError for no floats and for two dtypes or devices, ValueError for two shapes and for another axis.
    Replaces cupyx.cudnn.softmax_backward with CUDNN_SOFTMAX_ACCURATE, or _FAST.
    """
    return _along("nn.softmax_backward", kernels.softmax_backward, axis, dy=dy, y=y)


def log_softmax(x: Array, axis: int) -> Array:
    """y = x - max x - log sum e^(x - max x) along `axis`.

    Raises TypeError for no floats, ValueError for an axis that x does not have.
    Replaces cupyx.cudnn.softmax_forward with CUDNN_SOFTMAX_LOG.
    """
    return _along("nn.log_softmax", kernels.log_softmax_forward, axis, x=x)


def log_softmax_backward(dy: Array, y: Array, axis: int) -> Array:
    """dx = dy - e^y sum dy along `axis`, for y = log_softmax(x, axis).

    Raises TypeError for no floats and for two dtypes or devices, ValueError for two shapes and for another axis.
    Replaces cupyx.cudnn.softmax_backward with CUDNN_SOFTMAX_LOG.
    """
    return _along("nn.log_softmax_backward", kernels.log_softmax_backward, axis, dy=dy, y=y)


def dropout(x: Array, p: float, seed: int, offset: int = 0) -> Array:
    """y = x m, m = 0 with probability p and else 1 / (1 - p). Its gradient is dx = dropout(dy, p, seed, offset).

    m is a function of p, seed, offset and the position in C order alone, the same on every device, and so is stored
    nowhere. Two calls with one pair (seed, offset) have the same m: count the offset up by one per call.
    Raises TypeError for no floats, ValueError unless 0 <= p < 1 and 0 <= seed, offset < 2^64.
    Replaces cupyx.cudnn.DropoutStates and its reserve space. Source: Srivastava et al., JMLR 15, 2014.
    """
    name = "nn.dropout"
    p = real(name, "p", p, 0, 1)
    if p == 1:
        raise ValueError(f"{name}: p: got 1, expected less than 1")
    place = (integer(name, argument, value, 0, 2**64 - 1) for argument, value in (("seed", seed), ("offset", offset)))
    return _of(name, kernels.dropout_forward, p, *place, x=x)


def _of(name: str, kernel: Callable[..., Array], *settings: Any, **arrays: Array) -> Array:
    check_arrays(name, **arrays)
    first, array = next(iter(arrays.items()))
    for argument, other in arrays.items():
        check_shape(name, argument, other, array.shape, f"{first} {array.shape}")
    return in_c_order(kernel(*arrays.values(), *settings))


def _along(name: str, kernel: Callable[..., Array], axis: int, **arrays: Array) -> Array:
    check_arrays(name, **arrays)
    axes = next(iter(arrays.values())).ndim
    return _of(name, kernel, integer(name, "axis", axis, -axes, axes - 1), **arrays)
