"""A main network and one that knows a rare class: classes of several values, how the two are fused, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine import dual
from engine.cli import UsageError, parsed
from engine.config import ConfigError
from engine.data import MARS
from engine.data.classes import counted, from_dict, read_classes
from engine.data.npz import load_npz
from tests.support.tiny_runs import NETWORK, ended, run

ROCK = """ignore = 0
[[class]]
name = "rest"
value = [1, 2, 3]
[[class]]
name = "big rock"
value = 4
"""


@pytest.fixture
def rock(tmp_path: Path) -> Path:
    path = tmp_path / "rock.toml"
    path.write_text(ROCK)
    return path


def test_a_class_stands_for_several_values(rock: Path, tiles: Path) -> None:
    classes = read_classes(rock)
    assert classes.names == ("rest", "big rock")
    np.testing.assert_array_equal(classes.table[:6], [255, 0, 0, 0, 1, -1])
    given, mars = load_npz(tiles, classes)[0].labels(), load_npz(tiles, MARS)[0].labels()
    np.testing.assert_array_equal(given, np.array([255, 0, 0, 0, 1], np.uint8)[mars])
    assert classes.expected == "whole labels 0..4"


def test_several_values_survive_json(rock: Path) -> None:
    from dataclasses import asdict

    classes = read_classes(rock)
    assert from_dict(json.loads(json.dumps(asdict(classes)))) == classes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[]", "got an empty list for a value"),
        ("[1, 4]", "the value 4 stands for two things"),
        ("[1, 1]", "the value 1 stands for two things"),
        ("[1, 'x']", "got the value 'x', expected a whole number"),
        ("[1, [2]]", r"got the value \[2\], expected a whole number"),
        ("[1, 70000]", "got the value 70000"),
    ],
)
def test_wrong_lists_of_values(value: str, message: str, rock: Path) -> None:
    rock.write_text(ROCK.replace("[1, 2, 3]", value))
    with pytest.raises(ConfigError, match=message):
        read_classes(rock)


def test_a_sure_auxiliary_network_raises_the_rare_class() -> None:
    """Three pixels, classes 0 to 2, class 2 is rare: not sure enough; sure, and most probable then; sure, and still not
    most probable.
    """
    p = np.array([[[[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.9, 0.0, 0.1]]]], np.float32)
    q = np.array([[[0.6, 0.8, 0.8]]], np.float32)
    assert dual.fused_labels(p, q, 2, 0.7).tolist() == [[[0, 2, 0]]]
    assert dual.fused_labels(p, q, 2, 0.5).tolist() == [[[2, 2, 0]]]
    assert dual.fused_labels(p, q, 2, dual.ALONE).tolist() == [[[0, 0, 0]]]
    lower = np.full((1, 1, 3), 0.05, np.float32)
    assert dual.fused_labels(p[..., ::-1], lower, 2, 0.0).tolist() == [[[2, 2, 2]]]  # it never lowers


def test_each_half_is_measured_with_the_other_half_s_threshold() -> None:
    """Two thresholds, two source images of two tiles: the first image is right with threshold 0 only, the second with 1
    only.
    """
    right, wrong = np.diag([3, 3]), np.array([[0, 3], [3, 0]])
    counts = np.array([[right, right, wrong, wrong], [wrong, wrong, right, right]])
    units = np.array(["a", "a", "b", "b"])
    np.testing.assert_array_equal(dual.cross_tuned(counts, units, lambda c: np.trace(c)), 4 * wrong)
    np.testing.assert_array_equal(dual.cross_tuned(counts[:, [0, 1, 0, 1]], units, lambda c: np.trace(c)), 4 * right)


def test_the_rare_class_is_found_by_its_name(rock: Path) -> None:
    classes = read_classes(rock)
    assert dual.shared_class(MARS, classes) == (4, 1)
    with pytest.raises(UsageError, match="--name: got 'sand', expected one that both networks know: big rock"):
        dual.shared_class(MARS, classes, "sand")
    with pytest.raises(UsageError, match=r"--name: the networks share 0 names of classes \(none\)"):
        dual.shared_class(MARS, counted(2))
    with pytest.raises(UsageError, match="--name: the networks share 4 names of classes"):
        dual.shared_class(MARS, MARS)


def test_the_command(rock: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The main network alone has the figure of its run; a fused figure is that of labels fused by hand."""
    from engine.data.preparation import prepare
    from engine.training.checkpoint import load_checkpoint
    from engine.training.metrics import confusion_matrix, scores

    line = [f"--data={tiles}", "--epochs=1", "--batch=8", *NETWORK]
    assert run([*line, f"--out={tmp_path / 'main'}"]) == 0
    assert run([*line, f"--classes={rock}", "--clean=remove", f"--out={tmp_path / 'rare'}"]) == 0
    paths = [str(tmp_path / name / "best.safetensors") for name in ("main", "rare")]
    result = dual.dual(parsed(dual.Arguments, "dual", args=paths))
    summary = json.loads((tmp_path / "main" / "summary.json").read_text())
    assert result["alone"]["miou_fg"] == pytest.approx(summary["val_miou_fg"], abs=1e-12)
    assert [row["threshold"] for row in result["fused"]] == list(dual.THRESHOLDS)
    assert result["best"]["miou_fg"] == max(row["miou_fg"] for row in result["fused"])

    networks = [load_checkpoint(Path(path)) for path in paths]
    val = prepare(networks[0].config).val
    p, q = (network.probabilities(val.images) for network in networks)
    assert (p[..., 0] == 0).all()
    np.testing.assert_allclose(q.sum(-1), 1, rtol=1e-5)
    p[..., 4] = np.where(q[..., 1] > 0.3, np.maximum(p[..., 4], q[..., 1]), p[..., 4])
    want = scores(confusion_matrix(val.labels(), p.argmax(-1)), MARS)
    assert result["fused"][5]["threshold"] == 0.3
    assert result["fused"][5]["miou_fg"] == pytest.approx(want.miou_fg, abs=1e-12)

    capsys.readouterr()
    assert dual.run(parsed(dual.Arguments, "dual", args=[*paths, "--threshold=0.3"])) == 0
    assert f"fg {want.miou_fg:.4f}" in capsys.readouterr().out


def test_bad_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: list[str]) -> int:
        return dual.run(parsed(dual.Arguments, "dual", args=arguments))

    assert ended(["a", "b", "--threshold=2"], capsys, main) == (2, "error: --threshold: got 2, expected 0 to 1\n")
    code, text = ended([str(tmp_path / "a"), "b"], capsys, main)
    assert code == 2
    assert "no such file" in text
