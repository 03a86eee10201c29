"""From grey tiles to labels with a trained network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from autograd import inference
from engine import plan
from engine.metrics import confusion_per_image
from kernels import metric as kernels
from kernels.core.device import Array, array_module, device_of, to_device, to_numpy
from layers import Module


@dataclass(frozen=True)
class Normalisation:
    """Grey levels are divided by 255 and standardised: (x / 255 - mean) / std, with the training set's mean and std."""

    mean: float
    std: float

    @classmethod
    def of(cls, images: np.ndarray) -> Normalisation:
        """From uint8 images (N, H, W), by their histogram: exact, and without a float copy."""
        counts = np.bincount(images.ravel(), minlength=256).astype(np.float64)
        levels = np.arange(256) / 255
        mean = (counts @ levels) / counts.sum()
        return cls(float(mean), float(max(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()), 1e-6)))

    def __call__(self, images: Array) -> Array:
        """uint8 (N, H, W), or float32 in [0, 1], -> float32 (N, H, W, 1)."""
        x = images.astype(np.float32) * np.float32(1 / 255) if images.dtype == np.uint8 else images
        return ((x - np.float32(self.mean)) * np.float32(1 / self.std))[..., None]


def predict_logits(net: Module, images: np.ndarray, normalisation: Normalisation, batch: int = 32, flips: bool = False) -> np.ndarray:
    """Logits (N, H, W, classes) float32 of uint8 tiles (N, H, W), in evaluation mode.

    flips: average over the four combinations of horizontal and vertical flips (test-time augmentation without resampling).
    """
    with inference():  # weights hold still from the first batch to the last
        return np.concatenate([to_numpy(logits) for _, logits in _batches(net, images, normalisation, batch, flips)])


def _batches(net: Module, images: Array, normalisation: Normalisation, batch: int, flips: bool) -> Iterator[tuple[slice, Array]]:
    """(rows, their logits), batch by batch, on the network's device."""
    device = device_of(net.parameters()[0].data)
    was_training = net.training
    net.eval()
    try:
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            yield rows, _forward(net, normalisation(to_device(images[rows], device)), flips)
    finally:
        net.train(was_training)


def _forward(net: Module, x: Array, flips: bool) -> Array:
    total, xp = None, array_module(x)
    for axes in ((), (1,), (2,), (1, 2)) if flips else ((),):
        logits = plan.run(net, xp.ascontiguousarray(xp.flip(x, axes)) if axes else x)
        logits = xp.flip(logits, axes) if axes else logits
        total = logits if total is None else total + logits
    return total / 4 if flips else total


def labels_of(logits: Array, background: str = "mask") -> Array:
    """uint8 labels (N, H, W): the largest logit, class 0 barred where background is 'mask'."""
    first = 1 if background == "mask" else 0
    return kernels.predicted_labels(logits, first)


def evaluate_confusion(
    net: Module, images: Array, masks: Array, normalisation: Normalisation, background: str = "mask", batch: int = 32, flips: bool = False
) -> np.ndarray:
    """int64 (N, 5, 5): the confusion matrix of every tile. Only the counts leave the network's device, once.

    Raises ValueError for labels that are no classes.
    """
    parts = []
    with inference():
        for rows, logits in _batches(net, images, normalisation, batch, flips):
            truth = to_device(masks[rows], device_of(logits))
            parts.append(confusion_per_image(truth, labels_of(logits, background), logits.shape[-1]))
    return to_numpy(array_module(parts[0]).concatenate(parts))
