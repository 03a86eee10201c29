"""Run folders without training: a tiny network with random weights, whose labels vary, and images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.build import Form, build_network
from engine.config import Config
from engine.inference import Normalisation, predict_logits
from engine.training.checkpoint import save_checkpoint
from kernels.core.device import to_device

TINY = Config(width=4, bottleneck="none", encoder="plain", skips="plain")


def patchwork(size: tuple[int, int], seed: int = 0, channels: int = 1, dtype: str = "uint8") -> np.ndarray:
    """An image (H, W) or (H, W, C) of squares of 5 x 5 pixels, with noise."""
    rng = np.random.default_rng(seed)
    h, w = size
    squares = rng.integers(0, 230, (-(-h // 5), -(-w // 5), channels)).repeat(5, 0).repeat(5, 1)[:h, :w]
    levels = squares + rng.integers(0, 26, (h, w, channels))
    scaled = {"uint8": levels, "uint16": 16 * levels, "float32": levels / 256}[dtype].astype(dtype)
    return scaled[..., 0] if channels == 1 else scaled


def write_run(folder: Path, form: Form, seed: int = 0, config: Config = TINY) -> Path:
    """A folder with a best.safetensors. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    net = build_network(config, form).eval()
    head = net.head
    head.weight.data = to_device(rng.normal(0, 3, head.weight.shape).astype(np.float32), head.weight.device)
    mean, std = ((level,) * form.channels if form.channels > 1 else level for level in (0.5, 0.3))
    normalisation = Normalisation(mean, std, 0.0, {"uint8": 255.0, "uint16": 4096.0, "float32": 1.0}[form.dtype])
    logits = predict_logits(net, patchwork(form.size, seed, form.channels, form.dtype)[None], normalisation)
    head.bias.data = to_device(-logits.mean((0, 1, 2))[-form.classes.logits :], head.bias.device)
    save_checkpoint(folder / "best.safetensors", net, config, normalisation, {"epoch": 1}, form)
    return folder
