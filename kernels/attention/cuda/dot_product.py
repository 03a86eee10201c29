"""Attention on CUDA. Dot-product: flash kernels for float32 (flash.cu), a block per row for the rest (attention.cu), d
and e up to 128.

Forward leaves the log-sum-exp of every row; backward makes the probabilities again from it, in a pass over keys and a
pass over queries.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kernels.core.cuda.module import Launch, Module, blocks, device_limits
from kernels.core.device import Array, module_of


class Tiles(NamedTuple):
    """Rows of a block and of the tiles it walks over, forward and backward: 64 KB of shared memory at most (72 at d =
    128).
    """

    own: int
    other: int
    own_back: int
    other_back: int


# by width: d and e rounded up
TILES = {32: Tiles(64, 64, 64, 32), 64: Tiles(64, 64, 64, 32), 128: Tiles(64, 32, 32, 32)}
_PASSES = ("attention_rows", "attention_keys", "attention_queries")
_PLAIN = (*(f"{step}_plain" for step in _PASSES), "attention_delta")
_TYPES = {"float32": "float", "float64": "double"}
_MASK = np.dtype([("data", np.uint64), ("kind", np.int32), ("heads", np.int32), ("strides", np.int32, 4)], align=True)
_SHAPE = np.dtype([(name, np.int32) for name in ("queries", "keys", "d", "e", "runs")])


def _name(step: str, width: int) -> str:
    own, other = TILES[width][:2] if step == "attention_rows" else TILES[width][2:]
    return f"{step}<float, {width}, {own}, {other}>"


# One module per width and per type, since one run needs one of them; the registry lists the last ones, which have all.
FLASH = {width: Module("attention/cuda/flash.cu", tuple(_name(step, width) for step in _PASSES)) for width in TILES}
PLAIN = {
    kind: Module("attention/cuda/attention.cu", tuple(f"{name}<{kind}>" for name in _PLAIN))
    for kind in ("float", "double")
}
Module("attention/cuda/flash.cu", tuple(name for module in FLASH.values() for name in module.instances))
Module("attention/cuda/attention.cu", tuple(name for module in PLAIN.values() for name in module.instances))


def flash_launch(step: str, width: int, heads: int, rows: int) -> Launch:
    """A block per `own` rows and head. Shared memory: padded rows of both operands (two each in backward), and the tile
    of probabilities.
    """
    own, other = TILES[width][:2] if step == "attention_rows" else TILES[width][2:]
    operands = 1 if step == "attention_rows" else 2
    return Launch(
        _name(step, width),
        (blocks(rows, own), heads),
        (256,),
        4 * (operands * (own + other) * (width + 4) + own * (other + 16)),
    )


def plain_launch(step: str, kind: str, heads: int, rows: int, others: int) -> Launch:
    """A block per row; `others` numbers in shared memory (twice for keys)."""
    numbers = others * (2 if step == "attention_keys" else 1)
    return Launch(f"{step}_plain<{kind}>", (rows, heads), (128,), numbers * (4 if kind == "float" else 8))


class _Problem:
    """Contiguous operands, and which kernels serve them."""

    def __init__(self, q: Array, k: Array, v: Array, mask: Array | None, scale: float, *more: Array) -> None:
        arrays = (q, k, v, *more)
        n, heads, queries, d = q.shape
        keys, e = v.shape[2:]
        self.shape = (queries, keys, d, e)
        self.heads = n * heads
        wide = max(d, e)
        self.served = (
            q.dtype.name in _TYPES
            and all(a.dtype == q.dtype for a in arrays)
            and 0 < wide <= 128
            and keys > 0
            and self.heads <= 65535
            and max(a.size for a in arrays) < 2**31
            and (mask is None or ((mask.dtype == bool or mask.dtype == q.dtype) and mask.size < 2**31))
        )
        if not self.served:
            return
        xp = module_of("cuda")
        self.kind = _TYPES[q.dtype.name]
        self.width = next(w for w in TILES if w >= wide)
        limit = device_limits()[1]
        self.flash = self.kind == "float" and all(
            flash_launch(step, self.width, 1, 1).shared <= limit for step in _PASSES
        )
        rows = max(queries, keys) * 2 * q.itemsize
        self.served = self.flash or rows <= 48 * 1024
        self.arrays = [xp.ascontiguousarray(a) for a in arrays]
        runs = d % 4 == 0 and e % 4 == 0 and all(a.data.ptr % 16 == 0 for a in self.arrays)
        self.scale = q.dtype.type(scale)
        sizes, found = np.zeros((), _SHAPE), np.zeros((), _MASK)
        for name, value in zip(sizes.dtype.names, (*self.shape, runs), strict=True):
            sizes[name] = value
        found["heads"] = heads
        if mask is not None:
            full = xp.broadcast_to(mask, (n, heads, queries, keys))
            found["data"] = full.data.ptr
            found["kind"] = 1 if mask.dtype == bool else 2
            found["strides"] = [
                0 if length == 1 else s // full.itemsize for s, length in zip(full.strides, full.shape, strict=True)
            ]
        self.settings = sizes[()], found[()], self.scale

    def run(self, step: str, *arrays: Array) -> None:
        """Launch a pass: over keys, or over queries."""
        queries, keys = self.shape[:2]
        rows, others = (keys, queries) if step == "attention_keys" else (queries, keys)
        if self.flash:
            FLASH[self.width].run(flash_launch(step, self.width, self.heads, rows), *arrays, *self.settings)
        else:
            PLAIN[self.kind].run(plain_launch(step, self.kind, self.heads, rows, others), *arrays, *self.settings)


def attention_forward(q: Array, k: Array, v: Array, mask: Array | None, scale: float) -> Any:
    """As kernels.attention.reference.attention_forward."""
    problem = _Problem(q, k, v, mask, scale)
    if not problem.served:
        return NotImplemented
    xp = module_of("cuda")
    o = xp.empty((*q.shape[:3], v.shape[3]), q.dtype)
    lse = xp.empty(q.shape[:3], q.dtype)
    problem.run("attention_rows", *problem.arrays, o, lse)
    return o, lse


def attention_backward(
    do: Array, q: Array, k: Array, v: Array, o: Array, lse: Array, mask: Array | None, scale: float
) -> Any:
    """As kernels.attention.reference.attention_backward."""
    problem = _Problem(q, k, v, mask, scale, do, o, lse)
    if not problem.served:
        return NotImplemented
    xp = module_of("cuda")
    q, k, v, do, o, lse = problem.arrays
    delta = xp.empty(lse.shape, q.dtype)
    rows = math.prod(lse.shape)
    PLAIN[problem.kind].run(
        Launch(f"attention_delta<{problem.kind}>", (blocks(rows, 4),), (128,)), do, o, delta, rows, v.shape[3]
    )
    dq, dk, dv = (xp.empty(a.shape, a.dtype) for a in (q, k, v))
    problem.run("attention_keys", do, q, k, v, lse, delta, dk, dv)
    problem.run("attention_queries", do, q, k, v, lse, delta, dq)
    return dq, dk, dv
