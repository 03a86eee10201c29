"""Every kernel on ragged shapes in trace mode: no race, no read of shared memory that nobody wrote, nothing out of
bounds (fixture `clean`).
"""

from __future__ import annotations

import pytest

from bench import representatives
from bench.representatives import DTYPES, RAGGED, forced

with forced(representatives, **RAGGED):  # some calls are named after their channels
    NAMES = sorted(representatives.calls())


@pytest.mark.trace
@pytest.mark.mode("trace")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_ragged_shapes_have_no_findings(name: str, dtype: str, served: list) -> None:
    with forced(representatives, **RAGGED):
        representatives.calls()[name](dtype)
    assert served or (dtype == "float64" and name.startswith("tensor"))
