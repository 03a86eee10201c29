"""Measure the peaks of this machine:  python -m kernels.core.cpu.peaks

The rate of fused multiply-adds from registers, on all threads, and the bandwidth of copying an array that fits no cache
(bytes read + bytes written; what a write reads first is not counted). Percentages of benchmarks and profiles refer to
these.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel, threads
from kernels.core.cpu.vector_ops import copy

_SUMS = 24 if target().registers > 16 else 12  # independent accumulators: more than latency times rate
_STEPS = 400_000
_CHUNKS = 64


@dataclass(frozen=True)
class Machine:
    """name, vector unit, threads; gflops: peak of float32 FMAs; gbytes: copy bandwidth."""

    name: str
    unit: str
    threads: int
    gflops: float
    gbytes: float

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.threads} threads, {self.unit}: {self.gflops:.0f} GFLOP/s of FMAs, {self.gbytes:.1f} "
            "GB/s of copying (measured)"
        )


@program
def _multiply_add(code: Code, x: Pointer, y: Pointer, steps: Int) -> None:
    a = code.load(x)
    b = code.load(x, code.lanes)
    sums = [code.variable(float(k)) for k in range(_SUMS)]
    with code.loop(0, steps):
        for total in sums:
            total.set(code.fma(a, b, total.get()))
    for k, total in enumerate(sums):
        code.store(total.get(), y, k * code.lanes)


@cpu_kernel()
def _arithmetic(start, stop, scratch, x: F32, y: F32, steps: int):  # type: ignore[no-untyped-def]
    for _ in range(start, stop):
        _multiply_add(x, scratch, steps)


@cpu_kernel()
def _copying(start, stop, scratch, x: F32, y: F32, n: int):  # type: ignore[no-untyped-def]
    for chunk in range(start, stop):
        copy(x, chunk * n, y, chunk * n, n)


def _least_seconds(run: Callable[[], None], rounds: int) -> float:
    warm = time.perf_counter() + 0.2
    # a new thread starts on the core of the one that made it, and is moved after some 20 ms
    while time.perf_counter() < warm:
        run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)  # a peak: other work on the machine only lowers a figure


def measure(floats: int = 1 << 26, rounds: int = 15) -> Machine:
    """Measure this machine with the threads that kernels use; about a second. floats: numbers that are copied, two
    arrays of 256 MB, and more than a cache holds.
    """
    lanes = target().lanes
    team = threads()
    small = np.ones(64, np.float32)
    large = np.ones(floats, np.float32)
    other = np.zeros(floats, np.float32)
    each = floats // _CHUNKS
    seconds = _least_seconds(lambda: parallel(_arithmetic, team, small, small, _STEPS, scratch=_SUMS * lanes), rounds)
    copied = _least_seconds(lambda: parallel(_copying, _CHUNKS, large, other, each), rounds)
    gflops = 2 * _SUMS * lanes * _STEPS * team / seconds / 1e9
    return Machine(_processor(), target().name, team, gflops, 8 * each * _CHUNKS / copied / 1e9)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))
