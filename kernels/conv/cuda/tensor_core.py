"""Convolutions on tensor cores: of float32 arrays under the policies tf32, bf16 and float16 (kernels.core.precision),
and of 16-bit arrays.

float32 arrays: operands are rounded to the policy's type on their way into the multipliers. Arrays of float16, or of
ml_dtypes' bfloat16, are the operands whatever the policy says, and results have their dtype. Sums are float32.
Functions have the reference's names and signatures and return
NotImplemented for what they do not serve: the policy float32, other or mixed dtypes, groups, empty arrays, 2^31
elements or 2^15 rows or columns or more, a device below compute capability 8.0.

The data gradient for stride (sh, sw) is sh sw convolutions of dy with stride 1, one per phase of the input pixel: the
taps that reach pixels of that phase, flipped. For stride 1 that is one convolution with the flipped filter. A
transposed convolution forward is a data gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from kernels.core.cuda.module import Launch, Module, blocks, device_limits
from kernels.core.device import Array, array_module
from kernels.core.geometry import Pair, Window
from kernels.core.precision import precision

TYPES = {"tf32": "Tf32", "bf16": "Bf16", "float16": "F16"}  # of float32 arrays, by policy
ARRAYS = {"float16": "F16Array", "bfloat16": "Bf16Array"}  # of 16-bit arrays, by dtype
KINDS = (*TYPES.values(), *ARRAYS.values())
DEPTH = 32
# rows, columns, threads
TILES = {"Wide": (128, 128, 256), "Wide16": (128, 128, 512), "Middle": (128, 64, 256), "Small": (64, 32, 128)}
WIDE = {"Tf32": "Wide", "Bf16": "Wide16", "F16": "Wide16", "F16Array": "Wide", "Bf16Array": "Wide"}
RUN = {kind: 8 if kind in ARRAYS.values() else 4 for kind in KINDS}  # channels of a 16-byte copy
BLOCKS = 160  # a launch should have that many blocks before it uses large tiles or stops splitting the sum
LONGEST = 4096  # pixels of a float32 sum in the filter gradient
MODULE = Module(
    "conv/cuda/tensor_core.cu",
    [f"plain<{t}>" for t in KINDS]
    + [
        f"forward<{t}, {tile}, {v}>"
        for t in KINDS
        for tile, v in ((WIDE[t], RUN[t]), ("Middle", RUN[t]), ("Small", RUN[t]), ("Small", 1))
    ],
)
FILTER_MODULE = Module(
    "conv/cuda/tensor_core_backward_filter.cu",
    ["add_parts"]
    + [f"filter<{t}, {tile}, {v}>" for t in KINDS for tile, v in (("Middle", RUN[t]), ("Small", RUN[t]), ("Small", 1))],
)


@dataclass(frozen=True)
class Geometry:
    """The struct of that name in tensor_core.cuh: the input and the place of the result."""

    h: int
    w: int
    c0: int
    c1: int
    p: int
    q: int
    pixels: int
    k: int
    r: int
    s: int
    sh: int
    sw: int
    top: int
    left: int
    dh: int
    dw: int
    oh: int
    ow: int
    osh: int = 1
    osw: int = 1
    oi: int = 0
    oj: int = 0

    @property
    def depth(self) -> int:
        """Length of a patch: r s c."""
        return self.r * self.s * (self.c0 + self.c1)

    @property
    def struct(self) -> np.void:
        """As the kernels take it, by value."""
        return np.array(tuple(vars(self).values()), _STRUCT)[()]


_STRUCT = np.dtype([(name, np.int32) for name in Geometry.__dataclass_fields__])


# -- launch geometry: shapes -> Launch --------------------------------------------------------------------------------


def _shared(kind: str, tile: str, table: int) -> int:
    """Bytes: two stages of both tiles, and the table of pixels."""
    rows, columns, _ = TILES[tile]
    return 2 * (rows + columns) * DEPTH * (4 if kind == "Tf32" else 2) + table


def _tile_count(tile: str, rows: int, columns: int) -> int:
    return blocks(rows, TILES[tile][0]) * blocks(columns, TILES[tile][1])


def forward_launch(kind: str, pixels: int, k: int, v: int) -> Launch:
    """The largest tile that `k` fills and that leaves enough blocks for a whole GPU. v: channels per copy, RUN[kind] or
    1.
    """
    tile = "Small"
    if v > 1:
        for name, least in ((WIDE[kind], 65), ("Middle", 33)):
            if k >= least and _tile_count(name, pixels, k) >= BLOCKS:
                tile = name
                break
    return Launch(
        f"forward<{kind}, {tile}, {v}>",
        (_tile_count(tile, pixels, k),),
        (TILES[tile][2],),
        _shared(kind, tile, 12 * TILES[tile][0]),
    )


def filter_launches(kind: str, pixels: int, depth: int, k: int, v: int) -> tuple[Launch, Launch | None, int]:
    """(partial sums, their addition or None for one part, pixels per part)."""
    tile = "Middle" if v > 1 and k >= 33 and depth >= 65 else "Small"
    count = _tile_count(tile, depth, k)
    parts = max(1, min(blocks(BLOCKS, count), blocks(pixels, 8 * DEPTH)))
    run = min(blocks(blocks(pixels, parts), DEPTH) * DEPTH, LONGEST)
    parts = blocks(pixels, run)
    launch = Launch(f"filter<{kind}, {tile}, {v}>", (count, parts), (TILES[tile][2],), _shared(kind, tile, 16 * DEPTH))
    return launch, Launch("add_parts", (blocks(depth * k, 256),), (256,)) if parts > 1 else None, run


@dataclass(frozen=True)
class Phase:
    """One axis of a phase of the data gradient: filter taps `taps`, read with `dilation` from `-before` on; results
    first, first + stride, ...
    """

    taps: slice
    length: int
    dilation: int
    before: int
    first: int
    count: int


@lru_cache(maxsize=1024)
def phases(size: int, kernel: int, stride: int, before: int, dilation: int) -> tuple[Phase, ...]:
    """The phases of one axis of dx: pixel h = stride a + i - before gets the taps r with r dilation = i modulo stride,
    from dy's pixel a - (r dilation - i) / stride. They are every (stride / g)-th one, g = gcd(stride, dilation); their
    pixels in dy lie dilation / g apart.
    """
    step = stride // math.gcd(stride, dilation)
    apart = dilation // math.gcd(stride, dilation)
    out = []
    for i in range(stride):
        first = (i - before) % stride
        count = blocks(max(0, size - first), stride)
        taps = [r for r in range(kernel) if (r * dilation - i) % stride == 0]
        if not count:
            continue
        if not taps:
            out.append(Phase(slice(0, 0), 0, 1, 0, first, count))
            continue
        a = (first + before - i) // stride
        farthest = (taps[-1] * dilation - i) // stride  # the flipped filter begins with the last tap
        out.append(Phase(slice(taps[0], None, step), len(taps), apart, farthest - a, first, count))
    return tuple(out)


# -- running ----------------------------------------------------------------------------------------------------------


def _kind(groups: int, size: Pair, window: Window, *arrays: Array | None) -> str | None:
    """The arrays' 16-bit type, or the operand type of the policy; None when these arguments are not served. size: of
    the larger map.
    """
    given = [a for a in arrays if a is not None]
    dtype = given[0].dtype
    kind = TYPES.get(precision()) if dtype == np.float32 else ARRAYS.get(dtype.name)
    if kind is None or groups != 1 or any(a.dtype != dtype or not 0 < a.size < 2**31 for a in given):
        return None
    reach = max(n + sum(pad) + e for n, pad, e in zip(size, window.padding, window.extent, strict=True))
    if reach >= 2**15 or device_limits()[2] < 80:  # rows and columns of pixels travel in 16 bits
        return None
    return kind


def _width(kind: str, channels: tuple[int, ...], *arrays: Array | None) -> int:
    """How many channels a copy has: 16 bytes of them when channels and addresses allow it, else 1."""
    aligned = all(a.data.ptr % 16 == 0 for a in arrays if a is not None)
    return RUN[kind] if aligned and not any(c % RUN[kind] for c in channels) else 1


def _contiguous(array: Array) -> Array:
    return array_module(array).ascontiguousarray(array)


def _pointer(array: Array | None) -> Any:
    return np.uint64(0) if array is None else array


def _geometry(maps: tuple[Array, ...], window: Window, out: Pair, k: int) -> Geometry:
    n, h, w, c0 = maps[0].shape
    c1 = maps[1].shape[3] if len(maps) > 1 else 0
    (top, _), (left, _) = window.padding
    return Geometry(
        h, w, c0, c1, *out, n * out[0] * out[1], k, *window.kernel, *window.stride, top, left, *window.dilation, *out
    )


def _run_forward(
    kind: str, maps: tuple[Array, ...], w: Array, b: Array | None, y: Array, g: Geometry, add: bool
) -> None:
    v = _width(kind, (g.c0, g.c1, g.k), *maps, w, y)
    launch = forward_launch(kind, g.pixels, g.k, v)
    MODULE.run(launch, maps[0], _pointer(maps[1] if g.c1 else None), w, _pointer(b), y, g.struct, add)


def plain_forward(maps: Sequence[Array], w: Array, b: Array | None, window: Window) -> Array:
    """The result of `conv2d_forward`, one thread per number; for teaching and tests."""
    maps = tuple(map(_contiguous, maps))
    g = _geometry(maps, window, window.output_size(maps[0].shape[1:3]), w.shape[3])
    y = array_module(w).empty((maps[0].shape[0], g.p, g.q, g.k), w.dtype)
    launch = Launch(f"plain<{ARRAYS.get(w.dtype.name) or TYPES[precision()]}>", (blocks(y.size, 256),), (256,))
    MODULE.run(launch, maps[0], _pointer(maps[1] if g.c1 else None), _contiguous(w), _pointer(b), y, g.struct, False)
    return y


def conv2d_forward(maps: Sequence[Array], w: Array, b: Array | None, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_forward."""
    size = maps[0].shape
    out = window.output_size(size[1:3])
    kind = _kind(groups, size[1:3], window, *maps, w, b)
    if kind is None or size[0] * out[0] * out[1] * w.shape[3] >= 2**31:
        return NotImplemented
    maps = tuple(map(_contiguous, maps))
    w = _contiguous(w)
    y = array_module(w).empty((size[0], *out, w.shape[3]), w.dtype)
    _run_forward(
        kind, maps, w, None if b is None else _contiguous(b), y, _geometry(maps, window, out, w.shape[3]), False
    )
    return y


