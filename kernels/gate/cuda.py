"""Gates and blends on CUDA; the kernels and what they cost are described in gate.cu."""

from __future__ import annotations

from typing import Any

from kernels.core.cuda.arrays import group_of, ready, type_of, variant, variants, width_of
from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, array_module

THREADS = 256
MODULE = Module("gate/gate.cu", variants("blend_forward", "blend_backward"))


def threads_launch(kernel: str, threads: int) -> Launch:
    """A launch of that many threads."""
    return Launch(kernel, (blocks(threads, THREADS),), (THREADS,))


def _fits(x: Array, z: Array) -> bool:
    return z.shape in (x.shape, (*x.shape[:-1], 1))


def _forward(x: Array, other: Array | None, z: Array) -> Any:
    kind = type_of(x, z, *(() if other is None else (other,)))
    channels = x.shape[-1]
    if kind is None or not _fits(x, z):
        return NotImplemented
    y = array_module(x).empty(x.shape, x.dtype)
    kernel = variant("blend_forward", kind, channels)
    count = x.size // width_of(kernel)
    packs = channels // width_of(kernel)
    MODULE.run(
        threads_launch(kernel, count),
        ready(x),
        None if other is None else ready(other),
        ready(z),
        y,
        count,
        packs,
        z.shape[-1] == 1,
    )
    return y


def _backward(dy: Array, x: Array, other: Array | None, z: Array) -> Any:
    kind = type_of(dy, x, z, *(() if other is None else (other,)))
    channels = x.shape[-1]
    if kind is None or not _fits(x, z):
        return NotImplemented
    xp = array_module(x)
    kernel = variant("blend_backward", kind, channels)
    dx = xp.empty(x.shape, x.dtype)
    dz = xp.empty(z.shape, x.dtype)
    dother = None if other is None else xp.empty(x.shape, x.dtype)
    pixels = x.size // channels
    packs = channels // width_of(kernel)
    group = group_of(packs)
    if pixels * group >= 2**31:
        return NotImplemented
    arrays = ready(dy), ready(x), None if other is None else ready(other), ready(z), dx, dother, dz
    MODULE.run(threads_launch(kernel, pixels * group), *arrays, pixels, packs, group, z.shape[-1] == 1)
    return (dx, dz) if other is None else (dx, dother, dz)


def gate_forward(x: Array, z: Array) -> Any:
    """As kernels.gate.reference.gate_forward."""
    return _forward(x, None, z)


def gate_backward(dy: Array, x: Array, z: Array) -> Any:
    """As kernels.gate.reference.gate_backward."""
    return _backward(dy, x, None, z)


def blend_forward(x: Array, other: Array, z: Array) -> Any:
    """As kernels.gate.reference.blend_forward."""
    return _forward(x, other, z)


def blend_backward(dy: Array, x: Array, other: Array, z: Array) -> Any:
    """As kernels.gate.reference.blend_backward."""
    return _backward(dy, x, other, z)
