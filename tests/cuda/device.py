"""The device of the CUDA tests, set up when this module is imported: a GPU, else the emulator, else none."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the emulator's host threads, shared out among the workers
    os.environ.setdefault(
        "CUPY_ON_CPU_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    )

from bench import emulation

WHERE = emulation.start()
EMULATOR = emulation.emulator()
