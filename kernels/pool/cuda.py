"""Max pooling on CUDA; the kernels and what they cost are described in pool.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.core.cuda.arrays import MOST, is_ready, ready, type_of, variant, variants, width_of
from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, array_module
from kernels.core.geometry import Pair, Window

UNROLLED = ((2, 2), (3, 3))  # windows with a forward kernel of their own
GRID = 65_535  # parts of a line at most

MODULE = Module(
    "pool/pool.cu",
    (
        *(
            f"max_pool2d_forward<{types}, {r}, {s}>"
            for r, s in ((0, 0), *UNROLLED)
            for types in ("float, 4", "float, 1", "double, 1")
        ),
        *variants("max_pool2d_gather", "max_pool2d_spread"),
    ),
)
_FIELDS = ["h", "w", "channels", "p", "q", "r", "s", "stride_h", "stride_w", "dilation_h", "dilation_w", "top", "left"]
_GEOMETRY = np.dtype([(name, np.int32) for name in _FIELDS])


def lines_launch(kernel: str, lines: int, packs: int) -> Launch:
    """A block row per line of pixels, a thread per pack of the line."""
    threads = min(256, 32 * blocks(packs, 32))
    return Launch(kernel, (lines, blocks(packs, threads)), (threads,))


def forward_kernel(kind: str, channels: int, window: Window) -> str:
    """The forward instance for a type, a number of channels and a window."""
    r, s = window.kernel if window.kernel in UNROLLED else (0, 0)
    return variant("max_pool2d_forward", kind, channels).replace(">", f", {r}, {s}>")


def tiles(window: Window, size: Pair, out: Pair) -> bool:
    """Whether the windows do not overlap and cover the map exactly."""
    r, s = window.kernel
    p, q = out
    return window == Window((r, s), (r, s)) and (p * r, q * s) == size


def _geometry(size: Pair, channels: int, window: Window) -> Any:
    (top, _), (left, _) = window.padding
    numbers = (*size, channels, *window.output_size(size), *window.kernel, *window.stride, *window.dilation, top, left)
    return np.array([numbers], _GEOMETRY)[0]


def max_pool2d_forward(x: Array, window: Window, places: bool = True) -> Any:
    """As kernels.pool.reference.max_pool2d_forward, for windows of up to 256 taps; the offsets are always written."""
    kind = type_of(x)
    if kind is None or window.kernel[0] * window.kernel[1] > 256:
        return NotImplemented
    n, h, w, c = x.shape
    p, q = window.output_size((h, w))
    xp = array_module(x)
    y = xp.empty((n, p, q, c), x.dtype)
    offset = xp.empty((n, p, q, c), np.uint8)
    kernel = forward_kernel(kind, c, window)
    launch = lines_launch(kernel, n * p, q * c // (4 if "4" in kernel.split(",")[1] else 1))
    if launch.grid[1] > GRID:
        return NotImplemented
    MODULE.run(launch, ready(x), y, offset, _geometry((h, w), c, window))
    return y, offset


def max_pool2d_backward(
    dy: Array, offset: Array, size: Pair, window: Window, accumulate_into: Array | None = None
) -> Any:
    """As kernels.pool.reference.max_pool2d_backward."""
    kind = type_of(*((dy,) if accumulate_into is None else (dy, accumulate_into)))
    if kind is None or offset.dtype != np.uint8 or (accumulate_into is not None and not is_ready(accumulate_into)):
        return NotImplemented
    n, p, q, c = dy.shape
    if n * size[0] * size[1] * c > MOST:
        return NotImplemented
    dx = array_module(dy).empty((n, *size, c), dy.dtype) if accumulate_into is None else accumulate_into
    spread = tiles(window, size, (p, q))
    kernel = variant("max_pool2d_spread" if spread else "max_pool2d_gather", kind, c)
    packs = c // width_of(kernel)
    launch = lines_launch(kernel, n * p, q * packs) if spread else lines_launch(kernel, n * size[0], size[1] * packs)
    if launch.grid[1] > GRID:
        return NotImplemented
    MODULE.run(launch, ready(dy), ready(offset), dx, accumulate_into is not None, _geometry(size, c, window))
    return dx
