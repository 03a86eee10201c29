"""A network on a folder of images and masks, as you would have it for your own:  python examples/own_images.py [FOLDER]

It writes such a folder (bright stones on dark ground), trains on it as `python -m engine.train --data FOLDER` does, and
measures the network on images that it has not seen. docs/data.md describes what a folder may hold.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import engine
from engine import train

CLASSES = """
[[class]]
name = "ground"
value = 0

[[class]]
name = "stone"
value = 255
"""
OPTIONS = "--width 4 --encoder plain --bottleneck none --batch 8 --learning-rate 0.02 --device cpu"


def scene(rng: np.random.Generator, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A grey image with one stone, uint8 (side, side), and its mask of 0 and 255."""
    rows, columns = np.mgrid[:side, :side]
    row, column = rng.uniform(side / 4, 3 * side / 4, 2)
    mask = (rows - row) ** 2 + (columns - column) ** 2 < rng.uniform(side / 8, side / 4) ** 2
    image = 60 + 80 * mask + rng.normal(0, 15, mask.shape)
    return image.clip(0, 255).astype(np.uint8), np.uint8(255) * mask


def write(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Images and masks of the same names."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for k in range(count):
        for kind, pixels in zip(("images", "masks"), scene(rng), strict=True):
            Image.fromarray(pixels).save(folder / kind / f"{k:03d}.png")


def main() -> None:
    """Write, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where to write (by default a temporary folder)")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        rng = np.random.default_rng(0)
        write(folder / "stones" / "train", 60, rng)
        write(folder / "stones" / "test", 20, rng)
        (folder / "stones" / "classes.toml").write_text(CLASSES)
        command = f"--data {folder / 'stones'} --out {folder / 'run'} --epochs {options.epochs} {OPTIONS}"
        if code := train.run(train.parse(command.split())):
            raise SystemExit(code)
        trained = engine.load(folder / "run")
        scores = trained.evaluate(split="test")
        print(f"test images: mean IoU {scores['miou_fg']:.3f}, {scores['accuracy']:.1%} of the pixels right")
        image, mask = scene(rng)
        labels = trained.predict(image)  # 0 and 1: the places of the classes in classes.toml
        print(f"one more image: {(labels == mask // 255).mean():.1%} of its pixels right")


if __name__ == "__main__":
    main()
