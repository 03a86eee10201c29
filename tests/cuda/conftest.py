"""CUDA kernels on a GPU, or on the emulator in the mode AREOGRAD_EMULATE (fast, check, trace; check by default)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT.parent / "shared"))
try:
    import cupy_on_cpu

    cupy_on_cpu.install(mode=os.environ.get("AREOGRAD_EMULATE", "check"))
except (ImportError, RuntimeError):
    cupy_on_cpu = None

from kernels.core.device import cuda_obstacle  # noqa: E402
from kernels.core.module import launch_log  # noqa: E402

OBSTACLE = cuda_obstacle()
collect_ignore_glob = ["test_*.py"] if OBSTACLE else []


def pytest_report_header() -> str:
    return f"CUDA: skipped, {OBSTACLE}" if OBSTACLE else f"CUDA: {'emulated, ' + cupy_on_cpu.mode() if cupy_on_cpu else 'a GPU'}"


@pytest.fixture(autouse=True)
def clean():
    """No finding of the emulator in our kernels during a test (those inside `collect()` belong to that block)."""
    if cupy_on_cpu is None:
        yield
        return
    before = len(cupy_on_cpu.process_report().own_findings)
    yield
    found = cupy_on_cpu.process_report()
    assert len(found.own_findings) == before, [found._describe(f) for f in found.own_findings[before:]]


@pytest.fixture
def served():
    """The log of our kernels' launches during the test."""
    with launch_log() as log:
        yield log


@pytest.fixture
def counted():
    """`with counted() as report:` counts sectors and wavefronts; the test is skipped unless the emulator traces."""
    if cupy_on_cpu is None or cupy_on_cpu.mode() != "trace":
        pytest.skip("counters exist in trace mode only")
    return cupy_on_cpu.collect
