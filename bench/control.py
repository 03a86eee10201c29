"""Train the report's network with PyTorch instead of our kernels:  python -m bench.control --data FILE --preset small
[--seed 0] --out RUN

A control of the whole system. Tiles, split, batches, augmentation, schedule, validation and the run folder are those of
`python -m engine.train` with the same options and seed, and so are the initial weights; the network, the loss, its
gradients, clipping, AdamW, the moving average and dropout are PyTorch's (bench/twin.py). Dropout draws other numbers
and sums round differently, so two such runs differ as two seeds do, and no more. AREOGRAD_CONTROL=compile takes
torch.compile instead of eager execution in the layout channels_last. A control cannot be resumed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autograd.ops import REPORT_TERMS
from bench import twin
from engine import train
from engine.cli import UsageError, run_command
from engine.config import Config
from engine.training.trainer import Run

# Settings of which a control has one form only: with another value it would train another network or loss.
FIXED = ("encoder", "bottleneck", "skips", "gate", "order", "psa_mode", "five", "preactivation", "fppm", "gamma",
         "smooth")  # fmt: skip


def check(config: Config) -> None:
    """Raise UsageError for settings that a control does not have."""
    for name in FIXED:
        given = getattr(config, name)
        usual = getattr(Config(), name)
        if given != usual:
            raise UsageError(f"--{name.replace('_', '-')}: got {given!r}, but a control has {usual!r} only")
    if config.loss_terms() != REPORT_TERMS:
        raise UsageError(f"loss: got {config.loss_terms()}, but a control has {REPORT_TERMS} only")
    if config.background not in ("mask", "train"):
        raise UsageError(f"--background: got {config.background!r}, but a control has 'mask' and 'train' only")


class Control(Run):
    """A training run whose steps are PyTorch's. Validation runs our network with PyTorch's averaged weights."""

    def _build(self, start: Path | None) -> None:
        check(self.config)
        if self.form.channels != 1 or self.ignored is not None or self.form.classes.single:
            raise UsageError("--data: a control takes grey images without ignored pixels and one logit per class")
        super()._build(start)
        config = self.config
        self.twin = twin.TwinUNet(config.width, self.form.classes.logits, config.dropout)
        twin.load(self.twin, self.net.state_dict())
        self.twin = self.twin.to(memory_format=torch.channels_last)
        compiled = os.environ.get("AREOGRAD_CONTROL") == "compile"
        self.forward: Any = torch.compile(self.twin) if compiled else self.twin
        self.criterion: Any = torch.compile(twin.combined_loss) if compiled else twin.combined_loss
        self.theirs, self.average = (
            twin.optimizer(self.twin, config.weight_decay),
            twin.Average(self.twin, config.average),
        )
        self.class_weights = torch.tensor(np.asarray(self.weights, np.float32))
        self.policy = self.classes.background(config.background)
        self.optimizer = _Averaged(self)  # type: ignore[assignment]
        torch.manual_seed(config.seed)

    def _step(self, index: np.ndarray, augment: Any, rate: float) -> dict[str, float]:
        images, masks = self._batch(index, augment)
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        labels = torch.from_numpy(masks.astype(np.int64))
        for group in self.theirs.param_groups:
            group["lr"] = rate
        self.twin.train()
        self.theirs.zero_grad(set_to_none=True)
        loss = self.criterion(self.forward(x), labels, self.class_weights, self.policy)
        loss.backward()
        self.norm = float(torch.nn.utils.clip_grad_norm_(self.twin.parameters(), self.config.clip or math.inf))
        self.theirs.step()
        self.average.update()
        return {"loss": float(loss.detach())}

    def _norms(self) -> dict[str, float]:
        """The gradients are PyTorch's."""
        return {}

    def _save(self) -> None:
        """A control keeps no states."""


class _Averaged:
    """The part of an optimizer that a run uses: the averaged weights in the network, within a block."""

    def __init__(self, control: Control) -> None:
        self.control = control

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put PyTorch's averaged weights and statistics into our network."""
        control = self.control
        names = [name for name in control.twin.state_dict() if not name.endswith("num_batches_tracked")]
        values = (
            dict(zip(names, control.average.average, strict=True))
            if control.config.average
            else control.twin.state_dict()
        )
        control.net.load_state_dict({name: twin.to_ours(control.twin, name, values[name]) for name in names})
        yield


def main() -> None:
    """The command line: that of engine.train."""
    run_command(lambda: train.run(train.parse(), Control))


if __name__ == "__main__":
    main()
