"""From tiles to labels with a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from autograd import inference
from engine.graphs import cpu_inference
from engine.training.augmentation import Augmentation, inverse_maps, moved
from engine.training.metrics import confusion_per_image
from engine.windows import by_windows
from kernels import metric as kernels
from kernels.core.device import CPU, Array, array_module, device_of, to_device, to_numpy
from kernels.core.labels import check_labels
from kernels.pointwise import softmax_forward
from layers import Module

WHOLE = (0, 0)  # the setting `crop` of a network that sees whole images


@dataclass(frozen=True)
class Normalisation:
    """Levels are brought to [0, 1], low to 0 and high to 1, and standardised: (x - mean) / std, with the training set's
    mean and std, per channel.

    mean, std: a number, or one per channel.   low, high: 0 and 255 for 8 bits; otherwise 0, or the lowest of floating
    point levels, and the highest level of the training set.
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    low: float = 0.0
    high: float = 255.0

    @classmethod
    def of(cls, images: np.ndarray, sizes: np.ndarray | None = None) -> Normalisation:
        """From images (N, H, W) or (N, H, W, C), of integers by their histogram: exact, and tile by tile. sizes:
        without padding.
        """
        channels = 1 if images.ndim == 3 else images.shape[3]
        parts: list[_Histogram | _Moments] = [
            (_Moments if images.dtype.kind == "f" else _Histogram)() for _ in range(channels)
        ]
        for k in range(len(images)):
            tile = images[k] if sizes is None else images[k][: sizes[k, 0], : sizes[k, 1]]
            for c, part in enumerate(parts):
                part.add(tile if images.ndim == 3 else tile[..., c])
        low = min(part.low for part in parts)
        high = max(part.high for part in parts)
        high = (
            (255.0 if images.dtype == np.uint8 else max(high, 1.0))
            if images.dtype.kind != "f"
            else high
            if high > low
            else low + 1.0
        )
        pairs = [part.between(low, high) for part in parts]
        if images.ndim == 3:
            return cls(*pairs[0], low, high)
        return cls(tuple(mean for mean, _ in pairs), tuple(std for _, std in pairs), low, high)

    def unit(self, images: Array) -> Array:
        """Levels as they are stored -> float32, from 0 to 1 in the training set."""
        x = images.astype(np.float32)
        if self.low:
            x = x - np.float32(self.low)
        return x * np.float32(1 / (self.high - self.low))

    def __call__(self, images: Array) -> Array:
        """Integer levels, or float32 in [0, 1], (N, H, W) or (N, H, W, C) -> float32 (N, H, W, 1) or (N, H, W, C)."""
        x = self.unit(images) if images.dtype.kind == "u" else images
        if isinstance(self.mean, tuple):
            mean, scale = (
                to_device(np.asarray(v, np.float32), device_of(x)) for v in (self.mean, 1 / np.asarray(self.std))
            )
            return (x - mean) * scale
        return ((x - np.float32(self.mean)) * np.float32(1 / self.std))[..., None]


class _Histogram:
    """Integer levels, counted in a histogram. low is 0, high the highest."""

    low = 0.0

    def __init__(self) -> None:
        self.counts = np.zeros(256, np.int64)

    def add(self, levels: np.ndarray) -> None:
        counts = np.bincount(levels.ravel(), minlength=256)
        if len(counts) > len(self.counts):
            counts, self.counts = self.counts, counts
        self.counts[: len(counts)] += counts

    @property
    def high(self) -> float:
        return float(np.flatnonzero(self.counts)[-1])

    def between(self, low: float, high: float) -> tuple[float, float]:
        """Mean and std of the levels where low is 0 and high is 1."""
        counts = self.counts.astype(np.float64)
        levels = (np.arange(len(counts)) - low) / (high - low)
        mean = (counts @ levels) / counts.sum()
        return float(mean), float(max(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()), 1e-6))


