"""The fast CPU convolutions: dispatch between direct, Winograd and depthwise kernels. float32 only; anything else goes to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.conv import choice, depthwise, direct, gathered, winograd
from kernels.core import memory
from kernels.core.geometry import Pair, Window
from kernels.norm.cpu import batch_norm_statistics
from kernels.shape import accumulate

_OUTPUTS = {"winograd4": 4, "winograd2": 2}
_NO_SUMS = np.empty((0, 2, 0))
_FAR = 100.0  # mean^2 / variance from which on E[y^2] - E[y]^2 is not trusted
Maps = np.ndarray | tuple[np.ndarray, ...]


def _contiguous(*arrays: np.ndarray | None) -> list[Any] | None:
    """The arrays, contiguous; None unless all are float32 and not empty."""
    if any(a is not None and (a.dtype != np.float32 or not a.size) for a in arrays):
        return None
    return [a if a is None else np.ascontiguousarray(a) for a in arrays]


def _channels(maps: Sequence[np.ndarray]) -> tuple[int, ...]:
    return tuple(m.shape[3] for m in maps)


def _slices(w: np.ndarray, parts: Sequence[int]) -> list[np.ndarray]:
    """The filter's input channels, part by part."""
    out, start = [], 0
    for part in parts:
        out.append(w[:, :, start : start + part])
        start += part
    return out


def conv2d_forward(
    x: Maps, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int = 1, relu: bool = False, residual: np.ndarray | None = None
) -> Any:
    """As kernels.conv.reference.conv2d_forward."""
    maps, given = _contiguous(*(x if isinstance(x, tuple) else (x,))), _contiguous(w, b, residual)
    if maps is None or given is None:
        return NotImplemented
    b, residual = given[1:]
    fused = relu or residual is not None
    if depthwise.serves(window, maps[0].shape[3], w.shape[3], groups):
        return NotImplemented if fused else depthwise.forward(maps[0], w, b, window)
    if fused and b is None:
        b = np.zeros(w.shape[3], np.float32)
    return _forward(maps, w, b, window, groups, relu, False, residual)[0]


