"""CUDA kernels under test: on a real GPU, else on the emulator in the mode AREOGRAD_EMULATE (fast, check or trace;
check by default).

Without either the folder is skipped with the reason. device.py sets up the device before anything imports CuPy;
therefore these tests run in a process of their own (`python -m pytest tests/cuda`), never in that of the CPU tests.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from kernels.core.cuda.module import launch_log
from tests.cuda.device import EMULATOR, WHERE


def pytest_report_header() -> str:
    return f"CUDA: {WHERE.reason}"


class Skipped(pytest.Module):
    """A test file that is not even imported."""

    def collect(self):
        raise pytest.skip.Exception(f"CUDA code cannot run here: {WHERE.reason}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if WHERE.mode else Skipped.from_parent(parent, path=module_path)


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs another mode; mark `trace` what shows itself in that mode alone: counters, and mistakes that only
    tracing catches.
    """
    for item in items:
        needed = [mark.args[0] for mark in item.iter_markers("mode")]
        if needed and WHERE.mode not in needed[0].split():
            item.add_marker(pytest.mark.skip(reason=f"runs in mode {needed[0]}, this is {WHERE.mode}"))
        elif "counted" in item.fixturenames or _trace_alone(item):
            item.add_marker("trace")


def _trace_alone(item: pytest.Item) -> bool:
    """Whether a skip says so, or a parameter (a mutant: a tuple) names this mode alone."""
    if any("trace" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
        return True
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return any(repr(part) in ("'trace'", "('trace',)") for part in parts if isinstance(part, (str, tuple)))


@pytest.fixture
def cp():
    """CuPy."""
    return importlib.import_module("cupy")


@pytest.fixture(autouse=True)
def clean():
    """No finding of the emulator in our kernels during a test (one inside `collect()` belongs to that block). Always
    on.
    """
    if EMULATOR is None:
        yield
        return
    before = _findings()
    yield
    new = [text for key, (count, text) in _findings().items() if count > before.get(key, (0, ""))[0]]
    assert not new, "the emulator found:\n" + "\n".join(new)


def _findings() -> dict[tuple, tuple[int, str]]:
    report = EMULATOR.process_report()
    return {
        (f["kind"], f["kernel"], f["line"], f["message"]): (f["count"], report._describe(f))
        for f in report.own_findings
    }


@pytest.fixture
def served():
    """The log of our kernels' launches during the test."""
    with launch_log() as log:
        yield log


@pytest.fixture
def counted():
    """`with counted() as report:` counts sectors and wavefronts; the test is skipped unless the emulator traces."""
    if WHERE.mode != "trace":
        pytest.skip(f"counters exist in trace mode only, this is {WHERE.mode}")
    return EMULATOR.collect


@pytest.fixture
def big_tiles(monkeypatch):
    """As if a few blocks filled a GPU: small problems take the large tiles, and the filter gradient cuts its depth."""
    from kernels.conv.cuda import tensor_core

    monkeypatch.setattr(tensor_core, "BLOCKS", 1)
