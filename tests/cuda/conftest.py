"""CUDA kernels are tested on a GPU, or by emulation: AREOGRAD_EMULATE is check (default), trace, fast or off."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

MODE = os.environ.get("AREOGRAD_EMULATE", "check")
SHARED = Path(__file__).resolve().parents[3] / "shared"
REASON = ""
if MODE != "off" and (SHARED / "cupy_on_cpu").is_dir():
    sys.path.insert(0, str(SHARED))
    try:
        import cupy_on_cpu

        if not cupy_on_cpu.active():
            cupy_on_cpu.install(mode=MODE)
    except Exception as error:  # a missing CuPy or compiler
        REASON = f"no emulator: {error}"
if not REASON:
    from kernels.core.device import cuda_obstacle

    REASON = cuda_obstacle() or ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder, with the reason, where there is neither a GPU nor the emulator."""
    if REASON:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"CUDA: {REASON}"))
