"""Learning rates over time: constant, in steps, a cosine after a warm-up, and reduced on a plateau.

    schedule = WarmupCosine(optimizer, total=1000, warmup=50)
    for batch in batches: ...; optimizer.step(); schedule.step()

A schedule sets the "lr" of every group of its optimizer, relative to what it was when the schedule was made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.training.optimizer import Optimizer


class Schedule:
    """Base: `factor(count)` times each group's first learning rate, after `count` steps. As it is: a constant rate."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.count = 0
        self.base = [group["lr"] for group in optimizer.param_groups]
        self._set()

    def factor(self, count: int) -> float:
        """The factor on the first learning rate after `count` steps."""
        return 1.0

    def step(self) -> None:
        """Go on to the next learning rate."""
        self.count += 1
        self._set()

    def _set(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * self.factor(self.count)

    @property
    def rates(self) -> list[float]:
        """The learning rates of all groups now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {key: value for key, value in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; ValueError for that of another schedule. The learning rates belong to the optimizer's
        state.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"{type(self).__name__}: load_state_dict: got {sorted(state)}, expected {sorted(self.state_dict())}"
            )
        vars(self).update(state)


class Constant(Schedule):
    """A constant learning rate."""


class StepDecay(Schedule):
    """lr_t = lr gamma^floor(t / size) after t steps, as torch's StepLR. Raises ValueError for a size below 1."""

    def __init__(self, optimizer: Optimizer, size: int, gamma: float = 0.1) -> None:
        if size < 1:
            raise ValueError(f"StepDecay: size is {size}, expected at least 1")
        self.size, self.gamma = size, gamma
        super().__init__(optimizer)

    def factor(self, count: int) -> float:
        """gamma^(count // size)."""
        return self.gamma ** (count // self.size)


class WarmupCosine(Schedule):
    """Linear from 1 / warmup to 1 over `warmup` steps, then half a cosine down to `floor` at step `total`, times the
    first rate: see `cosine_schedule`.

    Raises ValueError unless 0 <= warmup <= total and total >= 1.  Source of the cosine: Loshchilov & Hutter, arXiv
    1608.03983.
    """

    def __init__(self, optimizer: Optimizer, total: int, warmup: int = 0, floor: float = 0.0) -> None:
        if not 0 <= warmup <= total or total < 1:
            raise ValueError(
                f"WarmupCosine: got total {total} and warmup {warmup}, expected 0 <= warmup <= total and total >= 1"
            )
        self.total, self.warmup, self.floor = total, warmup, floor
        super().__init__(optimizer)

    def factor(self, count: int) -> float:
        """`cosine_schedule` from 1 to floor."""
        return cosine_schedule(count, self.total, self.warmup, 1.0, self.floor)


class Plateau:
    """The learning rates are multiplied by `factor` when a value has not become better for more than `patience` steps,
    as torch's ReduceLROnPlateau.

    `step(value)` once per epoch. mode: "min" for a value that should fall, "max" for one that should rise. Better is by
    more than `threshold`, relative to the best value. cooldown: steps after a reduction that do not count. min_lr: no
    rate falls below it.
    Raises ValueError for another mode, and unless 0 < factor < 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"Plateau: mode is {mode!r}, expected 'min' or 'max'")
        if not 0 < factor < 1:
            raise ValueError(f"Plateau: factor is {factor}, expected 0 < factor < 1")
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.cooldown, self.min_lr = threshold, cooldown, min_lr
        self.best = math.inf if mode == "min" else -math.inf
        self.bad = 0
        self.resting = 0

    def step(self, value: float) -> None:
        """Look at the value of an epoch."""
        if self._better(float(value)):
            self.best = float(value)
            self.bad = 0
        else:
            self.bad += 1
        if self.resting > 0:
            self.resting -= 1
            self.bad = 0
        if self.bad > self.patience:
            for group in self.optimizer.param_groups:
                lower = max(group["lr"] * self.factor, self.min_lr)
                if group["lr"] - lower > 1e-8:
                    group["lr"] = lower
            self.resting = self.cooldown
            self.bad = 0

    def _better(self, value: float) -> bool:
        if self.mode == "min":
            return value < self.best * (1 - self.threshold)
        return value > self.best * (1 + self.threshold)

    rates = Schedule.rates
    state_dict = Schedule.state_dict
    load_state_dict = Schedule.load_state_dict


def cosine_schedule(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    """Learning rate at `step` (0-based) of `total`: linear from peak / warmup to peak over `warmup` steps, then half a
    cosine to floor.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * progress))
