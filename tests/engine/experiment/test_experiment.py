"""Grids of runs: what a grid file may say, the statistics against hand-computed values, and a grid that is run, stopped
and gone on with.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from engine.build import Form
from engine.config import ConfigError, from_dict, read_toml, to_toml
from engine.data.preparation import prepare
from engine.experiment import __main__ as experiment_main
from engine.experiment import runs as experiment_runs
from engine.experiment.__main__ import Arguments, run
from engine.experiment.grid import names, read_grid
from engine.experiment.runs import alike, conflict, outcome, runs_of
from engine.experiment.statistics import Outcome, difference, summarise
from engine.training.run_folder import RunFolder, holds_state

TINY = """
title = "Trial"
[settings]
preset = "tiny"
tiles = 60
epochs = 1
width = 4
[[axis]]
name = "loss"
[[axis.option]]
name = "combined"
published = 0.6264
[[axis.option]]
name = "margin"
settings = { dice = 0.0, focal = 0.0, iou = 0.0 }
"""


def grid_file(folder: Path, text: str) -> str:
    path = folder / "trial.toml"
    path.write_text(text)
    return str(path)


# -- grid files --------------------------------------------------------------------------------------------------------


def test_cells_are_the_product_of_the_axes(tmp_path: Path) -> None:
    second = (
        '[[axis]]\nname = "background"\n[[axis.option]]\nname = "masked"\n[[axis.option]]\nname = "trained"\nsettings '
        '= { background = "train" }\n'
    )
    grid = read_grid(grid_file(tmp_path, TINY + second))
    assert [cell.name for cell in grid.cells] == [
        "combined, masked",
        "combined, trained",
        "margin, masked",
        "margin, trained",
    ]
    assert grid.cells[3].options == {"loss": "margin", "background": "trained"}
    config = grid.cells[3].config(seed=2)
    assert (config.dice, config.margin, config.background, config.width, config.seed) == (0.0, 0.4, "train", 4, 2)
    assert [cell.published for cell in grid.cells] == [0.6264, 0.6264, None, None]
    assert grid.baseline is grid.cells[0]


@pytest.mark.parametrize("name", names())
def test_every_grid_of_the_package_is_valid_and_trains_at_one_budget(name: str) -> None:
    grid = read_grid(name)
    configs = [cell.config() for cell in grid.cells]
    assert len({(c.batch, c.width) for c in configs}) == 1
    assert len({c.epochs for c in configs}) == 1 or name == "longer"  # whose axis is the budget
    assert configs[0].width >= 16
    assert configs[0].epochs >= 25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 3", "title is 3, expected str"),
        ('titel = "x"', "unknown key 'titel', expected one of title, baseline, settings, axis"),
        ('title = "x"', r"at least one \[\[axis\]\]"),
        (TINY.replace("width", "widht"), "cell 'combined': unknown setting 'widht'"),
        (TINY.replace("dice = 0.0", "dice = -1.0"), "cell 'margin': dice: got -1.0"),
        ('baseline = "nothing"\n' + TINY, "baseline is 'nothing', expected one of combined; margin"),
        (TINY.replace('"margin"', '"Combined"'), "two cells have the same name"),
        ("x = [", "no valid TOML"),
    ],
)
def test_a_bad_grid_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_grid(grid_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_grid_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere': No such file.*one of .*bottlenecks.*losses"):
        read_grid("nowhere")


def test_folds_hold_out_every_tile_once_and_share_no_source(tmp_path: Path) -> None:
    runs = runs_of(read_grid(grid_file(tmp_path, TINY)), tmp_path, 3, {}, folds=4)
    assert [run.folder.relative_to(tmp_path).as_posix() for run in runs[:3]] == [
        "combined/fold-0-of-4",
        "margin/fold-0-of-4",
        "combined/fold-1-of-4",
    ]
    parts = [prepare(run.config) for run in runs[::2]]
    held_out = [image.tobytes() for part in parts for image in part.val.images]
    assert len(held_out) == len(set(held_out)) == len(parts[0].train) + len(parts[0].val)
    for part in parts:
        assert not set(part.train.sources) & set(part.val.sources)
    with pytest.raises(ConfigError, match="folds, fold: got 4 and 4, expected"):
        from_dict({"folds": 4, "fold": 4})


# -- statistics --------------------------------------------------------------------------------------------------------


def result(seed: int, *tiles: tuple[str, int, int]) -> Outcome:
    """Tiles of (source image, class-1 pixels predicted right, class-1 pixels predicted as class 2)."""
    confusion = np.zeros((len(tiles), 3, 3), np.int64)
    for k, (_, right, wrong) in enumerate(tiles):
        confusion[k, 1, 1], confusion[k, 1, 2] = right, wrong
    return Outcome(seed, confusion, np.array([source for source, _, _ in tiles]))


def test_summary_by_hand() -> None:
    """Class 1 has IoU right / all; class 2 is only ever predicted wrongly, IoU 0: fg is half of class 1's IoU."""
    summary = summarise([result(0, ("a", 8, 2)), result(1, ("b", 2, 8))])
    assert summary.runs == 2
    assert summary.mean == pytest.approx((0.4 + 0.1) / 2)
    assert summary.deviation == pytest.approx(math.sqrt(2 * 0.15**2))
    assert summary.pooled.miou_fg == pytest.approx(0.25)
    # two source images: both draws of one and the same are common
    assert summary.interval == (
        pytest.approx(0.1),
        pytest.approx(0.4),
    )
    assert math.isnan(summarise([result(0, ("a", 8, 2))]).deviation)


