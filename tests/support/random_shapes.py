"""Settings and strategies of hypothesis that the tests of fast kernels over random shapes share."""

from __future__ import annotations

from hypothesis import HealthCheck
from hypothesis import strategies as st

from kernels.core.dispatch import kernel_log

FEW = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
CHANNELS = st.one_of(st.integers(1, 70), st.sampled_from([1, 3, 8, 16, 17, 64]))
SEEDS = st.integers(0, 99)


def pair(low: int, high: int) -> st.SearchStrategy:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def served_by(operator, *arguments, **kwargs) -> str:
    with kernel_log() as log:
        operator(*arguments, **kwargs)
    return log[-1].by
