"""Launches of implicit_gemm.cu and backward_filter.cu, the implicit matrix products: which tile, how many splits. All
choices are pure functions of the shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from kernels.conv.cuda.geometry import NULL, Walk, integers, vectors
from kernels.core.cuda.module import Launch, Module, blocks, device_limits
from kernels.core.device import Array
from kernels.core.geometry import Window

DEPTH = 16  # terms of the sum per step (tiles.cuh)
LONGEST = 8192  # terms that one float32 sum (of two levels, tiles.cuh) may have; longer ones are split


@dataclass(frozen=True)
class Tile:
    """A block's tile of results, its warps, and the share of the FMA rate it should reach (computed: loads per FMA,
    warps per block).
    """

    m: int
    n: int
    warps_m: int
    warps_n: int
    rate: float

    def kernel(self, name: str, step: int) -> str:
        """The name expression for copies of `step` floats."""
        return f"{name}<{self.m}, {self.n}, {self.warps_m}, {self.warps_n}, {step}>"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.warps_n


BIG = Tile(128, 128, 4, 2, 0.9)
TALL = Tile(128, 64, 4, 1, 0.8)
SQUARE = Tile(64, 64, 4, 1, 0.65)
NARROW = Tile(128, 32, 4, 1, 0.6)
FORWARD_TILES = {4: (BIG, TALL, SQUARE, NARROW), 1: (SQUARE, NARROW)}
FILTER_SQUARE = Tile(64, 64, 2, 2, 0.65)
FLAT = Tile(32, 64, 1, 2, 0.5)
FILTER_TILES = {4: (BIG, FILTER_SQUARE, NARROW, FLAT), 1: (FILTER_SQUARE, NARROW, FLAT)}
FORWARD = Module(
    "conv/cuda/implicit_gemm.cu",
    [*(t.kernel("convolve", s) for s, ts in FORWARD_TILES.items() for t in ts), "reduce_splits", "arrange_filter"],
)
FILTER = Module(
    "conv/cuda/backward_filter.cu",
    [*(t.kernel("filter_gradient", s) for s, ts in FILTER_TILES.items() for t in ts), "add_partials"],
)
CONV = integers("n h w c p q k r s sh sw dh dw top left c0 splits")


def choose(tiles: Sequence[Tile], m: int, n: int, terms: int, problems: int, multiprocessors: int) -> tuple[Tile, int]:
    """The tile and the number of splits with the fewest modelled cycles, for `problems` products (m, terms) x (terms,
    n).

    A multiprocessor does 128 FMAs a cycle once eight warps keep it busy, and a share with fewer; the fullest
    multiprocessor decides. Every block pays four steps of latency. Splits cost writing and reading their partial sums,
    at 16 bytes a cycle and multiprocessor, and a launch.
    """
    steps = max(1, blocks(terms, DEPTH))
    least = max(1, blocks(terms, LONGEST))

    def count(tile: Tile) -> int:
        return max(1, blocks(m, tile.m) * blocks(n, tile.n) * problems)

    def cycles(tile: Tile, splits: int) -> float:
        share = blocks(count(tile) * splits, multiprocessors)
        busy = min(1.0, share * tile.threads / 256)
        work = share * (blocks(steps, splits) + 4) * tile.m * tile.n * DEPTH / (128 * tile.rate * busy)
        return work if splits == 1 else work + m * n * problems * (splits + 1) * 4 / (16 * multiprocessors) + 2000

    def counts(
        tile: Tile,
    ) -> set[int]:  # splits that fill 1, 2, ... rounds of the device, four steps each at least, none of them empty
        wanted = {least, *(max(least, min(r * multiprocessors // count(tile), steps // 4)) for r in range(1, 9))}
        return {blocks(steps, blocks(steps, s)) for s in wanted}

    return min(((tile, splits) for tile in tiles for splits in sorted(counts(tile))), key=lambda plan: cycles(*plan))


def plan(walk: Walk, step: int, multiprocessors: int) -> tuple[Launch, int]:
    """The launch of `convolve` and its number of splits."""
    tile, splits = choose(FORWARD_TILES[step], walk.pixels, walk.k, walk.terms, walk.phases, multiprocessors)
    grid = (blocks(walk.pixels, tile.m), blocks(walk.k, tile.n), walk.phases * splits)
    return Launch(tile.kernel("convolve", step), grid, (tile.threads,)), splits


def convolve(walk: Walk, maps: Sequence[Array], w: Array, b: Array | None, outs: Sequence[Array], add: int = 0) -> None:
    """Sum along the walk into one or two maps `outs`; bit i of `add`: added to what map i holds.

    w: (R, S, c, k), c running along the sum and k over outputs, in any order of memory whose taps are whole.
    """
    channels = tuple(m.shape[3] for m in (*maps, *outs))
    if not (walk.in_order and w.flags.c_contiguous):
        w = _arranged(walk, w)
    step = vectors(*maps, w, b, *outs, channels=channels)
    launch, splits = plan(walk, step, device_limits()[0])
    problem = walk.structure(maps[0].shape[3], outs[0].shape[3], splits, add)
    partials = cupy.empty((splits, sum(y.size for y in outs)), np.float32) if splits > 1 else NULL
    bias = NULL if b is None else b
    second = maps[1] if len(maps) == 2 else NULL
    second_out = outs[1] if len(outs) == 2 else NULL
    FORWARD.run(launch, maps[0], second, w, bias, outs[0], second_out, partials, problem)
    if splits > 1:
        FORWARD.run(
            Launch("reduce_splits", (blocks(partials.size // splits, 256),), (256,)),
            partials,
            bias,
            outs[0],
            second_out,
            problem,
        )


def _arranged(walk: Walk, w: Array) -> Array:
    """The filter in the order of the walk, as (taps, c, k)."""
    r, s, c, k = w.shape
    *_, si, sj = (stride // w.itemsize for stride in w.strides)
    if min(si, sj) != 1 or w.strides[:2] != (s * c * k * w.itemsize, c * k * w.itemsize):
        w = cupy.ascontiguousarray(w)
        si = k
        sj = 1
    out = cupy.empty((r * s, c, k), w.dtype)
    FORWARD.run(
        Launch("arrange_filter", (blocks(k, 32), blocks(c, 32), r * s), (32, 8)), w, out, si, sj, walk.structure(c, k)
    )
    return out


def filter_plan(pixels: int, results: int, k: int, step: int, multiprocessors: int) -> tuple[Launch, int]:
    """The launch of `filter_gradient` for (results, k) filters summed over pixels, and its number of splits."""
    tile, splits = choose(FILTER_TILES[step], results, k, pixels, 1, multiprocessors)
    return Launch(
        tile.kernel("filter_gradient", step), (blocks(results, tile.m), blocks(k, tile.n), splits), (tile.threads,)
    ), splits


def backward_filter(maps: Sequence[Array], dy: Array, window: Window) -> Array:
    """dw, as kernels.conv.reference.conv2d_backward_filter, groups 1."""
    n, h, wd, c0 = maps[0].shape
    c = sum(m.shape[3] for m in maps)
    _, p, q, k = dy.shape
    dw = cupy.empty((*window.kernel, c, k), np.float32)
    step = vectors(*maps, dy, dw, channels=(*(m.shape[3] for m in maps), k))
    launch, splits = filter_plan(n * p * q, dw.size // k, k, step, device_limits()[0])
    before = (window.padding[0][0], window.padding[1][0])
    conv: Any = np.array(
        (n, h, wd, c, p, q, k, *window.kernel, *window.stride, *window.dilation, *before, c0, splits), CONV
    )[()]
    out = cupy.empty((splits, dw.size), np.float32) if splits > 1 else dw
    FILTER.run(launch, maps[0], maps[1] if len(maps) == 2 else NULL, dy, out, conv)
    if splits > 1:
        add_partials(FILTER, out, dw)
    return dw


def add_partials(module: Module, partials: Array, dw: Array) -> None:
    """dw = the sum of partials (splits, dw.size) over the splits, by the kernel of partials.cuh that the module
    includes.
    """
    module.run(Launch("add_partials", (blocks(dw.size, 256),), (256,)), partials, dw, len(partials), dw.size)
