"""Augmentation of a batch of 32 tiles with their masks, against the same in PyTorch (grid_sample)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.harness import Case
from bench.shapes import array, ours, torch_device, torch_tensor

N, H, W = 32, 64, 128


def cases() -> list[Case]:
    """Flips, affine and photometric changes of all tiles."""
    return [
        Case(
            "augmentation",
            f"{N}x{H}x{W}",
            _ours,
            {"torch": {mode: partial(_torch, mode) for mode in ("eager", "compile")}},
        )
    ]


def _tiles() -> tuple[np.ndarray, np.ndarray]:
    return np.abs(array(N, H, W)) % 1, np.random.default_rng(0).integers(0, 5, (N, H, W)).astype(np.uint8)


def _ours() -> Callable[[], Any]:
    from engine.training.augmentation import Augmentation

    augment = Augmentation(affine=1.0, photometric=1.0)
    images, masks = map(ours, _tiles())
    rng = np.random.default_rng(0)
    return lambda: augment(images, masks, rng)


def _torch(mode: str) -> Callable[[], Any]:
    import torch

    images, masks = map(torch_tensor, _tiles())
    torch.set_default_device(torch_device())
    call = torch_augmentation(mode)
    with torch.no_grad():
        call(images, masks)

    def run() -> None:
        with torch.no_grad():
            call(images, masks)

    return run


def torch_augmentation(mode: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The same changes in PyTorch: (images, masks) -> augmented ones; mode 'compile' or any other for eager."""
    import torch
    import torch.nn.functional as F

    def augment(images: Any, masks: Any) -> tuple[Any, Any]:
        n, h, w = images.shape
        angle = (torch.rand(n) * 2 - 1) * 0.26
        zoom = torch.exp((torch.rand(n) * 2 - 1) * 0.22)
        flip = torch.where(torch.rand(2, n) < 0.5, -1.0, 1.0)
        shift = (torch.rand(2, n) * 2 - 1) * 0.1
        cos = angle.cos() / zoom
        sin = angle.sin() / zoom
        theta = torch.stack(
            [
                torch.stack([cos * flip[0], -sin * flip[1] * h / w, shift[0]], 1),
                torch.stack([sin * flip[0] * w / h, cos * flip[1], shift[1]], 1),
            ],
            1,
        )
        grid = F.affine_grid(theta, (n, 1, h, w), align_corners=False)
        image = F.grid_sample(images[:, None], grid, "bilinear", "reflection", align_corners=False)[:, 0]
        mask = F.grid_sample(masks[:, None].float(), grid, "nearest", "zeros", align_corners=False)[:, 0].to(
            torch.uint8
        )
        contrast = torch.exp((torch.rand(n, 1, 1) * 2 - 1) * 0.22)
        brightness = (torch.rand(n, 1, 1) * 2 - 1) * 0.1
        gamma = torch.exp((torch.rand(n, 1, 1) * 2 - 1) * 0.34)
        mean = images.mean((1, 2), keepdim=True)
        return (contrast * (image - mean) + mean + brightness).clamp(0, 1) ** gamma, mask

    return torch.compile(augment) if mode == "compile" else augment
