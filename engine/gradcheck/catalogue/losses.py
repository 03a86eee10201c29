"""Losses on logits (N, H, W, C) and labels, with every setting of the public function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import ops
from engine.gradcheck.catalogue.entry import Built, Entry
from engine.gradcheck.catalogue.makers import halves, labels, normal

WEIGHTS = (0.5, 1.0, 2.0, 0.7, 3.0)


def loss(op: Callable[..., Any]) -> Callable[..., Built]:
    """A builder for op(logits, labels, **settings). ignored: a tenth of the labels is class 3 and ignored. ties: logits
    from -1, 0, 1.
    """

    def build(
        rng: np.random.Generator,
        *,
        shape: tuple[int, ...] = (2, 4, 5, 5),
        weighted: bool = False,
        ignored: bool = False,
        ties: bool = False,
        **settings: Any,
    ) -> Built:
        if len(shape) < 2:
            raise ValueError(f"shape is {shape}, expected (..., classes)")
        classes = shape[-1]
        y = labels(*shape[:-1], classes=classes, ignored=3 if ignored else None)(rng)
        keywords = dict(settings)
        if weighted:
            keywords["weight"] = tuple(np.resize(WEIGHTS, classes))
        if ignored:
            keywords["ignore_index"] = 3
        z = (halves if ties else normal)(*shape)(rng)
        return Built(lambda z: op(z, _at(y, z), **keywords), [z], ["logits"], convention="any" if ties else None)

    return build


def _at(y: np.ndarray, z: Any) -> Any:
    from kernels.core.device import to_device

    return to_device(y, z.device)


def _entry(name: str, *variants: dict[str, Any], kinks: tuple[dict[str, Any], ...] = ()) -> Entry:
    return Entry(
        name,
        "loss",
        loss(getattr(ops, name)),
        getattr(ops, name),
        ({}, {"weighted": True, "ignored": True}, *variants),
        kinks,
    )


MASKED = {"weighted": True, "background": "mask"}
LOSSES = [
    _entry("cross_entropy", MASKED, {"label_smoothing": 0.1}),
    _entry("focal_loss", MASKED, {"gamma": 0.5}),
    _entry("dice_loss", MASKED, {"smooth": 0.1, "absent": "all"}),
    _entry("iou_loss", MASKED, {"smooth": 0.1}),
    _entry("tversky_loss", MASKED, {"alpha": 0.7, "beta": 0.2}),
    _entry("focal_tversky_loss", MASKED, {"power": 1.5}),
    _entry("generalized_dice_loss", MASKED),
    _entry("mcc_loss", MASKED),
    _entry("jaccard_metric_loss", MASKED, {"label_smoothing": 0.3}),
    _entry("dice_semimetric_loss", MASKED, {"label_smoothing": 0.3}),
    _entry("top_k_loss", MASKED, {"hardest": 0.6, "label_smoothing": 0.1}),
    _entry("boundary_loss", MASKED),
    _entry("lovasz_softmax", MASKED, kinks=({"ties": True, "shape": (1, 4, 5, 3)},)),
    _entry("margin_loss", MASKED, {"reduction": "weighted", "weighted": True}, {"power": 3, "false_positive": 0.5}),
    _entry("combined_loss", MASKED),
]
