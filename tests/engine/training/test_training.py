"""Whole runs on small synthetic sets, the command lines, and everything that can be wrong with what they are given."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.config import Config, ConfigError, from_dict, preset, read_toml, to_toml
from engine.data import CLASSES
from engine.inference import Normalisation, labels_of, predict_logits
from engine.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from engine.training.progress import PlainReporter, clock
from engine.training.trainer import Run, TrainingError
from tests.support.misprints import Mutant, assert_caught, planted

SMALL = {"tiles": 60, "epochs": 2, "width": 4, "batch": 8}
FLAGS = [f"--{key}={value}" for key, value in SMALL.items()]


def command(module: str, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """One small run from the command line, shared by the tests that only look at it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = command("engine.train", *FLAGS, "--out", out)
    assert result.returncode == 0, result.stderr
    (out / "stdout.txt").write_text(result.stdout)
    return out


def test_a_run_leaves_everything_that_was_promised(run_folder) -> None:
    names = {
        "config.toml",
        "metrics.jsonl",
        "summary.json",
        "best.safetensors",
        "last.safetensors",
        "curves.png",
        "predictions.png",
        "report.html",
    }
    assert names <= {p.name for p in run_folder.iterdir()}
    assert not list(run_folder.glob("*.part"))
    summary = json.loads((run_folder / "summary.json").read_text())
    for key in ("val_miou_fg", "val_miou_keras", "iou", "epochs", "seconds", "images_per_second", "parameters"):
        assert key in summary
    assert set(summary["iou"]) == set(CLASSES[1:])
    assert summary["epochs"] == 2
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == [1, 2]
    for key in ("train_loss", "terms", "val_miou_fg", "val_miou_keras", "iou", "learning_rate", "images_per_second"):
        assert key in rows[0]
    assert [r["step"] for r in rows] == [rows[0]["step"], 2 * rows[0]["step"]]
    assert 0 < rows[0]["gradient_norm"] <= rows[0]["largest_gradient_norm"]
    assert 0 < rows[0]["training_seconds"] < rows[0]["seconds"] < rows[1]["seconds"]
    assert set(rows[0]["terms"]) == {"margin", "dice", "focal", "iou"}
    assert summary["val_miou_fg"] == max(r["val_miou_fg"] for r in rows)
    for picture, least in (("curves.png", (900, 250)), ("predictions.png", (700, 700))):
        assert all(a >= b for a, b in zip(Image.open(run_folder / picture).size, least, strict=True))
    text = (run_folder / "stdout.txt").read_text()
    for part in (
        "device: cpu",
        "removed",
        "split by source image",
        "M parameters",
        "GFLOP per image",
        "best.safetensors",
        "predictions.png",
    ):
        assert part in text
    assert "\x1b" not in text, "no terminal codes where there is no terminal"
    assert text.splitlines()[-1].split()[:2] == ["report", str(run_folder / "report.html")]
    assert "loss: 0.4 margin + 0.2 dice + 0.2 focal + 0.2 iou (margin is negative where" in text


