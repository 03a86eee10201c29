"""Augmentation of a whole batch: one gather for flips, rotation, scaling and translation, then photometric changes.

Every output pixel reads its source through one inverse affine map, bilinear in the image, nearest in the mask, so
nothing is resampled twice. Outside the tile the image is mirrored (the edge pixel is not repeated); the mask is
`outside`, or mirrored as well where outside is None.
"""

from __future__ import annotations

from kernels.core.device import Array, array_module
from kernels.core.labels import check_held


def mirror(i: Array, n: int) -> Array:
    """Reflect integer coordinates into [0, n): ... 2 1 | 0 1 ... n-1 | n-2 ..."""
    if n == 1:
        return i * 0
    i = abs(i) % (2 * n - 2)
    return array_module(i).where(i < n, i, 2 * n - 2 - i)


def augment_batch(
    images: Array, masks: Array, matrices: Array, contrast: Array, brightness: Array, gamma: Array, outside: int | None
) -> tuple[Array, Array]:
    """images (N, H, W) float in [0, 1], masks (N, H, W) integer, matrices (N, 2, 3): source (x, y) = M [x_out, y_out,
    1], in pixels.

    Per image: value <- clip(contrast (value - mean) + mean + brightness, 0, 1)^gamma, mean over the tile before the
    gather. Returns images and masks of the same shapes and dtypes. Labels are moved, whatever they are; ValueError
    where their dtype does not hold `outside`.
    """
    xp = array_module(images)
    n, h, w = images.shape
    grid = xp.stack([xp.tile(xp.arange(w), h), xp.repeat(xp.arange(h), w), xp.ones(h * w)])  # (3, H*W)
    place = xp.result_type(matrices.dtype, xp.float64)  # where a pixel comes from is computed in float64 at least
    x, y = (matrices.astype(place) @ grid.astype(place)).transpose(1, 0, 2)  # each (N, H*W)
    batch = xp.arange(n)[:, None]

    x0 = xp.floor(x).astype(xp.int64)
    y0 = xp.floor(y).astype(xp.int64)
    fx = (x - x0).astype(images.dtype)
    fy = (y - y0).astype(images.dtype)
    left = mirror(x0, w)
    right = mirror(x0 + 1, w)
    top = mirror(y0, h)
    bottom = mirror(y0 + 1, h)
    upper = images[batch, top, left] * (1 - fx) + images[batch, top, right] * fx
    lower = images[batch, bottom, left] * (1 - fx) + images[batch, bottom, right] * fx
    image = upper * (1 - fy) + lower * fy

    mean = images.mean((1, 2), dtype=xp.float64).astype(images.dtype)[:, None]
    # contrast (image - mean) + mean + brightness, written so that contrast 1 and brightness 0 change no bit
    image = contrast[:, None] * image + ((1 - contrast[:, None]) * mean + brightness[:, None])
    image = image.clip(0, 1) ** gamma[:, None]

    xn = xp.floor(x + 0.5).astype(xp.int64)
    yn = xp.floor(y + 0.5).astype(xp.int64)
    mask = masks[batch, mirror(yn, h), mirror(xn, w)]
    if outside is not None:
        check_held("augment_batch", "outside", outside, masks.dtype)
        inside = (xn >= 0) & (xn < w) & (yn >= 0) & (yn < h)
        mask = xp.where(inside, mask, xp.asarray(outside, masks.dtype))
    return image.astype(images.dtype).reshape(n, h, w), mask.reshape(n, h, w)
