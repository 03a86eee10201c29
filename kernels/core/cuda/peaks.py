"""Measure the peaks of the current CUDA device: large matrix products by cuBLAS, of float32 numbers and of float16
numbers on the tensor cores, and a copy within its memory (bytes read + bytes written).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Gpu:
    """name of the device; gflops: of a float32 matrix product; gbytes: copy bandwidth; tensor_gflops: of a matrix
    product of float16 numbers with float32 sums.
    """

    name: str
    gflops: float
    gbytes: float
    tensor_gflops: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.gflops:.0f} GFLOP/s of a float32 matrix product, {self.tensor_gflops:.0f} of a "
            f"float16 one, {self.gbytes:.0f} GB/s of copying (measured)"
        )

    def peak(self, precision: str) -> float:
        """GFLOP/s of products in a precision of kernels.core.precision. That of TF32 is taken as half of that of 16
        bits, which is how NVIDIA's tensor cores are built.
        """
        return {"float32": self.gflops, "tf32": self.tensor_gflops / 2}.get(precision, self.tensor_gflops)


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
    numbers = np.random.default_rng(0).standard_normal((side, side), np.float32)  # zeros and ones would draw less power
    seconds = {}
    for dtype in ("float32", "float16"):
        a = cupy.asarray(numbers.astype(dtype))
        product = cupy.empty_like(a)
        seconds[dtype] = _least_seconds(cupy, partial(cupy.matmul, a, a, out=product), rounds)
    rates = [2 * side**3 / seconds[dtype] / 1e9 for dtype in ("float32", "float16")]
    source = cupy.ones(floats, cupy.float32)
    target = cupy.empty_like(source)
    copied = _least_seconds(cupy, lambda: cupy.copyto(target, source), rounds)
    return Gpu(name(), rates[0], 8 * floats / copied / 1e9, rates[1])
