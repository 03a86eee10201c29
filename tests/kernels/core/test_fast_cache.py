"""Compiled kernels on disk, and every vector width this processor has."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from kernels.core.cpu import jit as compiling
from kernels.core.cpu import sources
from kernels.core.cpu.arguments import F32, Arrays, Ints, Signature
from kernels.core.cpu.thread_pool import parallel
from tests.support.paths import ROOT
from tests.support.vector_widths import NARROW, other_widths

# Two kernels; prints what was compiled as "name done total", then a number that tells that they computed.
PROGRAM = """
import numpy as np
from kernels import pointwise
from kernels.core.cpu.jit import on_compile, registry
on_compile(lambda name, done, total: print("compiling", name, done, total))
x = np.linspace(-1, 1, 101, dtype=np.float32)
print("result", float((pointwise.relu_forward(x) + pointwise.tanh_forward(x)).sum()))
"""


def run(cache: Path, root: Path = ROOT) -> tuple[list[list[str]], str]:
    """What a fresh process compiles with this cache folder and package, and its result."""
    environment = {**os.environ, "AREOGRAD_CACHE": str(cache), "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=root, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    return [line[1:] for line in lines if line[0] == "compiling"], lines[-1][1]


def copied(folder: Path) -> Path:
    """The package's sources somewhere else."""
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_cache(tmp_path) -> None:
    """The first process says what it compiles; the second compiles nothing, nor does one with the package elsewhere."""
    cache = tmp_path / "cache"
    events, result = run(cache)
    names = [
        "pointwise.cpu.activations.pointwise_map[relu_forward]",
        "pointwise.cpu.activations.pointwise_map[tanh_forward]",
    ]
    assert events == [[names[0], "1", "1"], [names[1], "2", "2"]]  # the how-manieth of those known so far
    assert run(cache) == ([], result)
    elsewhere = copied(tmp_path / "elsewhere")
    assert run(cache, elsewhere) == ([], result)


def edited(root: Path, file: str, old: str, new: str) -> None:
    path = root / "kernels" / file
    source = path.read_text()
    assert old in source, (file, old)  # '' appends
    path.write_text(source.replace(old, new, 1) if old else source + new)


def test_an_edit_compiles_what_it_changes_and_nothing_else(tmp_path) -> None:
    """Comments, docstrings, CUDA launchers, host code and other families compile nothing; constants,
    programs and the core do.
    """
    cache, root = tmp_path / "cache", copied(tmp_path / "copy")
    events, result = run(cache, root)
    assert len(events) == 2
    edited(root, "pointwise/cpu/activations.py", "from __future__", "# a comment\n\n\nfrom __future__")
    edited(root, "core/cpu/simd.py", "from __future__", "# a comment\n\n\nfrom __future__")
    edited(root, "pointwise/cpu/activations.py", "The error function", "erf x")
    edited(root, "pointwise/cpu/activations.py", "Fast activations", "Activations")
    edited(root, "core/cpu/simd_values.py", "A vector of float32", "Lanes of float32")
    edited(root, "pointwise/cuda.py", "THREADS = ", "THREADS = 1 + ")
    edited(root, "core/cuda/arrays.py", "", "\n\nMORE = 1\n")
    edited(root, "core/precision.py", "", "\n\nMORE = 1\n")
    edited(root, "conv/cpu/direct/forward.py", "", "\n\nMORE = 1\n")
    edited(root, "pointwise/reference.py", "", "\n\nMORE = 1\n")
    assert run(cache, root) == ([], result)
    edited(
        root,
        "pointwise/cpu/activations.py",
        '"relu_forward": lambda code, x: code.relu(x)',
        '"relu_forward": lambda code, x: x * 2',
    )
    events, other = run(cache, root)
    assert len(events) == 2
    assert other != result
    edited(root, "core/cpu/vector_ops.py", "_AHEAD = 16", "_AHEAD = 17")
    events, _ = run(cache, root)
    assert len(events) == 2


