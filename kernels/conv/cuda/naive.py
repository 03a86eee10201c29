"""Launches of naive.cu: one thread per result. Serves float32 and float64, any window, any groups, one map or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from kernels.conv.cuda.geometry import NULL, integers
from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array
from kernels.core.geometry import Pair, Window

TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
NAMES = ("conv_forward", "conv_backward_data", "conv_backward_filter")
MODULE = Module("conv/cuda/naive.cu", [f"{name}<{t}>" for name in NAMES for t in TYPES.values()])
CONV = integers("n h w c p q k r s sh sw dh dw top left groups c0 add")


def launch(name: str, dtype: Any, results: int) -> Launch:
    """One thread per result, 256 to a block."""
    return Launch(f"{name}<{TYPES[np.dtype(dtype)]}>", (blocks(results, 256),), (256,))


def structure(n: int, size: Pair, out: Pair, c: int, k: int, window: Window, groups: int, c0: int, add: int = 0) -> Any:
    """The `Conv` of naive.cu."""
    before = (window.padding[0][0], window.padding[1][0])
    return np.array(
        (n, *size, c, *out, k, *window.kernel, *window.stride, *window.dilation, *before, groups, c0, add), CONV
    )[()]


def forward(maps: Sequence[Array], w: Array, b: Array | None, window: Window, groups: int) -> Array:
    """y, as kernels.conv.reference.conv2d_forward; maps: one or two, contiguous like w."""
    n, h, wd, c0 = maps[0].shape
    c = sum(m.shape[3] for m in maps)
    k = w.shape[3]
    out = window.output_size((h, wd))
    y = cupy.empty((n, *out, k), w.dtype)
    conv = structure(n, (h, wd), out, c, k, window, groups, c0)
    MODULE.run(
        launch(NAMES[0], w.dtype, y.size),
        maps[0],
        maps[1] if len(maps) == 2 else NULL,
        w,
        NULL if b is None else b,
        y,
        conv,
    )
    return y


def backward_data(
    dy: Array, w: Array, b: Array | None, window: Window, groups: int, dxs: Sequence[Array], add: int
) -> None:
    """dx into one or two maps; bit i of `add`: added to what map i holds. b: a bias per channel of dx, or None
    (transposed convolution).
    """
    n, h, wd, c0 = dxs[0].shape
    c = sum(dx.shape[3] for dx in dxs)
    conv = structure(n, (h, wd), dy.shape[1:3], c, dy.shape[3], window, groups, c0, add)
    results = sum(dx.size for dx in dxs)
    second = dxs[1] if len(dxs) == 2 else NULL
    MODULE.run(launch(NAMES[1], w.dtype, results), dy, w, NULL if b is None else b, dxs[0], second, conv)


def backward_filter(maps: Sequence[Array], dy: Array, window: Window, groups: int) -> Array:
    """dw, as kernels.conv.reference.conv2d_backward_filter."""
    n, h, wd, c0 = maps[0].shape
    c = sum(m.shape[3] for m in maps)
    k = dy.shape[3]
    dw = cupy.empty((*window.kernel, c // groups, k), dy.dtype)
    conv = structure(n, (h, wd), dy.shape[1:3], c, k, window, groups, c0)
    MODULE.run(launch(NAMES[2], dy.dtype, dw.size), maps[0], maps[1] if len(maps) == 2 else NULL, dy, dw, conv)
    return dw
