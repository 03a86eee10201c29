"""Compiling ahead: who compiles what, and what becomes of a process that fails."""

from __future__ import annotations

import itertools
import re
import warnings

import pytest

from engine import precompile
from engine.config import Config

SMALL = Config(width=4, batch=2)


def test_kernels_of_one_family_go_to_one_process_while_there_are_any() -> None:
    names = ["a[x1]", "b", "a[x2]", "c[1]", "a[x3]", "c[2]"]
    work, taken = precompile._Work(names), []
    last = {"one": "", "two": ""}
    for process in itertools.cycle(last):
        name = work.take(last[process])
        if name is None:
            break
        taken.append((process, name))
        last[process] = name
    assert sorted(name for _, name in taken) == sorted(names)
    assert [name for process, name in taken if process == "one"] == ["a[x1]", "a[x2]", "a[x3]"]
    assert [name for process, name in taken if process == "two"] == ["c[1]", "c[2]", "b"]


def test_what_is_missing_is_compiled_and_reported(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["pointwise.cpu.dropout.dropout", "shape.cpu.added", "gate.cpu.gate_forward[False True]"]
    monkeypatch.setenv("AREOGRAD_CACHE", str(tmp_path))  # of the processes: this one has chosen its own
    monkeypatch.setattr(precompile, "missing", lambda _configs: names)
    reports = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert precompile.precompile([SMALL], lambda *report: reports.append(report)) == 3
    assert sorted(name for _, _, name in reports) == sorted(names)
    assert [report[:2] for report in reports] == [(1, 3), (2, 3), (3, 3)]
    on_disk = [path.name for path in (tmp_path / "kernels").iterdir()]
    for name in names:
        assert any(re.sub(r"\W+", "_", name) in file for file in on_disk), (name, on_disk)


def test_a_process_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(precompile, "missing", lambda _configs: ["no such kernel", "nor this"])
    with pytest.warns(RuntimeWarning, match="compiling ahead failed for 2 of 2 kernels: they are compiled when needed"):
        assert precompile.precompile([SMALL], lambda *_: None) == 0
    assert "Traceback" in capfd.readouterr().err


def test_nothing_is_started_where_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precompile, "missing", lambda _configs: [])
    monkeypatch.setattr(precompile.subprocess, "Popen", None)
    assert precompile.precompile([SMALL], lambda *_: None) == 0
