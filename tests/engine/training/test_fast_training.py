"""Training with fast kernels: the same bits for any number of threads, and as good as training with the reference."""

from __future__ import annotations

import numpy as np
import pytest

from autograd import Tensor
from autograd import random as tape_random
from engine.training.optimizer import AdamW
from kernels.core.cpu import thread_pool
from kernels.core.dispatch import kernel_log, use_kernels
from layers import SegmentationLoss, UNet

TERMS = {"margin": 0.4, "dice": 0.2, "focal": 0.2, "iou": 0.2}
STEPS, LAST, SEEDS = 200, 20, (0, 1, 2)


pytestmark = pytest.mark.usefixtures("same_threads")


def tiles(rng: np.random.Generator, count: int, h: int = 16, w: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of rectangles whose grey level tells their class: 1 to 4, 0 is not labelled."""
    masks = np.ones((count, h, w), np.int64)
    for mask in masks:
        for label in (2, 3, 4):
            y, x = rng.integers(0, h - 5), rng.integers(0, w - 7)
            mask[y : y + rng.integers(4, 9), x : x + rng.integers(5, 13)] = label
    images = (0.5 * masks - 1.2 + 0.3 * rng.standard_normal(masks.shape)).astype(np.float32)
    masks[rng.random(masks.shape) < 0.05] = 0
    return images[..., None], masks


def train(seed: int, steps: int) -> tuple[list[float], np.ndarray]:
    """The loss of every step and the parameters at the end."""
    rng = np.random.default_rng(seed)
    images, masks = tiles(rng, 12)
    tape_random.seed(seed)
    net = UNet(width=4, bottleneck="none", encoder="residual", seed=seed)
    loss_of, optimizer = SegmentationLoss(TERMS, background="mask"), AdamW(net, clip=1.0, average=0.9)
    net.train()
    losses = []
    for _ in range(steps):
        batch = rng.integers(0, len(images), 3)
        loss = loss_of(net(Tensor(images[batch])), masks[batch])
        net.zero_grad()
        loss.backward()
        optimizer.step(3e-3)
        losses.append(loss.item())
    return losses, optimizer.flat.vector.copy()


def test_training_steps_have_the_same_bits_for_1_2_and_4_threads() -> None:
    results = []
    for count in (1, 2, 4):
        thread_pool.set_threads(count)
        with kernel_log() as log:
            results.append(train(3, 3))
        assert sum(entry.by == "fast" for entry in log) > 0.5 * len(log)
    for losses, parameters in results[1:]:
        assert losses == results[0][0]
        np.testing.assert_array_equal(parameters, results[0][1])


def test_training_ends_as_with_the_reference() -> None:
    """The measure: the mean loss of the last 20 of 200 steps. With fast kernels its mean over three seeds differs from
    that with the reference by less than the spread (largest - smallest) that the seeds alone make with the reference;
    both have learnt; the first losses agree to float32.
    """
    fast, plain = [], []
    for seed in SEEDS:
        fast.append(train(seed, STEPS)[0])
        with use_kernels("reference"):
            plain.append(train(seed, STEPS)[0])
    ends = [[float(np.mean(run[-LAST:])) for run in runs] for runs in (fast, plain)]
    spread = max(ends[1]) - min(ends[1])
    assert abs(np.mean(ends[0]) - np.mean(ends[1])) <= spread, (ends, spread)
    for runs, end in zip((fast, plain), ends, strict=True):
        assert max(end) < 0.5 * min(run[0] for run in runs), "nothing was learnt"
    np.testing.assert_allclose([run[0] for run in fast], [run[0] for run in plain], rtol=1e-5)
