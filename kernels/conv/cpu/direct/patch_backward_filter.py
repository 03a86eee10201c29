"""The filter gradient of patchify layers, whose windows do not overlap: 1x1 convolutions, and transposed ones whose
stride is their kernel.

Every pixel of x belongs to one window, so dw is one product: dw = A^T B with A (windows, R S C) and B = dy (windows,
K), the sum over windows. A chunk computes a block of dw over some windows, k-block by k-block: both factors of a
k-block are packed (kernels/core/cpu/packing.py), and the block's sums stay in the L2 cache. Per window R S C + K floats
are copied for R S C K multiply-adds. These layers' filter gradients are 1.2 to 1.7 times as fast as from strips read in
place (bench/RESULTS.md, "What paid"); within a whole step that is lost in the noise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.conv.cpu import filters
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.gemm_microkernel import (
    Initial,
    Panel,
    Results,
    Rows,
    make_gemm,
    one_tap,
    panel_vectors,
    tile_heights,
)
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.packing import GAP, make_pack_panels, make_pack_rows
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.geometry import Pair

_WINDOWS = 128  # of a k-block: a tile's run of them and a panel's stay in the L1 cache
_ROWS, _COLUMNS = 256, 128  # of a block of dw, at most: 128 KB of sums and 192 KB of packed windows
_PAD = 16  # floats between panels: all of them are written at once, so they must not map to one set of the L1 cache


class Blocks(NamedTuple):
    """How dw (taps, c, k) is cut: c floats of a row of windows, `taps` such rows.

    A block has `rows` floats of `tap_block` taps (all floats, or of one tap) and `columns` of k.
    """

    taps: int
    c: int
    k: int
    tap_block: int
    rows: int
    columns: int

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return -(-self.taps // self.tap_block) * -(-self.c // self.rows) * -(-self.k // self.columns)


@lru_cache(maxsize=1024)
def blocks_of(taps: int, c: int, k: int, width: int) -> Blocks:
    """Blocks of nearly equal size; columns are whole panels of `width`."""
    tap_block = taps if taps * c <= _ROWS else 1
    rows = -(-c // -(-c // _ROWS))
    panels = -(-k // width)
    return Blocks(taps, c, k, tap_block, rows, -(-panels // -(-k // _COLUMNS)) * width)


class Work(NamedTuple):
    """The walk of a launch over windows and dw, and the layout of its scratch memory."""

    windows: int
    q: int  # windows of a row of the map
    kp: int  # floats between rows of the sums: k in whole panels
    per_chunk: int  # windows
    tap_floats: int  # of a tap's packed rows
    panels: int  # where packed dy lies


@inline()
def _row_of_windows(first: int, end: int, q: int) -> tuple[int, int, int]:
    """Windows `first` and following that lie in one row of the map, so for every tap in one row of x: the row, the
    first column, how many.
    """
    line = first // q
    column = first - line * q
    return line, column, min(end - first, q - column)


@lru_cache(maxsize=16)
def gradient_kernel(vectors: int) -> Kernel:
    """The kernel for panels of `vectors` vectors: partial[windows' chunk] (taps, c, kp)."""
    gemm = make_gemm(vectors, accumulates=True, unit_rows=True)
    pack_rows = make_pack_rows(vectors)
    pack_panels = make_pack_panels(vectors)
    width = vectors * target().lanes
    pitch = _WINDOWS + GAP
    panel_pitch = _WINDOWS * width + _PAD

    @inline(f"{vectors}")
    def pack_windows(x, scratch, blocks, work, first, n, tap, row, rows):
        done = 0
        while done < n:
            line, column, some = _row_of_windows(first + done, first + n, work.q)
            for t in range(blocks.tap_block):
                at = ((line * blocks.taps + tap + t) * work.q + column) * blocks.c + row
                pack_rows(Panel(x, at, blocks.c), done, some, scratch, t * work.tap_floats, rows, pitch)
            done += some

    @cpu_kernel(f"x{vectors}")
    def patch_gradient(start, stop, scratch, x: F32, dy: F32, partial: F32, zeros: F32, blocks: Blocks, work: Work):
        c = blocks.c
        k = blocks.k
        kp = work.kp
        tap_block = blocks.tap_block
        row_blocks = (c + blocks.rows - 1) // blocks.rows
        column_blocks = (k + blocks.columns - 1) // blocks.columns
        count = (blocks.taps + tap_block - 1) // tap_block * row_blocks * column_blocks
        for chunk in range(start, stop):
            block = chunk % count
            part = chunk // count
            column = block % column_blocks * blocks.columns
            row = block // column_blocks % row_blocks * blocks.rows
            tap = block // column_blocks // row_blocks * tap_block
            m = min(blocks.rows, c - row)
            wide = min(blocks.columns, k - column)
            panels = (wide + width - 1) // width
            begin = part * work.per_chunk
            end = min(begin + work.per_chunk, work.windows)
            sums = (part * blocks.taps + tap) * c * kp + row * kp + column
            for first in range(begin, end, _WINDOWS):
                n = min(_WINDOWS, end - first)
                pack_windows(x, scratch, blocks, work, first, n, tap, row, m)
                pack_panels(Panel(dy, first * k + column, k), 0, n, scratch, work.panels, wide, panel_pitch)
                for panel in range(panels):  # a panel stays in the L1 cache for all of its tiles
                    for t in range(tap_block):
                        gemm(
                            Rows(scratch, t * work.tap_floats, pitch, 0),
                            Panel(scratch, work.panels + panel * panel_pitch, width),
                            one_tap(n),
                            Results(partial, sums + t * c * kp + panel * width, kp, m, width),
                            Initial(zeros, 0, first > begin),
                        )

    return patch_gradient


def backward_filter(x: np.ndarray, dy: np.ndarray, kernel: Pair) -> np.ndarray:
    """dw (R, S, C, K) of contiguous float32 x (N, R P, S Q, C) and dy (N, P, Q, K), for windows of size and stride (R,
    S).
    """
    n, p, q, k = dy.shape
    r, s = kernel
    vectors = panel_vectors(k)
    width = vectors * target().lanes
    if r == 1:
        q *= n * p  # the windows of all rows of all images are one run of memory
    blocks = blocks_of(r, s * x.shape[3], k, width)
    windows = dy.size // k
    kp = -(-k // width) * width
    floats = r * blocks.c * kp
    chunks = max(1, min(-(-filters.CHUNKS // blocks.count), -(-windows // _WINDOWS), filters.MOST_SUMS // floats))
    per_chunk = -(-windows // (chunks * _WINDOWS)) * _WINDOWS
    chunks = -(-windows // per_chunk)
    partial = buffer_pool.empty((chunks * floats,), np.float32)
    # In scratch memory: for every tap a k-block's rows, then its panels. The last tile may have rows that do not exist.
    tap_floats = (blocks.rows + tile_heights(vectors)[1]) * (_WINDOWS + GAP)
    panels = blocks.tap_block * tap_floats
    scratch = panels + blocks.columns // width * (_WINDOWS * width + _PAD)
    work = Work(windows, q, kp, per_chunk, tap_floats, panels)
    arrays = x.reshape(-1), dy.reshape(-1), partial, filters.zeros(width)
    parallel(gradient_kernel(vectors), chunks * blocks.count, *arrays, blocks, work, scratch=scratch)
    return filters.added_chunks(partial, chunks, r * blocks.c, k, kp).reshape(r, s, x.shape[3], k)
