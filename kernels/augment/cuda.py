"""Augmentation on CUDA: one launch moves and recolours a batch and its masks; see augment.cu. float32 and float64
images, uint8 masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, module_of
from kernels.core.labels import check_held

MODULE = Module("augment/augment.cu", ("augment_plain<float>", "augment<float>", "augment<double>"))
THREADS, STRIPS = 256, 8  # STRIPS: at most that many blocks share a tile, since each of them sums it for the mean
_TYPES = {"float32": "float", "float64": "double"}


def augment_launch(n: int, h: int, w: int, kind: str) -> Launch:
    """Strips of tiles."""
    return Launch(f"augment<{kind}>", (min(blocks(h * w, THREADS), STRIPS), n), (THREADS,))


def plain_launch(n: int) -> Launch:
    """A thread per tile."""
    return Launch("augment_plain<float>", (blocks(n, 32),), (32,))


def augment_batch(
    images: Array, masks: Array, matrices: Array, contrast: Array, brightness: Array, gamma: Array, outside: int | None
) -> Any:
    """As kernels.augment.reference.augment_batch; the settings may still be on the host."""
    if images.dtype.name not in _TYPES or masks.dtype != np.uint8 or images.size >= 2**31 or len(images) > 65535:
        return NotImplemented
    if outside is not None:
        check_held("augment_batch", "outside", outside, masks.dtype)
    xp = module_of("cuda")
    kind = _TYPES[images.dtype.name]
    n, h, w = images.shape
    settings = (xp.ascontiguousarray(xp.asarray(value, images.dtype)) for value in (contrast, brightness, gamma))
    arrays = (
        xp.ascontiguousarray(images),
        xp.ascontiguousarray(masks),
        xp.ascontiguousarray(xp.asarray(matrices, np.float64)),
        *settings,
    )
    out = xp.empty(images.shape, images.dtype)
    labels = xp.empty(masks.shape, masks.dtype)
    MODULE.run(augment_launch(n, h, w, kind), *arrays, out, labels, h, w, -1 if outside is None else outside)
    return out, labels