def test_tiles_of_one_source_image_are_drawn_together() -> None:
    """Twenty tiles of one image, half right and half wrong, are one draw: no interval at all."""
    one = [result(0, *[("a", 10 * (k % 2), 10 * (1 - k % 2)) for k in range(20)])]
    assert summarise(one).interval == (pytest.approx(0.25), pytest.approx(0.25))
    apart = [result(0, *[(f"{k}", 10 * (k % 2), 10 * (1 - k % 2)) for k in range(20)])]
    low, high = summarise(apart).interval
    assert low < 0.2
    assert high > 0.3


def test_difference_is_paired() -> None:
    """Images differ by far more than the configurations do, yet the difference is the same on each: its interval is
    narrow.
    """
    rng = np.random.default_rng(0)
    right = rng.integers(100, 900, 40)
    baseline = [result(0, *[(f"{k}", int(r), 1000 - int(r)) for k, r in enumerate(right)])]
    better = [result(0, *[(f"{k}", int(r) + 50, 950 - int(r)) for k, r in enumerate(right)])]
    found = difference(better, baseline)
    assert found is not None
    assert found.value == pytest.approx(0.025)
    assert found.interval == (pytest.approx(0.025), pytest.approx(0.025))
    assert found.clear
    low, high = summarise(baseline).interval
    assert high - low > 0.04
    same = difference(baseline, baseline)
    assert same is not None
    assert same.interval == (0, 0)
    assert not same.clear


def test_difference_takes_the_common_seeds_only() -> None:
    ours = [result(0, ("a", 8, 2)), result(1, ("a", 10, 0))]
    baseline = [result(0, ("a", 6, 4)), result(2, ("a", 0, 10))]
    found = difference(ours, baseline)
    assert found is not None
    assert (found.seeds, found.value) == (1, pytest.approx(0.1))
    assert difference(ours, [result(7, ("a", 1, 1))]) is None


# -- runs --------------------------------------------------------------------------------------------------------------


def test_logs_name_the_data_by_its_last_name_only(tmp_path: Path) -> None:
    """Logs are committed and read on other machines."""
    one = runs_of(read_grid("losses"), tmp_path / "out", 1, {"data": "/somewhere/else/tiles.npz"})[0]
    one.folder.mkdir(parents=True)
    for name in ("config.toml", "metrics.jsonl", "summary.json", "validation.npz"):
        (one.folder / name).write_text(to_toml(one.config) if name == "config.toml" else "x")
    experiment_runs.keep(one, tmp_path / "logs", read_grid("losses"))
    kept = tmp_path / "logs/losses/combined-masked/seed-0"
    assert read_toml(kept / "config.toml") == replace(one.config, data="tiles.npz")
    assert (kept / "metrics.jsonl").read_text() == "x"


