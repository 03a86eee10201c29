"""Compiled kernels on disk, and every vector width this processor has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_simd import other_widths

from kernels.core import compile as compiling

ROOT = Path(__file__).resolve().parent.parent

# Two kernels; prints what was compiled as "name done total", then a number that tells that they computed.
PROGRAM = """
import numpy as np
from kernels import pointwise
from kernels.core.compile import on_compile, registry
on_compile(lambda name, done, total: print("compiling", name, done, total))
x = np.linspace(-1, 1, 101, dtype=np.float32)
print("result", float((pointwise.relu_forward(x) + pointwise.tanh_forward(x)).sum()))
"""


def run(cache: Path, root: Path = ROOT) -> tuple[list[list[str]], str]:
    """What a fresh process compiles with this cache folder and package, and its result."""
    environment = {**os.environ, "AREOGRAD_CACHE": str(cache), "PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    return [line[1:] for line in lines if line[0] == "compiling"], lines[-1][1]


def copied(folder: Path) -> Path:
    """The package's sources somewhere else."""
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_cache(tmp_path) -> None:
    """The first process says what it compiles; the second compiles nothing, nor does one with the package elsewhere; a changed source does."""
    cache = tmp_path / "cache"
    events, result = run(cache)
    names = ["pointwise.cpu.pointwise_map[relu_forward]", "pointwise.cpu.pointwise_map[tanh_forward]"]
    assert events == [[names[0], "1", "1"], [names[1], "2", "2"]]  # the how-manieth of those known so far
    assert run(cache) == ([], result)
    elsewhere = copied(tmp_path / "elsewhere")
    assert run(cache, elsewhere) == ([], result)
    source = elsewhere / "kernels" / "pointwise" / "cpu.py"
    source.write_text(source.read_text().replace('"relu_forward": lambda code, x: code.relu(x)', '"relu_forward": lambda code, x: x * 2'))
    events, other = run(cache, elsewhere)
    assert len(events) == 2
    assert other != result
    reference = elsewhere / "kernels" / "pointwise" / "reference.py"
    reference.write_text(reference.read_text() + "# not compiled\n")
    assert run(cache, elsewhere) == ([], other)


def test_a_cache_folder_that_cannot_be_written(tmp_path) -> None:
    """Kernels are then compiled in memory, every time."""
    (tmp_path / "file").write_text("not a folder")
    events, result = run(tmp_path / "file" / "cache")
    assert len(events) == 2
    assert run(tmp_path / "file" / "cache") == (events, result)


def test_a_kernel_s_letters_are_checked() -> None:
    with pytest.raises(ValueError, match="got arguments 'pxi', expected the letters p b d l i f and gN"):
        compiling.cpu_kernel("pxi")(lambda start, stop, scratch, a, b, c: None)


@pytest.mark.parametrize("width", other_widths())
def test_other_vectors(width: str) -> None:
    """A compact set of kernels of every family with the vector width forced."""
    names = ["conv_direct", "conv_winograd2", "conv_depthwise", "conv_stem", "max_pool", "batch_norm", "loss_terms", "gates", "polarized_attention"]
    names += ["dot_product_attention", "layer_norm", "activations", "softmaxes", "resampling", "channels", "adamw", "gathering"]
    command = [sys.executable, str(ROOT / "tests" / "fast_checks.py"), *names]
    environment = {**os.environ, "AREOGRAD_SIMD": width, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == ["passed", *names]


def test_looking_for_missing_kernels_draws_no_random_numbers() -> None:
    """A step is walked through for it; the run behind draws the same dropout as one on another device, where nothing is compiled ahead."""
    from autograd import random
    from engine.config import Config
    from engine.warm import needed

    random.seed(5)
    before = random.state()
    assert needed(Config(width=4, batch=2))
    assert random.state() == before
