"""Where CUDA code runs on this machine: on a real GPU, on the emulator next to this repository, or nowhere, with the
reason.

The emulator (`../shared/cupy_on_cpu`, or the folder named by AREOGRAD_EMULATOR) executes on the CPU what NVRTC compiles
our kernels to. It must be installed before CuPy is first imported, so call `start` early. Modes: fast (numbers), check
(bounds, alignment), trace (races, counters).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODES = ("fast", "check", "trace")


@dataclass(frozen=True)
class Where:
    """mode: 'gpu', or the emulator's mode, or '' when CUDA code cannot run here; `reason` says it in one line."""

    mode: str
    reason: str

    @property
    def emulated(self) -> bool:
        """The emulator runs."""
        return self.mode in MODES


def folder() -> Path:
    """Where the emulator is expected."""
    return Path(os.environ.get("AREOGRAD_EMULATOR") or ROOT.parent / "shared" / "cupy_on_cpu")


def emulator() -> Any:
    """The module cupy_on_cpu, or None when it has not been started."""
    module = sys.modules.get("cupy_on_cpu")
    return module if module is not None and module.active() else None


def real_gpus() -> int:
    """How many devices NVIDIA's driver sees; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def start(mode: str | None = None) -> Where:
    """Make `import cupy` work: with a real GPU as it is, else with the emulator in `mode` (None: AREOGRAD_EMULATE, else
    check).
    """
    # the first: started by the emulator's own command
    mode = os.environ.get("CUPY_ON_CPU") or mode or os.environ.get("AREOGRAD_EMULATE", "").strip().lower() or "check"
    if mode not in MODES:
        raise ValueError(f"AREOGRAD_EMULATE: got {mode!r}, expected one of {', '.join(MODES)}")
    running = emulator()
    if running is not None:
        return Where(running.mode(), f"emulated, {running.mode()} mode")
    if importlib.util.find_spec("cupy") is None:
        return Where("", "CuPy is not installed (pip install cupy-cuda13x)")
    if real_gpus():
        return Where("gpu", "a real GPU")
    if not (folder() / "__init__.py").is_file():
        return Where("", f"no GPU, and no emulator at {os.path.relpath(folder())}")
    if "cupy_on_cpu" not in sys.modules:
        sys.path.append(str(folder().parent))
    try:
        importlib.import_module("cupy_on_cpu").install(mode=mode, cc=os.environ.get("CUPY_ON_CPU_CC") or "8.0")
    except RuntimeError as error:  # no g++, another CuPy, headers missing: its message says which
        return Where("", f"no GPU, and the emulator cannot run: {error}")
    return Where(mode, f"emulated, {mode} mode")


# for the Makefile: exit status 0 when CUDA code can run here, else 1, with the reason either way
if __name__ == "__main__":
    found = start("fast")
    print(f"CUDA code: {found.reason}")
    sys.exit(0 if found.mode else 1)
