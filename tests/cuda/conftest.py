"""CUDA kernels under test: on a real GPU, else on the emulator in the mode AREOGRAD_EMULATE (fast, check or trace; check by default).

Run in a process of its own: the device is set up here, before anything imports CuPy.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests")]

from kernels.core import device  # noqa: E402
from kernels.core.module import launch_log  # noqa: E402


def _start() -> Any:
    """The emulator, when it is there and there is no GPU."""
    shared = ROOT.parent / "shared"
    if not (shared / "cupy_on_cpu").is_dir() or Path("/dev/nvidiactl").exists():
        return None
    sys.path.append(str(shared))
    emulator = importlib.import_module("cupy_on_cpu")
    if not emulator.active():
        emulator.install(mode=os.environ.get("AREOGRAD_EMULATE", "check"))
    return emulator


ALONE = any("cuda" in argument for argument in sys.argv[1:])
EMULATOR = _start() if ALONE else None
OBSTACLE = device.cuda_obstacle() if ALONE else "run these tests in a process of their own, pytest tests/cuda"


class Skipped(pytest.Module):
    """A test file that is not even imported."""

    def collect(self):
        raise pytest.skip.Exception(f"CUDA code cannot run here: {OBSTACLE}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if OBSTACLE is None else Skipped.from_parent(parent, path=module_path)


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
    """`with counted() as report:` counts sectors and wavefronts; the test is skipped unless the emulator traces."""
    if EMULATOR is None or EMULATOR.mode() != "trace":
        pytest.skip("counters exist in the emulator's trace mode only")
    return EMULATOR.collect


@pytest.fixture(autouse=True)
def clean():
    """No finding of the emulator in our kernels during a test (one inside `collect()` belongs to that block)."""
    before = _findings()
    yield
    new = [text for key, (count, text) in _findings().items() if count > before.get(key, (0, ""))[0]]
    assert not new, "the emulator found:\n" + "\n".join(new)


def _findings() -> dict[tuple, tuple[int, str]]:
    if EMULATOR is None:
        return {}
    report = EMULATOR.process_report()
    return {(f["kind"], f["kernel"], f["line"], f["message"]): (f["count"], report._describe(f)) for f in report.own_findings}