def test_the_same_seed_gives_the_same_run(run_folder, tmp_path) -> None:
    """Bit by bit: the config written by a run repeats it."""
    result = command("engine.train", "--config", run_folder / "config.toml", "--out", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    a, b = (load_checkpoint(p / "last.safetensors").net.state_dict() for p in (run_folder, tmp_path / "again"))
    assert all((a[k] == b[k]).all() for k in a)
    other = command(
        "engine.train",
        "--config",
        run_folder / "config.toml",
        "--out",
        tmp_path / "other",
        "--seed",
        "1",
        "--epochs",
        "1",
    )
    assert other.returncode == 0, other.stderr
    assert tomllib.loads((tmp_path / "other" / "config.toml").read_text())["seed"] == 1


def test_training_learns_and_both_readings_are_reported(tmp_path) -> None:
    """A network of width 4 on few tiles: the loss falls and the score is above what any constant prediction reaches."""
    config = Config(
        tiles=160, epochs=12, width=4, batch=8, learning_rate=5e-3, affine=0.0, photometric=0.0, average=0.9
    )
    summary = Run(config, tmp_path, PlainReporter(CLASSES, io.StringIO())).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.05
    assert summary["val_miou_fg"] > 0.25
    assert summary["val_miou_keras"] == pytest.approx(summary["val_miou_fg"], abs=1e-6), (
        "class 0 is barred, so both agree"
    )


def test_gradient_norms_of_an_epoch(tmp_path, monkeypatch) -> None:
    """Mean and largest are those of the steps; the parts of the network make up the last step's norm."""
    norms: list[tuple[float, int]] = []
    step = Run._step

    def noted(self, index, *arguments):
        terms = step(self, index, *arguments)
        norms.append((self.norm, len(index)))
        return terms

    monkeypatch.setattr(Run, "_step", noted)
    run = Run(Config(tiles=60, epochs=1, width=4, batch=8), tmp_path, PlainReporter(CLASSES, io.StringIO()))
    run.train()
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["step"] == len(norms)
    assert row["gradient_norm"] == pytest.approx(sum(n * k for n, k in norms) / sum(k for _, k in norms))
    assert row["largest_gradient_norm"] == max(n for n, _ in norms)
    parts = row["gradient_norms"]
    encoders, decoders = ([f"{kind}.{k}" for k in range(3)] for kind in ("encoders", "decoders"))
    assert list(parts) == [*encoders, "middle", "bottleneck", *decoders, "head"]
    assert sum(norm**2 for norm in parts.values()) ** 0.5 == pytest.approx(norms[-1][0], rel=1e-5)
    head = run.net.head.weight.grad.numpy(), run.net.head.bias.grad.numpy()
    assert parts["head"] == pytest.approx(float(sum((g.astype(float) ** 2).sum() for g in head)) ** 0.5, rel=1e-5)


def test_background_train_is_the_literal_reading(tmp_path) -> None:
    config = Config(tiles=60, epochs=1, width=4, batch=8, background="train")
    run = Run(config, tmp_path, PlainReporter(CLASSES, io.StringIO()))
    assert run.weights[0] > 0
    run.train()
    checkpoint = load_checkpoint(tmp_path / "best.safetensors")
    logits = predict_logits(checkpoint.net, run.data.val.images, checkpoint.normalisation)
    assert (labels_of(logits, ()) == logits.argmax(-1)).all()
    barred = labels_of(logits, (0,))
    assert barred.min() >= 1
    assert (barred == logits[..., 1:].argmax(-1) + 1).all()


def test_early_stopping(tmp_path) -> None:
    config = Config(tiles=60, epochs=50, width=4, batch=8, learning_rate=0.0, final_rate=0.0, patience=2, average=0.0)
    summary = Run(config, tmp_path, PlainReporter(CLASSES, io.StringIO())).train()
    assert summary["epochs"] < 50


def test_a_loss_that_is_not_finite_stops_with_a_clear_line(tmp_path, monkeypatch) -> None:
    run = Run(Config(**SMALL), tmp_path, PlainReporter(CLASSES, io.StringIO()))
    monkeypatch.setattr(run, "_step", lambda *a: {"loss": float("nan")})
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 1, step 1"):
        run.train()


def test_a_gradient_that_is_not_finite_stops_with_a_clear_line(tmp_path, monkeypatch) -> None:
    run = Run(Config(**SMALL), tmp_path, PlainReporter(CLASSES, io.StringIO()))
    passes = run.passes

    def poisoned(*arguments: object) -> object:
        terms = passes(*arguments)
        run.optimizer.gradient[0] = np.nan
        return terms

    monkeypatch.setattr(run, "passes", poisoned)
    with pytest.raises(TrainingError, match=r"the gradient norm became nan in epoch 1, step 1"):
        run.train()
    assert not (tmp_path / "last.safetensors").exists()


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, average) -> None:
    run = Run(Config(**SMALL, average=average), tmp_path, PlainReporter(CLASSES, io.StringIO()))
    step, name = run._step, "head.weight"
    assert name in dict(run.net.named_tensors())
    saved, steps = {}, [0, 0]  # of the two epochs

    def poisoned(*arguments: object) -> object:
        terms = step(*arguments)
        steps[len(run.rows)] += 1
        if steps[1] == steps[0]:  # after the last one no loss and no gradient can show it
            saved.update({path: path.read_bytes() for path in tmp_path.glob("*.safetensors")})
            if average:
                run.optimizer.average[3] = np.nan
            else:
                dict(run.net.named_tensors())[name].data[..., 0] = np.inf
        return terms

    monkeypatch.setattr(run, "_step", poisoned)
    with pytest.raises(TrainingError, match=r"the weights are not finite after epoch 2 \(.* has \d+ of \d+ values"):
        run.train()
    assert {path.name for path in saved} == {
        "best.safetensors",
        "last.safetensors",
        "state-0.safetensors",
        "state-1.safetensors",
    }
    for path, content in saved.items():
        assert path.read_bytes() == content
    for name_of_file in ("best.safetensors", "last.safetensors"):
        load_checkpoint(tmp_path / name_of_file)
    run.net.load_state_dict({k: np.full_like(v, np.nan) if k == name else v for k, v in run.net.state_dict().items()})
    with pytest.raises(
        CheckpointError,
        match=rf"bad.safetensors: not written, for {name} has \d+ of \d+ values that are NaN or infinite",
    ):
        save_checkpoint(tmp_path / "bad.safetensors", run.net, run.config, run.normalisation, {})
    assert not list(tmp_path.glob("bad*"))


