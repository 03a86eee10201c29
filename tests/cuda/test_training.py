"""Whole training runs on CUDA: the same losses as on the CPU within rounding, and which operators our kernels serve."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest

from autograd import Tensor
from engine.config import Config
from engine.data import CLASSES
from engine.inference import Normalisation
from engine.training import trainer
from engine.training.optimizer import AdamW
from engine.training.progress import PlainReporter
from engine.training.step import Passes
from kernels.core import device
from kernels.core.cuda.module import launch_log
from kernels.core.dispatch import Operator, kernel_log, use_kernels
from layers import CombinedLoss, UNet
from tests.support.folders import write_pairs

CONFIG = Config(width=4, batch=4, epochs=1, tiles=24, data="synthetic", dropout=0.0)


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default device is put back."""
    monkeypatch.setattr(device, "_chosen", device._chosen)


class Exact(Normalisation):
    """The same numbers as float64."""

    def __call__(self, images):
        return super().__call__(images).astype(np.float64)


def losses(name: str, folder, dtype: type = np.float32, config: Config = CONFIG) -> tuple[list[dict[str, float]], dict]:
    """(the terms of every step of one epoch, the epoch's row of metrics.jsonl) of a run on a device, in float32 or
    float64.
    """
    folder.mkdir()
    run = trainer.Run(replace(config, device=name), folder, PlainReporter(CLASSES, io.StringIO()))
    if dtype is np.float64:
        run.net.to(dtype=dtype)
        run.optimizer = AdamW(run.net, weight_decay=CONFIG.weight_decay, clip=CONFIG.clip, average=CONFIG.average)
        run.passes = Passes(run.net, run.loss, run.optimizer, name)
        plain = run.normalisation
        run.normalisation = Exact(plain.mean, plain.std, plain.low, plain.high)
    steps, step = [], run._step

    def recorded(*arguments):
        steps.append(step(*arguments))
        return steps[-1]

    run._step = recorded
    run._epoch(1)
    return steps, json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.whole
@pytest.mark.mode("fast gpu")
def test_an_epoch_has_the_cpus_losses_within_rounding(tmp_path) -> None:
    """max|CUDA - exact| <= 3 max|float32 on the CPU - exact| + a rounding unit, over every term of every step of an
    epoch (docs/accuracy.md).
    """
    compared(tmp_path, CONFIG)


PLAIN = {"encoder": "plain", "bottleneck": "none", "skips": "plain", "dropout": 0.0}


