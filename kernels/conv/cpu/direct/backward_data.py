"""Data gradient on the GEMM micro-kernel: for every phase of the stride a stride-1 convolution of dy with the taps that
reach it.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.direct.forward import direct_forward, direct_transposed
from kernels.conv.cpu.direct.params import is_patchify
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.weight_cache import packed_once
from kernels.core.dispatch import mark_host_computation
from kernels.core.geometry import Pair, Window


def direct_backward_data(
    dy: np.ndarray,
    w: np.ndarray,
    size: Pair,
    window: Window,
    groups: int = 1,
    bias: np.ndarray | None = None,
    accumulate_into: np.ndarray | None = None,
) -> np.ndarray:
    """dx (N, H, W, C) (+ bias, or added to `accumulate_into`): for every phase of the stride a stride-1 convolution of
    dy with the taps that reach it.
    """
    n = dy.shape[0]
    c = w.shape[2] * groups
    h, wd = size
    sh, sw = window.stride
    if accumulate_into is None and groups == 1 and is_patchify(window, size, dy.shape):
        return direct_transposed(dy, filters.swapped(w), bias)
    dx, add = (
        (buffer_pool.empty((n, h, wd, c), np.float32), False) if accumulate_into is None else (accumulate_into, True)
    )
    if (sh, sw) == (1, 1):
        all_taps = tuple((0, k, 1) for k in window.kernel)
        direct_forward(
            dy, filters.flipped(w, groups), bias, dx, _data_window(window, (0, 0), all_taps), groups, size=size, add=add
        )
        return dx
    for a in range(min(sh, h)):
        for b in range(min(sw, wd)):
            geometry = zip((a, b), window.kernel, window.stride, window.dilation, window.padding, strict=True)
            taps = tuple(_taps(i, k, s, d, pad[0]) for i, k, s, d, pad in geometry)
            if not all(len(range(*t)) for t in taps):  # no tap reaches this phase
                if not add:
                    dx[:, a::sh, b::sw] = 0 if bias is None else bias
                continue
            if groups > 1 or window.kernel[0] > sh or window.kernel[1] > sw:
                mark_host_computation()  # a copy of some of the taps
            part = w[taps[0][0] : taps[0][1] : taps[0][2], taps[1][0] : taps[1][1] : taps[1][2]]
            phase = -(-(h - a) // sh), -(-(wd - b) // sw)
            out = ((a * wd + b) * c, sw * c, sh * wd * c, h * wd * c)
            filter_ = packed_once(part, ("flipped", groups), partial(filters.flipped, part, groups), filter=True)
            direct_forward(dy, filter_, bias, dx, _data_window(window, (a, b), taps), groups, out, phase, add=add)
    return dx


def _taps(i: int, k: int, stride: int, dilation: int, pad: int) -> tuple[int, int, int]:
    """The taps r with (i + pad - r dilation) divisible by the stride, as (first, stop, step): they reach input pixels
    of phase i.
    """
    step = stride // math.gcd(stride, dilation)
    first = next((r for r in range(min(k, step)) if (i + pad - r * dilation) % stride == 0), k)
    return first, k, step


def _data_window(window: Window, start: Pair, taps: tuple[tuple[int, int, int], ...]) -> Window:
    """The stride-1 window over dy that gives the input pixels start, start + stride, ...: with u the pixel's index in
    its phase, tap r reads p = (start + stride u + pad - r dilation) / stride. The reversed taps are
    `dilation' apart in p, the last one comes first.
    """
    padding, dilation, kernel = [], [], []
    for i, (first, stop, step), s, d, pad in zip(
        start, taps, window.stride, window.dilation, window.padding, strict=True
    ):
        count = len(range(first, stop, step))
        last = first + (count - 1) * step
        kernel.append(count)
        dilation.append(step * d // s if count > 1 else 1)
        # may be negative: the window then starts inside; its far end follows from the size
        padding.append((-((i + pad[0] - last * d) // s), 0))
    return Window((kernel[0], kernel[1]), (1, 1), (padding[0], padding[1]), (dilation[0], dilation[1]))
