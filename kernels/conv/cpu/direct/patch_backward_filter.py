"""The filter gradient where windows lie side by side: 1x1 convolutions, and transposed ones whose stride is their
kernel.

Every pixel of x belongs to one window, so dw is one product: dw = A^T B with A (windows, R S C) and B = dy (windows,
K), the sum over windows. A chunk computes a block of dw over some windows, piece by piece: both factors of a piece are
packed (kernels/core/cpu/packing.py), and the block's sums stay in the L2 cache. Per window R S C + K floats are copied
for R S C K multiply-adds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.conv.cpu import filters
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.gemm_microkernel import make_asking_column, panel_vectors, tile_heights, worth_asking
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.packing import GAP, make_pack_panels, make_pack_rows
from kernels.core.cpu.prefetch import note, share
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.geometry import Pair

_PIECE = 128  # windows: a tile's run of them and a panel's stay in the L1 cache
_ROWS, _COLUMNS = 256, 128  # of a block of dw, at most: 128 KB of sums and 192 KB of packed windows
_PAD = 16  # floats between panels: writing to all of them at once, they must not meet in one set of the L1 cache


class Blocks(NamedTuple):
    """How dw (taps, c, k) is cut: c floats of a row of windows, `taps` such rows.

    A block has `rows` floats of `together` taps (all floats, or of one tap) and `columns` of k.
    """

    taps: int
    c: int
    k: int
    together: int
    rows: int
    columns: int

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return -(-self.taps // self.together) * -(-self.c // self.rows) * -(-self.k // self.columns)


@lru_cache(maxsize=1024)
def blocks_of(taps: int, c: int, k: int, width: int) -> Blocks:
    """Blocks of nearly equal size; columns are whole panels of `width`."""
    together = taps if taps * c <= _ROWS else 1
    rows, panels = -(-c // -(-c // _ROWS)), -(-k // width)
    return Blocks(taps, c, k, together, rows, -(-panels // -(-k // _COLUMNS)) * width)


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
    """The kernel for panels of `vectors` vectors: partial[windows' chunk] (taps, c, kp). asked: the next piece is asked
    for meanwhile.
    """
    column_of_tiles = make_asking_column(vectors, blocks=True, beside=True)
    pack_rows, pack_panels = make_pack_rows(vectors), make_pack_panels(vectors)
    width, pitch = vectors * target().lanes, _PIECE + GAP
    panel_pitch = _PIECE * width + _PAD

    @inline(f"{vectors}")
    def pack_windows(x, scratch, q, taps, c, first, n, tap, together, row, rows, room):  # type: ignore[no-untyped-def]
        done = 0
        while done < n:
            line, column, some = _row_of_windows(first + done, first + n, q)
            for t in range(together):
                pack_rows(
                    x, ((line * taps + tap + t) * q + column) * c + row, c, done, some, scratch, t * room, rows, pitch
                )
            done += some

    @inline(f"{vectors}")
    def note_windows(x, dy, scratch, noted, q, taps, c, k, first, n):  # type: ignore[no-untyped-def]
        until, done = note(scratch, noted, dy, first * k, n * k), 0
        while done < n:
            line, column, some = _row_of_windows(first + done, first + n, q)
            for t in range(taps):
                until = note(scratch, until, x, ((line * taps + t) * q + column) * c, some * c)
            done += some
        return until

    @cpu_kernel("pppp" + "i" * 14, f"x{vectors}")
    def window_gradient(start, stop, scratch, x, dy, partial, zeros, windows, q, taps, c, k, together, rows, columns,
                        kp, per_chunk, asked, room, panels_at, noted):  # fmt: skip  # type: ignore[no-untyped-def]
        row_blocks, column_blocks = (c + rows - 1) // rows, (k + columns - 1) // columns
        blocks = (taps + together - 1) // together * row_blocks * column_blocks
        for chunk in range(start, stop):
            block = chunk % blocks
            column, row = block % column_blocks * columns, block // column_blocks % row_blocks * rows
            tap = block // column_blocks // row_blocks * together
            m, wide = min(rows, c - row), min(columns, k - column)
            panels, begin = (wide + width - 1) // width, chunk // blocks * per_chunk
            end = min(begin + per_chunk, windows)
            sums = (chunk // blocks * taps + tap) * c * kp + row * kp + column
            for first in range(begin, end, _PIECE):
                n, until = min(_PIECE, end - first), noted
                pack_windows(x, scratch, q, taps, c, first, n, tap, together, row, m, room)
                pack_panels(dy, first * k + column, k, 0, n, scratch, panels_at, wide, panel_pitch)
                if asked:
                    until = note_windows(x, dy, scratch, noted, q, taps, c, k, first + n, min(_PIECE, end - first - n))
                for product in range(panels * together):  # a panel stays in the L1 cache for all of its tiles
                    panel, t = product // together, product % together
                    low, some = share(until - noted, product, panels * together)
                    b0, c0 = panels_at + panel * panel_pitch, sums + t * c * kp + panel * width
                    column_of_tiles(scratch, t * room, pitch, 0, scratch, b0, width, n, 1, 0, 0, 1, 0, 0, partial,
                                    c0, kp, m, width, zeros, first > begin, scratch, noted + low, some)  # fmt: skip

    return window_gradient


def backward_filter(x: np.ndarray, dy: np.ndarray, kernel: Pair) -> np.ndarray:
    """dw (R, S, C, K) of contiguous float32 x (N, R P, S Q, C) and dy (N, P, Q, K), for windows of size and stride (R,
    S).
    """
    (n, p, q, k), (r, s) = dy.shape, kernel
    vectors = panel_vectors(k)
    width = vectors * target().lanes
    if r == 1:
        q *= n * p  # the windows of all rows of all images are one run of memory
    blocks = blocks_of(r, s * x.shape[3], k, width)
    windows, kp = dy.size // k, -(-k // width) * width
    floats = r * blocks.c * kp
    chunks = max(1, min(-(-filters.CHUNKS // blocks.count), -(-windows // _PIECE), filters.MOST_SUMS // floats))
    per_chunk = -(-windows // (chunks * _PIECE)) * _PIECE
    chunks = -(-windows // per_chunk)
    partial = buffer_pool.empty((chunks * floats,), np.float32)
    # In scratch memory: for every tap a piece's rows, then its panels, then the list of lines, of 8 bytes each.
    room = (blocks.rows + tile_heights(vectors)[1]) * (_PIECE + GAP)  # the last tile may have rows that do not exist
    panels_at = blocks.together * room
    noted = (panels_at + blocks.columns // width * (_PIECE * width + _PAD) + 1) // 2
    lines = _PIECE * (r * blocks.c + k) // 16 + 2 + r * (_PIECE // q + 2) * 2
    arrays = x.reshape(-1), dy.reshape(-1), partial, filters.zeros(width)
    asked = blocks.count == 1 and worth_asking(floats)
    numbers = windows, q, *blocks, kp, per_chunk, asked, room, panels_at, noted
    parallel(gradient_kernel(vectors), chunks * blocks.count, *arrays, *numbers, scratch=2 * (noted + lines))
    return filters.added_chunks(partial, chunks, r * blocks.c, k, kp).reshape(r, s, x.shape[3], k)
