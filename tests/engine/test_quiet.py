"""With --quiet a command prints its result and nothing else on either stream; with --json the result parses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from engine import doctor, evaluate
from engine.cli import parsed
from engine.experiment import __main__ as experiment
from engine.export import __main__ as export
from engine.gradcheck import command as gradcheck
from engine.predict import __main__ as predict
from engine.profile import __main__ as profile
from engine.report import command as report

COMMANDS = {  # what runs, its arguments, and what it prints on stdout
    "evaluate": (evaluate, ["RUN", "--data", "DATA"], r"all: 30 tiles of .*mean IoU.*"),
    "evaluate --json": (evaluate, ["RUN", "--data", "DATA", "--json"], r"\{.*\}\n"),
    "experiment": (experiment, ["--list"], r"(\S+ +\d+ cells  .*\n)+"),
    "export": (export, ["RUN"], ""),
    "export --json": (export, ["RUN", "--json"], r"\{.*\}\n"),
    "doctor": (doctor, [], r" +python  .*"),
    "doctor --json": (doctor, ["--json"], r"\{.*\}\n"),
    "predict": (predict, ["RUN", "DATA", "--out", "LABELS"], ""),
    "report": (report, ["RUN", "--tiles", "0"], ""),
    "report --json": (report, ["RUN", "--tiles", "0", "--json"], r"\{.*\}\n"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_quiet(name: str, whole: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, words, expected = COMMANDS[name]
    other = Path(shutil.copy(tiles, tmp_path / "other.npz"))  # its labels leave something to note
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    places = {"RUN": run, "DATA": other, "LABELS": tmp_path / "labels"}
    arguments = [str(places.get(word, word)) for word in words]
    capsys.readouterr()
    assert module.run(parsed(module.Arguments, "command", [*arguments, "-q"])) in (0, 1)  # doctor: something is missing
    printed = capsys.readouterr()
    assert printed.err == ""
    assert re.fullmatch(expected, printed.out, re.DOTALL), printed.out
    if "--json" in arguments:
        assert isinstance(json.loads(printed.out), dict)
    if "--json" in arguments or module in (doctor, experiment):
        return  # which have nothing else to say
    again = [*arguments, "--overwrite"] if module in (predict, export) else arguments
    assert module.run(parsed(module.Arguments, "command", again)) == 0
    printed = capsys.readouterr()
    assert printed.err or not re.fullmatch(expected, printed.out, re.DOTALL)


def test_profile(whole: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Notes of the run that is profiled vanish."""
    words = [str(shutil.copytree(whole, tmp_path / "run")), "--steps", "1", "--warm", "0"]
    for quiet in (True, False):
        assert profile.run(profile.parse([*words, *["-q"] * quiet])) == 0
        printed = capsys.readouterr()
        assert "operator" in printed.out
        assert ("written" in printed.out) != quiet
        assert not printed.err


def test_gradcheck(capsys: pytest.CaptureFixture[str]) -> None:
    assert gradcheck.run(["relu", "-q", "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert isinstance(json.loads(printed.out), list)
    assert printed.err == ""
    assert gradcheck.run(["relu", "exp", "-q"]) == 0
    short = capsys.readouterr().out
    assert gradcheck.run(["relu", "exp", "-v"]) == 0
    assert capsys.readouterr().out.count("\n") > short.count("\n")
