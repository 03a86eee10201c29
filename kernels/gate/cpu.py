"""Fast gates and blends, float32, with a gate per pixel (sigmoids for a whole block of pixels, then a run of channels
per pixel) or per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, Vec, program
from kernels.core.cpu.thread_pool import flat, parallel
from kernels.core.cpu.vector_ops import vector_loop

_BLOCK = 512  # pixels


@program
def _sigmoids(code: Code, z: Pointer, z0: Int, s: Pointer, length: Int) -> None:
    """s = sigmoid(z)."""
    vector_loop(code, length, lambda i, rest: code.store(code.sigmoid(code.load(z, z0 + i, rest)), s, i, rest))


def _make_mix(blends: bool, single: bool) -> Callable[..., None]:
    @program
    def mix(
        code: Code, x: Pointer, other: Pointer, x0: Int, gates: Pointer, gate0: Int, y: Pointer, length: Int
    ) -> None:
        """y = s x (blends: + (1 - s) other). single: s = gates[gate0]; else s[i] = sigmoid(gates[gate0 + i])."""
        one = code.broadcast(gates, gate0) if single else None

        def body(i: Int, rest: Any) -> None:
            s = code.sigmoid(code.load(gates, gate0 + i, rest)) if one is None else one
            value = s * code.load(x, x0 + i, rest)
            code.store(code.fma(1 - s, code.load(other, x0 + i, rest), value) if blends else value, y, x0 + i, rest)

        vector_loop(code, length, body)

    return mix


def _make_gradients(blends: bool, single: bool) -> Callable[..., None]:
    @program
    def gradients(code: Code, dy: Pointer, x: Pointer, other: Pointer, x0: Int, gates: Pointer, gate0: Int,
                  dx: Pointer, dother: Pointer, dz: Pointer, sums: Pointer, length: Int) -> None:  # fmt: skip
        """dx = s dy, dother = (1 - s) dy; single: sums[gate0 + _BLOCK] = <dy, x - other>; else dz = dy (x - other) s (1
        - s).
        """
        one = code.broadcast(gates, gate0) if single else None
        total = code.variable(0.0)

        def body(i: Int, rest: Any) -> None:
            s: Vec = code.sigmoid(code.load(gates, gate0 + i, rest)) if one is None else one
            gradient = code.load(dy, x0 + i, rest)
            value = code.load(x, x0 + i, rest)
            code.store(gradient * s, dx, x0 + i, rest)
            if blends:
                code.store(gradient * (1 - s), dother, x0 + i, rest)
                value = value - code.load(other, x0 + i, rest)
            if single:
                total.set(code.fma(gradient, value, total.get()))
            else:
                code.store(gradient * value * s * (1 - s), dz, x0 + i, rest)

        vector_loop(code, length, body)
        if single:
            code.store(code.total(total.get()), sums, gate0 + _BLOCK, code.int(1))

    return gradients


@program
def _gate_gradients(code: Code, s: Pointer, dz: Pointer, z0: Int, length: Int) -> None:
    """dz = <dy, x - other> s (1 - s)."""

    def body(i: Int, rest: Any) -> None:
        value = code.load(s, i, rest)
        code.store(code.load(s, i + _BLOCK, rest) * value * (1 - value), dz, z0 + i, rest)

    vector_loop(code, length, body)


@lru_cache(maxsize=4)
def _forward_kernel(blends: bool, single: bool) -> Kernel:
    mix = _make_mix(blends, single)

    @cpu_kernel(f"{blends} {single}")
    def gate_forward(start, stop, scratch, x: F32, other: F32, z: F32, y: F32, pixels: int, channels: int):
        for block in range(start, stop):
            first = block * _BLOCK
            count = min(_BLOCK, pixels - first)
            if single:
                _sigmoids(z, first, scratch, count)
                for i in range(count):
                    mix(x, other, (first + i) * channels, scratch, i, y, channels)
            else:
                mix(x, other, first * channels, z, first * channels, y, count * channels)

    return gate_forward


@lru_cache(maxsize=4)
def _backward_kernel(blends: bool, single: bool) -> Kernel:
    gradients = _make_gradients(blends, single)

    @cpu_kernel(f"{blends} {single}")
    def gate_backward(
        start,
        stop,
        scratch,
        dy: F32,
        x: F32,
        other: F32,
        z: F32,
        dx: F32,
        dother: F32,
        dz: F32,
        pixels: int,
        channels: int,
    ):
        for block in range(start, stop):
            first = block * _BLOCK
            count = min(_BLOCK, pixels - first)
            if single:
                _sigmoids(z, first, scratch, count)
                for i in range(count):
                    gradients(dy, x, other, (first + i) * channels, scratch, i, dx, dother, dz, scratch, channels)
                _gate_gradients(scratch, dz, first, count)
            else:
                gradients(
                    dy, x, other, first * channels, z, first * channels, dx, dother, dz, scratch, count * channels
                )

    return gate_backward


def _served(*arrays: np.ndarray) -> bool:
    return all(a.dtype == np.float32 and a.size for a in arrays)


def _forward(x: np.ndarray, other: np.ndarray, z: np.ndarray, blends: bool) -> Any:
    if not _served(x, other, z):
        return NotImplemented
    y = buffer_pool.empty(x.shape, np.float32)
    channels = x.shape[-1]
    single = z.shape[-1] == 1
    pixels = x.size // channels
    parallel(
        _forward_kernel(blends, single), -(-pixels // _BLOCK), *flat(x, other, z, y), pixels, channels, scratch=_BLOCK
    )
    return y


def _backward(dy: np.ndarray, x: np.ndarray, other: np.ndarray, z: np.ndarray, blends: bool) -> Any:
    if not _served(dy, x, other, z):
        return NotImplemented
    channels = x.shape[-1]
    single = z.shape[-1] == 1
    pixels = x.size // channels
    dx, dz = (buffer_pool.empty(a.shape, np.float32) for a in (x, z))
    dother = buffer_pool.empty(x.shape, np.float32) if blends else dx
    kernel = _backward_kernel(blends, single)
    parallel(kernel, -(-pixels // _BLOCK), *flat(dy, x, other, z, dx, dother, dz), pixels, channels, scratch=2 * _BLOCK)
    return (dx, dother, dz) if blends else (dx, dz)


def gate_forward(x: np.ndarray, z: np.ndarray) -> Any:
    """As kernels.gate.reference.gate_forward; likewise all functions below."""
    return _forward(x, x, z, False)


def gate_backward(dy: np.ndarray, x: np.ndarray, z: np.ndarray) -> Any:
    """dx = dy s,  dz = (dy x) s (1 - s)."""
    return _backward(dy, x, x, z, False)


def blend_forward(x: np.ndarray, other: np.ndarray, z: np.ndarray) -> Any:
    """y = s x + (1 - s) other."""
    return _forward(x, other, z, True)


def blend_backward(dy: np.ndarray, x: np.ndarray, other: np.ndarray, z: np.ndarray) -> Any:
    """dx = s dy,  dother = (1 - s) dy,  dz = <dy, x - other> s (1 - s)."""
    return _backward(dy, x, other, z, True)