def test_a_network_that_has_diverged_ends_the_run_with_one_line(tmp_path, monkeypatch, capsys) -> None:
    """One weight is NaN: no ReLU, pooling or norm on the way to the loss may turn it into a number."""
    from engine import train
    from engine.training import trainer

    def diverged(config: Config, form: object) -> object:
        net = training_build(config, form)
        net.parameters()[0].data.reshape(-1)[0] = np.nan
        return net

    training_build = trainer.build_network
    monkeypatch.setattr(trainer, "build_network", diverged)
    assert train.run(train.parse([*FLAGS, "--out", str(tmp_path / "run")])) == 1
    assert "error: the loss became nan in epoch 1, step 1" in capsys.readouterr().err
    # what the run began with
    assert [path.name for path in (tmp_path / "run").glob("*.safetensors")] == ["state-0.safetensors"]


def test_a_checkpoint_that_is_not_finite_is_refused(run_folder, tmp_path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(run_folder / "best.safetensors", "numpy") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    name = sorted(state)[3]
    state[name].reshape(-1)[0] = np.nan
    save_file(state, tmp_path / "nan.safetensors", metadata)
    with pytest.raises(
        CheckpointError, match=rf"nan.safetensors: {name} has 1 of {state[name].size} values that are NaN or infinite"
    ):
        load_checkpoint(tmp_path / "nan.safetensors")
    result = command("engine.evaluate", tmp_path / "nan.safetensors")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0].startswith("error: checkpoint")


def test_evaluate(run_folder) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    result = command("engine.evaluate", run_folder / "best.safetensors", "--json")
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout)
    assert scores["miou_fg"] == pytest.approx(summary["val_miou_fg"], abs=1e-9)
    assert scores["miou_fg_interval"][0] <= scores["miou_fg"] <= scores["miou_fg_interval"][1]
    for name, (low, high) in scores["iou_intervals"].items():
        assert low <= scores["iou"][name] <= high
    counts = np.array(scores["confusion"])
    assert np.trace(counts[1:, 1:]) / counts[1:].sum() == pytest.approx(scores["accuracy"])
    for split in ("test", "all"):
        result = command(
            "engine.evaluate", run_folder / "best.safetensors", "--data", "synthetic", "--split", split, "--flips"
        )
        assert result.returncode == 0, result.stderr
        assert "mean IoU  fg" in result.stdout


# -- settings ----------------------------------------------------------------------------------------------------------