def conv2d_backward_data(
    dy: Array,
    w: Array,
    size: Pair,
    window: Window,
    groups: int = 1,
    parts: tuple[int, ...] | None = None,
    accumulate_into: tuple[Array | None, ...] = (None,),
) -> Any:
    """As kernels.conv.reference.conv2d_backward_data."""
    parts = parts or (w.shape[2] * groups,)
    kind = _kind(groups, size, window, dy, w, *accumulate_into)
    if (
        kind is None
        or dy.shape[0] * math.prod(size) * max(parts) >= 2**31
        or any(t is not None and not t.flags.c_contiguous for t in accumulate_into)
    ):
        return NotImplemented
    xp, dy = array_module(dy), _contiguous(dy)
    dxs = []
    start = 0
    for channels, total in zip(parts, accumulate_into, strict=True):
        dx = xp.empty((dy.shape[0], *size, channels), dy.dtype) if total is None else total
        _data_gradient(kind, dy, w[:, :, start : start + channels], None, dx, window, total is not None)
        dxs.append(dx)
        start += channels
    return tuple(dxs)


def _data_gradient(kind: str, dy: Array, w: Array, b: Array | None, dx: Array, window: Window, add: bool) -> None:
    """dx (N, H, W, C) = unpatch(dy w^T) + b, or added to what is there: dy (N, P, Q, K), filter (R, S, C, K)."""
    size = dx.shape[1:3]
    c = dx.shape[3]
    rows, columns = (
        phases(length, kernel, stride, pad[0], dilation)
        for length, kernel, stride, pad, dilation in zip(
            size, window.kernel, window.stride, window.padding, window.dilation, strict=True
        )
    )
    for i, j in product(rows, columns):
        if not i.length or not j.length:  # the stride passes over these pixels: no tap reaches them
            if not add:
                dx[:, i.first :: window.stride[0], j.first :: window.stride[1]] = 0 if b is None else b
            continue
        flipped = _contiguous(w[i.taps, j.taps][::-1, ::-1].swapaxes(2, 3))  # (R', S', C, K) -> (R', S', K, C)
        part = Window((i.length, j.length), (1, 1), ((i.before, 0), (j.before, 0)), (i.dilation, j.dilation))
        g = _geometry((dy,), part, (i.count, j.count), c)
        g = replace(g, oh=size[0], ow=size[1], osh=window.stride[0], osw=window.stride[1], oi=i.first, oj=j.first)
        _run_forward(kind, (dy,), flipped, b, dx, g, add)


