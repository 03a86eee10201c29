"""Augmentation of a batch: one gather per pixel by all threads, in place of the reference's index arrays."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from kernels.core.compile import Kernel, cpu_kernel, inline
from kernels.core.runs import over_run
from kernels.core.simd import Code, Int, Pointer, program
from kernels.core.threads import parallel


@inline()
def _mirror(i, n):  # type: ignore[no-untyped-def]
    """Reflect an integer coordinate into [0, n), without repeating the edge."""
    if 0 <= i < n:
        return i
    if n == 1:
        return 0
    i = abs(i) % (2 * n - 2)
    return i if i < n else 2 * n - 2 - i


@program("piip")
def _photometric(code: Code, y: Pointer, at: Int, length: Int, settings: Pointer) -> None:
    """y <- clip(contrast y + addition, 0, 1)^gamma for a tile; settings: contrast, addition, gamma."""
    contrast, addition, gamma = (code.broadcast(settings, k) for k in range(3))

    def body(i: Int, rest: Any) -> None:
        value = code.minimum(code.maximum(contrast * code.load(y, at + i, rest) + addition, 0), 1)
        power = code.exp(gamma * code.log(code.maximum(value, 1e-30)))
        power = code.select(value > 0, power, 0)
        code.store(code.select(gamma.equals(1), value, power), y, at + i, rest)

    over_run(code, length, body)


@lru_cache(maxsize=1)
def _kernel() -> Kernel:
    @cpu_kernel("pbdppppbiii")
    def augment_batch(start, stop, scratch, images, masks, matrices, contrast, brightness, gamma, out, labels, h, w, outside):  # type: ignore[no-untyped-def]
        pixels = h * w
        image, mask, result, label = (
            carray(images, stop * pixels),
            carray(masks, stop * pixels),
            carray(out, stop * pixels),
            carray(labels, stop * pixels),
        )
        maps, settings = carray(matrices, stop * 6), carray(scratch, 3)
        contrasts, brightnesses, gammas = carray(contrast, stop), carray(brightness, stop), carray(gamma, stop)
        for tile in range(start, stop):
            first, m = tile * pixels, maps[tile * 6 : tile * 6 + 6]
            total = 0.0
            for i in range(pixels):
                total += image[first + i]
            mean = np.float32(total / pixels)
            for y in range(h):
                for x in range(w):
                    u, v = m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]
                    x0, y0 = int(np.floor(u)), int(np.floor(v))
                    fx, fy = np.float32(u - x0), np.float32(v - y0)
                    left, right = _mirror(x0, w), _mirror(x0 + 1, w)
                    top, bottom = first + _mirror(y0, h) * w, first + _mirror(y0 + 1, h) * w
                    one = np.float32(1)
                    upper = image[top + left] * (one - fx) + image[top + right] * fx
                    lower = image[bottom + left] * (one - fx) + image[bottom + right] * fx
                    result[first + y * w + x] = upper * (one - fy) + lower * fy
                    xn, yn = int(np.floor(u + 0.5)), int(np.floor(v + 0.5))
                    if outside >= 0 and not (0 <= xn < w and 0 <= yn < h):
                        label[first + y * w + x] = outside
                    else:
                        label[first + y * w + x] = mask[first + _mirror(yn, h) * w + _mirror(xn, w)]
            settings[0], settings[2] = contrasts[tile], gammas[tile]
            settings[1] = (np.float32(1) - contrasts[tile]) * mean + brightnesses[tile]
            _photometric(out, first, pixels, scratch)

    return augment_batch


def augment_batch(
    images: np.ndarray, masks: np.ndarray, matrices: np.ndarray, contrast: np.ndarray, brightness: np.ndarray, gamma: np.ndarray, outside: int | None
) -> Any:
    """As kernels.augment.reference.augment_batch, for float32 images and uint8 masks."""
    if images.dtype != np.float32 or masks.dtype != np.uint8 or not images.size:
        return NotImplemented
    n, h, w = images.shape
    out, labels = np.empty_like(images), np.empty_like(masks)
    flat = np.ascontiguousarray(images).reshape(-1), np.ascontiguousarray(masks).reshape(-1)
    maps = np.ascontiguousarray(matrices, np.float64).reshape(-1)
    settings = (np.ascontiguousarray(v, np.float32) for v in (contrast, brightness, gamma))
    parallel(_kernel(), n, *flat, maps, *settings, out.reshape(-1), labels.reshape(-1), h, w, -1 if outside is None else outside, scratch=16)
    return out, labels
