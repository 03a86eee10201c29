"""Labels and confusion matrices on CUDA; see metric.cu. Logits float32 and float64, labels uint8, up to 16 classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, module_of
from kernels.core.labels import reported

MODULE = Module(
    "metric/metric.cu", ("predicted_labels<float>", "predicted_labels<double>", "confusion_plain", "confusion")
)
THREADS, WARPS, STRIPS, MOST_CLASSES = 256, 8, 8, 16
_TYPES = {"float32": "float", "float64": "double"}


def labels_launch(pixels: int, kind: str) -> Launch:
    """A thread per pixel."""
    return Launch(f"predicted_labels<{kind}>", (blocks(pixels, THREADS),), (THREADS,))


def confusion_launch(n: int, pixels: int, classes: int) -> Launch:
    """At most STRIPS blocks per image, with a matrix per warp in shared memory."""
    return Launch("confusion", (min(blocks(pixels, 4 * THREADS), STRIPS), n), (THREADS,), WARPS * classes * classes * 4)


def plain_launch(n: int, pixels: int) -> Launch:
    """A thread per pixel."""
    return Launch("confusion_plain", (blocks(pixels, THREADS), n), (THREADS,))


def predicted_labels(logits: Array, first: int) -> Any:
    """As kernels.metric.reference.predicted_labels."""
    classes = logits.shape[-1]
    if logits.dtype.name not in _TYPES or logits.size >= 2**31 or not first < classes <= 256:
        return NotImplemented
    xp = module_of("cuda")
    labels = xp.empty(logits.shape[:-1], np.uint8)
    MODULE.run(
        labels_launch(labels.size, _TYPES[logits.dtype.name]),
        xp.ascontiguousarray(logits),
        labels,
        labels.size,
        classes,
        first,
    )
    return labels


def notes(truth: Array, prediction: Array, classes: int) -> tuple[Any, ...]:
    """Where a wrong label of either is noted: the last arguments of both kernels."""
    return tuple(
        reported("confusion_per_image", key, labels, classes)
        for key, labels in (("truth", truth), ("prediction", prediction))
    )


def confusion_per_image(truth: Array, prediction: Array, classes: int) -> Any:
    """As kernels.metric.reference.confusion_per_image."""
    n = len(truth)
    if (
        truth.dtype != np.uint8
        or prediction.dtype != np.uint8
        or classes > MOST_CLASSES
        or truth.size >= 2**31
        or not 0 < n <= 65535
    ):
        return NotImplemented
    xp = module_of("cuda")
    pixels = truth.size // n
    counts = xp.zeros((n, classes, classes), np.int64)
    arguments = xp.ascontiguousarray(truth), xp.ascontiguousarray(prediction), counts, pixels, classes
    MODULE.run(confusion_launch(n, pixels, classes), *arguments, *notes(truth, prediction, classes))
    return counts
