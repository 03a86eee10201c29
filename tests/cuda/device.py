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


def failures() -> tuple[type[BaseException], ...]:
    """How a check fails whose kernel is wrong: in a comparison, or by a finding of the emulator, which is an
    AssertionError, too. A GPU says that an access was illegal by an error of its runtime or driver.
    """
    if EMULATOR is not None:
        return (AssertionError,)
    import cupy

    return AssertionError, cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError
