"""Convolutions: forward, data gradient and filter gradient at the shapes of the report's network, width 32,
batch 16; on a GPU in float32, in TF32 and of float16 arrays, 1x1 against CuPy's matrix products, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import xla
from bench.harness import Case, Run
from bench.shapes import BATCH, LAYOUTS, STAGES, array, device, ours, torch_filter, torch_image, torch_precision
from kernels import conv
from kernels.core.geometry import Window
from kernels.core.precision import use_precision

Shape = tuple[int, int, int, int, int]  # H, W, C, K, groups
DIRECTIONS = ("forward", "backward_data", "backward_filter")
FORMS = ("product", "dilated")  # of a transposed convolution in JAX


def cases() -> list[Case]:
    """3x3 and 5x5 stride 1, dilated 2 and 4, 1x1, stem, depthwise, and k2 s2 transposed; three directions each."""
    if device() == "cpu":
        return _cases("float32")
    return [case for precision in ("float32", "tf32", "float16") for case in _cases(precision)]


def _cases(precision: str) -> list[Case]:
    out: list[Case] = []
    three = partial(_three, precision=precision)
    full, half, third, last = (size[:2] for size in STAGES)
    for h, w, c in STAGES:
        out += three("3x3", (h, w, c, c, 1), 3, 1)
    out += (
        three("3x3", (*full, 64, 32, 1), 3, 1)
        + three("3x3", (*third, 256, 128, 1), 3, 1)
        + three("3x3", (*last, 128, 256, 1), 3, 1)
    )
    for h, w, c in STAGES[:3]:
        out += three("3x3", (h, w, c // 4, c // 4, 1), 3, 1)
    for d in (2, 4):
        out += three(f"3x3 dilated {d}", (*last, 256, 64, 1), 3, d)
    for h, w, c in STAGES[:3]:
        out += three("5x5", (h, w, c // 4, c // 4, 1), 5, 1)
    for h, w, c in STAGES:
        out += three("1x1", (h, w, c, c, 1), 1, 1)
    out += three("stem 3x3", (*full, 1, 32, 1), 3, 1) + three("depthwise 3x3", (*half, 64, 64, 64), 3, 1)
    for h, w, c in STAGES[1:]:
        out += _transposed(precision, (h, w, c, c // 2, 1))
    return out


def _in(precision: str, run: Run) -> Run:
    """Ours in a precision: that of products by policy, float16 by the arrays' own type."""
    if precision in ("float32", "float16"):
        return run

    def within() -> Any:
        with use_precision(precision):
            return run()

    return within


def _torch_in(precision: str, run: Run) -> Run:
    def within() -> Any:
        with torch_precision("float32" if precision == "float16" else precision):
            return run()

    return within if device() == "cuda" else run


def _stored(precision: str, a: Any) -> Any:
    """A NumPy array or a PyTorch tensor in the type that a precision stores."""
    if precision != "float16":
        return a
    return a.astype(np.float16) if isinstance(a, np.ndarray) else a.half()


