"""Training on CUDA: it follows the CPU within rounding, tiles stay on the device, and one small copy per step comes
back.
"""

from __future__ import annotations

import io

import cupy
import cupyx
import numpy as np
import pytest

from autograd import Tensor
from engine.build import Form
from engine.config import Config
from engine.data import CLASSES, MARS, Tiles
from engine.ensemble import load_ensemble
from engine.inference import Normalisation, evaluate_confusion, labels_of, predict_logits
from engine.training import trainer
from engine.training.augmentation import Augmentation
from engine.training.optimizer import AdamW
from engine.training.progress import PlainReporter
from kernels.core import device
from kernels.core.dispatch import kernel_log, use_kernels
from kernels.metric import reference
from layers import CombinedLoss, UNet
from tests.cuda.bounds import assert_close
from tests.support.networks import patchwork, write_run

N, H, W = 6, 16, 32
FAMILIES = ("loss_", "polarized_", "adamw_step", "squared_norm", "augment_batch")


@pytest.fixture
def tiles() -> Tiles:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 5, (N, H, W)).astype(np.uint8)
    return Tiles(
        (40 * masks + rng.integers(0, 60, (N, H, W))).astype(np.uint8), masks, np.array([str(k) for k in range(N)])
    )


def trajectory(tiles: Tiles, name: str, dtype: type) -> np.ndarray:
    """Losses of four steps of a small network, as Run._step makes them, in any type."""
    net = UNet(width=4, seed=0, dropout=0.0).to(name, dtype)
    optimizer, loss, rng = (
        AdamW(net, clip=0.1, average=0.999),
        CombinedLoss((0, 0.3, 0.4, 0.4, 2.9), background="mask"),
        np.random.default_rng(1),
    )
    images, masks = (device.to_device(a, name) for a in (tiles.images, tiles.masks))
    normalise, augment, losses = Normalisation.of(tiles.images), Augmentation(), []
    net.train()
    for step in range(4):
        rows = device.to_device((np.arange(4) + step) % N, name)
        x, y = augment(images[rows].astype(dtype) * dtype(1 / 255), masks[rows], rng)
        value = loss(net(Tensor(normalise(x).astype(dtype))), y)
        net.zero_grad()
        value.backward()
        optimizer.step(1e-3)
        losses.append(value.data)
    return np.array(device.fetch(losses), dtype)


def test_four_steps_follow_the_cpu_within_rounding(tiles: Tiles) -> None:
    with kernel_log() as served:
        fast = trajectory(tiles, "cuda", np.float32)
    assert all(s.by == "fast" for s in served if s.operator.startswith(FAMILIES))
    assert {s.device for s in served} == {"cuda"}
    with use_kernels("reference"):
        naive, exact = trajectory(tiles, "cpu", np.float32), trajectory(tiles, "cpu", np.float64)
    assert exact[-1] < exact[0]
    assert_close(fast, naive, exact)


@pytest.fixture
def run(tiles: Tiles, tmp_path, monkeypatch: pytest.MonkeyPatch) -> trainer.Run:
    monkeypatch.setattr(trainer, "prepare", lambda *_, **__: trainer.Prepared(tiles, tiles, None, []))
    monkeypatch.setattr(device, "_chosen", device._chosen)
    config = Config(device="cuda", width=4, batch=4, epochs=1)
    return trainer.Run(config, tmp_path, PlainReporter(CLASSES, io.StringIO()))


@pytest.mark.filterwarnings("ignore:cupyx.allow_synchronize")
def test_a_step_waits_once(run: trainer.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything between the upload of the rows' numbers and the copy of the logged numbers runs without waiting for
    the device.
    """
    fetched, fetch = [], device.fetch

    def waiting(scalars):
        with cupyx.allow_synchronize(True):
            fetched.append(fetch(scalars))
        return fetched[-1]

    monkeypatch.setattr(device, "fetch", waiting)
    assert all(isinstance(a, cupy.ndarray) and a.dtype == np.uint8 for a in (*run.source.arrays, *run.held_out))
    with cupyx.allow_synchronize(False):
        terms = run._step(np.arange(4), run.augmentation, 1e-3)
    assert len(fetched) == 1
    assert next(iter(terms)) == "loss"
    assert {"margin", "dice", "focal", "iou"} <= set(terms)
    assert all(isinstance(value, float) and np.isfinite(value) for value in terms.values())


@pytest.mark.filterwarnings("ignore:cupyx.allow_synchronize")
@pytest.mark.parametrize("flips", [False, True])
def test_scores_are_counted_on_the_device(
    run: trainer.Run, tiles: Tiles, flips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def copy(array):
        with cupyx.allow_synchronize(True):
            copied.append(device.to_numpy(array))
        return copied[-1]

    monkeypatch.setattr("engine.inference.to_numpy", copy)
    with cupyx.allow_synchronize(False):
        counts = evaluate_confusion(run.net, *run.held_out, run.normalisation, batch=4, flips=flips)
    assert [a.shape for a in copied] == [(N, 5, 5)]
    logits = predict_logits(run.net, tiles.images, run.normalisation, batch=4, flips=flips)
    assert (counts == reference.confusion_per_image(tiles.masks, labels_of(logits), 5)).all()


def test_images_of_any_size_are_labelled_as_on_the_cpu(tmp_path) -> None:
    """By windows, from a checkpoint, alone and in batches of tiles; what comes back lies on the CPU."""
    run = write_run(tmp_path / "run", Form(MARS, 1, (H, W)))
    image = patchwork((H + 9, W + 21), 1)
    (_, here), (_, there) = (load_ensemble([run]).to(name).predict(image) for name in ("cpu", "cuda"))
    assert isinstance(there, np.ndarray)
    np.testing.assert_allclose(there, here, atol=1e-4)
    tiles = np.stack([image, image[::-1]])
    parts = [list(load_ensemble([run]).to(name).batches(tiles)) for name in ("cpu", "cuda")]
    np.testing.assert_allclose(parts[1][0][2], parts[0][0][2], atol=1e-4)
