"""CUDA kernels under test: on a GPU, or on the emulator `cupy_on_cpu` (found beside this project or installed) in the mode of AREOGRAD_EMULATE."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from kernels.core.module import launch_log

SHARED = Path(__file__).resolve().parents[3] / "shared"


def _start() -> str | None:
    """Why there is no device, or None. The emulator changes CuPy for the whole process, so the CPU tests must not run in it."""
    if not any("cuda" in argument for argument in sys.argv):
        return "CUDA tests run in a process of their own: python -m pytest tests/cuda"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    if not Path("/proc/driver/nvidia/version").exists():
        if (SHARED / "cupy_on_cpu").is_dir():
            sys.path.append(str(SHARED))
        if importlib.util.find_spec("cupy_on_cpu") is None:
            return "neither a GPU nor the emulator cupy_on_cpu is here"
        importlib.import_module("cupy_on_cpu").install(mode=os.environ.get("AREOGRAD_EMULATE", "check"))
    return None


OBSTACLE = _start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if OBSTACLE and Path(__file__).parent in item.path.parents:  # the hook sees the tests of all folders
            item.add_marker(pytest.mark.skip(reason=OBSTACLE))


@pytest.fixture
def cp():
    """CuPy."""
    return importlib.import_module("cupy")


@pytest.fixture
def served():
    """The log of our kernels' launches during the test."""
    with launch_log() as log:
        yield log


@pytest.fixture
def counted():
    """`with counted() as report:` counts sectors and wavefronts; skipped unless the emulator traces."""
    emulator = sys.modules.get("cupy_on_cpu")
    if emulator is None or emulator.mode() != "trace":
        pytest.skip("counters exist in the emulator's trace mode only")
    return emulator.collect


@pytest.fixture(autouse=True)
def clean():
    """No finding of the emulator in our kernels during a test."""
    emulator = sys.modules.get("cupy_on_cpu")
    if emulator is None:
        yield
        return
    before = _findings(emulator)
    yield
    report = emulator.process_report()
    assert _findings(emulator) == before, "\n".join(map(report._describe, report.own_findings))


def _findings(emulator) -> int:
    return sum(f["count"] for f in emulator.process_report().own_findings)
