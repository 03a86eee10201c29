"""Launches for the layers that are no good matrix products, or plain ones: one input channel, depthwise, 1x1."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from kernels.conv.cuda_axes import NULL, Walk, integers, vectors
from kernels.conv.cuda_direct import add_partials
from kernels.core.device import Array
from kernels.core.geometry import Pair, Window
from kernels.core.module import Launch, Module, blocks, device_limits

STEM = Module("conv/stem.cu", ["stem_forward"])
STEM_CONV = integers("h w p q k r s sh sw dh dw top left")
DEPTHWISE = Module("conv/depthwise.cu", ["depthwise<4>", "depthwise<1>", "depthwise_filter", "add_partials"])
FILTER_CONV = integers("n h w c p q r s sh sw dh dw top left splits")
_RUN, _OUTS, _TAPS, _STRANDS = 64, 4, 9, 8  # as in stem.cu and depthwise.cu


def pointwise(window: Window) -> bool:
    """Whether a convolution is one matrix product (pixels, C) @ (C, K)."""
    return window.kernel == window.stride == (1, 1) and window.padding == ((0, 0), (0, 0))


def exact_products() -> bool:
    """Whether CuPy asks cuBLAS for exact float32 (CUPY_TF32 or set_compute_type may ask for less; our own kernels serve
    then).
    """
    default, pedantic, single = 1, 2, 4  # cupy._core: COMPUTE_TYPE_DEFAULT, _PEDANTIC, _FP32
    return cupy._core.get_compute_type(np.dtype(np.float32)) in (default, pedantic, single)


def stem_launch(n: int, out: Pair, k: int, window: Window) -> Launch:
    """One block per 64 outputs of an image row."""
    (r, s), sw, dw = window.kernel, window.stride[1], window.dilation[1]
    shared = 4 * ((r * s + 1) * k + r * ((_RUN - 1) * sw + (s - 1) * dw + 1))
    return Launch("stem_forward", (blocks(out[1], _RUN), out[0], n), (256,), shared)


def stem_serves(n: int, out: Pair, c: int, k: int, window: Window) -> bool:
    """One input channel, whole vectors of at most 256 outputs, and a window that fits into 48 KB beside the filter."""
    fits = c == 1 and k % 4 == 0 and k <= 256 and max(n, out[0]) < 65536
    return fits and stem_launch(n, out, k, window).shared <= 48 * 1024


def stem_forward(x: Array, w: Array, b: Array | None, window: Window) -> Array:
    """y, as kernels.conv.reference.conv2d_forward for C = 1."""
    n, h, wd, _ = x.shape
    out, k = window.output_size((h, wd)), w.shape[3]
    y = cupy.empty((n, *out, k), np.float32)
    before = (window.padding[0][0], window.padding[1][0])
    conv: Any = np.array((h, wd, *out, k, *window.kernel, *window.stride, *window.dilation, *before), STEM_CONV)[()]
    STEM.run(stem_launch(n, out, k, window), x, w, NULL if b is None else b, y, conv)
    return y


def depthwise_launch(walk: Walk, step: int) -> Launch:
    """One thread per `step` channels of four neighbouring outputs."""
    runs = walk.n * max(r.outs for r in walk.rows) * blocks(max(c.outs for c in walk.columns), _OUTS)
    return Launch(f"depthwise<{step}>", (blocks(runs * walk.c // step, 256), walk.phases), (256,))


def depthwise(walk: Walk, x: Array, w: Array, b: Array | None, y: Array, add: bool = False) -> None:
    """The depthwise sum along a walk: forward, data gradient, transposed convolution. w (R, S, 1, C)."""
    launch = depthwise_launch(walk, vectors(x, w, b, y, channels=(walk.c,)))
    DEPTHWISE.run(launch, x, w, NULL if b is None else b, y, walk.structure(walk.c, walk.k, add=int(add)))


def depthwise_filter_launch(pixels: int, c: int, taps: int, multiprocessors: int) -> Launch:
    """Splits for about eight blocks per multiprocessor, of at least 64 pixels and (a sum in float32) at most 4096."""
    columns, rows = blocks(c, 32), blocks(taps, _TAPS)
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
    DEPTHWISE.run(launch, x, dy, out, conv)
    if splits > 1:
        add_partials(DEPTHWISE, out, dw)
    return dw
