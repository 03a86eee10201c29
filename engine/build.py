"""From a Config to what it describes: the network, the loss, the augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.config import Config
from engine.data import MARS, Classes, DataError
from engine.training.augmentation import Augmentation
from layers import SegmentationLoss, UNet

SMALLEST_NETWORK = 1900  # numbers in the smallest network for each square of its width


@dataclass(frozen=True)
class Form:
    """The data that a network is built for: its classes, and the channels, the size (H, W) and the dtype of the images.

    absent: labels that never occurred in its training.
    """

    classes: Classes = MARS
    channels: int = 1
    size: tuple[int, int] = (64, 128)
    dtype: str = "uint8"
    absent: tuple[int, ...] = ()

    def check(self, channels: int, dtype: np.dtype, what: str) -> None:
        """Raise DataError for images that the network was not built for."""
        if (channels, dtype.name) != (self.channels, self.dtype):
            raise DataError(
                f"{what}: got {channels} channels of {dtype.name}, but the network was trained on {self.channels} of "
                f"{self.dtype}"
            )


MARS_TILES = Form()


def network_options(config: Config, form: Form = MARS_TILES) -> dict[str, Any]:
    """The options of the network that a Config describes for tiles of a form, by the names of `UNet`, all but its
    seed.
    """
    return {
        "classes": form.classes.logits,
        "in_channels": form.channels,
        "size": form.size,
        "width": config.width,
        "bottleneck": config.bottleneck,
        "skips": config.skips,
        "encoder": config.encoder,
        "gate": config.gate,
        "order": config.order,
        "psa_mode": config.psa_mode,
        "five": config.five,
        "preactivation": config.preactivation,
        "fppm": config.fppm,
        "dropout": config.dropout,
    }


def build_network(config: Config, form: Form = MARS_TILES) -> UNet:
    """The network that a Config describes for tiles of a form, with initial weights from its seed."""
    return UNet(**network_options(config, form), seed=config.seed)


def make_augmentation(config: Config, classes: Classes = MARS) -> Augmentation:
    """The augmentation that the settings describe. Pixels from outside a tile are unlabelled, or mirrored where no
    label means that.
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