def conv2d_moments(x: Maps, w: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_moments: sums of y and y^2 are taken while y is in registers.

    var = E[y^2] - E[y]^2 loses digits where the mean is many standard deviations from 0; there a pass over y is made after all.
    """
    maps = _contiguous(*(x if isinstance(x, tuple) else (x,)))
    if maps is None or _contiguous(w) is None or depthwise.serves(window, maps[0].shape[3], w.shape[3], groups):
        return NotImplemented
    y, sums = _forward(maps, w, None, window, groups, False, True)
    mean, square = sums.sum(0) / (y.size // y.shape[3])
    variance = square - mean * mean
    if (mean * mean > _FAR * variance).any():
        return y, *batch_norm_statistics(y)
    return y, mean, variance


def _forward(
    maps: list[np.ndarray],
    w: np.ndarray,
    b: np.ndarray | None,
    window: Window,
    groups: int,
    relu: bool,
    summing: bool,
    residual: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, sums of y and y^2 chunk by chunk if summing) by the algorithm chosen for the layer."""
    n, h, wd, _ = maps[0].shape
    c, k = w.shape[2] * groups, w.shape[3]

    def run(name: str) -> tuple[np.ndarray, np.ndarray]:
        y = memory.empty((n, *window.output_size((h, wd)), k), np.float32)
        if not summing and gathered.serves(maps, window, groups):
            gathered.forward(maps, w, b, y, relu, residual)
            return y, _NO_SUMS
        if name != "direct":
            return y, winograd.forward(maps, w, window, (_OUTPUTS[name], w.shape[0]), [y], False, b, relu, summing, residual)
        filters = _slices(w, _channels(maps)) if len(maps) > 1 else [w]
        for i, (part, filter_) in enumerate(zip(maps, filters, strict=True)):
            first, last = i == 0, i == len(maps) - 1
            start = (b, residual) if first else (None, None)
            flags = {"relu": relu and last, "add": not first, "summing": summing and last}
            sums = direct.run_forward(part, filter_, start[0], y, window, groups, **flags, residual=start[1])
        return y, sums

    return run(choice.choose("forward", n, (h, wd), c, k, window, groups, run))


def conv2d_backward_data(
    dy: np.ndarray,
    w: np.ndarray,
    size: Pair,
    window: Window,
    groups: int = 1,
    parts: tuple[int, ...] | None = None,
    into: tuple[np.ndarray | None, ...] = (None,),
) -> Any:
    """As kernels.conv.reference.conv2d_backward_data."""
    given = _contiguous(dy)
    if given is None or _contiguous(w) is None or any(total is not None and not total.flags.c_contiguous for total in into):
        return NotImplemented
    dy = given[0]
    n, c = dy.shape[0], w.shape[2] * groups
    parts = parts or (c,)
    back, cropped = _data_window(window, size, dy.shape[1:3])
    if depthwise.serves(window, c, dy.shape[3], groups) and window.stride == (1, 1) and not cropped:
        return (_added(depthwise.forward(dy, w[::-1, ::-1], None, back), into[0]),)

    def run(name: str, totals: Sequence[np.ndarray | None] = (None,) * len(parts)) -> tuple[np.ndarray, ...]:
        if name == "direct":
            filters = _slices(w, parts) if len(parts) > 1 else [w]
            return tuple(direct.backward_data(dy, f, size, window, groups, None, t) for f, t in zip(filters, totals, strict=True))
        add = all(t is not None for t in totals)
        dxs = [t if add and t is not None else memory.empty((n, *size, part), np.float32) for part, t in zip(parts, totals, strict=True)]
        winograd.forward([dy], direct.flipped(w, 1), back, (_OUTPUTS[name], w.shape[0]), dxs, add)
        return tuple(dx if add else _added(dx, t) for dx, t in zip(dxs, totals, strict=True))

    if cropped or window.stride != (1, 1):
        return run("direct", into)
    return run(choice.choose("data", n, dy.shape[1:3], dy.shape[3], c, back, groups, run), into)


def _added(dx: np.ndarray, total: np.ndarray | None) -> np.ndarray:
    if total is None:
        return dx
    accumulate(total, dx)
    return total


def _data_window(window: Window, size: Pair, out: Pair) -> tuple[Window, bool]:
    """The stride-1 window of the data gradient, and whether it would need negative padding."""
    padding = []
    for n, o, e, pad in zip(size, out, window.extent, window.padding, strict=True):
        before = e - 1 - pad[0]
        padding.append((before, n - o + e - 1 - before))
    cropped = min(min(p) for p in padding) < 0
    return Window(window.kernel, (1, 1), (padding[0], padding[1]), window.dilation), cropped


def conv2d_backward_filter(x: Maps, dy: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_backward_filter."""
    given = _contiguous(*(x if isinstance(x, tuple) else (x,)), dy)
    if given is None:
        return NotImplemented
    *maps, dy = given
    n, h, wd, _ = maps[0].shape
    c, k = sum(_channels(maps)), dy.shape[3]
    if depthwise.serves(window, c, k, groups):
        return depthwise.backward_filter(maps[0], dy, window)

    def run(name: str) -> np.ndarray:
        if name == "direct":
            parts = [direct.backward_filter(part, dy, window, groups) for part in maps]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, 2)
        return winograd.backward_filter(maps, dy, window, (_OUTPUTS[name], window.kernel[0]))

    return run(choice.choose("filter", n, (h, wd), c, k, window, groups, run))


def conv_transpose2d_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, size: Pair, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_forward: every phase of the stride is a small convolution whose result is interleaved."""
    given = _contiguous(x)
    if given is None or _contiguous(w, b) is None:
        return NotImplemented
    return direct.backward_data(given[0], w.swapaxes(2, 3), size, window, groups, b)


def conv_transpose2d_backward_data(dy: np.ndarray, w: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_data."""
    return conv2d_forward(dy, w.swapaxes(2, 3), None, window, groups)


def conv_transpose2d_backward_filter(x: np.ndarray, dy: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_filter."""
    dw = conv2d_backward_filter(dy, x, window, groups)
    return NotImplemented if dw is NotImplemented else dw.swapaxes(2, 3)
