"""The same cases under pytest-benchmark:  pytest bench --benchmark-only"""

from __future__ import annotations

import pytest

from bench.__main__ import FAMILIES
from kernels.core.modules import load

CASES = [(family, case) for family in FAMILIES for case in load(f"bench.{family}").cases()]


@pytest.mark.parametrize(("family", "case"), CASES, ids=[f"{f}: {c.name} {c.shape}" for f, c in CASES])
def test_kernel(family, case, benchmark) -> None:
    benchmark.group = f"{case.name} {case.shape}"
    benchmark.pedantic(case.build("ours"), rounds=3, warmup_rounds=1)
