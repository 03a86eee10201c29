"""The doctor names what is broken or missing, and a command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from engine import doctor
from tests.support.paths import ROOT

REQUIRES = ["numba<0.69,>=0.61", "numpy>=2.0", "onnx>=1.16; extra == 'export'", "nothing-like-it>=3; extra == 'export'"]


def pip_says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRES)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text))


@pytest.mark.parametrize(
    "line",
    [
        "areograd 0.1.0 requires numba, which is not installed.",
        "areograd 0.1.0 has requirement numba<0.69,>=0.61, but you have numba 0.70.1.",
    ],
)
def test_a_broken_requirement(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pip_says(monkeypatch, f"other 1 requires numba, which is not installed.\n{line}\n")
    mended = f"{line.rstrip('.')}: {sys.executable} -m pip install 'numba<0.69,>=0.61'"
    assert doctor.broken() == [mended]
    assert doctor.run(doctor.Arguments()) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"           broken  {mended}"


def test_nothing_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pip_says(monkeypatch, "No broken requirements found.\n")
    assert doctor.run(doctor.Arguments(json=True)) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["broken"] == []
    assert said["facts"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    wanted = [] if doctor._installed("onnx") else ["'onnx>=1.16'"]
    line = " ".join([sys.executable, "-m pip install", *wanted, "'nothing-like-it>=3'"])
    assert said["absent"] == {"export": line}


def test_a_checkout_that_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    (line,) = doctor.broken()
    assert line.endswith(f"{sys.executable} -m pip install --editable {ROOT}")
    assert doctor.absent() == {}
