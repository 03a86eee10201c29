"""The fast CPU convolutions: dispatch between direct, Winograd and depthwise kernels. float32 only; anything else goes to the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.conv import choice, depthwise, direct, winograd
from kernels.core.geometry import Pair, Window

_OUTPUTS = {"winograd4": 4, "winograd2": 2}


def _served(*arrays: np.ndarray | None) -> bool:
    """float32, and not empty."""
    return all(a is None or (a.dtype == np.float32 and a.size > 0) for a in arrays)


def conv2d_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_forward."""
    if not _served(x, w, b):
        return NotImplemented
    x = np.ascontiguousarray(x)
    if depthwise.serves(w, groups):
        return depthwise.forward(x, w, b, window)

    def run(name: str) -> np.ndarray:
        if name == "direct":
            return direct.forward(x, w, b, window, groups)
        y = winograd.forward(x, w, window, (_OUTPUTS[name], w.shape[0]))
        if b is not None:
            y += b
        return y

    return run(choice.choose("forward", x.shape[0], x.shape[1:3], x.shape[3], w.shape[3], window, groups, run))


def conv2d_backward_data(dy: np.ndarray, w: np.ndarray, size: Pair, window: Window, groups: int = 1, into: np.ndarray | None = None) -> Any:
    """As kernels.conv.reference.conv2d_backward_data."""
    if not _served(dy, w) or (into is not None and not into.flags.c_contiguous):
        return NotImplemented
    dy = np.ascontiguousarray(dy)
    back, cropped = _data_window(window, size, dy.shape[1:3])
    if depthwise.serves(w, groups) and window.stride == (1, 1) and not cropped:
        dx = depthwise.forward(dy, w[::-1, ::-1], None, back)
        if dx is not NotImplemented:
            return _added(dx, into)

    def run(name: str, target: np.ndarray | None = None) -> np.ndarray:
        if name == "direct":
            return direct.backward_data(dy, w, size, window, groups, None, target)
        return winograd.forward(dy, direct.flipped(w, 1), back, (_OUTPUTS[name], w.shape[0]), target)

    if cropped or window.stride != (1, 1):
        return run("direct", into)
    return run(choice.choose("data", dy.shape[0], dy.shape[1:3], dy.shape[3], w.shape[2], back, groups, run), into)


def _added(dx: np.ndarray, into: np.ndarray | None) -> np.ndarray:
    if into is None:
        return dx
    into += dx
    return into


def _data_window(window: Window, size: Pair, out: Pair) -> tuple[Window, bool]:
    """The stride-1 window of the data gradient, and whether it would need negative padding."""
    padding = []
    for n, o, e, pad in zip(size, out, window.extent, window.padding, strict=True):
        before = e - 1 - pad[0]
        padding.append((before, n - o + e - 1 - before))
    cropped = min(min(p) for p in padding) < 0
    return Window(window.kernel, (1, 1), (padding[0], padding[1]), window.dilation), cropped


def conv2d_backward_filter(x: np.ndarray, dy: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_backward_filter."""
    if not _served(x, dy):
        return NotImplemented
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    if groups == x.shape[3] == dy.shape[3] and groups > 1:
        return depthwise.backward_filter(x, dy, window)

    def run(name: str) -> np.ndarray:
        if name == "direct":
            return direct.backward_filter(x, dy, window, groups)
        return winograd.backward_filter(x, dy, window, (_OUTPUTS[name], window.kernel[0]))

    return run(choice.choose("filter", x.shape[0], x.shape[1:3], x.shape[3], dy.shape[3], window, groups, run))


def conv_transpose2d_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, size: Pair, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_forward: every phase of the stride is a small convolution whose result is interleaved."""
    if not _served(x, w, b):
        return NotImplemented
    return direct.backward_data(np.ascontiguousarray(x), w.swapaxes(2, 3), size, window, groups, b)


def conv_transpose2d_backward_data(dy: np.ndarray, w: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_data."""
    return conv2d_forward(dy, w.swapaxes(2, 3), None, window, groups)


def conv_transpose2d_backward_filter(x: np.ndarray, dy: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_filter."""
    dw = conv2d_backward_filter(dy, x, window, groups)
    return NotImplemented if dw is NotImplemented else dw.swapaxes(2, 3)
