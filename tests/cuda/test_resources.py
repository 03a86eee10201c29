"""kernels/RESOURCES.md is what the compiler says today: no spill, nothing worse, no kernel missing.

A compiler gives the same figures for the same source, so a module whose committed figures are of this source and this
compiler is not compiled again, but for one, which shows that the table tells the truth. AREOGRAD_RECOMPILE=1 compiles
all, as does every module whose source or compiler has changed: for every architecture, remembered in the cache folder.
"""

from __future__ import annotations

import os
import re
import warnings

import pytest

from bench import resources
from bench.resources import ARCHITECTURES, Usage
from kernels.core.cuda import module

resources.launchers()
PATHS = sorted(module.registry)
ALWAYS = "gate/gate.cu"
COMMITTED = resources.read_table(resources.TABLE.read_text() if resources.TABLE.exists() else "")


@pytest.mark.mode("check gpu")
@pytest.mark.parametrize("path", PATHS)
def test_no_spill_and_nothing_worse_than_committed(path: str) -> None:
    made = module.registry[path]
    same = COMMITTED.version == resources.nvrtc_version() and COMMITTED.digests.get(path) == resources.digest(made)
    if same and path != ALWAYS and not os.environ.get("AREOGRAD_RECOMPILE"):
        return
    usages = {
        arch: resources.remembered_usage(module.source_of(path), path, made.instances, made.options, arch)
        for arch in ARCHITECTURES
    }
    assert resources.spills({path: usages}) == []
    # other compilers may do a little better or worse; a spill is wrong with any
    if COMMITTED.version != resources.nvrtc_version():
        warnings.warn(
            f"figures not compared: RESOURCES.md is of NVRTC {COMMITTED.version}, this is {resources.nvrtc_version()}",
            stacklevel=1,
        )
        return
    assert not resources.worse(path, usages, COMMITTED)


@pytest.mark.parametrize("path", PATHS)
def test_table_is_of_this_source_and_complete(path: str) -> None:
    assert COMMITTED.digests.get(path) == resources.digest(module.registry[path]), "stale: python -m bench.resources"
    assert set(COMMITTED.rows.get(path, ())) == set(module.registry[path].instances)


def test_table_has_no_module_that_is_gone() -> None:
    assert set(COMMITTED.rows) == set(PATHS)


def test_a_spill_and_worse_figures_are_noticed() -> None:
    source = """extern "C" __global__ __launch_bounds__(1024) void greedy(const double* x, double* y, int n) {
      double a[100];
      for (int i = 0; i < 100; ++i) a[i] = x[i * n];
      for (int i = 0; i < 100; ++i) y[i] = a[i] * a[99 - i] + a[(i * 37) % 100];
    }"""
    usage = resources.compile_usage(source, "greedy.cu", ("greedy",), ("-std=c++17",), 75)
    assert resources.spills({"greedy.cu": {75: usage}})
    table = (
        "Compiler: NVRTC 13.5. x\n## greedy.cu\n\nsource 0\n\n| `greedy` | 1024 | 8 | 0 | 20, 50% | 2 | 3 | 4 | 5 | 6 "
        "|\n"
    )
    lines = resources.worse(
        "greedy.cu", {75: {"greedy": Usage(24, 0, 0, 16), "other": Usage(1, 0, 0, 0)}}, resources.read_table(table)
    )
    assert lines == [
        "greedy on sm_75: registers 24, committed 20",
        "greedy on sm_75: static shared bytes 16, committed 8",
        "other is not in kernels/RESOURCES.md: python -m bench.resources",
    ]


@pytest.mark.parametrize(
    ("arch", "usage", "threads", "dynamic", "expected"),
    [
        (80, Usage(32, 0, 0, 0), 256, 0, 1.0),
        (80, Usage(64, 0, 0, 0), 256, 0, 0.5),  # 65536 / (64 * 32) = 32 of 64 warps
        # 40 * 32 = 1280 registers a warp: 51 warps, 48 in four partitions, 6 blocks of 8
        (80, Usage(33, 0, 0, 0), 256, 0, 0.75),
        (86, Usage(32, 0, 0, 0), 1024, 0, 32 / 48),  # one block of 32 warps: two would be 64
        (90, Usage(32, 0, 0, 1024), 128, 99 << 10, 8 / 64),  # 101 KB a block: 2 fit into 228 KB
        (75, Usage(32, 0, 0, 40 << 10), 64, 0, 2 / 32),
        (120, Usage(16, 0, 0, 0), 32, 0, 24 / 48),  # blocks run out
        (86, Usage(32, 0, 0, 0), 128, 100 << 10, 0.0),  # with the reserved kilobyte it does not fit
    ],
)
def test_occupancy(arch: int, usage: Usage, threads: int, dynamic: int, expected: float) -> None:
    assert usage.occupancy(arch, threads, dynamic) == pytest.approx(expected)


@pytest.mark.parametrize("path", PATHS)
def test_every_kernel_s_parameters_are_known_and_a_launch_with_one_more_or_less_is_refused(path: str) -> None:
    """It would read beyond its arguments."""
    for kernel in module.registry[path].instances:
        count = module.registry[path].parameters(kernel)
        for wrong in (count - 1, count + 1):
            with pytest.raises(
                TypeError, match=f"kernels/{path}: {re.escape(kernel)} got {wrong} arguments, expected {count}"
            ):
                module.registry[path].run(module.Launch(kernel, (1,), (1,)), *range(wrong))
