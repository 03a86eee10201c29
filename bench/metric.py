"""Predicted labels and confusion matrices of a batch of logits, against the same in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.harness import Case
from bench.shapes import array, device, ours, torch_tensor

N, H, W, CLASSES = 32, 64, 128, 5


def cases() -> list[Case]:
    """Labels and counts of 32 tiles, the background barred."""
    others = {"torch": {"eager": _torch}}
    if device() == "cuda":
        others["cupy"] = {"functions": _cupy}
    return [Case("labels + confusion", f"{N}x{H}x{W}x{CLASSES}", _ours, others)]


def _data() -> tuple[np.ndarray, np.ndarray]:
    return array(N, H, W, CLASSES), np.random.default_rng(0).integers(0, CLASSES, (N, H, W)).astype(np.uint8)


def _ours() -> Callable[[], Any]:
    from kernels.metric import confusion_per_image, predicted_labels

    logits, truth = map(ours, _data())
    return lambda: confusion_per_image(truth, predicted_labels(logits, 1), CLASSES)


def _cupy() -> Callable[[], Any]:
    import cupy

    logits, truth = map(ours, _data())
    offset = cupy.arange(N)[:, None, None] * CLASSES * CLASSES + truth.astype("i8") * CLASSES
    return lambda: cupy.bincount((offset + logits[..., 1:].argmax(-1) + 1).ravel(), minlength=N * CLASSES * CLASSES)


def _torch() -> Callable[[], Any]:
    import torch

    logits, truth = map(torch_tensor, _data())
    offset = torch.arange(N, device=truth.device)[:, None, None] * CLASSES * CLASSES + truth.long() * CLASSES

    def count() -> Any:
        index = offset + logits[..., 1:].argmax(-1) + 1
        return torch.bincount(index.flatten(), minlength=N * CLASSES * CLASSES)

    return count
