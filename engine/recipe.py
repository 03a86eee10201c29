"""What a run's settings mean: the augmentation and the loss of a Config."""

from __future__ import annotations

import numpy as np

from engine.augmentation import Augmentation
from engine.config import Config
from engine.data import MARS, Classes
from layers import SegmentationLoss


def make_augmentation(config: Config, classes: Classes = MARS) -> Augmentation:
    """The augmentation that the settings describe. What comes from outside a tile is unlabelled, or mirrored where that
    is no class.
    """
    return Augmentation(
        config.flip_horizontal,
        config.flip_vertical,
        config.affine,
        config.rotate,
        config.scale,
        config.shift,
        config.photometric,
        config.contrast,
        config.brightness,
        config.gamma_range,
        classes=classes,
        outside=0 if classes.background(config.background) == "mask" else None,
    )


_MIXED = {"iou": "mask", "margin": "mask"}  # every other term trains class 0


def make_loss(
    config: Config, weights: np.ndarray, classes: Classes = MARS, ignored: int | None = None
) -> SegmentationLoss:
    """The loss that the settings describe, with these class weights. ignored:
    the label of pixels that count nowhere.
    """
    background = classes.background(config.background)
    return SegmentationLoss(
        config.loss_terms(),
        weights,
        ignored,
        background=_MIXED if background == "mixed" else background,
        gamma=config.gamma,
        smooth=config.smooth,
        label_smoothing=config.label_smoothing,
        hardest=config.hardest,
        alpha=config.alpha,
        beta=config.beta,
    )
