"""A loss of your own, from operators: the quantile loss teaches two networks where 10 % and 90 % of noisy values lie,
although no sample says so:  python examples/own_loss.py

Any function of (prediction, targets) that returns a Tensor of one number is a loss; its gradient comes from the
operators, and `gradcheck` proves it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

import engine
import layers
from autograd import Tensor, gradcheck, no_grad, ops

QUANTILES = (0.1, 0.9)


def quantile_loss(quantile: float) -> Callable[[Tensor, Tensor], Tensor]:
    """mean of max(q d, (q - 1) d), d = target - prediction: smallest where a share q of the targets lies below."""

    def loss(prediction: Tensor, targets: Tensor) -> Tensor:
        d = targets - prediction
        return ops.maximum(quantile * d, (quantile - 1) * d).mean()

    return loss


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x (N, 1) and sin(3 x) with noise that grows with x, (N, 1)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 2, (count, 1)).astype(np.float32)
    noise = rng.normal(size=x.shape) * (0.1 + 0.3 * x)
    return x, (np.sin(3 * x) + noise).astype(np.float32)


def net() -> layers.Module:
    """1 - 32 - 32 - 1."""
    with layers.seeded(0):
        return layers.Sequential(
            layers.Linear(1, 32), layers.Tanh(), layers.Linear(32, 32), layers.Tanh(), layers.Linear(32, 1)
        )


def main() -> None:
    """Prove the gradient, train a network per quantile, and count on new samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args().epochs
    some = np.random.default_rng(0).normal(size=(2, 50, 1))  # float64: differences of float32 say little
    print(gradcheck(quantile_loss(0.1), Tensor(some[0], requires_grad=True), Tensor(some[1])).table())
    train, (x, y) = samples(2000, 0), samples(5000, 1)
    for quantile in QUANTILES:
        model = net()
        history = engine.fit(model, train, quantile_loss(quantile), epochs=epochs, batch=100, callbacks=[])
        with no_grad():
            below = (Tensor(y) < model(Tensor(x))).mean().item()
        print(f"loss {history['loss'][-1]:.4f}: {below:.1%} of new values lie below, wanted {quantile:.0%}")


if __name__ == "__main__":
    main()
