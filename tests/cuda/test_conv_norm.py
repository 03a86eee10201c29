"""What CUDA does by several kernels in turn: a convolution with its batch norm, with a shortcut and a ReLU, of several
maps.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
import pytest

from kernels import conv
from kernels.core.device import array_module
from kernels.core.dispatch import kernel_log, use_kernels
from kernels.core.geometry import Window
from kernels.norm.records import BatchNorm, SavedBatchNorm
from tests.cuda.agreement import check

LAYERS = {
    "one map": ((6,), Window((3, 3), (1, 1), ((1, 1), (1, 1)))),
    "two maps": ((4, 8), Window((3, 3), (1, 1), ((1, 1), (1, 1)))),
    "three maps": ((4, 3, 5), Window((1, 1))),
}
K = 8


def arrays(channels: tuple[int, ...], window: Window, seed: int) -> list[np.ndarray]:
    """dy, residual, filter, weight, bias, the maps; float64."""
    rng = np.random.default_rng(seed)
    shapes = [
        (2, 7, 9, K),
        (2, 7, 9, K),
        (*window.kernel, sum(channels), K),
        (K,),
        (K,),
        *((2, 7, 9, c) for c in channels),
    ]
    return [rng.standard_normal(shape) for shape in shapes]


def normed(window: Window, residual: bool, dy: Any, other: Any, w: Any, weight: Any, bias: Any, *maps: Any) -> Any:
    """y, running statistics, and all gradients."""
    xp = array_module(dy)
    running = xp.zeros(K, dy.dtype), xp.ones(K, dy.dtype)
    norm = BatchNorm(weight, bias, *running, 0.1, 1e-5)
    y, z, mask, mean, inverse = conv.conv2d_norm_forward(maps, w, norm, other if residual else None, "relu", window, 1)
    saved = SavedBatchNorm(mask, weight, bias, mean, inverse, "relu")
    accumulate_into = tuple(xp.ones_like(m) if k % 2 else None for k, m in enumerate(maps))
    gradients = conv.conv2d_norm_backward(dy, maps, w, z, saved, residual, window, 1, accumulate_into, False)
    return [y, *running, *gradients]


def by_reference(*arguments: Any) -> Any:
    with use_kernels("reference"):
        return normed(*arguments)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_convolution_and_its_norm(name: str, residual: bool, dtype: Any) -> None:
    channels, window = LAYERS[name]
    with kernel_log() as log:
        check(
            cupy,
            lambda *a: normed(window, residual, *a),
            lambda *a: by_reference(window, residual, *a),
            lambda seed: arrays(channels, window, seed),
            dtype,
            name,
        )
    assert {entry.by for entry in log if entry.device == "cuda"} == {"fast"}


@pytest.mark.parametrize("name", LAYERS)
def test_a_shortcut_and_a_relu_are_added(name: str) -> None:
    channels, window = LAYERS[name]

    def forward(call: Any, _dy: Any, other: Any, w: Any, _weight: Any, bias: Any, *maps: Any) -> Any:
        return call(maps, w, bias, window, 1, True, other)

    check(
        cupy,
        lambda *a: forward(conv.conv2d_forward, *a),
        lambda *a: forward(conv.conv2d_forward.reference, *a),
        lambda seed: arrays(channels, window, seed),
        np.float32,
        name,
    )