def test_all_constants_but_docstrings_count() -> None:
    text = "'doc'\nclass A:\n 'doc a'\n def f(s):\n  'doc f'\n  return 'x'\ng=lambda: 'k'\nh=['q' for _ in 'ab']\n"

    def content(text: str) -> Any:
        return sources._content(compile(text, "text", "exec"))

    assert content(text) == content(text.replace("doc", "other"))
    for constant in ("'x'", "'k'", "'q'", "'ab'"):
        assert content(text) != content(text.replace(constant, "'zz'")), constant


# Compiles the kernels of some checks, not from the cache; prints every kernel's module and the modules whose code ran
# or was typed meanwhile.
WATCHED = """
import sys
from tests.support import fast_checks
from kernels.core.cpu import jit as compiling, numba_internals as parts
real, typed = compiling.Kernel.compile, parts._Compiler.compile
seen = None
def watch(frame, event, _argument):
    name = frame.f_globals.get("__name__", "")
    if seen is not None and event == "call" and name.startswith("kernels."):
        seen.add(name)
def part(self, *arguments):
    seen.add(self.py_func.__module__)
    return typed(self, *arguments)
def watched(self):
    global seen
    if self.address or seen is not None:
        return real(self)
    seen = set()
    sys.setprofile(watch)
    try:
        return real(self)
    finally:
        sys.setprofile(None)
        print(self.callback._cache.load.__self__.module, *sorted(seen))
        seen = None
compiling.Kernel.compile, parts._Compiler.compile = watched, part
for name in sys.argv[1:]:
    fast_checks.CHECKS[name]()
"""