def test_config_round_trip_and_presets(tmp_path) -> None:
    config = from_dict({"preset": "small", "epochs": 3, "rotate": 5})
    assert (config.width, config.epochs, config.rotate) == (16, 3, 5.0)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert read_toml(path) == config
    assert preset("report").width == 32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 6}, "width: got 6, expected a multiple of 4"),
        ({"epochs": 0}, "epochs: got 0, expected 1 to"),
        ({"batch": 1}, "batch: got 1, expected 2 to"),
        ({"bottleneck": "aspp"}, "bottleneck: got 'aspp', expected one of aspp[+]psa[+]spp"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected 0 to 0.95"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan, expected a finite"),
        ({"epochs": 2.5}, "epochs: got 2.5, expected int"),
        ({"fppm": 1}, "fppm: got 1, expected bool"),
        ({"learnig_rate": 1.0}, "unknown setting 'learnig_rate'"),
        ({"preset": "huge"}, "preset: got 'huge', expected one of tiny, small, report"),
        ({"margin": 0, "dice": 0, "focal": 0, "iou": 0}, "all coefficients are 0"),
        ({"scale": 0.5}, "scale: got 0.5, expected 1 to 10"),
    ],
)
def test_bad_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(values)


# -- bad input to the command lines ------------------------------------------------------------------------------------


def tiles(count: int = 24) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, 256, (count, 16, 16)), rng.integers(0, 5, (count, 16, 16))], 1).astype(np.float64)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """name -> (file, what the message must contain)."""
    good = tiles()
    nan, high, odd = good.copy(), good.copy(), good[:, :, :12]
    nan[3, 0, 2, 2] = np.nan
    high[5, 1, 0, 0] = 7
    contents = {
        "wrong keys": ({"images": good}, "training_set"),
        "wrong dtype": ({"training_set": good.astype(str)}, "training_set"),
        "label out of range": ({"training_set": high}, "7"),
        "nan pixels": ({"training_set": nan}, "nan"),
        "wrong shape": ({"training_set": good[:, 0]}, "training_set"),
        "size not divisible": ({"training_set": odd}, "12"),
        "groups do not match": ({"training_set": good, "train_group": np.array(["a"])}, "train_group"),
    }
    out = {}
    for name, (arrays, message) in contents.items():
        path = folder / f"{name.replace(' ', '_')}.npz"
        np.savez(path, **arrays)
        out[name] = (path, message)
    whole = folder / "whole.npz"
    np.savez(whole, training_set=good)
    cut = folder / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:20_000])
    text = folder / "text.npz"
    text.write_text("no archive")
    empty = folder / "empty"
    empty.mkdir()
    return {
        **out,
        "truncated": (cut, "cut.npz"),
        "no archive": (text, "text.npz"),
        "missing": (folder / "none.npz", "none.npz"),
        "empty folder": (empty, "empty"),
    }


def test_bad_data_gives_one_clear_line_and_code_2(tmp_path) -> None:
    """In one process (the parser and the error path are the command's own): one line, code 2, nothing written."""
    from engine.cli import run_command
    from engine.train import parse, run

    for name, (path, message) in bad_files(tmp_path).items():
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as stop:
            run_command(lambda path=path, out=out: run(parse([f"--data={path}", f"--out={out}", *FLAGS])))
        assert stop.value.code == 2, name
        assert not out.exists(), f"{name}: nothing may be written"
        from engine.data import DataError, load

        with pytest.raises(DataError, match=message) as error:
            load(path)
        assert "\n" not in str(error.value), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--width", "6"], "width: got 6, expected a multiple of 4"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["--device", "cuda"], "cuda was asked for, but"),
        (["--threads=-2"], "--threads: got -2, expected the number of threads, or 0"),
    ],
)
def test_bad_arguments_give_one_line_and_code_2(tmp_path, arguments: list[str], message: str) -> None:
    if "cuda" in arguments:
        from kernels.core.device import cuda_obstacle

        if cuda_obstacle() is None:
            pytest.skip("CUDA works here")
    result = command("engine.train", *FLAGS, *arguments, "--out", tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_threads_are_as_many_as_asked_for(tmp_path) -> None:
    """The weights do not depend on them."""
    from engine.train import parse, run
    from kernels.core.cpu.cores import usable_cores
    from kernels.core.cpu.thread_pool import set_threads, threads

    before, seen = threads(), []
    try:
        for count in (1, 3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # three may be more than there are cores
                assert run(parse([f"--out={tmp_path / str(count)}", f"--threads={count}", *FLAGS])) == 0
            seen.append(threads())
    finally:
        set_threads(before)
    assert seen == [1, min(3, usable_cores())]
    one, three = (load_checkpoint(tmp_path / name / "best.safetensors").net.state_dict() for name in ("1", "3"))
    assert one.keys() == three.keys()
    assert all((one[key] == three[key]).all() for key in one)


def test_unknown_options_give_code_2(tmp_path) -> None:
    for module in ("engine.train", "engine.evaluate"):
        result = command(module, "--no-such-option", cwd=tmp_path)
        assert result.returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="file permissions")
def test_unwritable_folder_and_existing_run(tmp_path, run_folder) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    result = command("engine.train", *FLAGS, "--out", blocked / "run")
    assert result.returncode == 2
    assert "cannot write there" in result.stderr
    before = (run_folder / "summary.json").read_bytes()
    result = command("engine.train", *FLAGS, "--out", run_folder)
    assert result.returncode == 2
    assert "already holds a run" in result.stderr
    assert (run_folder / "summary.json").read_bytes() == before


def test_bad_checkpoints(tmp_path, run_folder) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((run_folder / "best.safetensors").read_bytes()[:5000])
    from safetensors.numpy import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(3)}, foreign)
    for path, message in ((damaged, "not a readable"), (foreign, "format"), (tmp_path / "none", "no such file")):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    result = command("engine.evaluate", damaged)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


