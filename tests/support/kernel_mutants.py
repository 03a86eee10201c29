"""Planted mistakes in the fast CPU kernels: each one stands in a copy of the package, whose kernels a process of its
own compiles and runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

# What ends a process that touches memory which is not its own: at once, or when the allocator looks.
KILLED = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


@dataclass(frozen=True)
class Mutant:
    """In kernels/`file` replace `old` (which stands there once) by `new`; `check` of fast_checks.py must then fail.

    overruns: the kernel writes beyond its arrays, so the process may be killed before the comparison.
    """

    name: str
    file: str
    old: str
    new: str
    check: str
    overruns: bool = False


def copied(folder: Path) -> Path:
    """The kernels' sources in `folder`."""
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def planted_copy(mutant: Mutant, folder: Path) -> Path:
    """The kernels' sources in `folder`, with the mistake."""
    root = copied(folder)
    path = root / "kernels" / mutant.file
    source = path.read_text()
    assert source.count(mutant.old) == 1, f"{mutant.file} has {source.count(mutant.old)} places like {mutant.old!r}"
    path.write_text(source.replace(mutant.old, mutant.new))
    return root


def run_in_copy(root: Path, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m module` with the kernels at `root` and everything else from this repository."""
    path = {"PYTHONPATH": os.pathsep.join((str(root), str(ROOT)))}
    command = [sys.executable, "-m", module, *arguments]
    env = {**os.environ, **path, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=env, check=False)
