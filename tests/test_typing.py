"""The public signatures, as mypy and an editor see them: the packages say that they are typed, and a strict user
program passes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.packaging.hook import SUFFIXES
from tests.support.paths import ROOT

pytest.importorskip("mypy")
PROGRAM = """
import numpy as np

import engine
import layers
from autograd import Tensor, no_grad, ops
from engine.training.optimizer import SGD


class Net(layers.Module):
    def __init__(self, width: int) -> None:
        self.body = layers.Sequential(layers.Linear(8, width), layers.ReLU())
        self.heads = [layers.Linear(width, 3) for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return ops.maximum(self.heads[0](y), self.heads[1](y))


net = Net(16)
names: list[str] = net.freeze("body.*")
parameters: list[layers.Parameter] = net.parameters()
report: layers.LoadReport = net.load_state_dict(net.state_dict(), strict=False)
optimizer = SGD(net, lr=0.1, momentum=0.9)
x, labels = Tensor(np.ones((4, 8), np.float32)), np.zeros(4, np.int64)
loss: Tensor = ops.cross_entropy(net(x), labels)
loss.backward()
optimizer.step()
with no_grad():
    best: Tensor = ops.argmax(net(x), axis=1)
values, order = ops.sort(ops.einsum("ij,kj->ik", x, x))



class Quick(engine.Callback):
    def on_epoch(self, history: engine.History) -> bool:
        return history["loss"][-1] < 0.1


history = engine.fit(net, (x, labels), ops.cross_entropy, optimizer=optimizer, callbacks=[Quick(), engine.Progress()])
reveal_type(history.best)
reveal_type(engine.load("run").probabilities(x))
reveal_type(values)
reveal_type(net.named_tensors(layers.Parameter))
"""


def checked(tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text(program)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.slow
def test_a_strict_program_passes_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    result = checked(tmp_path, PROGRAM)
    assert result.returncode == 0, result.stdout
    assert 'Revealed type is "autograd.tensor.Tensor"' in result.stdout
    assert "layers.module.Parameter" in result.stdout
    assert "dict[str, float] | None" in result.stdout
    assert "ndarray" in result.stdout
    wrong = checked(tmp_path, PROGRAM + '\nlayers.Linear("8", 16)\nops.einsum(3, x)\nengine.fit(net, (x, labels), 3)\n')
    assert '"Linear" has incompatible type "str"' in wrong.stdout
    assert '"einsum" has incompatible type "int"' in wrong.stdout
    assert '"fit" has incompatible type "int"' in wrong.stdout


@pytest.mark.parametrize("package", ["kernels", "autograd", "layers", "engine"])
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert ".typed" in SUFFIXES, "the wheel does not hold it"
