"""Handwritten digits by a small MLP and a small CNN, in seconds on a CPU:  python examples/digits.py  (needs
scikit-learn for the images).

Everything a first program needs: modules, `engine.fit`, and the accuracy by comparing with ==.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_digits

import engine
import layers
from autograd import Tensor, no_grad, ops

TEST = 500  # images that are held out

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def digits() -> Split:
    """Images (N, 8, 8, 1), float32 in 0 .. 1, and labels (N,), to train; then the same to test."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, :, :, None] / 16).astype(np.float32)
    labels = data.target[order]
    return images[TEST:], labels[TEST:], images[:TEST], labels[:TEST]


def mlp() -> layers.Sequential:
    """64 - 128 - 10."""
    return layers.Sequential(layers.Flatten(), layers.Linear(64, 128), layers.ReLU(), layers.Linear(128, 10))


def cnn() -> layers.Sequential:
    """Two convolutions, a pooling, a dense layer."""
    return layers.Sequential(
        layers.Conv2d(1, 16, 3, padding=1),
        layers.ReLU(),
        layers.Conv2d(16, 32, 3, padding=1),
        layers.ReLU(),
        layers.MaxPool2d(2),
        layers.Flatten(),
        layers.Linear(512, 10),
    )


def train(net: layers.Module, images: np.ndarray, labels: np.ndarray, epochs: int) -> engine.History:
    """Minimise the cross-entropy."""
    return engine.fit(net, (images, labels), ops.cross_entropy, epochs=epochs, batch=64)


def accuracy(net: layers.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose largest logit is that of the label."""
    with no_grad():
        predicted = net(Tensor(images)).argmax(axis=1)
    return (predicted == labels).mean().item()


def main() -> None:
    """Train both and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    epochs = parser.parse_args().epochs
    images, labels, test_images, test_labels = digits()
    for name, build in (("MLP", mlp), ("CNN", cnn)):
        with layers.seeded(0):
            net = build()
        print(net)
        train(net, images, labels, epochs)
        print(f"{name}: {accuracy(net, test_images, test_labels):.1%} of {TEST} images right\n")


if __name__ == "__main__":
    main()
