"""The plan that cuts a layer into Winograd tiles, blocks and chunks: a pure function of its shape, made once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kernels.conv.cpu.winograd.tiles import PATCH, Tiling
from kernels.conv.cpu.winograd.transforms import Form, points
from kernels.core.cpu.gemm_microkernel import panel_vectors, tile_rows
from kernels.core.cpu.prefetch import with_list
from kernels.core.cpu.target import target
from kernels.core.geometry import Pair, Window

PAD = 16  # floats, a cache line
_SCRATCH = 80_000  # floats of transformed tiles per block: 320 KB, a share of a typical L2
# floats of the filter gradient's sums that are worth a tile more per block: they are read and written once per block
_SUMS_PER_TILE = 18_000
CHUNKS = 16  # per layer, about
LEAST = 64  # tiles per block and chunk: the filter's panels are read once for them ...
_SMALL = 300_000  # ... half as many for transformed filters of up to that many floats, which stay in the cache
_QUIET = 1 << 18  # floats: maps that stay in the caches are not prefetched
_MOST_LINES = 20_000  # of a block that are prefetched: a list of up to 160 KB
ZEROS = np.zeros(8192, np.float32)


def _equal_parts(count: int, about: int, step: int) -> int:
    """`count` is cut into equal parts of about `about`: their size, a multiple of `step`. A small last part would cost
    as much as a full one.
    """
    parts = max(1, round(count / about))
    return -(-count // (parts * step)) * step


def tiles_prefetch(floats: int, lines: int) -> bool:
    """Whether to prefetch a block of that many lines, of maps of that many floats: they do not stay in the cache, and
    their list is short.
    """
    return target().prefetches and floats > _QUIET and lines <= _MOST_LINES


class Plan:
    """Everything that does not depend on values: tiling, panels, chunks, scratch memory. Made once per layer. last:
    channels of a second map, of c.
    """

    def __init__(self, form: Form, images: int, size: Pair, c: int, k: int, window: Window, last: int = 0) -> None:
        lanes = target().lanes
        self.vectors = panel_vectors(k)
        self.width = self.vectors * lanes
        self.points = points(form) ** 2
        reach = c - last + -(-last // lanes) * lanes  # a second map, which may start anywhere, has whole vectors, too
        self.cp = -(-reach // lanes) * lanes
        self.kp = -(-k // self.width) * self.width
        self.tiling = Tiling.of(form, size, window)
        self.units = images * self.tiling.units
        columns = self.tiling.columns
        height = tile_rows(self.vectors)
        fitting = _SCRATCH // (self.points * (self.cp + self.kp))
        least = LEAST // 2 if self.points * c * self.kp <= _SMALL else LEAST
        self.per = max(-(-self.units // CHUNKS), least // columns)
        # two halves: every part of the panels transforms its chunk's input again
        if LEAST // 2 <= self.units * columns <= LEAST:
            self.per = -(-self.units // 2)
        self.block = _equal_parts(self.per * columns, max(LEAST // 2, fitting), height)
        self.parts = min(self.kp // self.width, -(-4 // -(-self.units // self.per)))
        # Every chunk of the filter gradient has a copy of the sums: fewer chunks for deep layers.
        chunks = max(2, min(CHUNKS, self.units * columns // 64, 4_000_000 // (self.points * c * self.kp)))
        self.gradient_per = -(-self.units // chunks)
        sums = self.points * c * self.kp
        self.gradient_block = _equal_parts(
            self.gradient_per * columns, max(LEAST // 2, fitting, min(2 * LEAST, sums // _SUMS_PER_TILE)), 1
        )
        self.filter_per = -(-c // max(1, CHUNKS // (self.kp // self.width)))

    def scratch(self, block: int, lines: int) -> tuple[int, int]:
        """See `with_list`."""
        return with_list(self.points * (block * (self.cp + self.kp) + 2 * PAD + PATCH) + 2 * self.kp + PAD, lines)

    def lines(self, block: int, *maps: tuple[Pair, int, int]) -> int:
        """The cache lines that a block reads and writes of such maps, each ((h, w), channels, rows of a tile); 0: they
        are not prefetched.
        """
        rows = min(block // self.tiling.columns + 2, self.units)
        lines = rows * sum(side * (w * c // 16 + 2) for (_, w), c, side in maps)
        floats = self.units // self.tiling.units * sum(h * w * c for (h, w), c, _ in maps)
        return lines * tiles_prefetch(floats, lines)


plan_of = lru_cache(maxsize=1024)(Plan)


def two(maps: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """One or two maps as two flat arrays with their channels (0 where there is no second)."""
    first = maps[0]
    last = maps[-1]
    return first.reshape(-1), last.reshape(-1), first.shape[3], last.shape[3] if len(maps) > 1 else 0
