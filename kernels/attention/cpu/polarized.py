"""Fast polarized self-attention, float32: a chunk per image, forward and backward, and a kernel that adds up the
parameters' gradients.

An image of the network (64 or 128 KB) stays in the L2 cache, so it is read once for all of its products:
forward 4 bytes read and 4 written per element, backward 8 and 4. Backward computes the gates again. An image's
contribution to the parameters is stored as a row of vectors: the gradients are sums over images of these vectors and of
their outer products.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.attention.cpu import polarized_programs
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.gemm_microkernel import Initial, Panel, Results, Rows, make_gemm, one_tap
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import flat, parallel
from kernels.core.cpu.vector_ops import clear, copy
from kernels.pointwise.cpu.softmax import softmax, softmax_gradient

dots = polarized_programs.dots
combine = polarized_programs.combine


def _served(inner: int, *arrays: np.ndarray) -> bool:
    return inner > 0 and all(a.dtype == np.float32 and a.flags.c_contiguous and a.size for a in arrays)


class Sizes(NamedTuple):
    """Pixels and channels of an image, and the inner channels."""

    pixels: int
    channels: int
    inner: int


class ChannelWeights(NamedTuple):
    """The parameters of the channel branch."""

    wq: F32
    wv: F32
    bv: F32
    wz: F32
    bz: F32
    gain: F32
    offset: F32


class SpatialWeights(NamedTuple):
    """The parameters of the spatial branch."""

    wq: F32
    bq: F32
    wv: F32
    bv: F32


# -- channels ----------------------------------------------------------------------------------------------------------


@inline()
def _channel_gates(x, x0, weights, t, sizes, eps):
    """In t: a (pixels), pooled, o, s (channels each), u (inner)."""
    pixels, channels, inner = sizes
    pooled = pixels
    o = pooled + channels
    s = pooled + 2 * channels
    u = pooled + 3 * channels
    dots(x, x0, weights.wq, 0, t, 0, pixels, channels)
    softmax(t, 0, t, 0, pixels)
    clear(t, pooled, channels)
    combine(t, 0, 1, x, x0, t, pooled, pixels, channels)
    copy(weights.bv, 0, t, u, inner)
    combine(t, pooled, 1, weights.wv, 0, t, u, channels, inner)
    copy(weights.bz, 0, t, o, channels)
    combine(t, u, 1, weights.wz, 0, t, o, inner, channels)
    polarized_programs.channel_gates(t, o, weights.gain, weights.offset, channels, t, s, eps)


@lru_cache(maxsize=1)
def _channel_forward_kernel() -> Kernel:
    @cpu_kernel()
    def polarized_channel_forward(start, stop, scratch, x: F32, weights: ChannelWeights, y: F32, sizes: Sizes,
                                  eps: float):  # fmt: skip
        pixels = sizes.pixels
        channels = sizes.channels
        for image in range(start, stop):
            x0 = image * pixels * channels
            _channel_gates(x, x0, weights, scratch, sizes, eps)
            polarized_programs.scale_channels(x, x0, scratch, pixels + 2 * channels, y, pixels, channels)

    return polarized_channel_forward


@lru_cache(maxsize=1)
def _channel_backward_kernel() -> Kernel:
    @cpu_kernel()
    def polarized_channel_backward(start, stop, scratch, dy: F32, x: F32, weights: ChannelWeights, dx: F32, rows: F32,
                                   sizes: Sizes, eps: float):  # fmt: skip
        """A row: pooled, u, do, dgain, doffset, dwq, du."""
        pixels, c, inner = sizes
        t, w = scratch, weights
        pooled = pixels
        o = pixels + c
        s = pixels + 2 * c
        u = pixels + 3 * c
        # ds, then dpooled
        ds = u + inner
        query = u + inner + c
        dl = u + inner + 2 * c
        for image in range(start, stop):
            x0 = image * pixels * c
            row = image * (5 * c + 2 * inner)
            do = row + c + inner
            dwq = row + 4 * c + inner
            du = row + 5 * c + inner
            _channel_gates(x, x0, w, t, sizes, eps)
            copy(t, pooled, rows, row, c)
            copy(t, u, rows, row + c, inner)
            clear(t, ds, c)
            polarized_programs.combine_pairs(dy, x0, 0, x, x0, t, ds, pixels, c)
            polarized_programs.channel_gates_gradient(t, ds, s, o, w.gain, rows, do, c, eps)
            dots(w.wz, 0, rows, do, rows, du, inner, c)
            dots(w.wv, 0, rows, du, t, ds, c, inner)
            dots(x, x0, t, ds, t, dl, pixels, c)
            softmax_gradient(t, dl, t, 0, t, dl, pixels)
            clear(rows, dwq, c)
            combine(t, dl, 1, x, x0, rows, dwq, pixels, c)
            copy(w.wq, 0, t, query, c)
            gates = polarized_programs.Gates(t, s, 0, ds, dl, 1, query)
            polarized_programs.scale_channels_gradient(dy, x0, gates, dx, pixels, c)

    return polarized_channel_backward


def polarized_channel_forward(
    x: np.ndarray,
    wq: np.ndarray,
    wv: np.ndarray,
    bv: np.ndarray,
    wz: np.ndarray,
    bz: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    eps: float,
) -> Any:
    """As kernels.attention.reference.polarized_channel_forward."""
    n, pixels, c = x.shape
    inner = wv.shape[1]
    weights = (wq, wv, bv, wz, bz, gain, offset)
    if not _served(inner, x, *weights):
        return NotImplemented
    y = buffer_pool.empty(x.shape, np.float32)
    own, *flat_weights, out = flat(x, *weights, y)
    sizes = Sizes(pixels, c, inner)
    scratch = pixels + 3 * c + inner
    parallel(_channel_forward_kernel(), n, own, flat_weights, out, sizes, eps, scratch=scratch)
    return y


def polarized_channel_backward(
    dy: np.ndarray,
    x: np.ndarray,
    wq: np.ndarray,
    wv: np.ndarray,
    bv: np.ndarray,
    wz: np.ndarray,
    bz: np.ndarray,
    gain: np.ndarray,
    offset: np.ndarray,
    eps: float,
) -> Any:
    """As kernels.attention.reference.polarized_channel_backward."""
    n, pixels, c = x.shape
    h = wv.shape[1]
    weights = (wq, wv, bv, wz, bz, gain, offset)
    if not _served(h, dy, x, *weights):
        return NotImplemented
    dx = buffer_pool.empty(x.shape, np.float32)
    rows = buffer_pool.empty((n, 5 * c + 2 * h), np.float32)
    arrays = flat(dy, x, dx, rows)
    scratch = 2 * pixels + 5 * c + h
    kernel = _channel_backward_kernel()
    sizes = Sizes(pixels, c, h)
    parallel(kernel, n, *arrays[:2], flat(*weights), *arrays[2:], sizes, eps, scratch=scratch)
    dwv, dwz, sums = _over_images(rows, Pair(0, 5 * c + h, c, h), Pair(c, c + h, h, c), c + h)
    dbz, dgain, doffset, dwq = (sums[k * c : (k + 1) * c] for k in range(4))
    return dx, dwq, dwv, sums[4 * c :], dwz, dbz, dgain, doffset


# -- pixels ------------------------------------------------------------------------------------------------------------


@inline()
def _pixel_gates(x, x0, weights, t, sizes):
    """In t: s (pixels), mean, c (channels each), b (inner), <bv, b>, 1 / pixels."""
    pixels, channels, inner = sizes
    mean = pixels
    c = pixels + channels
    b = c + channels
    shift = b + inner
    share = b + inner + 1
    t[share] = 1 / pixels
    clear(t, mean, channels)
    combine(t, share, 0, x, x0, t, mean, pixels, channels)
    copy(weights.bq, 0, t, b, inner)
    combine(t, mean, 1, weights.wq, 0, t, b, channels, inner)
    softmax(t, b, t, b, inner)
    dots(weights.wv, 0, t, b, t, c, channels, inner)
    dots(weights.bv, 0, t, b, t, shift, 1, inner)
    dots(x, x0, t, c, t, 0, pixels, channels)
    polarized_programs.pixel_gates(t, 0, shift, pixels)


@lru_cache(maxsize=1)
def _spatial_forward_kernel() -> Kernel:
    @cpu_kernel()
    def polarized_spatial_forward(start, stop, scratch, x: F32, weights: SpatialWeights, y: F32, sizes: Sizes):
        pixels = sizes.pixels
        channels = sizes.channels
        for image in range(start, stop):
            x0 = image * pixels * channels
            _pixel_gates(x, x0, weights, scratch, sizes)
            polarized_programs.scale_pixels(x, x0, scratch, 0, y, pixels, channels)

    return polarized_spatial_forward


@lru_cache(maxsize=1)
def _spatial_backward_kernel() -> Kernel:
    @cpu_kernel()
    def polarized_spatial_backward(start, stop, scratch, dy: F32, x: F32, weights: SpatialWeights, dx: F32, rows: F32,
                                   sizes: Sizes):  # fmt: skip
        """A row: mean, b, dc, dl, b sum do."""
        pixels, channels, inner = sizes
        t = scratch
        w = weights
        mean = pixels
        c = pixels + channels
        b = c + channels
        share = b + inner + 1
        total, do = share + 1, share + 2
        for image in range(start, stop):
            x0 = image * pixels * channels
            row = image * (2 * channels + 3 * inner)
            dc = row + channels + inner
            dl = row + 2 * channels + inner
            _pixel_gates(x, x0, w, t, sizes)
            copy(t, mean, rows, row, channels)
            copy(t, b, rows, row + channels, inner)
            polarized_programs.dots_of_pairs(dy, x0, x, x0, t, do, pixels, channels)
            polarized_programs.pixel_gates_gradient(t, do, 0, total, pixels)
            clear(rows, dc, channels)
            combine(t, do, 1, x, x0, rows, dc, pixels, channels)
            clear(rows, dl, 2 * inner)
            combine(t, total, 1, w.bv, 0, rows, dl, 1, inner)
            combine(rows, dc, 1, w.wv, 0, rows, dl, channels, inner)
            combine(t, total, 1, t, b, rows, dl + inner, 1, inner)
            softmax_gradient(rows, dl, t, b, rows, dl, inner)
            dots(w.wq, 0, rows, dl, t, mean, channels, inner)
            gates = polarized_programs.Gates(t, 0, do, c, share, 0, mean)
            polarized_programs.scale_pixels_gradient(dy, x0, gates, dx, pixels, channels)

    return polarized_spatial_backward


def polarized_spatial_forward(x: np.ndarray, wq: np.ndarray, bq: np.ndarray, wv: np.ndarray, bv: np.ndarray) -> Any:
    """As kernels.attention.reference.polarized_spatial_forward."""
    n, pixels, c = x.shape
    inner = wq.shape[1]
    if not _served(inner, x, wq, bq, wv, bv):
        return NotImplemented
    y = buffer_pool.empty(x.shape, np.float32)
    own, *weights, out = flat(x, wq, bq, wv, bv, y)
    sizes = Sizes(pixels, c, inner)
    scratch = pixels + 2 * c + inner + 2
    parallel(_spatial_forward_kernel(), n, own, weights, out, sizes, scratch=scratch)
    return y


def polarized_spatial_backward(
    dy: np.ndarray, x: np.ndarray, wq: np.ndarray, bq: np.ndarray, wv: np.ndarray, bv: np.ndarray
) -> Any:
    """As kernels.attention.reference.polarized_spatial_backward."""
    n, pixels, c = x.shape
    h = wq.shape[1]
    if not _served(h, dy, x, wq, bq, wv, bv):
        return NotImplemented
    dx = buffer_pool.empty(x.shape, np.float32)
    rows = buffer_pool.empty((n, 2 * c + 3 * h), np.float32)
    arrays = flat(dy, x, dx, rows)
    scratch = 2 * pixels + 2 * c + h + 3
    kernel = _spatial_backward_kernel()
    sizes = Sizes(pixels, c, h)
    parallel(kernel, n, *arrays[:2], flat(wq, bq, wv, bv), *arrays[2:], sizes, scratch=scratch)
    dwq, dwv, sums = _over_images(rows, Pair(0, 2 * c + h, c, h), Pair(c + h, c, c, h), 2 * c + h)
    return dx, dwq, sums[:h], dwv, sums[h:]


# -- parameters --------------------------------------------------------------------------------------------------------

_SUMS = 256  # columns of a chunk of sums


class Pair(NamedTuple):
    """A matrix sum over images of left right^T: first columns of left and right in a row, and their lengths."""

    left: int
    right: int
    height: int
    columns: int


@lru_cache(maxsize=1)
def _parameters_kernel() -> Kernel:
    gemm = make_gemm(1, mask_b=True, mask_c=True)
    lanes = target().lanes

    @cpu_kernel()
    def polarized_parameters(start, stop, scratch, rows: F32, one: F32, two: F32, sums: F32, pair1: Pair, pair2: Pair,
                             n: int, width: int, first: int):  # fmt: skip
        panels1 = -(-pair1.columns // lanes)
        panels2 = -(-pair2.columns // lanes)
        clear(scratch, 0, lanes)
        for chunk in range(start, stop):
            if chunk >= panels1 + panels2:
                at = (chunk - panels1 - panels2) * _SUMS
                polarized_programs.sum_rows(rows, first + at, n, width, sums, at, min(_SUMS, width - first - at))
                continue
            pair, out, panel = (pair1, one, chunk) if chunk < panels1 else (pair2, two, chunk - panels1)
            at = panel * lanes
            gemm(
                Rows(rows, pair.left, 1, width),
                Panel(rows, pair.right + at, width),
                one_tap(n),
                Results(out, at, pair.columns, pair.height, min(lanes, pair.columns - at)),
                Initial(scratch, 0, 0),
            )

    return polarized_parameters


def _over_images(rows: np.ndarray, pair1: Pair, pair2: Pair, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two matrices sum_n left right^T, and sum_n of the columns from `first`."""
    n, width = rows.shape
    lanes = target().lanes
    one, two, sums = (buffer_pool.empty(shape, np.float32) for shape in (pair1[2:], pair2[2:], (width - first,)))
    chunks = -(-pair1.columns // lanes) - (-pair2.columns // lanes) - (-(width - first) // _SUMS)
    arrays = flat(rows, one, two, sums)
    parallel(_parameters_kernel(), chunks, *arrays, pair1, pair2, n, width, first, scratch=lanes)
    return one, two, sums
