"""What generated cases have found, as small cases of their own: (row, arrays, settings). None is an operand left out;
integers have no gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .operands import Case, Operand

NAN, INF = float("nan"), float("inf")


def f(*values: Any) -> np.ndarray:
    """float32 values."""
    return np.array(values, np.float32)


def image(*rows: Any) -> np.ndarray:
    """One image with one channel, float32."""
    return np.array(rows, np.float32)[None, :, :, None]


def held(*values: Any) -> Operand:
    """A float32 array without a gradient."""
    return Operand(f(*values), f(*values), "array", False)


RUNNING = held(0.5, -0.5), held(1, 2)
TRAINING: dict[str, Any] = {"training": True, "momentum": 0.1, "eps": 1e-5, "activation": None}
FOUND: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("max_pool2d", [image([2])], {"kernel_size": 2, "ceil_mode": True}),
    ("max_pool2d", [image([2, 1], [0, 3])], {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ("max_pool2d", [image([2, 1, 5], [0, 3, 4])], {"kernel_size": 2, "padding": 1, "dilation": 2, "stride": 1}),
    ("max_pool2d", [np.arange(4).reshape(1, 2, 2, 1)], {"kernel_size": 2, "padding": 1, "stride": 1}),
    ("max_pool2d", [image([-INF, 1], [-INF, -INF])], {"kernel_size": 3, "padding": 1, "stride": 2}),
    ("max_pool2d", [image([NAN, NAN, 1], [0, NAN, NAN])], {"kernel_size": 2, "padding": 1, "stride": 1}),
    ("max_pool2d", [image([NAN, NAN], [-INF, 1]).astype(np.float64)], {"kernel_size": 2, "padding": 1, "stride": 1}),
    ("max_pool2d", [np.zeros((2, 0, 5, 5), np.float32)], {"kernel_size": 2, "padding": 1}),
    ("avg_pool2d", [image([2, 1, 4])], {"kernel_size": 2, "ceil_mode": True, "count_include_pad": False}),
    (
        "avg_pool2d",
        [image([2, INF, 4, 5, 1], [1, 2, 3, NAN, 1]).astype(np.float64)],
        {"kernel_size": (1, 2), "stride": 1},
    ),
    ("adaptive_avg_pool2d", [np.zeros((1, 0, 2, 1), np.float32)], {"output_size": 2}),
    ("resize_nearest", [image([2, INF, 4], [1, 2, NAN]).astype(np.float64)], {"size": (2, 5)}),
    ("resize_nearest", [np.zeros((1, 2, 0, 1), np.float32)], {"size": 3}),
    ("resize_bilinear", [np.zeros((1, 2, 0, 1), np.float32)], {"size": 3, "align_corners": True}),
    ("batch_norm", [f([INF, -INF], [INF, INF]), f(2, 1), f(2, 1), *RUNNING, None], TRAINING),
    ("batch_norm", [f(*[[1e38, 1]] * 7, [1e38, 2]), f(2, 1), f(2, 1), *RUNNING, None], TRAINING),
    ("BatchNorm2d", [f([[[1], [-INF]]]), f(2), f(1)], {"steps": 3, "momentum": 0.1, "eps": 1e-5}),
    ("layer_norm", [f([1, 2]), f(2, 1), np.ones(2)], {"eps": 1e-5}),
    ("instance_norm", [np.zeros((0, 1, 1), np.float32), None, None], {"eps": 1e-5}),
    ("instance_norm", [np.zeros((1, 0, 1), np.float32), None, None], {"eps": 1e-5}),
    ("copy_", [np.array([4]), 1e30], {}),
    ("copy_", [np.array([4]), np.array([[4], [5]])], {}),
    ("-=", [np.array([True]), np.array([True])], {}),
    ("@=", [np.array([[4]]), np.array([[4, 5]])], {}),
    ("greater", [f([1, 2]), f(1, 2, 3)], {}),
]


def as_case(arrays: list[Any], settings: dict[str, Any]) -> Case:
    """A case of the arrays as they are; floats get gradients."""
    operands = []
    for x in arrays:
        if x is None or isinstance(x, Operand):
            operands.append(x)
        elif isinstance(x, np.ndarray):
            operands.append(
                Operand(
                    np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(x.shape), x, grad=x.dtype.kind == "f"
                )
            )
        else:
            operands.append(Operand(x, x, "number", False))
    return Case(operands, settings)
