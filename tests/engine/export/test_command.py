"""The command: files of a real run in every format, back from PyTorch, and bad input, which writes nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.cli import UsageError, parsed
from engine.evaluate import Arguments as EvaluateArguments
from engine.evaluate import evaluate
from engine.export import __main__ as export
from engine.training.checkpoint import load_checkpoint
from tests.support.tiny_runs import ended


def run(arguments: list[str]) -> int:
    return export.run(parsed(export.Arguments, "python -m engine.export", args=arguments))


@pytest.fixture(scope="module")
def exported(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run, with measured scores."""
    for name in ("onnx", "torch"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    out = tmp_path_factory.mktemp("exported") / "net"
    line = [str(whole), "--out", str(out), "--format", "onnx", "torch", "safetensors", "--evaluate", "val"]
    assert run([*line, "--licence", "CC BY 4.0"]) == 0
    return out


def test_all_formats_at_once(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"model.onnx", "model.pt", "model.safetensors", "model.md"}
    card = (exported / "model.md").read_text()
    for words in ("`model.onnx` is an ONNX", "`model.pt` is a PyTorch", "`model.safetensors` holds", "CC BY 4.0"):
        assert words in card


def test_the_card_has_the_scores_of_evaluate(whole: Path, exported: Path) -> None:
    result = evaluate(EvaluateArguments((whole / "best.safetensors",)))
    card = (exported / "model.md").read_text()
    low, high = result["miou_fg_interval"]
    assert f"| mean IoU, fg | {result['miou_fg']:.3f} | {low:.3f} to {high:.3f} |" in card
    for name, value in result["iou"].items():
        low, high = result["iou_intervals"][name]
        assert f"| IoU, {name} | {value:.3f} | {low:.3f} to {high:.3f} |" in card
    assert np.sum(result["confusion"]) > result["pixels"], "also pixels without a label"
    assert np.sum(result["confusion"][1:]) == result["pixels"]


def test_any_safetensors_reader_finds_plain_names(whole: Path, exported: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    arrays = load_file(exported / "model.safetensors")
    state = load_checkpoint(whole / "best.safetensors").net.state_dict()
    assert arrays.keys() == state.keys()
    assert "encoders.0.steps.0.conv.weight" in arrays
    for name, array in state.items():
        np.testing.assert_array_equal(arrays[name], array)
    with safe_open(exported / "model.safetensors", "numpy") as file:
        about = json.loads(file.metadata()["areograd"])
    assert about["form"]["classes"]["names"][1] == "soil"
    assert about["normalisation"]["std"] > 0


def test_a_round_trip_through_pytorch_changes_no_bit(whole: Path, exported: Path, tmp_path: Path) -> None:
    line = ["--from-torch", str(exported / "model.pt"), "--out", str(tmp_path / "back.safetensors")]
    assert run([str(whole / "best.safetensors"), *line]) == 0
    back = load_checkpoint(tmp_path / "back.safetensors")
    first = load_checkpoint(whole / "best.safetensors")
    for name, array in first.net.state_dict().items():
        np.testing.assert_array_equal(back.net.state_dict()[name], array)
    assert (back.config, back.form, back.normalisation) == (first.config, first.form, first.normalisation)
    assert back.record == {}
    assert "These weights have not been scored." in (tmp_path / "back.md").read_text()
    files = tmp_path / "back.safetensors", whole / "best.safetensors"
    scores = [evaluate(EvaluateArguments((path,))) for path in files]
    assert scores[0]["confusion"] == scores[1]["confusion"]


def test_where_files_go(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder or a file; beside the checkpoint by default; formats by the file's name; several with one stem."""

    def names(*more: str) -> dict[str, str]:
        arguments = parsed(export.Arguments, "export", args=[str(whole), *more])
        return {form: os.path.relpath(path) for form, path in export.targets(arguments).items()}

    monkeypatch.chdir(tmp_path)
    inside = os.path.relpath(whole / "export")
    assert names() == {"onnx": f"{inside}/model.onnx", "card": f"{inside}/model.md"}
    assert names("--format", "torch", "torch")["torch"] == f"{inside}/model.pt"
    assert names("--out", "a/mars.onnx") == {"onnx": "a/mars.onnx", "card": "a/mars.md"}
    assert names("--out", "v1.2.PTH") == {"torch": "v1.2.PTH", "card": "v1.2.md"}
    assert names("--out", "x.pt", "--format", "onnx", "torch") == {"onnx": "x.onnx", "torch": "x.pt", "card": "x.md"}
    assert names("--out", "a.b") == {"onnx": "a.b/model.onnx", "card": "a.b/model.md"}
    assert names("--from-torch", "t.pt", "--out", "a")["safetensors"] == "a/model.safetensors"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        UsageError, match=r"invalid choice 'tflite' .* Expected one of \('onnx', 'torch', 'safetensors'\)"
    ):
        names("--format", "tflite")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "checkpoint nothing: no such file"),
        (["."], ".: is no run folder with a trained network (it holds no best.safetensors)"),
        (["text"], "checkpoint text: not a readable safetensors file"),
        (
            ["RUN", "--out", "a.onnx", "--format", "torch"],
            "--out a.onnx: is a file of onnx, but --format asks for torch",
        ),
        (["RUN", "--out", "taken"], "--out taken/model.onnx: is there already; give another name, or --overwrite"),
        (["RUN", "--out", "folder.onnx"], "--out folder.onnx: is a folder, expected a file"),
        (["RUN", "--out", "text/a"], "text is no folder"),
        (["RUN", "--from-torch", "nothing.pt"], "--from-torch nothing.pt: no such file"),
        (["RUN", "--from-torch", "text"], "--from-torch text: not a readable PyTorch file of tensors"),
        (
            ["RUN", "--from-torch", "t.pt", "--out", "t.pt", "--overwrite"],
            "--out t.pt: would replace what it is made from",
        ),
        (
            ["copy.safetensors", "--out", "copy.safetensors"],
            "--out copy.safetensors: would replace what it is made from",
        ),
        (["RUN", "--out", "a", "--evaluate", "test"], "--split test: "),
        (["RUN", "--out", "a", "--threads", "-1"], "--threads: got -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: list[str],
    words: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no checkpoint")
    Path("t.pt").write_text("no tensors")
    Path("taken").mkdir()
    Path("taken/model.onnx").write_text("something")
    Path("folder.onnx").mkdir()
    Path("copy.safetensors").write_bytes((whole / "best.safetensors").read_bytes())

    def there() -> set[Path]:
        return {*tmp_path.rglob("*"), *whole.rglob("*")}

    before = there()
    code, line = ended([str(whole) if word == "RUN" else word for word in arguments], capsys, run)
    assert code == 2
    assert words in line
    assert there() == before
    assert Path("taken/model.onnx").read_text() == "something"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    code, line = ended([str(whole), "--out", str(tmp_path / "shut" / "a")], capsys, run)
    assert code == 2
    assert "cannot write there (Permission denied)" in line


@pytest.mark.parametrize(
    ("package", "arguments", "argument"),
    [("onnx", [], "--format onnx"), ("torch", ["--format", "torch"], "--format torch"),
     ("torch", ["--from-torch", "t.pt"], "--from-torch")],
)  # fmt: skip
def test_a_missing_package_is_named(
    package: str,
    arguments: list[str],
    argument: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, line = ended([str(whole), "--out", str(tmp_path / "a"), *arguments], capsys, run)
    assert (code, line) == (2, f"error: {argument}: {package} is not installed (pip install {package})\n")
    assert list(tmp_path.iterdir()) == []


def test_without_packages_a_checkpoint_can_be_copied(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxruntime", "torch"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run([str(whole), "--out", str(tmp_path / "net.safetensors")]) == 0
    assert (tmp_path / "net.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    assert run([str(whole), "--out", str(tmp_path / "net.safetensors"), "--overwrite"]) == 0
