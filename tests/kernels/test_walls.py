"""Checks of the fast CPU kernels with all memory ending at inaccessible pages, or starting behind them; planted
mistakes are found so.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import walls
from tests.support.kernel_mutants import Mutant, planted_copy, run_in_copy
from tests.support.paths import ROOT
from tests.support.vector_widths import NARROW

# One check of every family of kernels; `python -m tests.support.walls SIDE` runs all.
SOME = [
    "conv_direct",
    "conv_transpose",
    "conv_winograd2",
    "conv_depthwise",
    "norm_gradients_pointwise",
    "max_pool",
    "batch_norm",
    "layer_norm",
    "loss_terms",
    "gates",
    "softmaxes",
    "polarized_attention",
    "activations",
    "resampling",
    "channels",
    "sgd",
    "gathering",
    "augmentation",
]
# Right numbers, from memory that is not theirs.
MUTANTS = [
    (
        "end",
        Mutant(
            "a tail is read as a whole vector",
            "pointwise/cpu/softmax.py",
            "code.exp(code.load(x, x0 + i, rest) -",
            "code.exp(code.load(x, x0 + i) -",
            "softmaxes",
        ),
    ),
    (
        "start",
        Mutant(
            "numbers before the first are read",
            "pointwise/cpu/softmax.py",
            "value = code.load(dy, d0 + i, rest)\n            return",
            "value = code.load(dy, d0 + i, rest) + 0 * code.load(dy, d0 + i - 1)\n            return",
            "softmaxes",
        ),
    ),
    (
        "end",
        Mutant(
            "less scratch memory than is used",
            "gate/cpu.py",
            "y), pixels, channels, scratch=_BLOCK\n",
            "y), pixels, channels, scratch=_BLOCK - 1\n",
            "gates",
        ),
    ),
]


def run(side: str, *checks: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """The checks, in a process of their own that may be killed."""
    settings = {"AREOGRAD_THREADS": "1", **environment}
    return run_in_copy(root, "tests.support.walls", side, *checks, **settings)


@pytest.mark.parametrize("side", walls.SIDES)
def test_no_kernel_touches_what_is_beyond_its_arrays(side: str) -> None:
    result = run(side, *SOME)
    assert result.returncode == 0, (
        f"{(result.stdout.split() or ['the start'])[-1]}, arrays at their {side}: {result.stderr[-2000:]}"
    )
    assert result.stdout.split() == [*SOME, "passed"]


@pytest.mark.parametrize(("side", "mutant"), MUTANTS, ids=lambda value: getattr(value, "name", value))
def test_a_planted_access_is_killed(side: str, mutant: Mutant, tmp_path) -> None:
    root = planted_copy(mutant, tmp_path)
    result = run(side, mutant.check, root=root, AREOGRAD_CACHE=str(root / "cache"), **NARROW)
    assert -result.returncode in (signal.SIGSEGV, signal.SIGBUS), (
        f"{mutant.check} passes with the mistake, or fails otherwise:\n{result.stderr[-2000:]}"
    )
    assert result.stdout.split() == [mutant.check]
