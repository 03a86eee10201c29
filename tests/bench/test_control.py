"""The control: PyTorch's steps in our training run follow ours, and what it cannot train it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine import train
from tests.support.tiny_runs import ended, run

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
OPTIONS = ["--epochs=2", "--batch=8", "--width=4", "--seed=3"]


def controlled(arguments: list[str]) -> int:
    from bench.control import Control

    return train.run(train.parse(arguments), Control)


def test_without_dropout_a_control_follows_our_run(tiles: Path, tmp_path: Path) -> None:
    """Six steps from the same weights on the same batches: losses, scores, and nearly all weights.

    Not all of them: where the true gradient is 0 (a bias before batch norm), Adam makes steps of rounding noise, which
    is above its epsilon in PyTorch and below it here. 4 % of the weights were farther apart than a tenth of their way.
    """
    line = [f"--data={tiles}", "--dropout=0", *OPTIONS]
    assert run([*line, f"--out={tmp_path / 'ours'}"]) == 0
    assert controlled([*line, f"--out={tmp_path / 'theirs'}"]) == 0
    ours, theirs = (
        [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("ours", "theirs")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=2e-3)
        assert a["val_miou_fg"] == pytest.approx(b["val_miou_fg"], abs=0.01)
        assert a["learning_rate"] == b["learning_rate"]
    from engine.training.checkpoint import read_arrays

    ours, theirs = (read_arrays(tmp_path / name / "last.safetensors")[1] for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    far = np.concatenate([np.abs(ours[name] - theirs[name]).ravel() for name in ours])
    moved = 2e-3 * 3  # the averaged weights after six steps of at most 2e-3
    assert np.mean(far > 0.1 * moved) < 0.1, np.quantile(far, [0.5, 0.9, 0.99, 1])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--encoder=plain", "--encoder: got 'plain', but a control has 'residual+inception' only"),
        ("--lovasz=0.5", "loss: got "),
        ("--background=mixed", "--background: got 'mixed', but a control has 'mask' and 'train' only"),
    ],
)
def test_other_networks_and_losses_are_refused(
    option: str, message: str, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = ended([f"--data={tiles}", *OPTIONS, option, f"--out={tmp_path / 'run'}"], capsys, controlled)
    assert code == 2
    assert message in line
