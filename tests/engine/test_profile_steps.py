"""The profile of a run's steps: the command, `train --profile`, the files, and that the run is what it was."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autograd import random
from engine.config import Config, read_toml
from engine.data import CLASSES
from engine.profile import Profile
from engine.profile import __main__ as command
from engine.profile.steps import profile_steps
from engine.training.progress import PlainReporter
from engine.training.trainer import Run
from kernels.core.tracing import FORWARD, PHASE
from tests.support import tiny_runs
from tests.support.peaks import not_measured


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """No peaks are measured."""
    with not_measured():
        yield


SMALL = Config(tiles=40, width=4, batch=8, epochs=1, device="cpu", encoder="plain", bottleneck="none", skips="plain")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Profile, list[bytes]]:
    """A run, the profile of two of its steps, and what the run held before."""
    folder = tmp_path_factory.mktemp("profiled")
    run = Run(SMALL, folder, PlainReporter(CLASSES, io.StringIO()))
    before = held(run)
    profile = profile_steps(run, steps=2, warm=1)
    assert profile is not None
    return run, profile, before


def held(run: Run) -> list[bytes]:
    state = json.dumps([run.rng.bit_generator.state["state"]["counter"].tolist(), random.state(), run.here.steps])
    return [state.encode(), *(tensor.data.tobytes() for _, tensor in run.net.named_tensors())]


def test_a_run_is_what_it_was_after_its_profile(profiled: tuple[Run, Profile, list[bytes]]) -> None:
    run, _, before = profiled
    assert held(run) == before
    assert not any(p.grad is not None for p in run.net.parameters())
    assert list(run.out.iterdir()) == []


def test_the_steps_of_a_run(profiled: tuple[Run, Profile, list[bytes]]) -> None:
    """Phases, and as many FLOPs forward as the network states for one image."""
    run, profile, _ = profiled
    assert profile.steps == 2
    assert {"captured", "uncaptured"} == set(profile.unprofiled)
    phases = [span.name for span in profile.spans if span.kind == PHASE]
    assert phases == 2 * ["batch", "forward", "backward", "optimizer", "optimizer"]
    names = {found.name for found in profile.rows()}
    assert {"ConvBatchNorm forward", "ConvBatchNorm backward", "Loss forward", "augment_batch", "adamw_step"} <= names
    forward = [span for span in profile.spans if span.kind == FORWARD]
    convolved = sum(span.flops or 0 for span in forward if span.name in ("Conv2d", "ConvBatchNorm"))
    normalised = sum(4 * math.prod(span.shape) for span in forward if span.name == "ConvBatchNorm")
    stated = run.size.by_operator["Conv2d"] + run.size.by_operator["Conv2dReLU"]  # in evaluation, of one image
    assert convolved - normalised == profile.steps * SMALL.batch * stated


def test_the_figures_for_a_report(profiled: tuple[Run, Profile, list[bytes]], tmp_path: Path) -> None:
    _, profile, _ = profiled
    profile.write(tmp_path / "profile.json")
    figures = json.loads((tmp_path / "profile.json").read_text())
    for entry in figures["operators"]:
        assert isinstance(entry["name"], str)
        assert isinstance(entry["calls"], int)
        assert isinstance(entry["seconds"], float)
        assert isinstance(entry["flops"], (int, type(None)))
        assert isinstance(entry["bytes"], (int, type(None)))
    for table in ("operators", "layers", "kernels"):
        assert sum(entry["seconds"] for entry in figures[table]) == pytest.approx(figures["step_seconds"])
    assert figures["memory"]["in_use"] > 0
    assert figures["machine"]["gflops"] == 100.0


def run_command(*arguments: str) -> int:
    return command.run(command.parse(list(arguments)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was profiled at its start, beside the tiles that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_runs.write_tiles(folder / "tiles.npz")
    assert tiny_runs.run(tiny_runs.flags(folder / "tiles.npz", folder / "run", "--profile", epochs=1)) == 0
    return folder


def test_a_profiled_run_has_the_bits_of_one_that_is_not(trained: Path, tmp_path: Path) -> None:
    assert tiny_runs.run(tiny_runs.flags(trained / "tiles.npz", tmp_path / "plain", epochs=1)) == 0
    assert tiny_runs.results(tmp_path / "plain") == tiny_runs.results(trained / "run")
    assert {path.name for path in (trained / "run").iterdir()} - {path.name for path in (tmp_path / "plain").iterdir()}
    for name in ("profile.json", "trace.json"):
        assert json.loads((trained / "run" / name).read_text())
        assert not (tmp_path / "plain" / name).exists()


def test_an_overwritten_run_keeps_no_profile(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in ("profile.json", "trace.json", "config.toml"):
        (out / name).write_bytes((trained / "run" / name).read_bytes())
    assert tiny_runs.run(tiny_runs.flags(trained / "tiles.npz", out, "--overwrite", epochs=1)) == 0
    assert not (out / "profile.json").exists()
    assert not (out / "trace.json").exists()


def test_a_run_folder_is_profiled(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained / "run"
    (out / "profile.json").unlink()
    settings = command.parse(["--steps", "1", str(out), "--seed=3"]).settings  # an option wins
    assert settings == replace(read_toml(out / "config.toml"), seed=3)
    assert run_command(str(out), "--steps=1", "--warm=0", "--by=layer", "--top=3") == 0
    printed = capsys.readouterr()
    assert "layer " in printed.out
    assert "more" in printed.out
    assert f"written  {out / 'profile.json'}" in printed.out
    assert json.loads((out / "profile.json").read_text())["steps"] == 1


def test_json_and_a_trace(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "new" / "step.json"
    flags = ["--data", str(trained / "tiles.npz"), "--batch=8", *tiny_runs.NETWORK, "--steps=1", "--warm=0"]
    assert run_command(*flags, "--json", "--trace", str(trace)) == 0
    assert json.loads(capsys.readouterr().out)["operators"]
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=0"], "--steps: got 0, expected 1 to 1000"),
        (["--warm=-1"], "--warm: got -1, expected 0 to 1000"),
        (["--top=-1"], "--top: got -1"),
        (["--memory=-1"], "--memory: got -1"),
        (["--threads=-1"], "--threads: got -1"),
        (["--trace="], "--trace: got an empty name"),
        (["--trace=."], "--trace .: got a folder, expected a file"),
        (["nowhere"], "nowhere: is no run folder (it holds no config.toml)"),
        (["--steps=1", "nowhere"], "nowhere: is no run folder (it holds no config.toml)"),
        (["--data=nowhere.npz", "--out=made"], "nowhere.npz"),
        (["--config=nowhere.toml"], "--config nowhere.toml"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = tiny_runs.ended(arguments, capsys, lambda given: run_command(*given))
    assert code == 2
    assert message in printed
    assert list(tmp_path.iterdir()) == []


def test_a_run_has_settings_of_its_own(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(trained / "run"), f"--config={trained / 'run' / 'config.toml'}"]
    code, printed = tiny_runs.ended(given, capsys, lambda arguments: run_command(*arguments))
    assert code == 2
    assert "has settings of its own" in printed


def test_a_stop_leaves_no_profile(profiled: tuple[Run, Profile, list[bytes]]) -> None:
    run = Run(SMALL, profiled[0].out, PlainReporter(CLASSES, io.StringIO()))
    run.stop.signal = 2
    assert profile_steps(run, steps=1, warm=0) is None
