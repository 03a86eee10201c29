"""Schedules against torch.optim.lr_scheduler, rate by rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from autograd import Tensor
from engine.training.optimizer import SGD
from engine.training.schedules import Constant, Plateau, StepDecay, WarmupCosine

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
schedulers = torch.optim.lr_scheduler


def pair() -> tuple[SGD, Any]:
    groups = [{"params": [0], "lr": 0.3}, {"params": [1]}]
    ours = SGD([{**g, "params": [Tensor(np.ones(2), True)]} for g in groups], lr=0.1)
    return ours, torch.optim.SGD([{**g, "params": [torch.ones(2, requires_grad=True)]} for g in groups], lr=0.1)


def rates(optimizer: Any) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def warm_cosine(optimizer: Any) -> Any:
    def factor(k: int) -> float:
        return (k + 1) / 4 if k < 4 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1, (k - 4) / 16)))

    return schedulers.LambdaLR(optimizer, factor)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Constant, lambda o: schedulers.LambdaLR(o, lambda k: 1.0)),
        (lambda o: StepDecay(o, 4, 0.5), lambda o: schedulers.StepLR(o, 4, 0.5)),
        (lambda o: WarmupCosine(o, 20, 4, 0.1), warm_cosine),
        (lambda o: WarmupCosine(o, 30), lambda o: schedulers.CosineAnnealingLR(o, 30)),
    ],
)
def test_rates_are_pytorchs(ours: Any, theirs: Any) -> None:
    one, other = pair()
    mine, torchs = ours(one), theirs(other)
    for step in range(25):
        assert rates(one) == pytest.approx(rates(other), rel=1e-12, abs=1e-15), step
        assert mine.rates == rates(one)
        other.step()
        mine.step()
        torchs.step()
        if step == 11:
            state, lr = mine.state_dict(), rates(one)
            one, _ = pair()
            mine = ours(one)
            mine.load_state_dict(state)
            for group, rate in zip(one.param_groups, lr, strict=True):
                group["lr"] = rate


PLATEAUS: list[dict[str, Any]] = [
    {},
    {"patience": 2},
    {"mode": "max", "patience": 1, "factor": 0.5},
    {"patience": 1, "cooldown": 3, "min_lr": 0.02},
    {"patience": 0, "threshold": 0.1},
]


@pytest.mark.parametrize("settings", PLATEAUS)
def test_plateau_is_pytorchs(settings: dict[str, Any]) -> None:
    one, other = pair()
    mine, torchs, rng = (
        Plateau(one, **settings),
        schedulers.ReduceLROnPlateau(other, **settings),
        np.random.default_rng(0),
    )
    for step in range(60):
        value = float(rng.random() + 20 / (step + 20)) if step % 13 else math.nan
        mine.step(value)
        torchs.step(value)
        assert rates(one) == pytest.approx(rates(other), rel=1e-12), step
    assert rates(one)[0] < 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: StepDecay(o, 0), "StepDecay: size is 0, expected at least 1"),
        (lambda o: WarmupCosine(o, 3, 4), "WarmupCosine: got total 3 and warmup 4"),
        (lambda o: Plateau(o, "least"), "Plateau: mode is 'least', expected 'min' or 'max'"),
        (lambda o: Plateau(o, factor=1.0), "Plateau: factor is 1.0"),
        (lambda o: Constant(o).load_state_dict({"count": 1}), r"Constant: load_state_dict: got \['count'\]"),
    ],
)
def test_bad_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(pair()[0])
