"""The examples: they run as they stand, and learn as well as PyTorch does from the same weights and batches."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
from typing import Any

import pytest

import layers
from tests.support.paths import ROOT

pytest.importorskip("sklearn")
EXAMPLES = ROOT / "examples"
EPOCHS = 8


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


digits = load("digits")


def test_the_script_runs() -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / "digits.py", "--epochs", "3"], capture_output=True, text=True, check=True
    )
    found = {
        name: float(share) for name, share in re.findall(r"^(MLP|CNN): ([\d.]+)% of 500", result.stdout, re.MULTILINE)
    }
    assert found["MLP"] > 85
    assert found["CNN"] > 90
    assert "Linear(64, 128)  8,320 parameters" in result.stdout


def test_a_project_in_the_style_of_chainer() -> None:
    """On NumPy; tests/cuda/test_nn.py runs it on CuPy."""
    script = EXAMPLES / "chainer_style.py"
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    found = re.fullmatch(r"numpy: loss ([\d.]+) to ([\d.]+), ([\d.]+)% of 400 .*\n", result.stdout)
    assert found is not None, result.stdout
    first, last, share = map(float, found.groups())
    assert first > 1  # -log of about a quarter
    assert last < 0.2
    assert share > 95


def twin(net: layers.Sequential) -> Any:
    """The same network of PyTorch's layers, with the same weights: filters (kh, kw, c, k) turned, dense weights as they
    are, pixels last.
    """
    torch = pytest.importorskip("torch")

    class Flatten(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1).flatten(1)

    steps: list[Any] = []
    for step in net:
        if isinstance(step, layers.Conv2d):
            r, _, c, k = step.weight.shape
            steps.append(torch.nn.Conv2d(c, k, r, padding=1))
            weight = step.weight.data.transpose(3, 2, 0, 1)
        elif isinstance(step, layers.Linear):
            steps.append(torch.nn.Linear(*reversed(step.weight.shape)))
            weight = step.weight.data
        else:
            steps.append(
                {layers.ReLU: torch.nn.ReLU, layers.MaxPool2d: lambda: torch.nn.MaxPool2d(2), layers.Flatten: Flatten}[
                    type(step)
                ]()
            )
            continue
        with torch.no_grad():
            steps[-1].weight.copy_(torch.tensor(weight.copy()))
            steps[-1].bias.copy_(torch.tensor(step.bias.data.copy()))
    return torch.nn.Sequential(*steps)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_as_accurate_as_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    images, labels, test_images, test_labels = digits.digits()
    with layers.seeded(0):
        net = getattr(digits, name)()
    theirs = twin(net)
    digits.train(net, images, labels, EPOCHS)
    mine = digits.accuracy(net, test_images, test_labels)

    x, y, test = (
        torch.tensor(a.copy()) for a in (images.transpose(0, 3, 1, 2), labels, test_images.transpose(0, 3, 1, 2))
    )
    optimizer = torch.optim.Adam(theirs.parameters(), lr=2e-3)
    for batch in digits.batches(len(images), EPOCHS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        reference = (theirs(test).argmax(1).numpy() == test_labels).mean()
    assert reference > 0.9
    # two standard errors of a share of 500 images
    noise = 2 * math.sqrt(reference * (1 - reference) / len(test_labels))
    assert mine >= reference - noise
