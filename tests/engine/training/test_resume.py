"""Runs that are stopped, killed and resumed: the same bits as undisturbed ones, one line for what cannot go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine import signals
from engine.cli import run_command
from engine.report import command as report
from engine.training import run_state
from engine.training.checkpoint import load_checkpoint, take_weights
from engine.training.reporting import read_rows
from engine.training.run_folder import STATES, holds_state
from engine.training.run_state import load_state
from layers import UNet
from tests.support.paths import REAL_TILES, ROOT
from tests.support.tiny_runs import NETWORK, ended, flags, posix, results, run

# -- resuming ----------------------------------------------------------------------------------------------------------


@posix
def test_killed_anywhere_a_run_ends_with_the_same_bits() -> None:
    """A slice of tests/support/crashes.py: kills at file operations, power cuts, kills at random moments.
    docs/reliability.md has the long run's figures.
    """
    command = [sys.executable, "-m", "tests.support.crashes", "--kills=3", "--every=27", "--seed=1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    print(figures)
    assert figures["kills_at_random_moments"] >= 3
    assert figures["kills_at_file_operations"] >= 8
    assert figures["resumed_runs_that_differ"] == 0


def stopped_after(steps: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run gets a signal in its `steps`-th step."""
    from engine.training.trainer import Run

    step, seen = Run._step, []

    def counted(self, *arguments):
        seen.append(1)
        if len(seen) == steps:
            os.kill(os.getpid(), number)
        return step(self, *arguments)

    monkeypatch.setattr(Run, "_step", counted)


@posix
@pytest.mark.parametrize(
    ("steps", "number", "code"),
    [(2, signal.SIGINT, 130), (3, signal.SIGTERM, 143), (5, signal.SIGINT, 130), (4, signal.SIGTERM, 143)],
)
def test_signals_save_the_state_and_the_run_goes_on_to_the_same_bits(
    tiles, whole, tmp_path, monkeypatch, capsys, steps, number, code
) -> None:
    """In the first and in the second epoch (three steps each), and in an epoch's last step."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stopped_after(steps, number, patch)
        assert run(flags(tiles, out)) == code
    output = capsys.readouterr().out
    assert f"interrupted by {number.name}: the state is saved" in output
    assert f"--resume {out}" in output
    assert (out / "summary.json").exists() == (steps > 3)
    if steps > 3:
        assert json.loads((out / "summary.json").read_text())["interrupted"] is True
        for name in ("predictions.png", "report.html"):
            assert (out / name).exists() == (number == signal.SIGINT), "who terminates a run wants it to end soon"
        assert ("report.html" in output) == (number == signal.SIGINT), "named only where it is"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "as before the run"
    assert run([f"--resume={out}"]) == 0
    assert results(out) == results(whole)
    assert json.loads((out / "summary.json").read_text())["interrupted"] is False


@posix
def test_a_run_stopped_in_its_first_epoch_can_go_on(tiles, tmp_path, monkeypatch, capsys) -> None:
    """A new run there is told so."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stopped_after(1, signal.SIGTERM, patch)
        assert run(flags(tiles, out)) == 143
    code, line = ended(flags(tiles, out), capsys)
    assert code == 2
    assert f"--resume {out} goes on with it" in line
    assert ended([str(out)], capsys, lambda a: report.run(report.Arguments((Path(a[0]),))))[1].startswith(
        f"error: {out}: no epoch"
    )
    assert run(flags(tiles, out, "--overwrite", epochs=1)) == 0
    assert len(read_rows(out)) == 1


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(whole, capsys) -> None:
    before = results(whole)
    assert run([f"--resume={whole}"]) == 0
    assert results(whole) == before


@posix
def test_interrupted_pictures_leave_the_summary_and_are_drawn_later(tiles, tmp_path, monkeypatch, capsys) -> None:
    from engine.training import trainer

    out = tmp_path / "run"

    def drawn(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "draw", drawn)
        assert ended(flags(tiles, out, epochs=1), capsys)[0] == 130
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"] is False
    assert not (out / "curves.png").exists()
    assert not (out / "report.html").exists()
    assert report.run(report.Arguments((out,))) == 0
    assert (out / "curves.png").exists()
    assert (out / "predictions.png").exists()
    assert (out / "report.html").exists()
    again = json.loads((out / "summary.json").read_text())
    for key in summary.keys() - {"seconds", "images_per_second"}:
        assert again[key] == summary[key], key
    code, line = ended([str(tmp_path)], capsys, lambda a: report.run(report.Arguments((Path(a[0]),))))
    assert code == 2
    assert "is no run folder" in line


