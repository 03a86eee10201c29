"""Convolution on the CPU: dispatch between direct, Winograd and depthwise kernels. float32 only; anything else goes to
the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.conv.cpu import algorithm, depthwise, filters
from kernels.conv.cpu.direct.backward_data import direct_backward_data
from kernels.conv.cpu.direct.backward_filter import direct_backward_filter
from kernels.conv.cpu.direct.forward import direct_forward, direct_transposed
from kernels.conv.cpu.direct.params import is_patchify
from kernels.conv.cpu.fused_norm_backward.pointwise import pointwise_plan
from kernels.conv.cpu.fused_norm_backward.strip import WORKSPACE_LIMIT
from kernels.conv.cpu.fused_norm_backward.winograd import winograd_plan
from kernels.conv.cpu.winograd.backward_filter import winograd_backward_filter
from kernels.conv.cpu.winograd.forward import winograd_forward
from kernels.conv.cpu.winograd.plan import ZEROS
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.thread_pool import contiguous
from kernels.core.dispatch import mark_host_computation
from kernels.core.geometry import Pair, Window
from kernels.norm.cpu import channel_vectors
from kernels.norm.cpu.batch_norm import batch_norm_forward, gradient_rows, is_own, pixel_sums
from kernels.norm.records import BatchNorm, SavedBatchNorm
from kernels.shape import accumulate

_OUTPUTS = {"winograd4": 4, "winograd2": 2}


def _contiguous(*arrays: np.ndarray | None) -> list[Any] | None:
    """The arrays, contiguous; None unless all are float32 and not empty."""
    if any(a is not None and (a.dtype != np.float32 or not a.size) for a in arrays):
        return None
    return [a if a is None else contiguous(a) for a in arrays]


def _takes(total: np.ndarray) -> bool:
    """Whether kernels can add to an array."""
    return total.flags.c_contiguous and total.dtype == np.float32


def _channels(maps: Sequence[np.ndarray]) -> tuple[int, ...]:
    return tuple(m.shape[3] for m in maps)


def _slices(w: np.ndarray, parts: Sequence[int]) -> list[np.ndarray]:
    """The filter's input channels, part by part."""
    out = []
    start = 0
    for part in parts:
        out.append(w[:, :, start : start + part])
        start += part
    return out


def conv2d_forward(
    maps: tuple[np.ndarray, ...],
    w: np.ndarray,
    b: np.ndarray | None,
    window: Window,
    groups: int = 1,
    relu: bool = False,
    residual: np.ndarray | None = None,
) -> Any:
    """As kernels.conv.reference.conv2d_forward."""
    ready = _contiguous(*maps)
    given = _contiguous(w, b, residual)
    if ready is None or given is None:
        return NotImplemented
    _, b, residual = given
    fused = relu or residual is not None
    if depthwise.serves(window, ready[0].shape[3], w.shape[3], groups):
        return NotImplemented if fused else depthwise.forward(ready[0], w, b, window)
    if fused and b is None:
        b = filters.zeros(w.shape[3])
    return _forward(ready, w, b, window, groups, relu, False, residual)[0]


