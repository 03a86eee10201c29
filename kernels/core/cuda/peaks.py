"""Measure the peaks of the current CUDA device: a large float32 matrix product by cuBLAS, and a copy within its memory
(bytes read + bytes written).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """name of the device; gflops: of a float32 matrix product; gbytes: copy bandwidth."""

    name: str
    gflops: float
    gbytes: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.gflops:.0f} GFLOP/s of a float32 matrix product, {self.gbytes:.0f} GB/s of copying "
            "(measured)"
        )


def name() -> str:
    """The current device's name."""
    runtime = importlib.import_module("cupy").cuda.runtime
    return runtime.getDeviceProperties(runtime.getDevice())["name"].decode()


def _least_seconds(cupy: Any, run: Callable[[], Any], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) / 1e3)
    return min(times)  # a peak: other work on the device only lowers a figure


def measure(side: int = 8192, floats: int = 1 << 28, rounds: int = 10) -> Gpu:
    """Measure the current device. side: rows and columns of the matrices.  floats: numbers that are copied."""
    cupy = importlib.import_module("cupy")
    a = cupy.ones((side, side), cupy.float32)
    product = cupy.empty_like(a)
    seconds = _least_seconds(cupy, lambda: cupy.matmul(a, a, out=product), rounds)
    source = cupy.ones(floats, cupy.float32)
    target = cupy.empty_like(source)
    copied = _least_seconds(cupy, lambda: cupy.copyto(target, source), rounds)
    return Gpu(name(), 2 * side**3 / seconds / 1e9, 8 * floats / copied / 1e9)
