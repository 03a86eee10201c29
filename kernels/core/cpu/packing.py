"""Both factors of a product copied into the order in which register tiles (kernels/core/cpu/gemm_microkernel.py) read
them.

A sum over pixels, C = A^T B with A (pixels, M) and B (pixels, K), needs a few floats of every pixel: each is a cache
line of its own, and lines by a power of two apart meet in few sets of the L1 cache. So pieces of some pixels are
packed: the M rows of C in tiles as high as those that compute them, the K columns in panels, both pixel behind pixel. A
    tile then reads two runs of memory. A float is copied once and used K or M times.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from kernels.core.cpu.gemm_microkernel import make_tall_tiles, tile_heights
from kernels.core.cpu.jit import inline
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.target import target

# floats more between rows than a piece has pixels: whole vectors are stored, the last one reaches into the gap behind
# its tile
GAP = 4


@lru_cache(maxsize=8)
def make_pack_rows(vectors: int) -> Any:
    """pack_rows(x, x0, x_pixel, at, pixels, out, o0, rows, pitch): `rows` floats of so many pixels, x_pixel apart, as
    pixels `at` and following of a piece. Row d + i, pixel p, where a tile of `height` rows begins with row d: out[o0 +
    d pitch + p height + i]; pitch >= pixels of a piece + GAP.

    The tiles are those of a column that is `vectors` wide. For make_column's columns: a0 = o0, ar = pitch, at = 0.
    """
    tall, low = tile_heights(vectors)
    tall_tiles, pack_tall, pack_low = make_tall_tiles(vectors), _make_pack_tiles(tall), _make_pack_tiles(low)

    @inline(f"{vectors}")
    def pack_rows(x, x0, x_pixel, at, pixels, out, o0, rows, pitch):  # type: ignore[no-untyped-def]
        talls = tall_tiles(rows)
        done = talls * tall
        pack_tall(x, x0, x_pixel, at, pixels, out, o0, talls, pitch * tall, rows)
        pack_low(
            x,
            x0 + done,
            x_pixel,
            at,
            pixels,
            out,
            o0 + done * pitch,
            (rows - done + low - 1) // low,
            pitch * low,
            rows - done,
        )

    return pack_rows


@lru_cache(maxsize=8)
def _make_pack_tiles(height: int) -> Any:
    """pack_tiles(...): so many tiles of `height` rows, or panels as wide, `tile_pitch` apart; x has `length` floats of
    a pixel from x0 on.
    """
    lanes = target().lanes
    span = -(-height // lanes) * lanes  # floats that are read and written for a tile's pixel

    @program("piiiipiiiii")
    def pack(code: Code, x: Pointer, x0: Int, x_pixel: Int, at: Int, pixels: Int, out: Pointer, o0: Int, tiles: Int,
             tile_pitch: Int, length: Int, whole: Int) -> None:  # fmt: skip
        with code.loop(0, pixels) as p:
            source, place = x + (x0 + p * x_pixel), out + (o0 + (at + p) * height)
            for first, last, masked in ((code.int(0), whole, False), (whole, tiles, True)):
                with code.loop(first, last) as t:
                    for j in range(0, span, lanes):
                        count = length - t * height - j if masked else None
                        code.store(code.load(source, t * height + j, count), place + t * tile_pitch, j)

    @inline(f"{height}")
    def pack_tiles(x, x0, x_pixel, at, pixels, out, o0, tiles, tile_pitch, length):  # type: ignore[no-untyped-def]
        whole = min(tiles, max(0, (length - span) // height + 1))  # tiles whose vectors end before the pixel does
        pack(x, x0, x_pixel, at, pixels, out, o0, tiles, tile_pitch, length, whole)

    return pack_tiles


@lru_cache(maxsize=8)
def make_pack_panels(vectors: int) -> Any:
    """pack_panels(x, x0, x_pixel, at, pixels, out, o0, columns, pitch): likewise `columns` floats of pixels, in panels
    `pitch` floats apart:
    column j of panel i, pixel p: out[o0 + i pitch + p width + j], zeros beyond the last column.

    For make_column's columns: b0 = o0 + i pitch, bt = width.
    """
    width = vectors * target().lanes
    pack_tiles = _make_pack_tiles(width)

    @inline(f"{vectors}")
    def pack_panels(x, x0, x_pixel, at, pixels, out, o0, columns, pitch):  # type: ignore[no-untyped-def]
        pack_tiles(x, x0, x_pixel, at, pixels, out, o0, (columns + width - 1) // width, pitch, columns)

    return pack_panels
