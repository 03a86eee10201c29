"""Planted mistakes in CUDA sources: each is made while the source is loaded, and a named test must then fail or find something.

A test file lists MUTANTS = [(name, old, new, mode, test), ...]: in whichever of our .cu sources has the text `old`, it becomes `new`; `test` (the
name of a test in that file, with its parameters in brackets if it has any) is run in a process of its own, with the emulator in `mode`.
`conftest.py` calls `plant_from_environment`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kernels.core import module

VARIABLE = "AREOGRAD_MUTANT"
PLANTED = "mutant planted in kernels/"
ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """In a .cu source `old` becomes `new`; `test` must then fail in `mode`."""

    name: str
    old: str
    new: str
    mode: str
    test: str | Callable


def plant_from_environment() -> None:
    """Replace the text asked for by AREOGRAD_MUTANT in every source that has it, and say so on stderr."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    old, new = json.loads(wanted)
    original = module.source_of

    def mutated(path: str) -> str:
        source = original(path)
        if old not in source:
            return source
        print(f"{PLANTED}{path}", file=sys.__stderr__, flush=True)
        return source.replace(old, new)

    module.source_of = mutated


def run(file: Path, mutant: Mutant, planted: bool = True) -> subprocess.CompletedProcess:
    """Run the mutant's test in a process of its own."""
    test = mutant.test if isinstance(mutant.test, str) else mutant.test.__name__
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "CUPY_ON_CPU")) and k != VARIABLE}
    environment |= {k: v for k, v in os.environ.items() if k == "CUPY_ON_CPU_CACHE"} | {"AREOGRAD_EMULATE": mutant.mode}
    if planted:
        environment[VARIABLE] = json.dumps([mutant.old, mutant.new])
    command = [sys.executable, "-m", "pytest", "-x", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", f"{file}::{test}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def assert_caught(file: Path, mutant: Mutant) -> None:
    """The test passes as the sources are, and fails (for a reason other than the compiler's) with the mistake planted."""
    paths = sorted(module.registry)
    assert any(mutant.old in module.source_of(path) for path in paths), f"{mutant.name}: no source contains {mutant.old!r}"
    sound = run(file, mutant, planted=False)
    assert sound.returncode == 0, f"{mutant.name}: the test does not pass without it\n{sound.stdout[-2000:]}"
    done = run(file, mutant)
    assert PLANTED in done.stderr, f"{mutant.name}: the test never loads the source\n{done.stdout[-2000:]}{done.stderr[-1000:]}"
    assert not re.search(r"CompileException|not emulated", done.stdout), f"{mutant.name}: does not compile\n{done.stdout[-2000:]}"
    assert done.returncode == 1, f"{mutant.name}: not caught by {mutant.test} in {mutant.mode} mode\n{done.stdout[-2000:]}"
