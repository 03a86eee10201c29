"""The examples: they run as they stand, and learn as well as PyTorch does from the same weights and batches."""

from __future__ import annotations

import ast
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layers
from tests.support.paths import ROOT

pytest.importorskip("sklearn")
EXAMPLES = ROOT / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


digits = load("digits")


def run(name: str, folder: Path, *arguments: object) -> str:
    """What the script prints. It runs in an empty folder, as from anywhere."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "AREOGRAD_DEVICE": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=known)
    assert done.returncode == 0, done.stderr
    return done.stdout


PROJECTS = {"chainer_style"}  # a whole one, to compare with; the others are short


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 80 or path.stem in PROJECTS
    assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")
    assert f"({path.name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_digits(tmp_path: Path) -> None:
    printed = run("digits", tmp_path, "--epochs", 3)
    found = {name: float(share) for name, share in re.findall(r"^(MLP|CNN): ([\d.]+)% of 500", printed, re.MULTILINE)}
    assert found["MLP"] > 80
    assert found["CNN"] > 90
    assert "Linear(64, 128)  8,320 parameters" in printed
    assert len(re.findall(r"^epoch   [123]/3  loss ", printed, re.MULTILINE)) == 6


def test_own_loss(tmp_path: Path) -> None:
    printed = run("own_loss", tmp_path, "--epochs", 15)
    assert re.search(r"verdict +PASS", printed)
    found = re.findall(r"([\d.]+)% of new values lie below, wanted (\d+)%", printed)
    assert [int(wanted) for _, wanted in found] == [10, 90]
    for share, wanted in found:
        assert abs(float(share) - int(wanted)) < 6


def test_own_operator(tmp_path: Path) -> None:
    printed = run("own_operator", tmp_path)
    assert re.search(r"verdict +PASS", printed)
    (error,) = re.findall(r"off by at most ([\d.e-]+)", printed)
    # of values up to 14 in float32: a rounding of the result, and one of x + 3 that x multiplies
    assert 0 < float(error) < 4e-6
    first, last = re.findall(r"loss ([\d.]+) to ([\d.]+)", printed)[0]
    assert float(last) < float(first) / 2


def test_own_images(tmp_path: Path) -> None:
    printed = run("own_images", tmp_path, "made", "--epochs", 6)
    (accuracy,) = re.findall(r"^test images: mean IoU [\d.]+, ([\d.]+)% of the pixels right", printed, re.MULTILINE)
    assert float(accuracy) > 90
    (one,) = re.findall(r"one more image: ([\d.]+)% of its pixels right", printed)
    assert float(one) > 80
    assert {p.name for p in (tmp_path / "made").iterdir()} == {"stones", "run"}


def test_predict_and_plot(tmp_path: Path) -> None:
    printed = run("predict_and_plot", tmp_path, "--tiles", 60, "--epochs", 1)
    assert re.search(r"^predictions.png: 6 of the \d+ tiles that run has held out$", printed, re.MULTILINE)
    assert Image.open(tmp_path / "predictions.png").size[0] == 960
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.png"]


def test_predict_and_plot_of_a_run(whole: Path, tmp_path: Path) -> None:
    printed = run("predict_and_plot", tmp_path, whole, "--out", "x.png")
    assert printed.startswith("x.png: 6 of the ")
    assert np.asarray(Image.open(tmp_path / "x.png")).std() > 10


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


@pytest.mark.parametrize(("name", "epochs"), [("mlp", 8), ("cnn", 3)])
def test_as_accurate_as_pytorch(name: str, epochs: int) -> None:
    """The same weights, batches, optimizer and rates: those that `engine.fit` takes when none are given."""
    torch = pytest.importorskip("torch")
    images, labels, test_images, test_labels = digits.digits()
    with layers.seeded(0):
        net = getattr(digits, name)()
    theirs = twin(net)
    losses = digits.train(net, images, labels, epochs)["loss"]
    mine = digits.accuracy(net, test_images, test_labels)

    x, y, test = (
        torch.tensor(a.copy()) for a in (images.transpose(0, 3, 1, 2), labels, test_images.transpose(0, 3, 1, 2))
    )
    parts = math.ceil(len(x) / 64)
    total = parts * epochs
    warm = total // 20
    decays: list[Any] = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": decays}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: (k + 1) / warm if k < warm else 0.5 * (1 + math.cos(math.pi * (k - warm) / (total - warm))),
    )
    order = np.random.Generator(np.random.Philox(0))
    expected = []
    for _ in range(epochs):
        mean = 0.0
        for batch in np.array_split(order.permutation(len(x)), parts):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(theirs(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            rates.step()
            mean += loss.item() * len(batch) / len(x)
        expected.append(mean)
    # roundings grow with the steps
    np.testing.assert_allclose(losses, expected, rtol=0.03)
    np.testing.assert_allclose(losses[0], expected[0], rtol=1e-3)
    with torch.no_grad():
        reference = (theirs(test).argmax(1).numpy() == test_labels).mean()
    assert reference > 0.9
    # two standard errors of a share of 500 images
    noise = 2 * math.sqrt(reference * (1 - reference) / len(test_labels))
    assert mine >= reference - noise
