"""From grey tiles to labels with a trained network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autograd import Tensor, inference
from engine.metrics import confusion_per_image
from kernels.core.device import device_of, to_device
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

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W), or float32 in [0, 1], -> float32 (N, H, W, 1)."""
        x = images.astype(np.float32) * np.float32(1 / 255) if images.dtype == np.uint8 else images
        return ((x - np.float32(self.mean)) * np.float32(1 / self.std))[..., None]


def predict_logits(net: Module, images: np.ndarray, normalisation: Normalisation, batch: int = 32, flips: bool = False) -> np.ndarray:
    """Logits (N, H, W, classes) float32 of uint8 tiles (N, H, W), in evaluation mode.

    flips: average over the four combinations of horizontal and vertical flips (test-time augmentation without resampling).
    """
    device = device_of(net.parameters()[0].data)
    was_training = net.training
    net.eval()
    try:
        with inference():
            parts = [_forward(net, normalisation(images[k : k + batch]), device, flips) for k in range(0, len(images), batch)]
    finally:
        net.train(was_training)
    return np.concatenate(parts)


def _forward(net: Module, x: np.ndarray, device: str, flips: bool) -> np.ndarray:
    total = None
    for axes in ((), (1,), (2,), (1, 2)) if flips else ((),):
        flipped = np.ascontiguousarray(np.flip(x, axes)) if axes else x
        logits = net(Tensor(to_device(flipped, device))).numpy()
        logits = np.flip(logits, axes) if axes else logits
        total = logits if total is None else total + logits
    return total / 4 if flips else total


def labels_of(logits: np.ndarray, background: str = "mask") -> np.ndarray:
    """uint8 labels (N, H, W): the largest logit, class 0 barred unless background is 'train'."""
    first = 1 if background == "mask" else 0
    return (logits[..., first:].argmax(-1) + first).astype(np.uint8)


def evaluate_confusion(
    net: Module, images: np.ndarray, masks: np.ndarray, normalisation: Normalisation, background: str = "mask", batch: int = 32, flips: bool = False
) -> np.ndarray:
    """int64 (N, 5, 5): the confusion matrix of every tile."""
    logits = predict_logits(net, images, normalisation, batch, flips)
    return confusion_per_image(masks, labels_of(logits, background), logits.shape[-1])