@pytest.mark.whole
@pytest.mark.mode("fast gpu")
@pytest.mark.parametrize("stored_in", ["memory", "a file"])
def test_colour_images_of_mixed_sizes_with_ignored_pixels(
    tmp_path, stored_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three channels, padding and unlabelled pixels that count nowhere, CutMix: as on the CPU."""

    def stored(truth: np.ndarray) -> np.ndarray:
        return np.where(np.arange(truth.shape[1]) % 7 == 0, 255, truth)

    data = write_pairs(tmp_path / "data", 3, "rgb", 16, stored=stored)
    if stored_in == "a file":
        monkeypatch.setattr("engine.data.folder.fits", lambda *_: False)
    compared(tmp_path, Config(width=4, batch=4, epochs=1, data=str(data), classes="3", cutmix=0.5, **PLAIN))


def compared(tmp_path, config: Config) -> None:
    """A run on CUDA against runs on the CPU."""
    with kernel_log() as calls:
        fast, row = losses("cuda", tmp_path / "cuda", config=config)
    assert {c.device for c in calls} == {"cuda"}
    with use_kernels("reference"):
        naive, _ = losses("cpu", tmp_path / "naive", config=config)
        exact, _ = losses("cpu", tmp_path / "exact", np.float64, config)
    # a second float32 run: the optimiser amplifies rounding, one run's error is luck
    quick, _ = losses("cpu", tmp_path / "quick", config=config)
    names = list(exact[0])
    assert fast[0].keys() == exact[0].keys()
    a, b, c, e = (np.array([[step[name] for name in names] for step in run]) for run in (fast, naive, quick, exact))
    assert len(e) >= 3
    naive_error = max(np.abs(b - e).max(), np.abs(c - e).max())
    allowed = 3 * naive_error + np.finfo(np.float32).eps * np.abs(e).max()
    error = np.abs(a - e).max()
    print(
        f"{len(e)} steps, losses {e[0, 0]:.4f} to {e[-1, 0]:.4f}: CUDA differs by {error:.2e}, the CPU by "
        f"{naive_error:.2e}"
    )
    assert error <= allowed
    assert row["epoch"] == 1
    assert 0 <= row["val_miou_fg"] <= 1  # the scores themselves: test_engine.py


HOT = {  # operators of a training step that must be ours
    "conv2d_forward",
    "conv2d_norm_forward",
    "conv2d_norm_backward",
    "backward_bias",
    "conv2d_backward_data",
    "conv2d_backward_filter",
    "conv_transpose2d_forward",
    "conv_transpose2d_backward_data",
    "conv_transpose2d_backward_filter",
    "max_pool2d_forward",
    "max_pool2d_backward",
    "batch_norm_forward",
    "batch_norm_backward",
    "sum_pixels",
    "resample2d_forward",
    "resample2d_backward",
    "polarized_channel_forward",
    "polarized_channel_backward",
    "polarized_spatial_forward",
    "polarized_spatial_backward",
    "gate_forward",
    "gate_backward",
    "relu_forward",
    "relu_backward",
    "concat_channels",
    "accumulate",
    "loss_forward",
    "loss_backward",
    "squared_norm",
    "adamw_step",
}


@dataclass
class Row:
    """Of one operator: calls, those that our kernels served, their launches, FLOPs of its convolutions and of those
    that we served.
    """

    calls: int = 0
    ours: int = 0
    launches: int = 0
    flops: int = 0
    our_flops: int = 0


def flops_of(name: str, arguments: tuple, result) -> int:
    """2 x values of the map on the strided side x filter values that each of them meets; 0 for what is not a
    convolution.

    That map is y or dy (N, P, Q, K) of conv2d, each value of which meets R S C / groups; of a transposed one x or dx,
    which meets R S K / groups.
    """
    # a convolution with its norm is counted as the convolutions that it calls
    if not name.startswith("conv") or "norm" in name:
        return 0
    transposed = name.startswith("conv_transpose2d")
    if name.endswith("filter"):
        filters, strided = result, arguments[0] if transposed else arguments[1]
    else:
        filters, strided = arguments[1], result if name.endswith("forward") != transposed else arguments[0]
    return 2 * strided.size * filters.size // filters.shape[2 if transposed else 3]


@contextmanager
def tabled(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Row]]:
    """Fill a Row per operator while the block runs."""
    table: dict[str, Row] = defaultdict(Row)
    call = Operator.__call__

    def counted(self, *arguments, **settings):
        with kernel_log() as calls, launch_log() as launches:
            result = call(self, *arguments, **settings)
        row, flops, ours = table[self.name], flops_of(self.name, arguments, result), calls[-1].by == "fast"
        row.calls, row.ours, row.launches = row.calls + 1, row.ours + ours, row.launches + len(launches)
        row.flops, row.our_flops = row.flops + flops, row.our_flops + flops * ours
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Operator, "__call__", counted)
        yield table


@pytest.mark.whole
@pytest.mark.mode("fast gpu")
def test_hot_operators_of_a_training_step_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of the full network: per operator who served it, in how many launches;
    and our share of the arithmetic.
    """
    device.choose("cuda")
    net, loss = UNet(width=4, dropout=0.1, seed=0), CombinedLoss((0.0, 0.3, 0.4, 0.4, 2.9), background="mask")
    optimizer = AdamW(net, clip=1.0, average=0.999)
    rng = np.random.default_rng(0)
    x = device.to_device(rng.standard_normal((2, 64, 128, 1)).astype(np.float32), "cuda")
    labels = device.to_device(rng.integers(0, 5, (2, 64, 128)), "cuda")
    with tabled(monkeypatch) as table:
        loss(net(Tensor(x)), labels).backward()
        optimizer.step(1e-3)
    total = max(sum(row.flops for row in table.values()), 1)
    print(f"\n{'operator':<34} {'calls':>6} {'ours':>6} {'launches':>9} {'of the convolutions':>20}")
    for name, row in sorted(table.items(), key=lambda item: -item[1].flops):
        print(f"{name:<34} {row.calls:>6} {row.ours:>6} {row.launches:>9} {row.flops / total:>19.1%} ")
    print(
        f"our kernels compute {sum(row.our_flops for row in table.values()) / total:.1%} of the arithmetic of all "
        "convolutions"
    )
    assert table.keys() >= HOT
    assert [name for name in sorted(HOT) if table[name].ours < table[name].calls or not table[name].launches] == []
    assert sum(row.our_flops for row in table.values()) == sum(row.flops for row in table.values())
