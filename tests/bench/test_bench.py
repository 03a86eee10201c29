"""The races: what the command line says about frameworks it does not know or find, and that each JAX convolution
computes what ours does.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from bench import conv, xla
from bench.__main__ import FRAMEWORKS, Arguments, installed, run
from bench.harness import Case
from bench.results import beside
from engine.cli import Output
from tests.support.paths import ROOT


def test_an_unknown_framework_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "bench", "pool", "--against", "torch,jaxx"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: --against: unknown framework 'jaxx', expected some of {', '.join(FRAMEWORKS)}"
    ]
    assert not result.stdout


def test_a_framework_that_is_missing_is_one_line_and_the_others_run(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else object())
    assert installed(("torch", "jax", "reference"), Output()) == ("torch", "reference")
    assert capsys.readouterr().err.splitlines() == ["jax is not installed (pip install jax): it is not raced"]
    installed(("jax",), Output(quiet=True))
    assert not capsys.readouterr().err


def test_a_race_goes_on_without_what_is_missing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("bench.__main__.measured_machine", lambda: "a machine")
    raced = []
    monkeypatch.setattr(
        "bench.harness.race",
        lambda family, index, sides, *settings: raced.append(sides) or {"ours": {"error": "not timed here"}},
    )
    assert run(Arguments(("pool",), against="jax,torch", only="2x2")) == 0
    assert raced == [["ours"]] * 3
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()[:2]] == ["jax", "torch"]


def test_jax_keeps_to_the_instruction_set_asked_for(monkeypatch) -> None:
    monkeypatch.delenv("AREOGRAD_DEVICE", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    assert list(xla.modes(lambda mode: lambda: mode)) == ["eigen"]
    monkeypatch.setenv("XLA_FLAGS", "")
    assert [build()() for build in xla.modes(lambda mode: lambda: mode).values()] == ["ynnpack", "eigen"]
    monkeypatch.setenv("AREOGRAD_DEVICE", "cuda")
    assert not xla.modes(lambda mode: lambda: mode)


def jax_convolutions() -> list[Case]:
    """One case of each name, the one with fewest operations."""
    cases = sorted(conv.cases(), key=lambda case: -case.flops)
    return list({case.name: case for case in cases}.values())


@pytest.mark.parametrize("case", jax_convolutions(), ids=lambda case: case.name)
def test_jax_convolves_as_ours(case: Case, monkeypatch) -> None:
    pytest.importorskip("jax", reason="JAX is not installed: nothing to compare with")
    monkeypatch.setattr(conv, "BATCH", 1)
    monkeypatch.setenv("XLA_FLAGS", "")
    result = case.ours()()
    expected = result[0] if isinstance(result, tuple) else result
    for mode, build in case.theirs["jax"].items():
        found = np.asarray(build()())
        assert found.shape == expected.shape, mode
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), mode


def test_the_table_beside_the_bars_takes_the_geometric_mean() -> None:
    row = {"shape": "16x8", "against": "jax"}
    table = [
        {**row, "name": "conv2d 1x1 forward", "ratio": 2.0},
        {**row, "name": "conv2d 1x1 backward_data", "ratio": 8.0},
    ]
    lines = beside(table, "jax").splitlines()
    assert lines[2] == "| 1x1, all directions | 2 | **4.00** | 2.00, 8.00 |"
    assert len(lines) == 3
