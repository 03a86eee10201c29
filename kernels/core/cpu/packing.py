"""Both factors of a product copied into the order in which the GEMM micro-kernel (gemm_microkernel.py) reads them.

A sum over pixels, C = A^T B with A (pixels, M) and B (pixels, K), needs a few floats of every pixel. Each lies in a
cache line of its own, and lines a power of two apart map to few sets of the L1 cache. So blocks of some pixels are
packed: the M rows of C in tiles as high as those that compute them, the K columns in micro-panels, both pixel after
pixel. A tile then reads two runs of memory. A float is copied once and used K or M times.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from kernels.core.cpu.gemm_microkernel import Panel, make_main_tiles, tile_heights
from kernels.core.cpu.jit import inline
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.target import target

# floats more between rows than a block has pixels: whole vectors are stored, the last one reaches into the gap after
# its tile
GAP = 4


@lru_cache(maxsize=8)
def make_pack_rows(vectors: int) -> Any:
    """pack_rows(x: Panel, at, pixels, out, o0, rows, pitch): `rows` floats of that many pixels of x, as pixels `at` and
    following of a block. Row d + i, pixel p, where a tile of `height` rows begins with row d: out[o0 + d pitch + p
    height + i]; pitch >= pixels of a block + GAP.

    The tiles are those of a gemm that is `vectors` wide with unit_rows: a = Rows(out, o0, pitch, 0).
    """
    main, remainder = tile_heights(vectors)
    main_tiles = make_main_tiles(vectors)
    pack_main = _make_pack_tiles(main)
    pack_remainder = _make_pack_tiles(remainder)

    @inline(f"{vectors}")
    def pack_rows(x, at, pixels, out, o0, rows, pitch):  # type: ignore[no-untyped-def]
        mains = main_tiles(rows)
        done = mains * main
        left = rows - done
        pack_main(x, at, pixels, out, o0, mains, pitch * main, rows)
        rest = Panel(x.array, x.start + done, x.step)
        pack_remainder(
            rest, at, pixels, out, o0 + done * pitch, (left + remainder - 1) // remainder, pitch * remainder, left
        )

    return pack_rows


@lru_cache(maxsize=8)
def _make_pack_tiles(height: int) -> Any:
    """pack_tiles(...): that many tiles of `height` rows, or panels as wide, `tile_pitch` apart; x has `length` floats
    of a pixel.
    """
    lanes = target().lanes
    span = -(-height // lanes) * lanes  # floats that are read and written for a tile's pixel

    @program
    def pack(
        code: Code,
        x: Panel,
        at: Int,
        pixels: Int,
        out: Pointer,
        o0: Int,
        tiles: Int,
        tile_pitch: Int,
        length: Int,
        whole: Int,
    ) -> None:
        with code.loop(0, pixels) as p:
            source = x.array + (x.start + p * x.step)
            place = out + (o0 + (at + p) * height)
            for first, last, masked in ((code.int(0), whole, False), (whole, tiles, True)):
                with code.loop(first, last) as t:
                    for j in range(0, span, lanes):
                        count = length - t * height - j if masked else None
                        code.store(code.load(source, t * height + j, count), place + t * tile_pitch, j)

    @inline(f"{height}")
    def pack_tiles(x, at, pixels, out, o0, tiles, tile_pitch, length):  # type: ignore[no-untyped-def]
        whole = min(tiles, max(0, (length - span) // height + 1))  # tiles whose vectors end before the pixel does
        pack(x, at, pixels, out, o0, tiles, tile_pitch, length, whole)

    return pack_tiles


@lru_cache(maxsize=8)
def make_pack_panels(vectors: int) -> Any:
    """pack_panels(x: Panel, at, pixels, out, o0, columns, pitch): likewise `columns` floats of pixels, in whole
    micro-panels `pitch` floats apart: column j of panel i, pixel p: out[o0 + i pitch + p width + j].

    For a gemm: b = Panel(out, o0 + i pitch, width).
    """
    width = vectors * target().lanes
    pack_tiles = _make_pack_tiles(width)

    @inline(f"{vectors}")
    def pack_panels(x, at, pixels, out, o0, columns, pitch):  # type: ignore[no-untyped-def]
        pack_tiles(x, at, pixels, out, o0, columns // width, pitch, columns)

    return pack_panels
