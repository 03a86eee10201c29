"""Loss scaling, what the optimizer makes of it, and the settings of mixed precision and CUDA graphs on a machine
without CUDA.
"""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest

from autograd import Tensor
from engine.config import Config, ConfigError, from_dict
from engine.data import CLASSES
from engine.training import trainer
from engine.training.loss_scaling import LossScale
from engine.training.optimizer import AdamW
from engine.training.progress import PlainReporter
from engine.training.trainer import Run
from kernels.core import device
from layers import Conv2d

INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch) -> None:
    """Even where CUDA works."""
    monkeypatch.setattr(device, "_chosen", device.Choice("cpu", "test"))


def test_the_scale_grows_after_an_interval_and_halves_when_a_step_is_skipped() -> None:
    scale = LossScale(start=8.0, interval=3, largest=32.0)
    history = []
    for norm in (1, 1, 1, 1, INF, 1, 1, 1, 1, 1, NAN, NAN, 1, 1, 1):
        made = scale.update(norm)
        assert made == math.isfinite(norm)
        history.append(scale.value)
    assert history == [8, 8, 16, 16, 8, 8, 8, 16, 16, 16, 8, 4, 4, 4, 8]
    assert scale.skipped == 3


def test_the_scale_stays_between_1_and_the_largest() -> None:
    scale = LossScale(start=2.0, interval=1, largest=4.0)
    assert [scale.update(INF) or scale.value for _ in range(3)] == [1, 1, 1]
    assert [scale.update(1.0) and scale.value for _ in range(4)] == [2, 4, 4, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 3.0}, "start is 3.0, expected a power of two from 1 to"),
        ({"start": INF, "largest": INF}, "start is inf"),
        ({"growth": 1.0}, "growth is 1.0, expected a power of two from 2"),
        ({"backoff": 1.0}, "backoff is 1.0, expected a power of two from 0 to 0.5"),
        ({"interval": 0}, "interval is 0, expected at least 1"),
    ],
)
def test_bad_settings_of_the_scale_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"LossScale: {message}"):
        LossScale(**settings)


def steps(scale: float | None, count: int = 3) -> tuple[Conv2d, AdamW, list[float]]:
    rng = np.random.default_rng(0)
    net = Conv2d(3, 5, 3)
    net.weight.data[...] = rng.standard_normal(net.weight.shape)
    optimizer = AdamW(net, clip=0.5, average=0.999)
    norms = []
    for _ in range(count):
        y = net(Tensor(rng.standard_normal((2, 6, 7, 3)).astype(np.float32)))
        loss = (y * y).mean()
        net.zero_grad()
        loss.backward(scale)
        optimizer.step(1e-2, scale)
        norms.append(optimizer.norm)
    return net, optimizer, norms


def test_a_scaled_step_is_the_plain_step_bit_by_bit() -> None:
    plain, scaled = steps(None), steps(2.0**16)
    assert plain[2] == scaled[2], "the norm is that of the unscaled gradient"
    assert plain[2][0] > 0.5, "clipping is at work"
    for name in ("weight", "bias"):
        assert (getattr(plain[0], name).data == getattr(scaled[0], name).data).all()
    assert (plain[1].v == scaled[1].v).all()
    assert abs(plain[1].v).max() > 0


@pytest.mark.parametrize("bad", [INF, NAN])
def test_a_step_that_does_not_fit_changes_nothing(bad: float) -> None:
    net, optimizer, _ = steps(4.0)
    net.weight.grad.data[0, 0, 0, 0] = bad
    held = [a.copy() for a in (optimizer.flat.vector, optimizer.m, optimizer.v, optimizer.average)]
    count = optimizer.steps
    assert not math.isfinite(optimizer.step(1e-2, 4.0))
    assert all(
        (a == b).all()
        for a, b in zip(held, (optimizer.flat.vector, optimizer.m, optimizer.v, optimizer.average), strict=True)
    )
    assert optimizer.steps == count


def test_a_run_with_float16_scales_the_loss_and_logs_it(tmp_path, monkeypatch) -> None:
    """On the CPU nothing is rounded, so that only the scaling is left, and it must not show."""
    rows = {}
    for precision in ("float32", "float16"):
        monkeypatch.setattr(trainer, "_check_device", lambda config, choice: None)
        config = Config(tiles=40, epochs=1, width=4, batch=8, device="cpu", precision=precision)
        out = tmp_path / precision
        out.mkdir()
        run = Run(config, out, PlainReporter(CLASSES, io.StringIO()))
        if run.scale is not None:
            update = run.scale.update
            norms = iter([INF])
            monkeypatch.setattr(run.scale, "update", lambda norm, norms=norms, update=update: update(next(norms, norm)))
        run.train()
        rows[precision] = json.loads((out / "metrics.jsonl").read_text())
    assert (rows["float16"].pop("loss_scale"), rows["float16"].pop("skipped_steps")) == (2.0**15, 1)
    assert "loss_scale" not in rows["float32"]
    assert rows["float16"].keys() == rows["float32"].keys()
    assert rows["float16"]["train_loss"] == pytest.approx(rows["float32"]["train_loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["tf32", "bf16", "float16"])
def test_the_cpu_refuses_reduced_precision_in_one_line(tmp_path, name: str) -> None:
    with pytest.raises(ConfigError) as error:
        Run(Config(tiles=40, width=4, device="cpu", precision=name), tmp_path, PlainReporter(CLASSES, io.StringIO()))
    assert str(error.value) == f"precision: got '{name}', expected 'float32' on the cpu (asked for)"


def test_the_cpu_refuses_graphs_and_graphs_refuse_dropout(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"^cuda_graph: needs CUDA, but the device is the cpu \(asked for\)$"):
        Run(
            Config(tiles=40, width=4, device="cpu", cuda_graph=True, dropout=0.0),
            tmp_path,
            PlainReporter(CLASSES, io.StringIO()),
        )
    with pytest.raises(ConfigError, match=r"cuda_graph: needs dropout 0, got 0.1"):
        from_dict({"cuda_graph": True})
    with pytest.raises(ConfigError, match=r"precision: got 'half', expected one of float32, tf32, bf16, float16"):
        from_dict({"precision": "half"})
