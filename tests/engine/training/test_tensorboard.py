"""TensorBoard events, read back by TensorBoard itself; the files are written by another package."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.report import command
from engine.training import tensorboard
from engine.training.reporting import read_rows
from tests.support.tiny_runs import ended, flags, results, run, stop_in_step

pytest.importorskip("tensorboardX")
accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard, which reads the events, is missing"
)
SCORED = ("soil", "bedrock", "sand", "big_rock")  # TensorBoard has no spaces in names


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Value by step, by tag; each step has one value only."""
    reader = accumulator.EventAccumulator(str(folder / "tensorboard"), {accumulator.SCALARS: 0})
    reader.Reload()
    found = {}
    for tag in reader.Tags()["scalars"]:
        values = [(event.step, event.value) for event in reader.Scalars(tag)]
        assert len({step for step, _ in values}) == len(values), tag
        found[tag] = dict(values)
    return found


def expected(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """What the epochs' rows say, tag by tag."""
    wanted: dict[str, dict[int, float]] = {}
    for row in rows:
        for tag, value in (
            ("train/loss", row["train_loss"]),
            ("validation/miou_fg", row["val_miou_fg"]),
            ("learning_rate", row["learning_rate"]),
            ("gradient_norm/mean", row["gradient_norm"]),
            ("gradient_norm/head", row["gradient_norms"]["head"]),
            *((f"train/{name}", value) for name, value in row["terms"].items()),
            *((f"validation/iou/{name}", value) for name, value in zip(SCORED, row["iou"], strict=True)),
        ):
            wanted.setdefault(tag, {})[row["step"]] = pytest.approx(value, rel=1e-6)
    return wanted


def test_events_of_a_run_are_its_rows_and_move_no_bit(tiles: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(flags(tiles, out, "--tensorboard")) == 0
    assert results(out) == results(whole)
    found = events(out)
    assert {tag: found[tag] for tag in expected(read_rows(out))} == expected(read_rows(out))
    assert list(found["step/loss"]) == [1, 2, 3, 4, 5, 6]
    mean = sum(found["step/loss"][k] for k in (1, 2, 3)) / 3
    assert mean == pytest.approx(found["train/loss"][3], rel=0.2)
    assert set(found["epoch"].values()) == {1, 2}


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resumed_run_replaces_what_it_repeats(
    tiles: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_in_step(stop, 2, patch)
        assert run(flags(tiles, out, "--tensorboard")) == 130
    assert run([f"--resume={out}", "--tensorboard"]) == 0
    assert results(out) == results(whole)
    found = events(out)
    assert list(found["step/loss"]) == [1, 2, 3, 4, 5, 6]
    assert {tag: found[tag] for tag in expected(read_rows(out))} == expected(read_rows(out))


def test_two_files_of_one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    for first, values in ((1, (1.0, 2.0, 3.0)), (3, (30.0, 40.0))):
        with tensorboard._writer(tmp_path, first) as writer:
            for step, value in enumerate(values, first):
                writer.add_scalar("loss", value, step)
    assert events(tmp_path)["loss"] == {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}


def test_overwrite_removes_the_old_events(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(flags(tiles, out, "--tensorboard")) == 0
    assert run(flags(tiles, out, "--overwrite", epochs=1)) == 0
    assert list((out / "tensorboard").iterdir()) == []


def test_events_of_a_finished_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    assert command.run(command.Arguments((copy,), tiles=0, tensorboard=True)) == 0
    assert f"tensorboard --logdir {copy / 'tensorboard'}" in "".join(capsys.readouterr()).splitlines()[-1]
    found = events(copy)
    assert {tag: found[tag] for tag in expected(read_rows(copy))} == expected(read_rows(copy))
    before = found
    assert command.run(command.Arguments((copy,), tiles=0, tensorboard=True)) == 0
    assert "were there already" in "".join(capsys.readouterr()).splitlines()[-1]
    assert events(copy) == before


def test_rows_of_an_earlier_version(tmp_path: Path) -> None:
    """Without steps, norms, and with a class that has no score: over epochs."""
    row = {"epoch": 3, "train_loss": -0.5, "val_miou_fg": 0.5, "val_miou_keras": 0.4, "iou": [0.1, None]}
    tensorboard.write_events(tmp_path, [row | {"learning_rate": 0.1, "images_per_second": 9.0}], ("a", "b"))
    found = events(tmp_path)
    assert found["train/loss"] == {3: -0.5}
    assert "validation/iou/a" in found
    assert "validation/iou/b" not in found


def test_a_missing_package_is_one_line_and_nothing_is_written(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorboardX" else find(name, *a)
    )
    code, line = ended(flags(tiles, tmp_path / "run", "--tensorboard"), capsys)
    assert code == 2
    assert re.search(r"--tensorboard: needs the package tensorboardX \(pip install tensorboardX\)", line)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_line(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "tensorboard").write_text("a file")
    code, line = ended(flags(tiles, out, "--tensorboard"), capsys)
    assert code == 2
    assert f"cannot write {out / 'tensorboard'}" in line
