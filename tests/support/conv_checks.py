"""Compact checks of the CPU's convolutions, as fast_checks.py says; and the list that all checks are on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from kernels import conv, norm
from kernels.conv import reference
from kernels.conv.cpu.winograd.plan import plan_of
from kernels.core.dispatch import kernel_log
from kernels.core.geometry import Window
from kernels.norm.records import BatchNorm, SavedBatchNorm
from tests.support.fast_rule import (
    agree,
    array,
    before_a_wall,
    forced_algorithm,
    judge,
    left_to_right_data,
    plain,
    widened,
)

# The stated largest errors of Winograd (kernels/conv/cpu/winograd/transforms.py), relative to the largest output, per
# (m, r).
WINOGRAD = {(4, 3): 2e-5, (2, 3): 1e-6, (2, 5): 2e-5}

ALL = ("forward", "data", "filter")
STEPS = ALL  # of convolutions; narrowed by the command line
CHECKS: dict[str, Callable[[], Any]] = {}
SAME = ((1, 1), (1, 1))


def check(function: Callable[[np.random.Generator], Any]) -> Callable[[], Any]:
    """Register a check under its name; it gets a generator of its own."""

    def run() -> Any:
        return function(np.random.default_rng(7))

    CHECKS[function.__name__] = run
    return run


def convolution(
    rng, n: int, h: int, w: int, c: int, k: int, window: Window, groups: int = 1, winograd: float | None = None
) -> list[Any]:
    """Forward, data gradient and filter gradient of one convolution."""
    x, filters, bias = array(rng, n, h, w, c), array(rng, *window.kernel, c // groups, k), array(rng, 1, k)[0]
    dy, out = array(rng, n, *window.output_size((h, w)), k), []
    if "forward" in STEPS:
        out.append(agree(conv.conv2d_forward, (x,), filters, bias, window, groups, winograd=winograd))
    if "data" in STEPS:
        out.append(agree(conv.conv2d_backward_data, dy, filters, (h, w), window, groups, winograd=winograd))
    if "filter" in STEPS:
        out.append(agree(conv.conv2d_backward_filter, (x,), dy, window, groups, winograd=winograd))
    return out


@check
def conv_direct(rng) -> Any:
    """Rows and columns of tiles with remainders, padding on all sides, a tail of channels."""
    with forced_algorithm("direct"):
        return convolution(rng, 2, 7, 41, 5, 11, Window((3, 3), (1, 1), ((1, 2), (2, 0))))


@check
def conv_direct_strided(rng) -> Any:
    """Different strides and dilations for rows and columns; phases of the data gradient."""
    with forced_algorithm("direct"):
        return convolution(rng, 2, 11, 13, 5, 11, Window((3, 2), (2, 3), ((1, 0), (2, 1)), (1, 2)))


@check
def conv_direct_grouped(rng) -> Any:
    """Three groups of three channels."""
    with forced_algorithm("direct"):
        return convolution(rng, 2, 6, 7, 9, 33, Window((3, 3), (1, 1), SAME), 3)


@check
def conv_many_chunks(rng) -> Any:
    """Several strips per image and several chunks of the filter gradient."""
    with forced_algorithm("direct"):
        return convolution(rng, 3, 41, 23, 61, 11, Window((3, 3), (1, 1), SAME))


@check
def conv_pointwise(rng) -> Any:
    """1x1: whole rows of pixels and a rest."""
    with forced_algorithm("direct"):
        return convolution(rng, 3, 9, 31, 13, 11, Window((1, 1)))


@check
def conv_transpose(rng) -> Any:
    """Transposed, 2x2 with stride 2, and its gradients."""
    window = Window((2, 2), (2, 2))
    x, w, b = array(rng, 2, 7, 6, 9), array(rng, 2, 2, 9, 11), array(rng, 1, 11)[0]
    with forced_algorithm("direct"):
        y = agree(conv.conv_transpose2d_forward, x, w, b, (14, 12), window)
        dy = array(rng, *y.shape)
        dx = agree(conv.conv_transpose2d_backward_data, dy, w, window)
        return [y, dx, agree(conv.conv_transpose2d_backward_filter, x, dy, window)]


@check
def conv_windows(rng) -> Any:
    """Windows side by side, filter gradients: several pieces, blocks of rows, columns and taps, rests of all; nothing
    beyond is read.
    """
    out = []
    with forced_algorithm("direct"):
        for (n, p, q), (r, s), c, k in (
            ((1, 20, 45), (1, 1), 300, 140),
            ((2, 9, 17), (2, 2), 13, 11),
            ((2, 5, 33), (3, 1), 150, 29),
        ):
            x, dy = before_a_wall(array(rng, n, r * p, s * q, c)), before_a_wall(array(rng, n, p, q, k))
            window = Window((r, s), (r, s))
            out.append(agree(conv.conv2d_backward_filter, (x,), dy, window))
            np.testing.assert_array_equal(conv.conv2d_backward_filter((x,), dy, window), out[-1])  # agree passes copies
    return out


@check
def conv_winograd4(rng) -> Any:
    """F(4x4, 3x3): border tiles, cut output tiles, tails."""
    with forced_algorithm("winograd4"):
        return convolution(rng, 2, 11, 14, 7, 11, Window((3, 3), (1, 1), ((1, 0), (2, 1))), winograd=WINOGRAD[4, 3])


@check
def conv_winograd2(rng) -> Any:
    """F(2x2, 3x3), dilated: interleaved problems."""
    with forced_algorithm("winograd2"):
        return convolution(
            rng, 2, 9, 10, 7, 11, Window((3, 3), (1, 1), ((2, 2), (2, 1)), (2, 2)), winograd=WINOGRAD[2, 3]
        )


@check
def conv_winograd_parts(rng) -> Any:
    """Few tiles and a large filter, whose panels are shared out in parts: a rest of channels, border tiles; ReLU, with
    a residual.
    """
    out = []
    with forced_algorithm("winograd4"):
        for n, h, w, window in (
            (1, 7, 13, Window((3, 3), (1, 1), ((1, 0), (2, 1)))),
            (2, 5, 6, Window((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2))),
        ):
            x, filters, bias = array(rng, n, h, w, 210), array(rng, 3, 3, 210, 69), array(rng, 1, 69)[0]
            assert plan_of((4, 3), n, (h, w), 210, 69, window).parts > 1
            y = agree(conv.conv2d_forward, (x,), filters, bias, window, winograd=WINOGRAD[4, 3])
            more = array(rng, *y.shape)
            out += [y, agree(conv.conv2d_forward, (x,), filters, bias, window, 1, True, more, winograd=WINOGRAD[4, 3])]
    return out


@check
def conv_depthwise(rng) -> Any:
    """One filter per channel: a border all around; strided; several strips, dilated, with borders that differ."""
    layers = [
        ((2, 9, 11), Window((3, 3), (1, 1), SAME)),
        ((2, 9, 23), Window((3, 3), (2, 2), ((0, 1), (1, 2)))),
        ((1, 70, 50), Window((3, 2), (1, 1), ((3, 1), (0, 4)), (2, 3))),
    ]
    return [convolution(rng, *size, 21, 21, window, 21) for size, window in layers]


def stem_norm(rng, size: tuple[int, int, int], k: int, window: Window) -> list[np.ndarray]:
    """A convolution of one channel and the batch norm behind it: mean and variance are those of the very z, to the
    accuracy of float32 sums.
    """
    x, w = array(rng, *size, 1), array(rng, *window.kernel, 1, k)
    vectors = [np.full(k, value, np.float32) for value in (1, 0, 0, 1)]
    with kernel_log() as log:
        y, z, _, mean, inverse = conv.conv2d_norm_forward(
            (x,), w, BatchNorm(*vectors, 0.1, 1e-5), None, "relu", window, 1
        )
    assert {entry.by for entry in log} == {"fast"}
    rows = z.reshape(-1, k).astype(np.float64)
    scale = np.sqrt((rows**2).mean(0))
    assert (np.abs(mean - rows.mean(0)) <= 1e-6 * scale).all(), "mean"
    assert (np.abs(1 / inverse**2 - 1e-5 - rows.var(0)) <= 1e-5 * scale**2).all(), "variance"
    return [y, z, mean, inverse]


@check
def conv_stem(rng) -> Any:
    """One input channel: tiles at both borders, rests of pixels and of channels, several strips and pieces of rows;
    into what is there.
    """
    layers = [
        ((2, 9, 24), 11, Window((3, 3), (1, 1), SAME)),
        ((1, 61, 70), 32, Window((3, 3), (1, 1), ((1, 2), (2, 0)))),
        ((2, 5, 3), 21, Window((2, 3), (1, 1), ((0, 2), (2, 2)))),
    ]
    out = []
    with forced_algorithm("direct"):
        for size, k, window in layers:
            out += convolution(rng, *size, 1, k, window)
            dy, w = array(rng, size[0], *window.output_size(size[1:]), k), array(rng, *window.kernel, 1, k)
            if "data" in STEPS:
                accumulate_into = (array(rng, *size, 1),)
                out.append(
                    agree(conv.conv2d_backward_data, dy, w, size[1:], window, 1, None, accumulate_into, inplace=(6,))
                )
            if "forward" in STEPS:
                out.append(
                    agree(conv.conv2d_forward, (array(rng, *size, 1),), w, array(rng, 1, k)[0], window, 1, True, dy)
                )
                out.append(stem_norm(rng, size, k, window))
        return [*out, stem_norm(rng, (1, 2, 1100), 11, Window((3, 3), (1, 1), SAME))] if "forward" in STEPS else out


def norm_gradients(
    rng,
    size: tuple[int, int, int],
    channels: tuple[int, ...],
    k: int,
    window: Window,
    norm_: tuple[str | None, bool],
    accumulate_into: bool,
    winograd=None,
) -> list[Any]:
    """The gradients of a convolution of maps with so many channels and of the batch norm behind it; norm_: its
    activation, with a residual or not.

    dy is 0 where y is near the ReLU's kink: there the gradient is a matter of rounding.
    """
    activation, residual = norm_
    maps = tuple(array(rng, *size, c) for c in channels)
    w = array(rng, *window.kernel, sum(channels), k)
    z = array(rng, size[0], *window.output_size(size[1:]), k) + np.float32(2)
    weight, bias, dy = array(rng, 1, k)[0], array(rng, 1, k)[0], array(rng, *z.shape)
    mean, variance = norm.batch_norm_statistics.reference(np.float64(z))
    vectors = weight, bias, mean, 1 / np.sqrt(variance + 1e-5)
    other = array(rng, *z.shape) if residual else None
    masks = [norm.batch_norm_forward(z, *vectors, other, activation)[1]]
    masks += [norm.batch_norm_forward.reference(*widened((z, *vectors, other)), activation)[1]] * 2
    if activation:
        y, _ = norm.batch_norm_forward.reference(*widened((z, *vectors, other)))
        dy[np.abs(y) < 1e-3] = 0
    totals = tuple(array(rng, *m.shape) for m in maps) if accumulate_into else (None,) * len(maps)
    results, rest = [], (residual, window, 1)
    for kind, mask in zip((copy.deepcopy, plain, widened), masks, strict=True):
        given = (*kind((dy, maps, w, z)), SavedBatchNorm(mask, *kind(vectors), activation), *rest, kind(totals), False)
        if kind is copy.deepcopy:
            with kernel_log() as log:
                results.append(conv.conv2d_norm_backward(given[0], tuple(map(before_a_wall, maps)), *given[2:]))
            assert {entry.by for entry in log} == {"fast"}
        else:
            with mock.patch.object(reference, "conv2d_backward_data", left_to_right_data):
                results.append(conv.conv2d_norm_backward.reference(*given))
    judge("conv2d_norm_backward: vectors and residual", *((r[1:4]) for r in results))
    judge("conv2d_norm_backward: filter and maps", *((r[0], r[4]) for r in results), winograd=winograd)
    return results[0]


@check
def norm_gradients_pointwise(rng) -> Any:
    """1x1: one map and several, tails of channels and pixels, several strips and chunks; all forms of the norm."""
    forms = [(("relu", False), False), (("relu", True), True), ((None, False), True), ((None, True), False)]
    out = [norm_gradients(rng, (2, 9, 31), (13,), 11, Window((1, 1)), *form) for form in forms]
    out.append(norm_gradients(rng, (3, 17, 23), (5, 16, 3), 21, Window((1, 1)), ("relu", False), True))
    return [*out, norm_gradients(rng, (1, 20, 30), (90, 70), 70, Window((1, 1)), ("relu", False), False)]


@check
def norm_gradients_winograd(rng) -> Any:
    """Dense 3x3 and 5x5: border tiles, strips that take over rows, several blocks, paddings that differ, two maps."""
    out = []
    with forced_algorithm("winograd4"):
        for form in ((("relu", False), False), (("relu", True), True)):
            for channels in ((7,), (5, 9)):
                window = Window((3, 3), (1, 1), ((1, 0), (2, 1)))
                out.append(norm_gradients(rng, (2, 14, 11), channels, 11, window, *form, winograd=WINOGRAD[4, 3]))
        out.append(
            norm_gradients(
                rng, (1, 67, 41), (21,), 6, Window((3, 3), (1, 1), SAME), (None, False), False, winograd=WINOGRAD[4, 3]
            )
        )
    with forced_algorithm("winograd2"):
        window = Window((5, 5), (1, 1), ((2, 2), (2, 2)))
        return [*out, norm_gradients(rng, (2, 9, 8), (6,), 5, window, ("relu", False), True, winograd=WINOGRAD[2, 5])]
