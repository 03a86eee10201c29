"""CUDA launches for layers of one input channel; the kernel is described in single_channel.cu."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from kernels.conv.cuda.geometry import NULL, integers
from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array
from kernels.core.geometry import Pair, Window

MODULE = Module("conv/cuda/single_channel.cu", ["single_channel_forward"])
CONV = integers("h w p q k r s sh sw dh dw top left")
_BLOCK_OUTPUTS = 64  # as in single_channel.cu


def single_channel_launch(n: int, out: Pair, k: int, window: Window) -> Launch:
    """One block per 64 outputs of an image row."""
    r, s = window.kernel
    sw = window.stride[1]
    dw = window.dilation[1]
    shared = 4 * ((r * s + 1) * k + r * ((_BLOCK_OUTPUTS - 1) * sw + (s - 1) * dw + 1))
    return Launch("single_channel_forward", (blocks(out[1], _BLOCK_OUTPUTS), out[0], n), (256,), shared)


def is_single_channel(n: int, out: Pair, c: int, k: int, window: Window) -> bool:
    """One input channel, whole vectors of at most 256 outputs, and a window that fits into 48 KB together with the
    filter.
    """
    fits = c == 1 and k % 4 == 0 and k <= 256 and max(n, out[0]) < 65536
    return fits and single_channel_launch(n, out, k, window).shared <= 48 * 1024


def single_channel_forward(x: Array, w: Array, b: Array | None, window: Window) -> Array:
    """y, as kernels.conv.reference.conv2d_forward for C = 1."""
    n, h, wd, _ = x.shape
    out = window.output_size((h, wd))
    k = w.shape[3]
    y = cupy.empty((n, *out, k), np.float32)
    before = (window.padding[0][0], window.padding[1][0])
    conv: Any = np.array((h, wd, *out, k, *window.kernel, *window.stride, *window.dilation, *before), CONV)[()]
    MODULE.run(single_channel_launch(n, out, k, window), x, w, NULL if b is None else b, y, conv)
    return y