def _three(name: str, shape: Shape, k: int, dilation: int, precision: str = "float32") -> list[Case]:
    h, w, c, o, groups = shape
    window = Window.of("conv2d", k, 1, "same", dilation)
    flops = 2 * BATCH * h * w * o * k * k * c // groups
    traffic = 4 * (BATCH * h * w * (c + o) + k * k * c * o // groups)
    if precision == "float16":
        traffic //= 2
    text = f"{BATCH}x{h}x{w}x{c} -> {o}" + _suffix(precision)
    out = []
    for direction in DIRECTIONS:
        torch = {mode: partial(_torch, precision, direction, shape, k, dilation, mode) for mode in LAYOUTS}
        others = {"torch": torch, "jax": xla.modes(_jax, direction, shape, k, dilation)}
        if k == 1 and device() == "cuda" and precision != "tf32":
            others["cupy"] = {"matmul": partial(_matmul, precision, direction, shape)}
        run = partial(_ours, precision, direction, shape, k, window)
        out.append(Case(f"conv2d {name} {direction}", text, run, others, flops, traffic, precision))
    return out


def _suffix(precision: str) -> str:
    return f" {precision}" if device() == "cuda" else ""


def _ours(precision: str, direction: str, shape: Shape, k: int, window: Window) -> Callable[[], Any]:
    h, w, c, o, groups = shape
    x, dy, f = (
        ours(_stored(precision, array(*dims))) for dims in ((BATCH, h, w, c), (BATCH, h, w, o), (k, k, c // groups, o))
    )
    if direction == "forward":
        return _in(precision, lambda: conv.conv2d_forward((x,), f, None, window, groups))
    if direction == "backward_data":
        return _in(precision, lambda: conv.conv2d_backward_data(dy, f, (h, w), window, groups))
    return _in(precision, lambda: conv.conv2d_backward_filter((x,), dy, window, groups))


def _torch(precision: str, direction: str, shape: Shape, k: int, dilation: int, mode: str) -> Callable[[], Any]:
    import torch

    h, w, c, o, groups = shape
    x = _stored(precision, torch_image(array(BATCH, h, w, c), mode))
    dy = _stored(precision, torch_image(array(BATCH, h, w, o), mode))
    f = _stored(precision, torch_filter(array(k, k, c // groups, o), mode))
    pad = dilation * (k - 1) // 2
    if direction == "forward":
        return _torch_in(precision, lambda: torch.conv2d(x, f, None, 1, pad, dilation, groups))
    wanted = [direction == "backward_data", direction == "backward_filter", False]
    return _torch_in(
        precision,
        lambda: torch.ops.aten.convolution_backward(
            dy, x, f, None, [1, 1], [pad, pad], [dilation] * 2, False, [0, 0], groups, wanted
        ),
    )


def _matmul(precision: str, direction: str, shape: Shape) -> Callable[[], Any]:
    """A 1x1 convolution as CuPy's own matrix product (cuBLAS)."""
    h, w, c, o, _ = shape
    x, dy, f = (ours(_stored(precision, array(*dims))) for dims in ((BATCH * h * w, c), (BATCH * h * w, o), (c, o)))
    if direction == "forward":
        return lambda: x @ f
    return (lambda: dy @ f.T) if direction == "backward_data" else (lambda: x.T @ dy)


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


def _transposed(precision: str, shape: Shape) -> list[Case]:
    h, w, c, o, _ = shape
    flops = 8 * BATCH * h * w * c * o
    traffic = (2 if precision == "float16" else 4) * (BATCH * h * w * (c + 4 * o) + 4 * c * o)
    out = []
    for direction in DIRECTIONS:
        jax = {
            f"{mode} {form}": build
            for form in FORMS
            for mode, build in xla.modes(_jax_transposed, direction, shape, form).items()
        }
        torch = {mode: partial(_torch_transposed, precision, direction, shape, mode) for mode in LAYOUTS}
        name = f"conv_transpose2d k2 s2 {direction}"
        text = f"{BATCH}x{h}x{w}x{c} -> {o}" + _suffix(precision)
        run = partial(_ours_transposed, precision, direction, shape)
        out.append(Case(name, text, run, {"torch": torch, "jax": jax}, flops, traffic, precision))
    return out


def _ours_transposed(precision: str, direction: str, shape: Shape) -> Callable[[], Any]:
    h, w, c, o, _ = shape
    window = Window((2, 2), (2, 2))
    x, dy, f = (
        ours(_stored(precision, array(*dims))) for dims in ((BATCH, h, w, c), (BATCH, 2 * h, 2 * w, o), (2, 2, c, o))
    )
    if direction == "forward":
        return _in(precision, lambda: conv.conv_transpose2d_forward(x, f, None, (2 * h, 2 * w), window))
    if direction == "backward_data":
        return _in(precision, lambda: conv.conv_transpose2d_backward_data(dy, f, window))
    return _in(precision, lambda: conv.conv_transpose2d_backward_filter(x, dy, window))


def _torch_transposed(precision: str, direction: str, shape: Shape, mode: str) -> Callable[[], Any]:
    import torch

    h, w, c, o, _ = shape
    x = _stored(precision, torch_image(array(BATCH, h, w, c), mode))
    dy = _stored(precision, torch_image(array(BATCH, 2 * h, 2 * w, o), mode))
    f = _stored(precision, torch_filter(array(2, 2, o, c), mode))  # PyTorch: (c_in, c_out, R, S)
    if direction == "forward":
        return _torch_in(precision, lambda: torch.conv_transpose2d(x, f, None, 2))
    wanted = [direction == "backward_data", direction == "backward_filter", False]
    return _torch_in(
        precision,
        lambda: torch.ops.aten.convolution_backward(dy, x, f, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1, wanted),
    )


def _jax_transposed(direction: str, shape: Shape, form: str, mode: str) -> Callable[[], Any]:
    h, w, c, o, _ = shape
    jax = xla.start(mode)
    from bench.jax_twin import conv_transpose2d

    arrays = array(BATCH, h, w, c), array(2, 2, c, o), array(BATCH, 2 * h, 2 * w, o)
    return _jax_direction(jax, direction, partial(conv_transpose2d, dilated=form == "dilated"), *arrays)
