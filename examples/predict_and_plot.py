"""Predictions of a trained network as a picture:  python examples/predict_and_plot.py [RUN] [--out predictions.png]

RUN is a folder that `python -m engine.train` has written. Without one, a tiny network is trained first, on built-in
tiles. The picture shows images, their truth, the predicted classes and how sure the network is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

import engine
from engine import train
from engine.data.preparation import prepare
from engine.training.plots import rgb, stretch

SMALL = "--width 4 --encoder plain --bottleneck none --learning-rate 0.01 --device cpu"


def trained(run: Path | None, tiles: int, epochs: int) -> engine.Trained:
    """The network of a run, or one that has just been trained."""
    if run is not None:
        return engine.load(run)
    with tempfile.TemporaryDirectory() as folder:
        command = f"--tiles {tiles} --epochs {epochs} --out {folder}/run {SMALL}"
        if code := train.run(train.parse(command.split())):
            raise SystemExit(code)
        return engine.load(Path(folder) / "run")


def draw(network: engine.Trained, images: np.ndarray, masks: np.ndarray, path: Path) -> None:
    """A row per image: itself, its truth, the prediction, and the probability of the predicted class."""
    labels = network.predict(images)
    sure = network.probabilities(images).max(axis=-1)
    figure, axes = plt.subplots(len(images), 4, figsize=(12, 1.7 * len(images)), squeeze=False, layout="constrained")
    for row, image, mask, label, p in zip(axes, images, masks, labels, sure, strict=True):
        pictures = (stretch(image), rgb(mask, network.classes), rgb(label, network.classes), p)
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("image", "truth", "prediction", "probability"), strict=True):
        axis.set_title(title)
    named = zip(network.classes.colours, network.classes.names, strict=True)
    figure.legend(handles=[Patch(color=c, label=name) for c, name in named], loc="outside lower center", ncols=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Load or train, predict, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a run folder (by default a tiny network is trained)")
    parser.add_argument("--out", type=Path, default=Path("predictions.png"))
    parser.add_argument("--tiles", type=int, default=200, help="how many built-in tiles to train on")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    plt.switch_backend("Agg")
    network = trained(options.run, options.tiles, options.epochs)
    held_out = prepare(network.config).val
    some = held_out[np.linspace(0, len(held_out) - 1, 6).astype(int)].loaded()
    draw(network, some.images, some.labels(), options.out)
    print(f"{options.out}: 6 of the {len(held_out)} tiles that {network.path.parent.name} has held out")


if __name__ == "__main__":
    main()