@posix
def test_the_command_ends_at_signals_with_their_codes(tiles, tmp_path) -> None:
    """From outside: SIGINT saves and ends with 130; of two signals the second ends the process while the first is still
    being obeyed.
    """
    out = tmp_path / "run"
    arguments = [sys.executable, "-m", "engine.train", *flags(tiles, out, "--patience=0", epochs=100_000)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 240
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
        assert second.returncode == 2
        assert f"another process ({process.pid}) is writing there" in second.stderr
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors == ""
    assert "interrupted by SIGINT: the state is saved" in output
    assert (out / "predictions.png").exists()
    assert json.loads((out / "summary.json").read_text())["interrupted"] is True
    load_checkpoint(out / "best.safetensors")
    assert load_state(out).progress["epoch"] >= 1


@posix
def test_a_second_signal_ends_at_once() -> None:
    code = "\n".join(
        (
            "import os, signal, time",
            "from engine import signals",
            "with signals.requests() as stop:",
            "    os.kill(os.getpid(), signal.SIGTERM)",
            "    assert stop.signal == signal.SIGTERM and stop.name == 'SIGTERM'",
            "    os.kill(os.getpid(), signal.SIGINT)",
            "    time.sleep(60)",
        )
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 130


@posix
def test_sigterm_ends_every_command_with_143() -> None:
    def terminated() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return 0

    with pytest.raises(SystemExit) as stop:
        run_command(terminated)
    assert stop.value.code == 143
    assert issubclass(signals.Terminated, KeyboardInterrupt)


# -- what cannot go on -------------------------------------------------------------------------------------------------


def test_what_differs_is_named_in_one_line(tiles, whole, tmp_path, capsys, monkeypatch) -> None:
    cases = [
        ([f"--resume={whole}", "--epochs=3"], "epochs is 3, but the run has 2; a run keeps the settings"),
        ([f"--resume={whole}", "--preset=small"], "preset is 'small', but the run has 'tiny'"),
        ([f"--resume={tmp_path}"], "holds no state of a run"),
        ([f"--resume={whole}", f"--out={tmp_path}"], "leave out --out"),
        ([f"--resume={whole}", "--overwrite"], "leave out --overwrite"),
        ([f"--resume={whole}", f"--from={whole / 'last.safetensors'}"], "leave out --from"),
        (["--allow-changes"], "--allow-changes: goes with --resume only"),
        (flags(tiles, tmp_path / "x", "--save-every=-1"), "--save-every: got -1.0, expected minutes"),
    ]
    for arguments, message in cases:
        code, line = ended(arguments, capsys)
        assert code == 2, arguments
        assert message in line
    monkeypatch.setattr(np, "__version__", "0")
    monkeypatch.setattr(run_state, "version", lambda *_: "0.0.7")
    code, line = ended([f"--resume={whole}"], capsys)
    assert code == 2
    assert re.search(r"numpy is 0\.0\.7, but was \d", line)
    before = results(whole)
    assert run([f"--resume={whole}", "--allow-changes"]) == 0
    assert results(whole) == before
    assert "no longer bit for bit" in json.loads((whole / "summary.json").read_text())["notes"][-1]


def test_other_tiles_are_another_run(tiles, whole, capsys) -> None:
    state = load_state(whole)
    pixels = dict(np.load(tiles))
    kept = tiles.read_bytes()
    try:
        pixels["training_set"][0, 0, 0, 0] ^= 1
        np.savez(tiles, **pixels)
        code, line = ended([f"--resume={whole}"], capsys)
    finally:
        tiles.write_bytes(kept)
    assert code == 2
    assert "the tiles differ" in line
    assert load_state(whole).serial == state.serial


def test_edited_settings_are_named(tiles, whole, capsys) -> None:
    path = whole / "config.toml"
    text = path.read_text()
    try:
        path.write_text(text.replace("batch = 8", "batch = 4"))
        code, line = ended([f"--resume={whole}"], capsys)
    finally:
        path.write_text(text)
    assert code == 2
    assert "in its config.toml batch is 4, but the run has 8" in line


def test_damaged_states_are_passed_over(whole, tmp_path, capsys) -> None:
    """Any cut and any changed bit is seen; the other state serves; without one there is one line."""
    copies = [tmp_path / name for name in STATES]
    for copy in copies:
        copy.write_bytes((whole / copy.name).read_bytes())
    newest, older = sorted(copies, key=lambda path: -run_state._read(path).serial)
    good, serial = newest.read_bytes(), run_state._read(older).serial
    rng = np.random.default_rng(0)
    for k in range(60):
        bad = bytearray(good[: rng.integers(len(good))]) if k % 3 == 0 else bytearray(good)
        if k % 3:
            bad[rng.integers(len(good) if k % 3 == 1 else 3000)] ^= 1 << rng.integers(8)
        newest.write_bytes(bad)
        assert load_state(tmp_path).serial == serial
    older.write_bytes(b"")
    code, line = ended([f"--resume={tmp_path}"], capsys)
    assert code == 2
    assert "state-0.safetensors: is " in line
    assert "state-1.safetensors: is " in line


# -- starting from weights ---------------------------------------------------------------------------------------------


def test_a_new_run_from_a_checkpoint(tiles, whole, tmp_path, capsys) -> None:
    """All of it, a part of it, nothing of it."""
    start = whole / "last.safetensors"
    assert (
        run(
            flags(
                tiles,
                tmp_path / "all",
                f"--from={start}",
                "--learning-rate=0",
                "--final-rate=0",
                "--average=0",
                epochs=1,
            )
        )
        == 0
    )
    output = capsys.readouterr().out
    assert re.search(r"weights from .*last\.safetensors: (\d+) of \1 arrays taken\n", output)
    weights, taken = (load_checkpoint(p / "last.safetensors").net for p in (whole, tmp_path / "all"))
    for (name, a), (_, b) in zip(weights.named_parameters(), taken.named_parameters(), strict=True):
        assert np.array_equal(a.data, b.data), name
    wide = UNet(width=8, bottleneck="none", encoder="plain", skips="gated", seed=1, dropout=0.1)
    before = wide.state_dict()
    line = take_weights(wide, start)
    counts = re.search(
        r": (\d+) of (\d+) arrays taken; (\d+) not in the file \((.*)\); (\d+) of another shape \(", line
    )
    assert counts, line
    taken_, of, absent, _, other = counts.groups()
    assert int(taken_) + int(absent) + int(other) == int(of) == len(before)
    given = weights.state_dict()
    for name, array in wide.state_dict().items():
        assert np.array_equal(
            array, given[name] if name in given and given[name].shape == array.shape else before[name]
        ), name
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign")
    code, line = ended(flags(tiles, tmp_path / "none", f"--from={tmp_path / 'foreign'}"), capsys)
    assert code == 2
    assert "none of the network's" in line
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_of_the_first_form_is_read(whole, tmp_path) -> None:
    from dataclasses import asdict

    from safetensors.numpy import save_file

    new = load_checkpoint(whole / "best.safetensors")
    about = {
        name: json.dumps(value)
        for name, value in (("config", asdict(new.config)), ("normalisation", asdict(new.normalisation)))
    }
    save_file(
        new.net.state_dict(), tmp_path / "old", {"format": "areograd-1", **about, "record": json.dumps(new.record)}
    )
    old = load_checkpoint(tmp_path / "old")
    assert (old.config, old.normalisation, old.record) == (new.config, new.normalisation, new.record)


def test_the_bytes_of_a_checkpoint_do_not_depend_on_a_hash_order(tmp_path) -> None:
    code = (
        "import sys; from pathlib import Path; from engine.build import build_network;"
        "from engine.config import Config; from engine.training.checkpoint import save_checkpoint;"
        "from engine.inference import Normalisation; c = Config(width=4);"
        "save_checkpoint(Path(sys.argv[1]), build_network(c), c, Normalisation(0.5, 0.25), {'b': 1, 'a': 2, 'c': "
        "{'z': 1, 'y': None}})"
    )
    written = []
    for seed in ("1", "2", "3"):
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / seed],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
        written.append((tmp_path / seed).read_bytes())
    assert written[0] == written[1] == written[2]


@posix
@pytest.mark.skipif(not REAL_TILES.exists(), reason="the real tiles are not beside this repository")
def test_on_real_tiles_a_killed_run_ends_with_the_same_bits(tmp_path) -> None:
    """A small network, 600 tiles, two epochs, killed in the second."""
    with np.load(REAL_TILES) as file:
        np.savez(tmp_path / "tiles.npz", **{name: file[name][:600] for name in ("training_set", "train_group")})
    data = f"--data={tmp_path / 'tiles.npz'}"
    arguments = [sys.executable, "-m", "engine.train", data, "--epochs=2", "--save-every=0.005", *NETWORK]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    quiet = {"stdout": subprocess.DEVNULL, "cwd": ROOT}
    assert subprocess.run([*arguments, f"--out={whole}"], check=False, **quiet).returncode == 0
    process = subprocess.Popen([*arguments, f"--out={killed}"], **quiet)
    try:
        while not holds_state(killed) or load_state(killed).progress["here"]["steps"] < 2 or not read_rows(killed):
            assert process.poll() is None, "it ended too soon"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert subprocess.run([*arguments[:3], f"--resume={killed}"], check=False, **quiet).returncode == 0
    assert results(whole) == results(killed)