def test_a_kernel_s_digest_covers_all_that_its_machine_code_comes_from(tmp_path) -> None:
    """Programs and numba functions that are handed from family to family, too."""
    names = [
        "norm_gradients_winograd",
        "gates",
        "max_pool",
        "loss_terms",
        "polarized_attention",
        "softmaxes",
        "boundary_distances",
        "adamw",
    ]
    environment = {**os.environ, **NARROW, "AREOGRAD_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "NUMBA_OPT": "0"}
    command = [sys.executable, "-c", WATCHED, *names]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert len({module for module, *_ in rows}) >= 10
    for module, *contributors in rows:
        beyond = {name for name in contributors if not sources.is_host_only(name)} - sources.closure(module)
        assert not beyond, f"{module}: {beyond}"


OWN = """
import numpy as np
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import cpu_kernel
from kernels.core.cpu.thread_pool import parallel

@cpu_kernel()
def scaled(start, stop, _scratch, x: F32):
    for i in range(start, stop):
        x[i] *= FACTOR

x = np.ones(3, np.float32)
parallel(scaled, 3, x)
print(x.sum())
"""


def test_a_kernel_of_the_user_s_own_is_never_taken_from_an_older_one_s_file(tmp_path) -> None:
    """Its sources are not the package's: it is compiled in memory."""
    environment = {**os.environ, "AREOGRAD_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for factor in (2, 3):
        command = [sys.executable, "-W", "error", "-c", OWN.replace("FACTOR", str(factor))]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        assert float(result.stdout) == 3 * factor


def test_what_is_left_out_of_digests_has_nothing_that_machine_code_could_hold() -> None:
    """No program, no numba function, and no constant that a module with such functions imports."""
    texts = {name: (ROOT / f"{name.replace('.', '/')}.py").read_text() for name in sources.modules()}
    with_code = {
        name
        for name, text in texts.items()
        if re.search(r"^ *@(program|inline|cpu_kernel|compiled|numba)", text, re.MULTILINE)
    }
    left_out = {name for name in texts if sources.is_host_only(name)}
    assert len(left_out) > 20
    assert not left_out & with_code
    for name in with_code:
        for node in ast.walk(ast.parse(texts[name])):
            if isinstance(node, ast.ImportFrom) and node.module in left_out:
                values = [getattr(importlib.import_module(node.module), alias.name) for alias in node.names]
                assert not [v for v in values if isinstance(v, (int, float, str, bytes, tuple, list, dict))], (
                    name,
                    node.module,
                )


def test_a_cache_folder_that_cannot_be_written(tmp_path) -> None:
    """Kernels are then compiled in memory, every time."""
    (tmp_path / "file").write_text("not a folder")
    events, result = run(tmp_path / "file" / "cache")
    assert len(events) == 2
    assert run(tmp_path / "file" / "cache") == (events, result)


def test_a_kernel_s_annotations_are_checked() -> None:
    def without(start, stop, scratch, x: F32, n) -> None: ...

    def wrong(start, stop, scratch, x: F32, n: str) -> None: ...

    with pytest.raises(ValueError, match=r"cpu_kernel .*without: its parameter 'n' has no annotation"):
        compiling.cpu_kernel()(without)
    with pytest.raises(
        ValueError, match=r"cpu_kernel .*wrong: its parameter 'n' is annotated with .*str.*, expected F32"
    ):
        compiling.cpu_kernel()(wrong)


def test_a_kernel_with_more_arrays_than_a_launch_takes_is_refused() -> None:
    def many(start, stop, scratch, maps):
        pass

    many.__annotations__ = {"maps": Arrays(65)}
    with pytest.raises(ValueError, match="its parameters take 65 slots, expected 64 at most"):
        Signature(many, "cpu_kernel many")
    many.__annotations__ = {"maps": Arrays(64)}
    assert len(Signature(many, "cpu_kernel many").slots) == 64


class Numbers(NamedTuple):
    """Numbers that a kernel reads by name."""

    first: int
    last: int


class Arrays2(NamedTuple):
    """Arrays that a kernel reads by name."""

    x: F32
    y: F32


def test_records_and_tuples_of_a_kernel() -> None:
    @compiling.cpu_kernel()
    def records(start, stop, scratch, pair: Arrays2, others: Arrays(3), numbers: Numbers, ints: Ints(2), f: float):
        for i in range(numbers.first, numbers.last):
            pair.y[i] = pair.x[i] * f + others[0][i] + others[2][i] * ints[1] + ints[0]

    x, y, a, c = (np.arange(8, dtype=np.float32) + k for k in range(4))
    before = y.copy()
    parallel(records, 1, Arrays2(x, y), [a, x, c], Numbers(2, 6), (7, 100), 0.5)
    expected = x * 0.5 + a + c * 100 + 7
    assert (y[2:6] == expected[2:6]).all()
    assert (y[[0, 1, 6, 7]] == before[[0, 1, 6, 7]]).all()


@pytest.mark.parametrize("width", other_widths())
def test_other_vectors(width: str) -> None:
    """A compact set of kernels of every family with the vector width forced."""
    names = [
        "conv_direct",
        "conv_winograd2",
        "conv_depthwise",
        "conv_stem",
        "max_pool",
        "batch_norm",
        "loss_terms",
        "gates",
        "polarized_attention",
    ]
    names += [
        "dot_product_attention",
        "layer_norm",
        "activations",
        "softmaxes",
        "resampling",
        "channels",
        "adamw",
        "gathering",
    ]
    command = [sys.executable, "-m", "tests.support.fast_checks", *names]
    environment = {**os.environ, "AREOGRAD_SIMD": width, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == ["passed", *names]


def test_looking_for_missing_kernels_draws_no_random_numbers() -> None:
    """A step is walked through for it; the run behind draws the same dropout as one on another device, where nothing is
    compiled ahead.
    """
    from autograd import random
    from engine.config import Config
    from engine.precompile import needed

    random.seed(5)
    before = random.state()
    assert needed(Config(width=4, batch=2))
    assert random.state() == before
