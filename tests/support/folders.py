"""Small folders of images and masks in which what is to be learnt can be seen: the brightness says the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((30, 41), (24, 37), (40, 32))  # odd, and mixed


def labels(index: int, classes: int, size: tuple[int, int]) -> np.ndarray:
    """A patchwork of all classes, another one for every index."""
    h, w = size
    return (np.add.outer(np.arange(h) // 5, np.arange(w) // 6) + index) % classes


def image(truth: np.ndarray, classes: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Levels of a kind: 'grey', 'rgb', 'rgba', '16' or 'float'."""
    base = 40 + truth * (180 // classes)
    noisy = base + rng.integers(0, 10, truth.shape)
    if kind == "grey":
        return noisy.astype(np.uint8)
    if kind == "16":
        return (16 * noisy).astype(np.uint16)
    if kind == "float":
        return (0.01 * noisy - 3).astype(np.float32)
    channels = [noisy, 255 - noisy, base // 2, np.full_like(base, 200)][: len(kind)]
    return np.stack(channels, -1).astype(np.uint8)


def write_pairs(
    root: Path,
    classes: int,
    kind: str = "grey",
    count: int = 10,
    sizes: Sequence[tuple[int, int]] = SIZES,
    stored: Callable[[np.ndarray], np.ndarray] = lambda truth: truth,
    names: tuple[str, str] = ("images/{}.png", "masks/{}.png"),
    first: int = 0,
) -> Path:
    """`count` pairs below `root`. stored: what masks hold for labels, (H, W) or (H, W, 3).  names: of image and mask.
    Returns root.
    """
    rng = np.random.default_rng(first)
    for k in range(first, first + count):
        truth = labels(k, classes, sizes[k % len(sizes)])
        for name, pixels in zip(names, (image(truth, classes, kind, rng), stored(truth).astype(np.uint8)), strict=True):
            path = root / name.format(f"p{k}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path.with_suffix(".tif") if pixels.dtype == np.float32 else path)
    return root