def conv2d_norm_forward(
    maps: tuple[np.ndarray, ...],
    w: np.ndarray,
    norm: BatchNorm,
    residual: np.ndarray | None,
    activation: str | None,
    window: Window,
    groups: int = 1,
) -> Any:
    """As kernels.conv.reference.conv2d_norm_forward; the epilogue sums z and z^2 while z is in registers."""
    running = norm.running_mean, norm.running_var
    ready = _contiguous(*maps)
    fits = _contiguous(w, residual, *running) and all(r.flags.c_contiguous for r in running)
    if ready is None or not fits or depthwise.serves(window, ready[0].shape[3], w.shape[3], groups):
        return NotImplemented
    z, sums = _forward(ready, w, None, window, groups, False, True)
    mean, variance = channel_vectors.moments(sums, z)
    channel_vectors.running(*running, mean, variance, z.size // z.shape[3], norm.momentum)
    inverse = channel_vectors.inverse(variance, norm.eps)
    y, mask = batch_norm_forward(z, norm.weight, norm.bias, mean, inverse, residual, activation)
    return y, z, mask, mean, inverse


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
    c = w.shape[2] * groups
    k = w.shape[3]
    y = buffer_pool.empty((n, *window.output_size((h, wd)), k), np.float32)
    name = algorithm.choose(n, (h, wd), c, k, window, groups)
    if name != "direct":
        form = _OUTPUTS[name], w.shape[0]
        return y, winograd_forward(maps, w, window, form, [y], False, b, relu, summing, residual)
    slices = _slices(w, _channels(maps)) if len(maps) > 1 else [w]
    for i, (part, filter_) in enumerate(zip(maps, slices, strict=True)):
        first = i == 0
        last = i == len(maps) - 1
        start = (b, residual) if first else (None, None)
        flags = {"relu": relu and last, "add": not first, "summing": summing and last}
        sums = direct_forward(part, filter_, start[0], y, window, groups, **flags, residual=start[1])
    return y, sums


def conv2d_backward_data(
    dy: np.ndarray,
    w: np.ndarray,
    size: Pair,
    window: Window,
    groups: int = 1,
    parts: tuple[int, ...] | None = None,
    accumulate_into: tuple[np.ndarray | None, ...] = (None,),
) -> Any:
    """As kernels.conv.reference.conv2d_backward_data."""
    given = _contiguous(dy)
    if given is None or _contiguous(w) is None or not all(total is None or _takes(total) for total in accumulate_into):
        return NotImplemented
    dy = given[0]
    n = dy.shape[0]
    c = w.shape[2] * groups
    parts = parts or (c,)
    back, cropped = _data_window(window, size, dy.shape[1:3])
    if depthwise.serves(window, c, dy.shape[3], groups) and window.stride == (1, 1) and not cropped:
        return (_added(depthwise.forward(dy, w[::-1, ::-1], None, back), accumulate_into[0]),)
    if cropped or window.stride != (1, 1):
        name = "direct"
    else:
        name = algorithm.choose(n, dy.shape[1:3], dy.shape[3], c, back, groups)
    if name == "direct":
        slices = _slices(w, parts) if len(parts) > 1 else [w]
        return tuple(
            direct_backward_data(dy, f, size, window, groups, None, t)
            for f, t in zip(slices, accumulate_into, strict=True)
        )
    add = all(t is not None for t in accumulate_into)
    dxs = [
        t if add and t is not None else buffer_pool.empty((n, *size, part), np.float32)
        for part, t in zip(parts, accumulate_into, strict=True)
    ]
    winograd_forward([dy], filters.flipped(w, 1), back, (_OUTPUTS[name], w.shape[0]), dxs, add)
    return tuple(dx if add else _added(dx, t) for dx, t in zip(dxs, accumulate_into, strict=True))


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


def conv2d_backward_filter(maps: tuple[np.ndarray, ...], dy: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_backward_filter."""
    given = _contiguous(*maps, dy)
    if given is None:
        return NotImplemented
    *maps, dy = given
    n, h, wd, _ = maps[0].shape
    c = sum(_channels(maps))
    k = dy.shape[3]
    if depthwise.serves(window, c, k, groups):
        return depthwise.backward_filter(maps[0], dy, window)
    name = algorithm.choose(n, (h, wd), c, k, window, groups)
    if name != "direct":
        return winograd_backward_filter(maps, dy, window, (_OUTPUTS[name], window.kernel[0]))
    parts = [direct_backward_filter(part, dy, window, groups) for part in maps]
    if len(parts) == 1:
        return parts[0]
    mark_host_computation()
    return np.concatenate(parts, 2)


def conv2d_norm_backward(
    dy: np.ndarray,
    maps: tuple[np.ndarray, ...],
    w: np.ndarray,
    z: np.ndarray,
    norm: SavedBatchNorm,
    with_residual: bool,
    window: Window,
    groups: int = 1,
    accumulate_into: tuple[np.ndarray | None, ...] | None = (None,),
    donated: bool = False,
) -> Any:
    """As kernels.conv.reference.conv2d_norm_backward: dense layers of stride 1 take one pass after the pass for the
    sums; other layers are unfused.
    """
    given = _contiguous(*maps, dy, z)
    if given is None or accumulate_into is None or _contiguous(w) is None:
        return NotImplemented
    *ready, g, z = given
    plan = _norm_plan(ready, z, norm.mask, window, groups)
    if plan is None:
        return NotImplemented
    kept = (
        None
        if norm.activation is None or not with_residual
        else g
        if donated and g.flags.writeable
        else buffer_pool.empty(g.shape, np.float32)
    )
    dweight, dbias, rows = gradient_rows(g, z, norm, True, kept)
    masked = g if kept is None else kept
    # With a residual the masked gradient itself is wanted.
    mask_later = norm.activation is not None and not with_residual
    adds = [t is not None and _takes(t) for t in accumulate_into]
    if plan.most == 2 and not all(adds):
        adds = [False] * len(ready)
    dxs = [
        t if more else buffer_pool.empty(m.shape, np.float32)
        for m, t, more in zip(ready, accumulate_into, adds, strict=True)
    ]
    dw = plan.run(masked, z, rows, mask_later, ready, w, dxs, adds)
    dxs = [dx if more else _added(dx, t) for dx, t, more in zip(dxs, accumulate_into, adds, strict=True)]
    return dw, dweight, dbias, masked if with_residual else None, tuple(dxs)


def _norm_plan(maps: list[np.ndarray], z: np.ndarray, mask: np.ndarray | None, window: Window, groups: int) -> Any:
    """The plan by which both gradients of a layer and its norm are computed in one pass; None: unfused."""
    dense = groups == 1 and window.stride == window.dilation == (1, 1) and window.kernel[0] == window.kernel[1]
    back, cropped = _data_window(window, maps[0].shape[1:3], z.shape[1:3])
    if not dense or cropped or not is_own(mask, z):
        return None
    channels = _channels(maps)
    n, p, q, k = z.shape
    if window == Window((1, 1)):
        plan: Any = pointwise_plan(z.shape, channels)
    else:
        name = algorithm.choose(n, (p, q), k, sum(channels), back, groups)
        if name == "direct":
            return None
        plan = winograd_plan((_OUTPUTS[name], window.kernel[0]), z.shape, channels, back)
    return None if plan.scratch > WORKSPACE_LIMIT or len(maps) > plan.most else plan


def backward_bias(dy: np.ndarray) -> Any:
    """As kernels.conv.reference.backward_bias."""
    given = _contiguous(dy)
    if given is None:
        return NotImplemented
    channels = dy.shape[-1]
    # the sums, without the squares that follow them
    return channel_vectors.totals(pixel_sums(given[0], ZEROS[:channels]), channels)


def conv_transpose2d_forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, size: Pair, window: Window, groups: int = 1
) -> Any:
    """As kernels.conv.reference.conv_transpose2d_forward: non-overlapping windows are matrix products, row by row; else
    every phase of the stride is a small convolution, and the results are interleaved.
    """
    given = _contiguous(x)
    if given is None or _contiguous(w, b) is None:
        return NotImplemented
    if groups == 1 and is_patchify(window, size, x.shape):
        return direct_transposed(given[0], w, b)
    return direct_backward_data(given[0], filters.swapped(w), size, window, groups, b)


def conv_transpose2d_backward_data(dy: np.ndarray, w: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_data."""
    swapped = filters.swapped(w) if w.dtype == np.float32 else w.swapaxes(2, 3)
    return conv2d_forward((dy,), swapped, None, window, groups)


def conv_transpose2d_backward_filter(x: np.ndarray, dy: np.ndarray, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_filter."""
    dw = conv2d_backward_filter((dy,), x, window, groups)
    return NotImplemented if dw is NotImplemented else filters.swapped(dw)
