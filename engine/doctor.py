"""Say what this machine has for Areograd, and compile every kernel:  python -m engine.doctor [--precompile]"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from engine.cli import UsageError, parsed, run_command
from engine.config import PRESETS, preset


@dataclass(frozen=True)
class Arguments:
    """Say what this machine has: versions, vector unit, threads, CUDA, the kernels on disk; with --precompile compile
    them all.
    """

    precompile: bool = False
    """Compile the CPU kernels of all presets now, so that no run has to."""


def facts() -> Iterator[tuple[str, str]]:
    """Pairs (name, fact about this machine), one for each line."""
    from kernels.core import device
    from kernels.core.cpu.jit import store
    from kernels.core.cpu.target import target
    from kernels.core.cpu.thread_pool import threads

    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in ("areograd", "numpy", "numba", "llvmlite", "cupy-cuda12x", "cupy-cuda13x", "torch"):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    unit = target()
    yield "vector unit", f"{unit.name}: {unit.lanes} float32 lanes, {unit.registers} registers (AREOGRAD_SIMD)"
    yield "threads", f"{threads()} (AREOGRAD_THREADS)"
    yield "cuda", device.cuda_obstacle() or "works"
    yield "compiled kernels", f"{store().described()} (AREOGRAD_CACHE)"


def precompile_all() -> None:
    """Compile the kernels of every preset, with a progress line. Raises UsageError where they cannot be kept."""
    from engine.precompile import precompile
    from engine.training.progress import compile_line
    from kernels.core.cpu.jit import store

    why_not = store().why_not_writable()
    if why_not:
        raise UsageError(f"--precompile: {why_not}; AREOGRAD_CACHE can name another folder")
    start = time.monotonic()

    def show(done: int, of: int, name: str) -> None:
        end = "\r" if sys.stdout.isatty() and done < of else "\n"
        print(f"{compile_line(done, of, name):<100}"[: 100 if end == "\r" else None].rstrip("\n"), end=end, flush=True)

    total = precompile([preset(name) for name in PRESETS], show)
    print(
        f"{total} kernels compiled in {time.monotonic() - start:.1f} s" if total else "all kernels are on disk already"
    )


def run(arguments: Arguments) -> int:
    """Print the facts; compile if asked to."""
    for name, text in facts():
        print(f"{name:>17}  {text}")
    if arguments.precompile:
        precompile_all()
    return 0


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.doctor")))


if __name__ == "__main__":
    main()