def conv2d_backward_filter(maps: Sequence[Array], dy: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv2d_backward_filter."""
    kind = _kind(groups, maps[0].shape[1:3], window, *maps, dy)
    if kind is None:
        return NotImplemented
    maps = tuple(map(_contiguous, maps))
    dy = _contiguous(dy)
    g = _geometry(maps, window, dy.shape[1:3], dy.shape[3])
    launch, addition, run = filter_launches(kind, g.pixels, g.depth, g.k, _width(kind, (g.c0, g.c1, g.k), *maps, dy))
    if launch.grid[1] * g.depth * g.k >= 2**31:
        return NotImplemented
    xp = array_module(dy)
    part = xp.empty((launch.grid[1], *window.kernel, g.c0 + g.c1, g.k), np.float32)
    FILTER_MODULE.run(launch, maps[0], _pointer(maps[1] if g.c1 else None), dy, part, g.struct, run)
    dw = part[0]
    if addition is not None:
        dw = xp.empty(part.shape[1:], np.float32)
        FILTER_MODULE.run(addition, part, dw, launch.grid[1], dw.size)
    return dw.astype(dy.dtype, copy=False)


def conv_transpose2d_forward(x: Array, w: Array, b: Array | None, size: Pair, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_forward."""
    kind = _kind(groups, size, window, x, w, b)
    if kind is None or x.shape[0] * math.prod(size) * w.shape[3] >= 2**31:
        return NotImplemented
    y = array_module(x).empty((x.shape[0], *size, w.shape[3]), x.dtype)
    _data_gradient(kind, _contiguous(x), w.swapaxes(2, 3), b, y, window, False)
    return y


def conv_transpose2d_backward_data(dy: Array, w: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_data."""
    return conv2d_forward((dy,), w.swapaxes(2, 3), None, window, groups)


def conv_transpose2d_backward_filter(x: Array, dy: Array, window: Window, groups: int = 1) -> Any:
    """As kernels.conv.reference.conv_transpose2d_backward_filter."""
    dw = conv2d_backward_filter((dy,), x, window, groups)
    return NotImplemented if dw is NotImplemented else dw.swapaxes(2, 3)


def matmul(a: Array, b: Array) -> Any:
    """a (M, D) @ b (D, K) -> (M, K): a convolution of M images of one pixel with a 1 x 1 filter."""
    y = conv2d_forward((a[:, None, None],), b[None, None], None, Window((1, 1)))
    return NotImplemented if y is NotImplemented else y.reshape(len(a), b.shape[1])