class _Moments:
    """Floating-point levels: their number, mean and squared deviations in float64. Each tile's are merged with those
    before it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        self.low = np.inf
        self.high = -np.inf

    def add(self, levels: np.ndarray) -> None:
        levels = np.ascontiguousarray(levels)
        self.low, self.high = min(self.low, float(levels.min())), max(self.high, float(levels.max()))
        mean = float(levels.mean(dtype=np.float64))
        squares = float(levels.var(dtype=np.float64)) * levels.size
        count = self.count + levels.size
        self.squares += squares + (mean - self.mean) ** 2 * self.count * levels.size / count
        self.mean += (mean - self.mean) * levels.size / count
        self.count = count

    def between(self, low: float, high: float) -> tuple[float, float]:
        """Mean and std of the levels where low is 0 and high is 1."""
        return (self.mean - low) / (high - low), max((self.squares / self.count) ** 0.5 / (high - low), 1e-6)


def predict_logits(
    net: Module,
    images: np.ndarray,
    normalisation: Normalisation,
    batch: int = 32,
    flips: bool = False,
    crop: tuple[int, int] = WHOLE,
    views: int = 0,
) -> np.ndarray:
    """Logits (N, H, W, classes) float32 of tiles as they are stored, in evaluation mode.

    flips: average over the four combinations of horizontal and vertical flips (test-time augmentation without
        resampling).
    views: average probabilities over as many randomly moved, rotated and scaled views, too, mapped back (the report's
        test-time augmentation).
    crop: put together from overlapping windows of this height and width (windows.py); (0, 0): whole tiles.
    """
    with inference():  # weights hold still from the first batch to the last
        return np.concatenate(
            [to_numpy(logits) for _, logits in logit_batches(net, images, normalisation, batch, flips, crop, views)]
        )


def logit_batches(
    net: Module,
    images: Array,
    normalisation: Normalisation,
    batch: int,
    flips: bool,
    crop: tuple[int, int] = WHOLE,
    views: int = 0,
) -> Iterator[tuple[slice, Array]]:
    """(rows, their logits), batch by batch, on the network's device; see `predict_logits`. Of tiles larger than a
    window there are as many in a batch as have the pixels of `batch` windows, at least one.
    """
    device = device_of(net.parameters()[0].data)
    was_training = net.training
    size = tuple(images.shape[1:3])
    whole = crop in (WHOLE, size)
    step = batch if whole else max(1, min(batch, batch * math.prod(crop) // math.prod(size)))
    of_window = partial(forward_flips, net, flips=flips)

    def forward(x: Array) -> Array:
        return of_window(x) if whole else by_windows(of_window, x, crop, batch)

    net.eval()
    rng = np.random.default_rng(0)
    try:
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            unit = normalisation.unit(to_device(images[rows], device))
            logits = forward(normalisation(unit))
            yield (
                rows,
                _with_views(logits, unit, lambda x: forward(normalisation(x)), views, rng) if views else logits,
            )
    finally:
        net.train(was_training)


def forward_flips(net: Module, x: Array, flips: bool) -> Array:
    """Logits of standardised images, the mean over the four flips where `flips` is set."""
    total = None
    xp = array_module(x)
    for axes in ((), (1,), (2,), (1, 2)) if flips else ((),):
        logits = cpu_inference.run(net, xp.ascontiguousarray(xp.flip(x, axes)) if axes else x)
        logits = xp.flip(logits, axes) if axes else logits
        total = logits if total is None else total + logits
    return total / 4 if flips else total


def _with_views(
    logits: Array, images: Array, forward: Callable[[Array], Array], views: int, rng: np.random.Generator
) -> Array:
    """log of the mean probabilities of `logits` and of random views of the images, each mapped back to where its pixels
    came from.

    images: in [0, 1].  forward: their logits. A pixel that a view does not show is averaged over the others.
    """
    xp = array_module(logits)
    n = len(images)
    size = images.shape[1:3]
    total = softmax_forward(logits, -1)
    seen = xp.ones((*logits.shape[:-1], 1), np.float32)
    shown = xp.ones((n, *size), np.uint8)
    for _ in range(views):
        maps = Augmentation(affine=1.0).draw_matrices(n, size, rng)
        view, _ = moved(images, shown, to_device(maps, device_of(images)))
        probabilities, there = moved(
            softmax_forward(forward(view), -1), shown, to_device(inverse_maps(maps), device_of(images))
        )
        total = total + probabilities * there[..., None]
        seen = seen + there[..., None]
    return xp.log(total / seen)


def labels_of(logits: Array, barred: Sequence[int] = (0,)) -> Array:
    """uint8 labels (N, H, W): the class of the largest logit among those that are not barred (`Classes.barred`)."""
    others = [label for label in barred if label]
    if others:
        logits = logits.copy()
        logits[..., others] = -np.inf
    return kernels.predicted_labels(logits, 1 if 0 in barred else 0)


def evaluate_confusion(
    net: Module,
    images: Array,
    masks: Array,
    normalisation: Normalisation,
    barred: Sequence[int] = (0,),
    batch: int = 32,
    flips: bool = False,
    crop: tuple[int, int] = WHOLE,
    ignored: int | None = None,
    views: int = 0,
) -> np.ndarray:
    """int64 (N, C, C): the confusion matrix of every tile. Only the counts leave the network's device, once.

    Raises ValueError for labels that are no classes.
    barred: see `labels_of`.  ignored: the label of pixels that count nowhere.  flips, crop, views: see
        `predict_logits`.
    """
    parts = []
    with inference():
        for rows, logits in logit_batches(net, images, normalisation, batch, flips, crop, views):
            truth = to_device(masks[rows], device_of(logits))
            classes = logits.shape[-1]
            labels = labels_of(logits, barred)
            if ignored is None:
                parts.append(confusion_per_image(truth, labels, classes))
            else:  # ignored pixels get a row of their own, which no other label shares
                here = truth if device_of(truth) == CPU else truth[:0]  # CUDA's kernel finds wrong ones itself
                check_labels("evaluate_confusion", "masks", here, classes, ignored)
                xp = array_module(truth)
                row, wrong = (
                    xp.asarray(number, truth.dtype) for number in (classes, min(classes + 1, np.iinfo(truth.dtype).max))
                )
                known = xp.where(truth == ignored, row, xp.where(truth < classes, truth, wrong))
                parts.append(confusion_per_image(known, labels, classes + 1))
    counts = to_numpy(array_module(parts[0]).concatenate(parts))
    classes = counts.shape[-1] - (ignored is not None)
    return counts[:, :classes, :classes]