def test_focal_and_dice_have_no_mixed_reading_of_their_own() -> None:
    groups = [
        [run.cell.name for run in group] for group in alike(runs_of(read_grid("losses"), Path("out"), 1, {})).values()
    ]
    assert [group for group in groups if len(group) > 1] == [["focal + dice, trained", "focal + dice, mixed"]]
    assert len(groups) == 11


def test_runs_with_the_same_result_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = grid_file(tmp_path, TINY + '[[axis.option]]\nname = "combined again"\nsettings = { dice = 0.2 }\n')
    trained: list[str] = []

    def leaves_logs(one: experiment_runs.Run, *_: object) -> None:
        trained.append(one.cell.name)
        one.folder.mkdir(parents=True)
        (one.folder / "config.toml").write_text(to_toml(one.config))
        (one.folder / "summary.json").write_text('{"interrupted": false}')
        for name in ("metrics.jsonl", "validation.npz"):
            (one.folder / name).write_text(one.cell.name)

    monkeypatch.setattr(experiment_runs, "train", leaves_logs)
    monkeypatch.setattr(experiment_main, "measure", lambda _one: None)
    monkeypatch.setattr(experiment_main, "write_results", lambda *_: "")
    assert run(Arguments(source, seeds=1, out=tmp_path / "out")) == 0
    assert trained == ["combined", "margin"]
    assert (tmp_path / "out/combined-again/seed-0/metrics.jsonl").read_text() == "combined"


@pytest.mark.slow
def test_a_grid_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, logs = grid_file(tmp_path, TINY), tmp_path / "out", tmp_path / "logs"
    trained: list[str] = []
    plain = experiment_runs.train

    def counted(one, *rest):
        trained.append(one.cell.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        plain(one, *rest)

    monkeypatch.setattr(experiment_runs, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        run(Arguments(source, seeds=1, out=out))
    assert trained == ["combined", "margin"]
    assert "| combined | 1 |" in (out / "results.md").read_text()  # there is something to read already
    assert run(Arguments(source, seeds=1, out=out, logs=logs)) == 0
    assert trained == ["combined", "margin", "margin"]
    capsys.readouterr()

    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cell"], row["seed"], row["axis:loss"]) for row in rows] == [
        ("combined", "0", "combined"),
        ("margin", "0", "margin"),
    ]
    (combined, margin) = runs_of(read_grid(source), out, 1, {})
    assert float(rows[0]["miou_fg"]) == pytest.approx(combined.summary["val_miou_fg"])
    assert float(rows[1]["miou_keras"]) == pytest.approx(margin.summary["val_miou_keras"])
    assert outcome(combined).confusion.shape[1:] == (5, 5)
    assert len(outcome(combined).confusion) == combined.summary["val_tiles"]
    assert (out / "results.png").stat().st_size > 1000

    kept = sorted(path.relative_to(logs).as_posix() for path in logs.glob("**/*.*"))
    assert kept == [
        f"trial/margin/seed-0/{name}" for name in ("config.toml", "metrics.jsonl", "summary.json", "validation.npz")
    ]
    assert run(Arguments(source, seeds=1, out=tmp_path / "other", logs=logs, jobs=2)) == 0
    assert trained == ["combined", "margin", "margin", "combined"], "margin is taken from the logs"
    assert f"margin, seed 0: taken from {logs / 'trial/margin/seed-0'}" in capsys.readouterr().err
    assert (tmp_path / "other/results.md").read_text() == (out / "results.md").read_text()
    assert run(Arguments(source, seeds=1, out=tmp_path / "third", logs=logs)) == 0
    assert len(trained) == 4, "what was trained has been kept"
    assert run(Arguments(source, seeds=1, out=tmp_path / "fourth", logs=logs, tables_only=True)) == 0
    assert (tmp_path / "fourth/results.md").read_text() == (out / "results.md").read_text()

    assert run(Arguments(source, seeds=2, out=out, tables_only=True)) == 0
    assert "| margin | 1 |" in capsys.readouterr().out
    (changed, _) = runs_of(read_grid(source), out, 1, {"epochs": 3})
    assert conflict(changed) == f"{combined.folder}: its epochs is 1, the grid asks for 3; give another --out"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_a_terminated_grid_saves_its_runs_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM to the grid's process alone: both runs save their states, and nothing is left running."""
    source, out = grid_file(tmp_path, TINY.replace("epochs = 1", "epochs = 500")), tmp_path / "out"
    command = [sys.executable, "-m", "engine.experiment", source, "--seeds=1", "--jobs=2", f"--out={out}"]
    grid = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen = ""
    while not ("combined, seed 0: epoch   2" in seen and "margin, seed 0: epoch   2" in seen):
        line = grid.stderr.readline()
        assert line, f"the grid ended: {seen}"
        seen += line
    grid.terminate()
    grid.communicate(timeout=60)
    assert grid.returncode == 143
    for cell in ("combined", "margin"):
        assert holds_state(out / cell / "seed-0")
        assert json.loads((out / cell / "seed-0/summary.json").read_text())["interrupted"] is True
        with RunFolder(out / cell / "seed-0"):  # FolderError while another process is writing there
            pass


def test_what_was_measured_before_there_was_more_to_measure_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, _) = runs_of(read_grid(grid_file(tmp_path, TINY)), tmp_path, 1, {})
    one.folder.mkdir(parents=True)
    counts = np.eye(5, dtype=np.int32)[None]
    old = {"best": counts, "last": counts, "groups": np.array(["a"])}
    np.savez(one.folder / "validation.npz", **old)
    new = {
        **old,
        "best": 2 * counts,
        "flips": counts,
        "views": counts,
        "revision": "abc",
        "form": json.dumps(asdict(Form())),
    }
    monkeypatch.setattr(experiment_runs, "measure", lambda run: np.savez(run.folder / "validation.npz", **new))
    assert outcome(one).confusion.sum() == 10
    assert outcome(one, "flips").confusion.sum() == 5


