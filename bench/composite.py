"""A builder for cases that run an operator forward and backward through both tapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from autograd import Tensor, no_grad
from bench import xla
from bench.harness import Case
from bench.shapes import LAYOUTS, device, ours
from kernels.core.device import array_module

OursFn = Callable[..., Tensor]


def forward_backward(
    name: str,
    shape: str,
    ours: OursFn,
    theirs: Callable[..., Any],
    arrays: Callable[[], Sequence[np.ndarray]],
    images: Sequence[int] = (0,),
    flops: int = 0,
    bytes: int = 0,
    modes: Sequence[str] = (*LAYOUTS, "compile"),
    backward: bool = True,
    jax: Callable[..., Any] | None = None,
    cupy: Callable[..., Any] | None = None,
) -> Case:
    """All sides run fn(*arrays) and, with `backward`, its gradient for a cotangent of ones.

    ours(*tensors) gets NHWC Tensors; theirs(*tensors) gets PyTorch tensors, the 4-axis arrays at `images` as NCHW (or
    channels_last) images; jax(*arrays) gets JAX arrays, NHWC; cupy(*arrays) computes value and gradient of CuPy arrays,
    NHWC, by CuPy's own functions.
    """
    others = {"torch": {mode: partial(_torch, theirs, arrays, tuple(images), mode, backward) for mode in modes}}
    if jax is not None:
        others["jax"] = xla.modes(xla.forward_backward, jax, arrays, backward)
    if cupy is not None and device() == "cuda":
        others["cupy"] = {"functions": partial(_cupy, cupy, arrays)}
    return Case(name, shape, partial(_ours, ours, arrays, backward), others, flops, bytes)


def _ours(fn: OursFn, arrays: Callable[[], Sequence[np.ndarray]], backward: bool) -> Callable[[], Any]:
    tensors = [Tensor(ours(a), requires_grad=backward and a.dtype.kind == "f") for a in arrays()]
    with no_grad():
        y = fn(*tensors).data
    seed = array_module(y).ones_like(y)

    def run() -> None:
        for t in tensors:
            t.zero_grad()
        y = fn(*tensors)
        if backward:
            y.backward(seed)

    return run


def _cupy(fn: Callable[..., Any], arrays: Callable[[], Sequence[np.ndarray]]) -> Callable[[], Any]:
    return partial(fn, *map(ours, arrays()))


def _torch(
    fn: Callable[..., Any],
    arrays: Callable[[], Sequence[np.ndarray]],
    images: tuple[int, ...],
    mode: str,
    backward: bool,
) -> Callable[[], Any]:
    import torch

    from bench.shapes import torch_image, torch_tensor

    layout = "channels_last" if mode == "compile" else mode
    tensors = [torch_image(a, layout) if k in images else torch_tensor(a) for k, a in enumerate(arrays())]
    for t in tensors:
        t.requires_grad_(backward and t.is_floating_point())
    call = torch.compile(fn) if mode == "compile" else fn
    seed = torch.ones_like(fn(*tensors)) if backward else None

    def run() -> None:
        for t in tensors:
            t.grad = None
        if backward:
            call(*tensors).backward(seed)
        else:
            with torch.no_grad():
                call(*tensors)

    return run
