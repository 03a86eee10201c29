"""The gradients of a 1x1 convolution and of its batch norm: a strip is some pixels, both gradients are matrix products;
the mathematics stand in strip.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.fused_norm_backward.strip import Gradient, Strip, equal_chunks, make_gradient_pixels
from kernels.conv.cpu.winograd.plan import PAD, ZEROS
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, Arrays, Ints
from kernels.core.cpu.gemm_microkernel import (
    Initial,
    Panel,
    Prefetch,
    Results,
    Rows,
    make_prefetching_gemm,
    one_tap,
    panel_vectors,
    prefetch_pays,
    tile_heights,
    tile_rows,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.packing import GAP, make_pack_panels, make_pack_rows
from kernels.core.cpu.prefetch import enqueue, share, with_list
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import add_rows, copy_rows

_MOST = 8  # maps
_MAPS = Arrays(_MOST)
_CHANNELS = Ints(_MOST)
_STRIDED = 4096  # floats of a filter gradient up to which packing its factors costs more than it saves


class Work(NamedTuple):
    """The layer, the walk of a launch over it, and the layout of its scratch memory: a strip of dz; dx, then x or its
    packed rows (`second`); packed panels of dz (`third`); the prefetch list (`lines`, in entries of 8 bytes;
    0: there is none).
    """

    maps: int  # how many
    c: int  # their channels together
    k: int
    kp: int
    pitch: int  # floats between pixels of dz, and of dx and x
    row: int
    pixels: int
    per_chunk: int
    per_strip: int
    relu: int  # whether g is masked by the sign of y
    packed: int  # whether the factors of the filter gradient are packed (packing.py), map by map
    third: int
    lines: int


@inline()
def _enqueue_strip(scratch, g, z, maps, gradients, channels, work, first, n):
    """Put what a strip of n pixels reads and writes on the prefetch list; returns the number after its last line."""
    at = enqueue(scratch, work.lines, g, first * work.k, n * work.k)
    at = enqueue(scratch, at, z, first * work.k, n * work.k)
    for i in range(work.maps):
        at = enqueue(scratch, at, maps[i], first * channels[i], n * channels[i])
        at = enqueue(scratch, at, gradients[i], first * channels[i], n * channels[i])
    return at


@lru_cache(maxsize=32)
def pointwise_kernel(vectors: int, gradient_vectors: int) -> Kernel:
    """The kernel for data gradients in micro-panels of `vectors` vectors and filter gradients in such of
    `gradient_vectors`, of up to _MOST maps.
    """
    data_gemm = make_prefetching_gemm(vectors)
    filter_gemm = make_prefetching_gemm(gradient_vectors, accumulates=True, unit_rows=True)
    pack_rows = make_pack_rows(gradient_vectors)
    pack_panels = make_pack_panels(gradient_vectors)
    width = vectors * target().lanes
    gradient_width = gradient_vectors * target().lanes
    remainder_rows = tile_heights(gradient_vectors)[1]
    gradient_pixels = make_gradient_pixels()

    @cpu_kernel(f"x{vectors} x{gradient_vectors}")
    def norm_gradient_1x1(start, stop, scratch, g: F32, z: F32, rows: F32, maps: _MAPS, gradients: _MAPS, panels: F32,
                          partial: F32, zeros: F32, channels: _CHANNELS, adds: _CHANNELS, work: Work):  # fmt: skip
        c = work.c
        k = work.k
        kp = work.kp
        pitch = work.pitch
        row = work.row
        lines = work.lines
        second = work.per_strip * pitch
        high = work.per_strip + GAP
        panel = work.per_strip * gradient_width + PAD
        panels_of_dx = -(-c // width)
        panels_of_dw = kp // gradient_width
        parts = work.maps if work.packed else 1
        gradient = Gradient(g, z, rows, work.relu)
        for chunk in range(start, stop):
            sums = chunk * c * kp
            first = chunk * work.per_chunk
            end = min((chunk + 1) * work.per_chunk, work.pixels)
            while first < end:
                n = min(work.per_strip, end - first)
                place = second
                gradient_pixels(gradient, first, n, k, Strip(scratch, 0, pitch))
                count = half = 0
                if lines:
                    following = min(n, end - first - n)
                    count = _enqueue_strip(scratch, g, z, maps, gradients, channels, work, first + n, following) - lines
                    half = count // 2
                for i in range(panels_of_dx):
                    low, some = share(half, i, panels_of_dx)
                    data_gemm(
                        Rows(scratch, 0, pitch, 1),
                        Panel(panels, i * width * k, width),
                        one_tap(k),
                        Results(scratch, second + i * width, row, n, width),
                        Initial(zeros, 0, 0),
                        Prefetch(scratch, lines + low, some),
                    )
                for i in range(work.maps):
                    size = channels[i]
                    if adds[i]:
                        add_rows(scratch, place, row, gradients[i], first * size, size, size, n)
                    else:
                        copy_rows(scratch, place, row, gradients[i], first * size, size, size, n)
                    place += size
                place = second  # dx has been written back: x takes its place
                for i in range(work.maps):
                    size = channels[i]
                    if work.packed:
                        pack_rows(Panel(maps[i], first * size, size), 0, n, scratch, place, size, high)
                        place += (size + remainder_rows) * high
                    else:
                        copy_rows(maps[i], first * size, size, scratch, place, row, size, n)
                        place += size
                if work.packed:
                    pack_panels(Panel(scratch, 0, pitch), 0, n, scratch, work.third, kp, panel)
                before = 0
                initial = Initial(zeros, 0, first > chunk * work.per_chunk)
                for product in range(panels_of_dw * parts):
                    i = product // parts
                    part = product % parts
                    low, some = share(count - half, product, panels_of_dw * parts)
                    prefetch = Prefetch(scratch, lines + half + low, some)
                    if part == 0:
                        place = second
                        before = 0
                    c0 = sums + before * kp + i * gradient_width
                    if work.packed:
                        size = channels[part]
                        filter_gemm(
                            Rows(scratch, place, high, 0),
                            Panel(scratch, work.third + i * panel, gradient_width),
                            one_tap(n),
                            Results(partial, c0, kp, size, gradient_width),
                            initial,
                            prefetch,
                        )
                        place += (size + remainder_rows) * high
                        before += size
                    else:
                        filter_gemm(
                            Rows(scratch, second, 1, row),
                            Panel(scratch, i * gradient_width, pitch),
                            one_tap(n),
                            Results(partial, c0, kp, c, gradient_width),
                            initial,
                            prefetch,
                        )
                first += n

    return norm_gradient_1x1


class PointwisePlan:
    """The plan of a 1x1 layer: z (N, H, W, K) of maps with so many channels."""

    most = _MOST

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
        lanes = target().lanes
        k = shape[3]
        self.c = sum(channels)
        self.vectors = panel_vectors(self.c)
        self.gradient_vectors = panel_vectors(k)
        self.width = self.vectors * lanes
        gradient_width = self.gradient_vectors * lanes
        self.kp = -(-k // gradient_width) * gradient_width
        self.floats = self.c * self.kp
        # powers of two would map to one set of the L1 cache
        self.pitch = self.kp + PAD
        self.row = -(-self.c // self.width) * self.width + PAD
        self.pixels = math.prod(shape[:3])
        self.per_strip = 64 if self.floats <= 8192 else 128
        self.per_chunk = equal_chunks(-(-self.pixels // self.per_strip), self.floats, 4) * self.per_strip
        self.chunks = -(-self.pixels // self.per_chunk)
        self.packed = self.floats > _STRIDED and min(channels) >= tile_rows(self.gradient_vectors)
        # In scratch memory: a strip of dz; dx, then x or its packed rows; packed panels of dz; the prefetch list.
        rows = (self.c + len(channels) * tile_heights(self.gradient_vectors)[1]) * (self.per_strip + GAP) * self.packed
        self.third = self.per_strip * self.pitch + max(self.per_strip * self.row, rows)
        panels = self.kp // gradient_width * (self.per_strip * gradient_width + PAD) * self.packed
        lines = self.per_strip * (k + self.c) // 8 + 2 * len(channels) + 4  # of g, z, maps and their gradients
        self.scratch, self.lines_at = with_list(self.third + panels, lines * prefetch_pays(self.c * k))

    def run(self, g: np.ndarray, z: np.ndarray, rows: np.ndarray, relu: bool, maps: Sequence[np.ndarray], w: np.ndarray,
            dxs: Sequence[np.ndarray], adds: Sequence[bool]) -> np.ndarray:  # fmt: skip
        """Fill the dxs of the maps, or add to them; returns dw (1, 1, C, K). relu: g is masked by the sign of y."""
        k = z.shape[3]
        unused = _MOST - len(maps)
        panels = filters.packed_transposed(w, self.width)
        partial = buffer_pool.empty((self.chunks * self.floats,), np.float32)
        work = Work(
            len(maps),
            self.c,
            k,
            self.kp,
            self.pitch,
            self.row,
            self.pixels,
            self.per_chunk,
            self.per_strip,
            relu,
            self.packed,
            self.third,
            self.lines_at,
        )
        parallel(
            pointwise_kernel(self.vectors, self.gradient_vectors),
            self.chunks,
            g.reshape(-1),
            z.reshape(-1),
            rows,
            [m.reshape(-1) for m in (*maps, *(maps[0],) * unused)],
            [m.reshape(-1) for m in (*dxs, *(dxs[0],) * unused)],
            panels,
            partial,
            ZEROS,
            (*(m.shape[3] for m in maps), *(0,) * unused),
            (*adds, *(False,) * unused),
            work,
            scratch=self.scratch,
        )
        return filters.added_chunks(partial, self.chunks, self.c, k, self.kp).reshape(1, 1, self.c, k)


pointwise_plan = lru_cache(maxsize=1024)(PointwisePlan)
