"""Winograd convolution F(4x4, 3x3) on CUDA: transforms by winograd.cu, the 36 products by one strided batched call of
cuBLAS, in exact float32.

A cost model decides where it serves; AREOGRAD_CONV = auto | direct | winograd4 | exact as on the CPU
(algorithm.py), without its timing. The largest error is within BOUND of the largest output. Sums over tiles and
channels are cuBLAS's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np
from cupy.cuda import cublas

from kernels.conv.cpu import algorithm
from kernels.conv.cuda.geometry import LARGEST, NULL, integers
from kernels.conv.cuda.pointwise import cublas_serves
from kernels.core.cuda.module import Launch, Module, blocks, device_limits
from kernels.core.device import Array
from kernels.core.geometry import Pair, Window

BOUND = 3e-5
POINTS = 36
NAMES = ("transform_input", "transform_filter", "transform_output", "transform_cotangent", "transform_filter_gradient")
MODULE = Module("conv/cuda/winograd.cu", NAMES)
GEOMETRY = integers("n h w p q rows columns top left c c0 k k0 add")


def tiles(n: int, out: Pair) -> int:
    """4 x 4 output tiles of n images."""
    return n * blocks(out[0], 4) * blocks(out[1], 4)


def cycles(n: int, out: Pair, c: int, k: int, multiprocessors: int) -> tuple[float, float]:
    """Modelled cycles (direct, Winograd): 128 FMAs and 12 bytes a cycle and multiprocessor, 2000 cycles a launch.
    Computed, not measured.
    """
    pixels = n * out[0] * out[1]
    count = tiles(n, out)
    moved = 4 * pixels * (c + k)
    direct = max(9 * pixels * c * k / (0.8 * 128), moved / 12) / multiprocessors + 2000
    products = POINTS * count * c * k / (0.9 * 128)
    traffic = moved + 2 * POINTS * 4 * (count * (c + k) + c * k)
    return direct, (products + traffic / 12) / multiprocessors + 4 * 2000


def serves(n: int, out: Pair, c: int, k: int, window: Window) -> bool:
    """Whether a 3x3 layer with n x out results goes through Winograd."""
    mode = algorithm.mode()
    can = (
        window.kernel == (3, 3)
        and window.stride == window.dilation == (1, 1)
        and POINTS * max(tiles(n, out), c, k) * max(c, k) <= LARGEST
    )
    if not can or mode not in ("auto", "winograd4") or not n or not cublas_serves():
        return False
    direct, winograd = cycles(n, out, c, k, device_limits()[0])
    return mode == "winograd4" or winograd < direct


def multiply(a: Array, b: Array, across: bool = False) -> Array:
    """(36, m, s) @ (36, s, n) -> (36, m, n); across: a is (36, s, m). Row-major C = A B is, to the column-major
    library, C^T = B^T A^T.
    """
    points, s, m = a.shape if across else (a.shape[0], a.shape[2], a.shape[1])
    n = b.shape[2]
    out = cupy.empty((points, m, n), np.float32)
    one = np.ones(1, np.float32)
    zero = np.zeros(1, np.float32)
    handle = cupy.cuda.device.get_cublas_handle()
    plain = cublas.CUBLAS_OP_N
    turned = cublas.CUBLAS_OP_T
    shapes = (b.data.ptr, n, s * n, a.data.ptr, a.shape[2], m * s, zero.ctypes.data, out.data.ptr, n, m * n, points)
    cublas.sgemmStridedBatched(handle, plain, turned if across else plain, n, m, s, one.ctypes.data, *shapes)
    return out


def convolve(
    maps: Sequence[Array],
    w: Array,
    b: Array | None,
    before: Pair,
    outs: Sequence[Array],
    add: int = 0,
    flipped: bool = False,
) -> None:
    """Stride-1 convolution of one or two maps into one or two `outs`. before: padding (top, left), may be negative; w
    (3, 3, C, K) contiguous.

    flipped: with the taps from the end and the channels exchanged, K -> C, the data gradient for padding 2 - before.
    """
    n, h, wd, c0 = maps[0].shape
    _, p, q, k0 = outs[0].shape
    c = sum(m.shape[3] for m in maps)
    k = sum(y.shape[3] for y in outs)
    geometry = _geometry(n, (h, wd), (p, q), before, c, c0, k, k0, add)
    u = cupy.empty((POINTS, c, k), np.float32)
    MODULE.run(Launch("transform_filter", (blocks(k, 32), blocks(c, 8)), (32, 8)), w, u, c, k, flipped)
    m = multiply(_input(maps, tiles(n, (p, q)), geometry), u)
    MODULE.run(
        _each("transform_output", m),
        m,
        NULL if b is None else b,
        outs[0],
        outs[1] if len(outs) == 2 else NULL,
        geometry,
    )


def backward_filter(maps: Sequence[Array], dy: Array, window: Window) -> Array:
    """dw (3, 3, C, K) = G^T [ V^T (A dY A^T) ] G, summed over tiles by the products."""
    n, h, wd, c0 = maps[0].shape
    c = sum(m.shape[3] for m in maps)
    _, p, q, k = dy.shape
    geometry = _geometry(n, (h, wd), (p, q), (window.padding[0][0], window.padding[1][0]), c, c0, k, k, 0)
    z = cupy.empty((POINTS, tiles(n, (p, q)), k), np.float32)
    dw = cupy.empty((3, 3, c, k), np.float32)
    MODULE.run(_each("transform_cotangent", z), dy, z, geometry)
    u = multiply(_input(maps, z.shape[1], geometry), z, across=True)
    MODULE.run(_each("transform_filter_gradient", u), u, dw, c * k)
    return dw


def _geometry(n: int, size: Pair, out: Pair, before: Pair, c: int, c0: int, k: int, k0: int, add: int) -> Any:
    return np.array((n, *size, *out, blocks(out[0], 4), blocks(out[1], 4), *before, c, c0, k, k0, add), GEOMETRY)[()]


def _each(name: str, panels: Array) -> Launch:
    """One thread per tile (or input channel) and channel of panels (36, tiles, channels)."""
    return Launch(name, (blocks(panels[0].size, 256),), (256,))


def _input(maps: Sequence[Array], count: int, geometry: Any) -> Array:
    v = cupy.empty((POINTS, count, sum(m.shape[3] for m in maps)), np.float32)
    MODULE.run(_each("transform_input", v), maps[0], maps[1] if len(maps) == 2 else NULL, v, geometry)
    return v
