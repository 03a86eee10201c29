"""CUDA launches for depthwise layers; the kernels are described in depthwise.cu."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from kernels.conv.cuda.geometry import NULL, Walk, integers, vectors
from kernels.conv.cuda.implicit_gemm import add_partials
from kernels.core.cuda.module import Launch, Module, blocks, device_limits
from kernels.core.device import Array
from kernels.core.geometry import Window

MODULE = Module("conv/cuda/depthwise.cu", ["depthwise<4>", "depthwise<1>", "depthwise_filter", "add_partials"])
FILTER_CONV = integers("n h w c p q r s sh sw dh dw top left splits")
_THREAD_OUTPUTS = 4  # as in depthwise.cu
_TAPS = 9
_STRANDS = 8


def depthwise_launch(walk: Walk, step: int) -> Launch:
    """One thread per `step` channels of four neighbouring outputs."""
    runs = walk.n * max(r.outs for r in walk.rows) * blocks(max(c.outs for c in walk.columns), _THREAD_OUTPUTS)
    return Launch(f"depthwise<{step}>", (blocks(runs * walk.c // step, 256), walk.phases), (256,))


def depthwise(walk: Walk, x: Array, w: Array, b: Array | None, y: Array, add: bool = False) -> None:
    """The depthwise sum along a walk: forward, data gradient, transposed convolution. w (R, S, 1, C)."""
    launch = depthwise_launch(walk, vectors(x, w, b, y, channels=(walk.c,)))
    MODULE.run(launch, x, w, NULL if b is None else b, y, walk.structure(walk.c, walk.k, add=int(add)))


def depthwise_filter_launch(pixels: int, c: int, taps: int, multiprocessors: int) -> Launch:
    """Splits for about eight blocks per multiprocessor, of at least 64 pixels and (a sum in float32) at most 4096."""
    columns = blocks(c, 32)
    rows = blocks(taps, _TAPS)
    splits = max(1, min(blocks(8 * multiprocessors, columns * rows), pixels // 64), blocks(pixels, 4096))
    return Launch("depthwise_filter", (columns, rows, splits), (32 * _STRANDS,))


def depthwise_filter(x: Array, dy: Array, window: Window) -> Array:
    """dw (R, S, 1, C)."""
    n, h, wd, c = x.shape
    _, p, q, _ = dy.shape
    dw = cupy.empty((*window.kernel, 1, c), np.float32)
    launch = depthwise_filter_launch(n * p * q, c, dw.size // c, device_limits()[0])
    splits = launch.grid[2]
    before = (window.padding[0][0], window.padding[1][0])
    conv: Any = np.array(
        (n, h, wd, c, p, q, *window.kernel, *window.stride, *window.dilation, *before, splits), FILTER_CONV
    )[()]
    out = cupy.empty((splits, dw.size), np.float32) if splits > 1 else dw
    MODULE.run(launch, x, dy, out, conv)
    if splits > 1:
        add_partials(MODULE, out, dw)
    return dw