def test_a_failing_run_names_its_folder_and_its_last_line(tmp_path: Path) -> None:
    (one, _) = runs_of(
        read_grid(grid_file(tmp_path, TINY)), tmp_path / "out", 1, {"data": str(tmp_path / "nowhere.npz")}
    )
    with pytest.raises(experiment_runs.RunError, match=r"seed-0: the run ended with exit code 2: error: .*nowhere.npz"):
        experiment_runs.train(one)


def test_a_failing_run_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """It is named when it ends and again at the end; the exit code is 1."""
    from engine.experiment import __main__ as command

    trained, measured = [], []

    def train(one: experiment_runs.Run, *_: object) -> None:
        trained.append(one.cell.name)
        if len(trained) == 1:
            raise experiment_runs.RunError("the first one: broken")

    monkeypatch.setattr(experiment_runs, "train", train)
    monkeypatch.setattr(command, "measure", lambda one: measured.append(one.cell.name))
    monkeypatch.setattr(command, "write_results", lambda *_: "a table")
    code = command.run(command.Arguments(str(grid_file(tmp_path, TINY)), out=tmp_path / "out", seeds=1))
    printed = capsys.readouterr()
    assert code == 1
    assert len(trained) == 2
    assert measured == trained[1:]
    assert "1 of 2 runs failed: the first one: broken" in printed.err
    assert printed.err.endswith("error: the first one: broken\n")
    assert printed.out == "a table\n"


# -- the revision that is noted with the results -----------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_an_unpacked_sdist_does_not_take_the_revision_of_the_project_around_it(tmp_path: Path) -> None:
    (tmp_path / "areograd-0.1.0").mkdir()
    assert experiment_runs.revision_of(tmp_path / "areograd-0.1.0") is None
    commit = "-c user.name=T -c user.email=t@example.org commit --quiet --allow-empty --message first"
    for command in ("init --quiet", commit):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    assert re.fullmatch(r"[0-9a-f]{4,40}", experiment_runs.revision_of(tmp_path) or "")
    assert experiment_runs.revision_of(tmp_path / "areograd-0.1.0") is None
