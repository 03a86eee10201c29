"""Augmentation of a batch: a tile per chunk, gathered and recoloured a vector of pixels at a time, without the
reference's index arrays.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, F64, U8
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Condition, Int, Pointer, Vec, program
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import vector_loop
from kernels.core.labels import check_held


class _Axis:
    """Places along an axis of n pixels, in float64; beyond its ends the image is mirrored, without repeating the edge.

    The results of `left` and `pixel` lie in the image for any place, even for NaN.
    """

    def __init__(self, wide: Code, n: Int) -> None:
        self.wide = wide
        self.last = wide.number(n - 1)
        self.period = wide.maximum(2 * self.last, 1)
        self.share = 1 / self.period
        self.step = wide.choose(n >= 2, wide.int(1), wide.int(0))  # to the right neighbour: a pixel alone is its own

    def _clamped(self, u: Vec, last: Vec) -> Vec:
        return self.wide.maximum(self.wide.minimum(u, last), 0)

    def mirrored(self, u: Vec) -> Vec:
        """u reflected into the image."""
        u = u - self.period * self.wide.floor(u * self.share)
        return self.wide.minimum(u, self.period - u)

    def left(self, u: Vec) -> Vec:
        """The left one of the two pixels between which a mirrored place lies."""
        return self._clamped(self.wide.floor(u), self.last - 1)

    def pixel(self, whole: Vec) -> Vec:
        """The pixel at a whole number, or the last one before it."""
        return self._clamped(whole, self.last)

    def inside(self, pixel: Vec) -> Condition:
        """Whether a whole number is a pixel."""
        return self.wide.both(pixel > -1, self.last + 1 > pixel)


def _mean(code: Code, x: Pointer, count: Int) -> Vec:
    """The mean of `count` floats, summed up in float64."""
    wide = code.wide
    total = wide.variable()
    vector_loop(code, count, lambda i, rest: total.set(total.get() + wide.converted(code.load(x, i, rest))))
    return code.converted(wide.total(total.get()) / wide.number(count))


@program
def _augment_tile(
    code: Code,
    images: Pointer,
    masks: Pointer,
    matrices: Pointer,
    contrast: Pointer,
    brightness: Pointer,
    gamma: Pointer,
    out: Pointer,
    labels: Pointer,
    tile: Int,
    h: Int,
    w: Int,
    outside: Int,
) -> None:
    """out, labels <- image and mask of one tile; outside: the label of pixels from beyond the tile; below 0: the mask
    is mirrored.
    """
    wide = code.wide
    pixels = h * w
    first = tile * pixels
    image, mask = images + first, masks + first
    across, down = _Axis(wide, w), _Axis(wide, h)
    a, b, c, d, e, f = (wide.broadcast(matrices, tile * 6 + k) for k in range(6))
    gain = code.broadcast(contrast, tile)
    power = code.broadcast(gamma, tile)
    addition = (1 - gain) * _mean(code, image, pixels) + code.broadcast(brightness, tile)
    curved = code.not_(code.first(power.equals(1)))
    mirrored = outside < 0

    with code.loop(0, h) as y:
        u0 = wide.fma(b, wide.number(y), c)
        v0 = wide.fma(e, wide.number(y), f)

        def columns(x: Int, rest: Any) -> None:
            step = wide.number(x) + wide.ramp()
            u, v = wide.fma(a, step, u0), wide.fma(d, step, v0)
            uf, vf = across.mirrored(u), down.mirrored(v)
            left, top = across.left(uf), down.left(vf)
            fx = code.converted(uf - left)
            fy = code.converted(vf - top)
            place = wide.fma(top, across.last + 1, left)
            rows = []
            for line in (image, image + down.step * w):
                rows.append(code.gather(line, place) * (1 - fx) + code.gather(line + across.step, place) * fx)
            value = code.minimum(code.maximum(0, gain * (rows[0] * (1 - fy) + rows[1] * fy) + addition), 1)  # NaN stays
            result = code.variable(value)
            with code.when(curved):
                result.set(code.select(value.not_at_most(0), code.exp(power * code.log(value)), 0))
            code.store(result.get(), out, first + y * w + x, rest)

            xn, yn = wide.floor(u + 0.5), wide.floor(v + 0.5)
            kept = code.either(code.spread(mirrored), code.both(across.inside(xn), down.inside(yn)))
            pixel = wide.variable(wide.fma(down.pixel(yn), across.last + 1, across.pixel(xn)))
            with code.when(mirrored):
                pixel.set(wide.fma(down.pixel(down.mirrored(yn)), across.last + 1, across.pixel(across.mirrored(xn))))
            label = code.select(kept, code.gather_bytes(mask, pixel.get()), code.number(outside))
            code.store_bytes(label, labels, first + y * w + x, rest)

        vector_loop(code, w, columns)


@lru_cache(maxsize=1)
def _kernel() -> Kernel:
    @cpu_kernel()
    def augment_batch(
        start,
        stop,
        _scratch,
        images: F32,
        masks: U8,
        matrices: F64,
        contrast: F32,
        brightness: F32,
        gamma: F32,
        out: F32,
        labels: U8,
        h: int,
        w: int,
        outside: int,
    ):
        for tile in range(start, stop):
            _augment_tile(images, masks, matrices, contrast, brightness, gamma, out, labels, tile, h, w, outside)

    return augment_batch


def augment_batch(
    images: np.ndarray,
    masks: np.ndarray,
    matrices: np.ndarray,
    contrast: np.ndarray,
    brightness: np.ndarray,
    gamma: np.ndarray,
    outside: int | None,
) -> Any:
    """As kernels.augment.reference.augment_batch, for float32 images and uint8 masks."""
    n, h, w = images.shape
    if images.dtype != np.float32 or masks.dtype != np.uint8 or not images.size or h * w >= 2**31:
        return NotImplemented
    if outside is not None:
        check_held("augment_batch", "outside", outside, masks.dtype)
    out = buffer_pool.empty(images.shape, np.float32)
    labels = buffer_pool.empty(masks.shape, np.uint8)
    flat = np.ascontiguousarray(images).reshape(-1), np.ascontiguousarray(masks).reshape(-1)
    maps = np.ascontiguousarray(matrices, np.float64).reshape(-1)
    settings = (np.ascontiguousarray(v, np.float32) for v in (contrast, brightness, gamma))
    parallel(
        _kernel(),
        n,
        *flat,
        maps,
        *settings,
        out.reshape(-1),
        labels.reshape(-1),
        h,
        w,
        -1 if outside is None else outside,
    )
    return out, labels