# -- small parts -------------------------------------------------------------------------------------------------------


def test_normalisation_from_the_histogram_is_exact() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.uint8)
    norm = Normalisation.of(images)
    assert norm.mean == pytest.approx((images / 255).mean(), abs=1e-12)
    assert norm.std == pytest.approx((images / 255).std(), abs=1e-12)
    x = norm(images)
    assert x.shape == (5, 8, 8, 1)
    assert x.dtype == np.float32
    assert abs(x.mean()) < 1e-5
    np.testing.assert_allclose(norm(images.astype(np.float32) / 255), x, atol=1e-5)


def test_flips_at_test_time_are_undone(run_folder) -> None:
    """A network that commutes with flips gives the same logits; ours does not, and the average is flip-symmetric."""
    checkpoint = load_checkpoint(run_folder / "best.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24)).astype(np.uint8)
    a = predict_logits(checkpoint.net, images, checkpoint.normalisation, flips=True)
    b = predict_logits(checkpoint.net, images[:, ::-1, ::-1], checkpoint.normalisation, flips=True)[:, ::-1, ::-1]
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_clock() -> None:
    assert [clock(s) for s in (0, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


def test_live_view_draws_without_a_terminal() -> None:
    from engine.training.progress import LiveReporter

    view = LiveReporter(CLASSES)
    try:
        view.note("a note")
        view.step(1, 2, 3, 4, {"loss": 0.5}, 100.0, 60.0)
        row = {
            "epoch": 1,
            "train_loss": 0.5,
            "terms": {},
            "val_miou_fg": 0.4,
            "val_miou_keras": 0.4,
            "iou": [0.1, None, 0.3, 0.4],
            "images_per_second": 9.0,
        }
        view.epoch(row, 2, 1.0, True)
        from rich.console import Console

        console = Console(width=120, record=True, file=io.StringIO())
        console.print(view._view())
        text = console.export_text()
    finally:
        view.close()
    for part in ("epoch 1/2", "100 images/s", "1:00 to go", "0.4000"):
        assert part in text


# -- planted mistakes --------------------------------------------------------------------------------------------------


def barred_labels() -> None:
    logits = np.zeros((1, 2, 2, 5))
    logits[..., 0], logits[..., 3] = 9, 1
    assert (labels_of(logits) == 3).all()


MUTANTS = [
    Mutant(
        "prediction of the barred class",
        "engine.inference:labels_of",
        "1 if 0 in barred else 0",
        "0",
        barred_labels,
    ),
    Mutant(
        "predicted labels shifted",
        "kernels.metric.reference:predicted_labels",
        "argmax(-1) + first",
        "argmax(-1)",
        barred_labels,
    ),
    Mutant(
        "normalisation with the variance",
        "engine.inference:_Histogram.between",
        "np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())",
        "counts @ (levels - mean) ** 2 / counts.sum()",
        test_normalisation_from_the_histogram_is_exact,
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
