"""Say what this machine has for Areograd, what is missing and how to add it, and compile every kernel:
python -m engine.doctor [--precompile] [--json]
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from engine.cli import Output, UsageError, parsed, run_command
from engine.config import PRESETS, preset
from kernels.core.modules import PLACE


@dataclass(frozen=True)
class Arguments:
    """Say what this machine has: versions, vector unit, threads, CUDA, the kernels on disk; what is broken or missing,
    and the line that mends it.

    Exit code 0: what is needed is there. 1: something that is needed is broken; it is named.

    Examples:
      python -m engine.doctor
      python -m engine.doctor --precompile     compile the kernels now, so that no run has to
    """

    precompile: bool = False
    """Compile the CPU kernels of all presets now, so that no run has to."""
    json: bool = False
    """Print one JSON object instead of lines."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)


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


def precompile_all(output: Output) -> None:
    """Compile the kernels of every preset, with a progress line. Raises UsageError where they cannot be kept."""
    from engine.precompile import precompile
    from engine.training.progress import compile_line
    from kernels.core.cpu.jit import store

    why_not = store().why_not_writable()
    if why_not:
        raise UsageError(f"--precompile: {why_not}; AREOGRAD_CACHE can name another folder")
    start = time.monotonic()

    def show(done: int, of: int, name: str) -> None:
        end = "\r" if sys.stderr.isatty() and done < of else "\n"
        output.note(f"{compile_line(done, of, name):<100}"[: 100 if end == "\r" else None].rstrip("\n"), end)

    total = precompile([preset(name) for name in PRESETS], show)
    output.note(
        f"{total} kernels compiled in {time.monotonic() - start:.1f} s" if total else "all kernels are on disk already"
    )


def broken() -> list[str]:
    """What pip finds wrong with the requirements of this package, and other reasons why nothing could work, a line
    each with the command that mends it.
    """
    pip = f"{sys.executable} -m pip"
    try:
        importlib.metadata.version("areograd")
    except importlib.metadata.PackageNotFoundError:
        return [f"areograd is not installed, so what it requires is not known: {pip} install --editable {PLACE}"]
    lines = []
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("areograd ") and (wanted := re.search(r"requires (\S+?),|requirement (\S+?),", line)):
            requirement = next(r for r in _requirements() if r.startswith(re.split(r"\W", wanted[1] or wanted[2])[0]))
            lines.append(f"{line.rstrip('.')}: {pip} install '{requirement}'")
    return lines


def absent() -> dict[str, str]:
    """The extras of which a package is not installed, and the command that installs what is missing. The extra `cuda12`
    is left out, because `cuda13` stands for both.
    """
    lines = {}
    for extra in sorted(set(re.findall(r"extra == '(\w+)'", " ".join(_all_requirements())))):
        missing = [requirement for requirement in _requirements(extra) if not _installed(requirement)]
        if missing and extra != "cuda12":
            packages = " ".join(f"'{requirement}'" for requirement in missing)
            lines[extra] = f"{sys.executable} -m pip install {packages}"
    return lines


def _requirements(extra: str = "") -> list[str]:
    """What this package requires, without an extra or for one."""
    split = [requirement.partition(";") for requirement in _all_requirements()]
    return [name.strip() for name, _, marker in split if (f"extra == '{extra}'" in marker if extra else not marker)]


def _all_requirements() -> list[str]:
    try:
        return importlib.metadata.requires("areograd") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _installed(requirement: str) -> bool:
    try:
        importlib.metadata.version(re.split(r"[^\w.-]", requirement)[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def run(arguments: Arguments) -> int:
    """Print the facts and what is missing; compile if asked to."""
    wrong = broken()
    if arguments.json:
        print(json.dumps({"facts": dict(facts()), "broken": wrong, "absent": absent()}, indent=2))
        return 1 if wrong else 0
    for name, text in facts():
        print(f"{name:>17}  {text}")
    for extra, line in absent().items():
        print(f"{'without ' + extra:>17}  {line}")
    for line in wrong:
        print(f"{'broken':>17}  {line}")
    if arguments.precompile:
        precompile_all(arguments.output)
    return 1 if wrong else 0


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.doctor")))


if __name__ == "__main__":
    main()
