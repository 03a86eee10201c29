"""Overlapping windows: how a network that was trained on images of one size sees an image of any size.

Along each axis the windows begin at equal steps, and neighbours share at least a quarter of a side. A window's weights
fall linearly towards its ends and are divided by the sum of all windows' weights at the same pixel. So the weights of
every pixel sum to one, a pixel that only one window shows has the weight 1, and no seam shows where windows meet. An
image that is smaller than the window is mirrored below and to the right, as in training, and the result is cut back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from engine.data.stored import Size, pad, padded
from kernels.core.device import Array, array_module, device_of, to_device

_SHARED = 4  # neighbours share at least one part in so many of a side


def starts(length: int, window: int) -> list[int]:
    """Where windows begin along an axis that is at least as long as they are: at equal steps, the first one at 0, the
    last one so that it ends where the axis does.
    """
    room = length - window
    steps = -(-room // max(1, window - -(-window // _SHARED)))
    return [round(k * room / steps) for k in range(steps + 1)] if steps else [0]


def feather(length: int, window: int) -> np.ndarray:
    """The windows' weights along an axis: float32 (windows, window). At every place of the axis they sum to one."""
    ramp = np.minimum(np.arange(1, window + 1), np.arange(window, 0, -1)).astype(np.float64)
    places = starts(length, window)
    total = np.zeros(length)
    for start in places:
        total[start : start + window] += ramp
    return np.stack([ramp / total[start : start + window] for start in places]).astype(np.float32)


@dataclass(frozen=True)
class Windows:
    """The windows of a size (h, w) over an image of a size (H, W), in rows from top to bottom."""

    image: Size
    window: Size

    @cached_property
    def padded(self) -> Size:
        """The image's size, with each side at least as long as the window's."""
        return max(self.image[0], self.window[0]), max(self.image[1], self.window[1])

    @cached_property
    def rows(self) -> list[int]:
        """Where rows of windows begin."""
        return starts(self.padded[0], self.window[0])

    @cached_property
    def columns(self) -> list[int]:
        """Where columns of windows begin."""
        return starts(self.padded[1], self.window[1])

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """(top, left) of every window."""
        return [(top, left) for top in self.rows for left in self.columns]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @cached_property
    def _along(self) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        down, across = (feather(n, k) for n, k in zip(self.padded, self.window, strict=True))
        return dict(zip(self.rows, down, strict=True)), dict(zip(self.columns, across, strict=True))

    def weights(self, top: int, left: int) -> np.ndarray:
        """The weights of the window that begins there: float32 (h, w)."""
        down, across = self._along
        return down[top][:, None] * across[left]

    def cut(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """All windows of an image (H, W) or (H, W, C), in order."""
        h, w = self.window
        whole = pad(image, self.padded, None)
        return (whole[top : top + h, left : left + w] for top, left in self.places)


windows_over = lru_cache(maxsize=16)(Windows)  # images of a set are often of one size


def by_windows(forward: Callable[[Array], Array], x: Array, window: Size, batch: int) -> Array:
    """What a network gives for windows, put together: images (N, H, W, C) -> (N, H, W, K) on the same device.

    forward: (n, h, w, C) -> (n, h, w, K) for up to `batch` windows.
    """
    xp = array_module(x)
    h, w = window
    windows = windows_over(x.shape[1:3], window)
    whole = padded(x, windows.padded, None)
    places = [(n, top, left) for n in range(len(x)) for top, left in windows.places]
    total = None
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        results = forward(xp.stack([whole[n, top : top + h, left : left + w] for n, top, left in some]))
        if total is None:
            total = xp.zeros((*whole.shape[:3], results.shape[-1]), np.float32)
        for (n, top, left), result in zip(some, results, strict=True):
            weights = to_device(windows.weights(top, left), device_of(x))
            total[n, top : top + h, left : left + w] += result * weights[..., None]
    if total is None:
        raise ValueError(f"by_windows: x has shape {x.shape}, expected at least one image")
    return total[:, : x.shape[1], : x.shape[2]]


class Strips:
    """Puts windows' results together row by row, in order, and keeps no more rows than a window has: an image of any
    height in little memory.
    """

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self._places = iter(windows.places)
        self._ends = [*windows.rows[1:], windows.padded[0]]
        self._total: np.ndarray | None = None

    def add(self, result: np.ndarray) -> tuple[int, np.ndarray] | None:
        """Take the next window's result (h, w, ...), float32. Where it completes rows of the image, return the first of
        them and their values (rows, W, ...).
        """
        h, w = self.windows.window
        height, width = self.windows.image
        top, left = next(self._places)
        if self._total is None:
            self._total = np.zeros((h, self.windows.padded[1], *result.shape[2:]), np.float32)
        weights = self.windows.weights(top, left)
        self._total[:, left : left + w] += result * weights.reshape(h, w, *(1,) * (result.ndim - 2))
        if left != self.windows.columns[-1]:
            return None
        done = self._ends[self.windows.rows.index(top)] - top
        finished = self._total[:done]
        self._total = np.concatenate([self._total[done:], np.zeros_like(finished)])
        return top, finished[: height - top, :width]
