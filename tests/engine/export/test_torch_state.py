"""State dicts of the PyTorch twin, both ways; the twin itself has every option of the network."""

from __future__ import annotations

import inspect
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, inference
from engine.build import network_options
from engine.export.channels import channels_first, channels_last
from engine.export.graph import ExportError
from engine.export.torch_state import torch_file, with_weights
from engine.training.checkpoint import Checkpoint
from layers import UNet
from tests.support.paths import ROOT
from tests.support.random_networks import FORMS, OPTIONS, random_checkpoint

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

from engine.export.twin import TwinUNet  # noqa: E402 - needs PyTorch

CASES = {name: (FORMS["mars"], settings) for name, settings in OPTIONS.items()} | {
    name: (FORMS[name], {"bottleneck": "none"}) for name in ("binary", "rgb")
}


def logits(checkpoint: Checkpoint, twin: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the twin's in float64, (N, H, W, C)."""
    x = np.random.default_rng(0).standard_normal((1, 16, 24, checkpoint.form.channels))
    checkpoint.net.to(dtype=np.float64)
    with inference():
        ours = checkpoint.net(Tensor(x)).numpy()
    theirs = twin.double().eval()(torch.from_numpy(x).permute(0, 3, 1, 2))
    return ours, theirs.detach().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_makes_the_twin_the_same_network(name: str) -> None:
    (form, normalisation, _), settings = CASES[name]
    checkpoint = random_checkpoint(form, normalisation, **settings)
    state = torch.load(io.BytesIO(torch_file(checkpoint.net)), weights_only=True)
    twin = TwinUNet(**network_options(checkpoint.config, form))
    own = twin.state_dict()
    assert state.keys() == own.keys()
    assert {name: tensor.dtype for name, tensor in state.items()} == {name: t.dtype for name, t in own.items()}
    twin.load_state_dict(state, strict=True)
    ours, theirs = logits(checkpoint, twin)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())


@pytest.mark.parametrize("name", CASES)
def test_and_back(name: str, tmp_path: Path) -> None:
    """Weights that PyTorch drew; in half the accuracy, too."""
    (form, normalisation, _), settings = CASES[name]
    checkpoint = random_checkpoint(form, normalisation, record={"epoch": 3}, **settings)
    torch.manual_seed(0)
    twin = TwinUNet(**network_options(checkpoint.config, form))
    for tensor in twin.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.ndim < 2 else 0.3 * torch.randn(tensor.shape))
    torch.save(twin.half().state_dict(), tmp_path / "tuned.pt")
    tuned = with_weights(checkpoint, tmp_path / "tuned.pt")
    assert tuned.record == {}, "the scores are those of other weights"
    assert (tuned.config, tuned.form) == (checkpoint.config, checkpoint.form)
    ours, theirs = logits(tuned, twin)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())


def test_the_twin_has_the_options_and_defaults_of_the_network() -> None:
    ours, theirs = (
        {name: p.default for name, p in inspect.signature(kind).parameters.items()} for kind in (UNet, TwinUNet)
    )
    assert ours.pop("seed") is None
    assert ours.pop("dropout") == 0.1
    assert theirs.pop("dropout") == 0.0
    assert ours == theirs


def test_the_file_of_the_twin_needs_nothing_but_pytorch() -> None:
    import ast

    import engine.export.twin

    tree = ast.parse(inspect.getsource(engine.export.twin))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "typing", "torch", "torch.nn.functional"}


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python shown\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    checkpoint = random_checkpoint()
    Path("net.pt").write_bytes(torch_file(checkpoint.net))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["logits"].shape == (1, 5, 64, 128)
    assert with_weights(checkpoint, Path("tuned.pt")).record == {}


def test_channels_first_and_last_are_inverse() -> None:
    net = random_checkpoint(bottleneck="mhsa").net
    first = channels_first(net)
    state = net.state_dict()
    assert first["bottleneck.positions"].shape == (1, 32, 8, 16)
    assert first["decoders.0.up.weight"].shape == (32, 16, 2, 2)
    assert first["encoders.0.steps.0.first.conv.weight"].shape == (4, 1, 3, 3)
    back = channels_last(net, first)
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, back[name])


def assert_refused(checkpoint: Checkpoint, path: Path, message: str) -> None:
    before = checkpoint.net.state_dict()
    with pytest.raises(ExportError) as caught:
        with_weights(checkpoint, path)
    assert str(caught.value).startswith(f"--from-torch {path}: ")
    assert message in str(caught.value)
    for name, array in checkpoint.net.state_dict().items():
        np.testing.assert_array_equal(array, before[name], name)


def test_files_that_hold_no_state_of_the_network(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(bottleneck="none")
    state = torch.load(io.BytesIO(torch_file(checkpoint.net)), weights_only=True)
    weight = state["head.weight"]

    def saved(value: Any) -> Path:
        torch.save(value, tmp_path / "state.pt")
        return tmp_path / "state.pt"

    assert_refused(checkpoint, tmp_path / "nothing.pt", "no such file")
    assert_refused(checkpoint, tmp_path, "not an ordinary file")
    (tmp_path / "text.pt").write_text(json.dumps([1, 2]))
    assert_refused(checkpoint, tmp_path / "text.pt", "not a readable PyTorch file of tensors")
    assert_refused(checkpoint, saved([weight]), "got a list, expected a state dict")
    assert_refused(checkpoint, saved({"state_dict": state}), "its key 'state_dict' holds a dict, expected a state dict")
    assert_refused(checkpoint, saved(TwinUNet(4)), "not a readable PyTorch file of tensors")  # a pickled class
    assert_refused(checkpoint, saved({k: v for k, v in state.items() if k != "head.bias"}), "missing head.bias")
    assert_refused(checkpoint, saved({**state, "more": weight}), "unknown more")
    assert_refused(checkpoint, saved({**state, "head.weight": weight[:, :3]}), "head.weight has shape (1, 1, 3, 5)")
    assert_refused(checkpoint, saved({**state, "head.weight": weight[0]}), "head.weight has shape (4, 1, 1)")
    bad = weight.clone()
    bad[0, 0] = float("nan")
    assert_refused(checkpoint, saved({**state, "head.weight": bad}), "head.weight has 1 of 20 values that are NaN")
    assert_refused(checkpoint, saved({**state, "head.weight": weight.to_sparse()}), "head.weight cannot be used")
