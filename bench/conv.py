"""Convolutions: forward, data gradient and filter gradient at the shapes of the report's network, width 32,
batch 16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import xla
from bench.harness import Case
from bench.shapes import BATCH, LAYOUTS, STAGES, array, ours, torch_filter, torch_image
from kernels import conv
from kernels.core.geometry import Window

Shape = tuple[int, int, int, int, int]  # H, W, C, K, groups
DIRECTIONS = ("forward", "backward_data", "backward_filter")
FORMS = ("product", "dilated")  # of a transposed convolution in JAX


def cases() -> list[Case]:
    """3x3 and 5x5 stride 1, dilated 2 and 4, 1x1, stem, depthwise, and k2 s2 transposed; three directions each."""
    out: list[Case] = []
    for h, w, c in STAGES:
        out += _three("3x3", (h, w, c, c, 1), 3, 1)
    out += (
        _three("3x3", (64, 128, 64, 32, 1), 3, 1)
        + _three("3x3", (16, 32, 256, 128, 1), 3, 1)
        + _three("3x3", (8, 16, 128, 256, 1), 3, 1)
    )
    for h, w, c in STAGES[:3]:
        out += _three("3x3", (h, w, c // 4, c // 4, 1), 3, 1)
    for d in (2, 4):
        out += _three(f"3x3 dilated {d}", (8, 16, 256, 64, 1), 3, d)
    for h, w, c in STAGES[:3]:
        out += _three("5x5", (h, w, c // 4, c // 4, 1), 5, 1)
    for h, w, c in STAGES:
        out += _three("1x1", (h, w, c, c, 1), 1, 1)
    out += _three("stem 3x3", (64, 128, 1, 32, 1), 3, 1) + _three("depthwise 3x3", (32, 64, 64, 64, 64), 3, 1)
    for h, w, c in STAGES[1:]:
        out += _transposed((h, w, c, c // 2, 1))
    return out


def _three(name: str, shape: Shape, k: int, dilation: int) -> list[Case]:
    h, w, c, o, groups = shape
    window = Window.of("conv2d", k, 1, "same", dilation)
    flops = 2 * BATCH * h * w * o * k * k * c // groups
    traffic = 4 * (BATCH * h * w * (c + o) + k * k * c * o // groups)
    text = f"{BATCH}x{h}x{w}x{c} -> {o}"
    return [
        Case(
            f"conv2d {name} {direction}",
            text,
            partial(_ours, direction, shape, k, window),
            {
                "torch": {mode: partial(_torch, direction, shape, k, dilation, mode) for mode in LAYOUTS},
                "jax": xla.modes(_jax, direction, shape, k, dilation),
            },
            flops,
            traffic,
        )
        for direction in DIRECTIONS
    ]


def _ours(direction: str, shape: Shape, k: int, window: Window) -> Callable[[], Any]:
    h, w, c, o, groups = shape
    x = ours(array(BATCH, h, w, c))
    dy = ours(array(BATCH, h, w, o))
    f = ours(array(k, k, c // groups, o))
    if direction == "forward":
        return lambda: conv.conv2d_forward((x,), f, None, window, groups)
    if direction == "backward_data":
        return lambda: conv.conv2d_backward_data(dy, f, (h, w), window, groups)
    return lambda: conv.conv2d_backward_filter((x,), dy, window, groups)


def _torch(direction: str, shape: Shape, k: int, dilation: int, mode: str) -> Callable[[], Any]:
    import torch

    h, w, c, o, groups = shape
    x = torch_image(array(BATCH, h, w, c), mode)
    dy = torch_image(array(BATCH, h, w, o), mode)
    f = torch_filter(array(k, k, c // groups, o), mode)
    pad = dilation * (k - 1) // 2
    if direction == "forward":
        return lambda: torch.conv2d(x, f, None, 1, pad, dilation, groups)
    wanted = [direction == "backward_data", direction == "backward_filter", False]
    return lambda: torch.ops.aten.convolution_backward(
        dy, x, f, None, [1, 1], [pad, pad], [dilation] * 2, False, [0, 0], groups, wanted
    )


def _jax(direction: str, shape: Shape, k: int, dilation: int, mode: str) -> Callable[[], Any]:
    h, w, c, o, groups = shape
    jax = xla.start(mode)
    from bench.jax_twin import conv2d

    arrays = array(BATCH, h, w, c), array(k, k, c // groups, o), array(BATCH, h, w, o)
    return _jax_direction(jax, direction, partial(conv2d, dilation=dilation, groups=groups), *arrays)


def _jax_direction(
    jax: Any, direction: str, fn: Callable[..., Any], x: np.ndarray, f: np.ndarray, dy: np.ndarray
) -> Callable[[], Any]:
    """fn(x, f), or what is left of its gradient when only one is wanted: fn is linear in each, so its transpose needs
    no forward pass.
    """
    if direction == "forward":
        return xla.compiled(jax, fn, x, f)
    if direction == "backward_data":
        return xla.compiled(jax, lambda dy, f: jax.linear_transpose(lambda x: fn(x, f), x)(dy)[0], dy, f)
    return xla.compiled(jax, lambda x, dy: jax.linear_transpose(lambda f: fn(x, f), f)(dy)[0], x, dy)


def _transposed(shape: Shape) -> list[Case]:
    h, w, c, o, _ = shape
    flops = 8 * BATCH * h * w * c * o
    traffic = 4 * (BATCH * h * w * (c + 4 * o) + 4 * c * o)
    out = []
    for direction in DIRECTIONS:
        jax = {
            f"{mode} {form}": build
            for form in FORMS
            for mode, build in xla.modes(_jax_transposed, direction, shape, form).items()
        }
        others = {"torch": {mode: partial(_torch_transposed, direction, shape, mode) for mode in LAYOUTS}, "jax": jax}
        text = f"{BATCH}x{h}x{w}x{c} -> {o}"
        out.append(
            Case(
                f"conv_transpose2d k2 s2 {direction}",
                text,
                partial(_ours_transposed, direction, shape),
                others,
                flops,
                traffic,
            )
        )
    return out


def _ours_transposed(direction: str, shape: Shape) -> Callable[[], Any]:
    h, w, c, o, _ = shape
    window = Window((2, 2), (2, 2))
    x = ours(array(BATCH, h, w, c))
    dy = ours(array(BATCH, 2 * h, 2 * w, o))
    f = ours(array(2, 2, c, o))
    if direction == "forward":
        return lambda: conv.conv_transpose2d_forward(x, f, None, (2 * h, 2 * w), window)
    if direction == "backward_data":
        return lambda: conv.conv_transpose2d_backward_data(dy, f, window)
    return lambda: conv.conv_transpose2d_backward_filter(x, dy, window)


def _torch_transposed(direction: str, shape: Shape, mode: str) -> Callable[[], Any]:
    import torch

    h, w, c, o, _ = shape
    x = torch_image(array(BATCH, h, w, c), mode)
    dy = torch_image(array(BATCH, 2 * h, 2 * w, o), mode)
    f = torch_filter(array(2, 2, o, c), mode)  # PyTorch: (c_in, c_out, R, S)
    if direction == "forward":
        return lambda: torch.conv_transpose2d(x, f, None, 2)
    wanted = [direction == "backward_data", direction == "backward_filter", False]
    return lambda: torch.ops.aten.convolution_backward(dy, x, f, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1, wanted)


def _jax_transposed(direction: str, shape: Shape, form: str, mode: str) -> Callable[[], Any]:
    h, w, c, o, _ = shape
    jax = xla.start(mode)
    from bench.jax_twin import conv_transpose2d

    arrays = array(BATCH, h, w, c), array(2, 2, c, o), array(BATCH, 2 * h, 2 * w, o)
    return _jax_direction(jax, direction, partial(conv_transpose2d, dilated=form == "dilated"), *arrays)
