"""Predicted labels and confusion matrices. Integers: every implementation gives the same numbers."""

from __future__ import annotations

from kernels.core.device import Array, array_module
from kernels.core.labels import check_labels


def predicted_labels(logits: Array, first: int) -> Array:
    """The class of the largest logit among those from `first` on, the lower one in a tie: logits (..., C) -> uint8
    (...).
    """
    return (logits[..., first:].argmax(-1) + first).astype(array_module(logits).uint8)


def confusion_per_image(truth: Array, prediction: Array, classes: int) -> Array:
    """counts[n, t, p]: pixels of image n with truth t predicted as p. Integer (N, ...), values 0..classes-1 -> int64
    (N, classes, classes).

    Raises ValueError for other values (on CUDA later: kernels/core/labels.py).
    """
    check_labels("confusion_per_image", "truth", truth, classes)
    check_labels("confusion_per_image", "prediction", prediction, classes)
    xp = array_module(truth)
    n = len(truth)
    image = xp.arange(n).reshape(n, *(1,) * (truth.ndim - 1)) * classes * classes
    index = (image + truth.astype(xp.int64) * classes + prediction).ravel()
    return xp.bincount(index, minlength=n * classes * classes).reshape(n, classes, classes)
