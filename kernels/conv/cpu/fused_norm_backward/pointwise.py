"""The gradients of a 1x1 convolution and of its batch norm: a strip is some pixels, both gradients are matrix products;
the mathematics stand in strip.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.direct.multi_input_1x1 import MOST
from kernels.conv.cpu.fused_norm_backward.strip import equal_chunks, make_gradient_pixels
from kernels.conv.cpu.winograd.plan import PAD, ZEROS
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.gemm_microkernel import make_asking_column, panel_vectors, tile_heights, tile_rows, worth_asking
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.packing import GAP, make_pack_panels, make_pack_rows
from kernels.core.cpu.prefetch import note, share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import add_rows, copy_rows

_STRIDED = 4096  # floats of a filter gradient up to which packing its factors costs more than it saves


@inline()
def _note_strip(scratch, at, g, z, maps, gradients, sizes, count, k, first, n):  # type: ignore[no-untyped-def]
    """Note what a strip of n pixels reads and writes; returns the number behind its last line."""
    at = note(scratch, note(scratch, at, g, first * k, n * k), z, first * k, n * k)
    for i in range(count):
        at = note(scratch, at, maps[i], first * sizes[i], n * sizes[i])
        at = note(scratch, at, gradients[i], first * sizes[i], n * sizes[i])
    return at


@lru_cache(maxsize=32)
def pointwise_kernel(vectors: int, gradient_vectors: int) -> Kernel:
    """The kernel for data gradients in panels of `vectors` vectors and filter gradients in such of `gradient_vectors`,
    of up to MOST maps.

    relu: g is masked by the sign of y.   packed: so are the factors of the filter gradient
    (kernels/core/cpu/packing.py), map by map.
    """
    data_column, filter_column = (
        make_asking_column(vectors),
        make_asking_column(gradient_vectors, blocks=True, beside=True),
    )
    pack_rows, pack_panels = make_pack_rows(gradient_vectors), make_pack_panels(gradient_vectors)
    width, gradient_width, low_rows = (
        vectors * target().lanes,
        gradient_vectors * target().lanes,
        tile_heights(gradient_vectors)[1],
    )
    masked_pixels, plain_pixels = make_gradient_pixels(True), make_gradient_pixels(False)

    @cpu_kernel("p" * (2 * MOST + 6) + f"g{MOST}g{MOST}" + "i" * 14, f"x{vectors} x{gradient_vectors}")
    def norm_gradient_1x1(start, stop, scratch, g, z, rows, m0, m1, m2, m3, m4, m5, m6, m7, d0, d1, d2, d3, d4, d5,
                          d6, d7, panels, partial, zeros, sizes, adds, count, c, k, kp, pitch, row, pixels,
                          per_chunk, per_strip, relu, asked, packed, third, noted):  # fmt: skip  # type: ignore[no-untyped-def]
        maps, gradients, second = (m0, m1, m2, m3, m4, m5, m6, m7), (d0, d1, d2, d3, d4, d5, d6, d7), per_strip * pitch
        high, panel = per_strip + GAP, per_strip * gradient_width + PAD
        data_columns, filter_columns, parts = -(-c // width), kp // gradient_width, count if packed else 1
        for chunk in range(start, stop):
            sums = chunk * c * kp
            first, end = chunk * per_chunk, min((chunk + 1) * per_chunk, pixels)
            while first < end:
                n, place = min(per_strip, end - first), second
                if relu:
                    masked_pixels(g, z, first * k, n, k, rows, scratch, 0, pitch)
                else:
                    plain_pixels(g, z, first * k, n, k, rows, scratch, 0, pitch)
                lines = half = 0
                if asked:
                    lines = (
                        _note_strip(
                            scratch, noted, g, z, maps, gradients, sizes, count, k, first + n, min(n, end - first - n)
                        )
                        - noted
                    )
                    half = lines // 2
                for i in range(data_columns):
                    low, some = share(half, i, data_columns)
                    data_column(scratch, 0, pitch, 1, panels, i * width * k, width, k, 1, 0, 0, 1, 0, 0, scratch,
                                second + i * width, row, n, width, zeros, 0, scratch, noted + low, some)  # fmt: skip
                for i in range(count):
                    if adds[i]:
                        add_rows(scratch, place, row, gradients[i], first * sizes[i], sizes[i], sizes[i], n)
                    else:
                        copy_rows(scratch, place, row, gradients[i], first * sizes[i], sizes[i], sizes[i], n)
                    place += sizes[i]
                place = second  # dx has been moved out: x takes its place
                for i in range(count):
                    if packed:
                        pack_rows(maps[i], first * sizes[i], sizes[i], 0, n, scratch, place, sizes[i], high)
                        place += (sizes[i] + low_rows) * high
                    else:
                        copy_rows(maps[i], first * sizes[i], sizes[i], scratch, place, row, sizes[i], n)
                        place += sizes[i]
                if packed:
                    pack_panels(scratch, 0, pitch, 0, n, scratch, third, kp, panel)
                for product in range(filter_columns * parts):
                    i, part = product // parts, product % parts
                    low, some = share(lines - half, product, filter_columns * parts)
                    if part == 0:
                        place, before = second, 0
                    c0, begun = sums + before * kp + i * gradient_width, first > chunk * per_chunk
                    if packed:
                        filter_column(scratch, place, high, 0, scratch, third + i * panel, gradient_width, n, 1, 0,
                                      0, 1, 0, 0, partial, c0, kp, sizes[part], gradient_width, zeros, begun,
                                      scratch, noted + half + low, some)  # fmt: skip
                        place, before = place + (sizes[part] + low_rows) * high, before + sizes[part]
                    else:
                        filter_column(scratch, second, 1, row, scratch, i * gradient_width, pitch, n, 1, 0, 0, 1, 0,
                                      0, partial, c0, kp, c, gradient_width, zeros, begun, scratch,
                                      noted + half + low, some)  # fmt: skip
                first += n

    return norm_gradient_1x1


class PointwisePlan:
    """The plan of a 1x1 layer: z (N, H, W, K) of maps with so many channels."""

    most = MOST

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
        lanes, k, self.c = target().lanes, shape[3], sum(channels)
        self.vectors, self.gradient_vectors = panel_vectors(self.c), panel_vectors(k)
        self.width, gradient_width = self.vectors * lanes, self.gradient_vectors * lanes
        self.kp = -(-k // gradient_width) * gradient_width
        self.floats = self.c * self.kp
        # powers of two would meet in one set of the L1 cache
        self.pitch, self.row = self.kp + PAD, -(-self.c // self.width) * self.width + PAD
        self.pixels, self.per_strip = math.prod(shape[:3]), 64 if self.floats <= 8192 else 128
        self.per_chunk = equal_chunks(-(-self.pixels // self.per_strip), self.floats, 4) * self.per_strip
        self.chunks = -(-self.pixels // self.per_chunk)
        self.packed = self.floats > _STRIDED and min(channels) >= tile_rows(self.gradient_vectors)
        # In scratch memory: a strip of dz; dx, then x or its packed rows; packed panels of dz; the list of lines, of 8
        # bytes each.
        rows = (self.c + len(channels) * tile_heights(self.gradient_vectors)[1]) * (self.per_strip + GAP) * self.packed
        self.third = self.per_strip * self.pitch + max(self.per_strip * self.row, rows)
        panels = self.kp // gradient_width * (self.per_strip * gradient_width + PAD) * self.packed
        self.noted = (self.third + panels + 1) // 2
        lines = self.per_strip * (k + self.c) // 8 + 2 * len(channels) + 4  # of g, z, maps and their gradients
        self.scratch = 2 * (self.noted + lines)
        self.sizes, self.asked = _eight(channels, 0), worth_asking(self.c * k)

    def run(self, g: np.ndarray, z: np.ndarray, rows: np.ndarray, relu: bool, maps: Sequence[np.ndarray], w: np.ndarray,
            dxs: Sequence[np.ndarray], adds: Sequence[bool]) -> np.ndarray:  # fmt: skip
        """Fill the dxs of the maps, or add to them; returns dw (1, 1, C, K). relu: g is masked by the sign of y."""
        k, unused = z.shape[3], MOST - len(maps)
        panels = filters.packed_transposed(w, self.width)
        partial = buffer_pool.empty((self.chunks * self.floats,), np.float32)
        kernel = pointwise_kernel(self.vectors, self.gradient_vectors)
        flat = [m.reshape(-1) for m in (*maps, *(maps[0],) * unused, *dxs, *(dxs[0],) * unused)]
        sizes, strips = (
            (len(maps), self.c, k, self.kp, self.pitch, self.row),
            (self.pixels, self.per_chunk, self.per_strip),
        )
        arrays = (
            g.reshape(-1),
            z.reshape(-1),
            rows,
            *flat,
            panels,
            partial,
            ZEROS,
            self.sizes,
            _eight(tuple(adds), False),
        )
        parallel(kernel, self.chunks, *arrays, *sizes, *strips, relu, self.asked, self.packed, self.third, self.noted,
                 scratch=self.scratch)  # fmt: skip
        return filters.added_chunks(partial, self.chunks, self.c, k, self.kp).reshape(1, 1, self.c, k)


@lru_cache(maxsize=256)
def _eight(values: tuple[int, ...], rest: int) -> np.ndarray:
    return np.array([*values, *[rest] * (MOST - len(values))], np.int64)


pointwise_plan = lru_cache(maxsize=1024)(PointwisePlan)
