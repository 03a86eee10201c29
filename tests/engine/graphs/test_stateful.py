"""A slice of the stateful programs (`python -m tests.support.stateful` runs more), driven and shrunk by hypothesis."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support.stateful import EDITS, LENGTH, Program, run

PROGRAMS = int(os.environ.get("AREOGRAD_STATEFUL_PROGRAMS", "15"))
SEEDS = st.integers(0, 2**31 - 1)
pytestmark = pytest.mark.usefixtures("same_threads")


class Programs(RuleBasedStateMachine):
    """Edits, steps and evaluations in any order."""

    @initialize(seed=SEEDS)
    def start(self, seed: int) -> None:
        """Two sides with the same numbers."""
        self.program = Program(seed)

    @rule(number=st.integers(0, len(EDITS) - 1), seed=SEEDS)
    def edit(self, number: int, seed: int) -> None:
        """One edit."""
        self.program.edit(number, seed)

    @rule(steps=st.integers(1, 4), seed=SEEDS)
    def train(self, steps: int, seed: int) -> None:
        """Some steps."""
        self.program.train(steps, seed)

    @rule(runs=st.integers(1, 5), seed=SEEDS)
    def evaluate(self, runs: int, seed: int) -> None:
        """Some runs on one image."""
        self.program.evaluate(runs, seed)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_programs_of_any_order() -> None:
    form = settings(
        max_examples=PROGRAMS,
        stateful_step_count=LENGTH,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(Programs, settings=form)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_programs_of_seeds_use_what_they_are_about() -> None:
    """The long run's programs: most steps after an edit are captured ones, most evaluations go by a plan, and nothing
    is left out.
    """
    done = Counter[str]()
    for seed in range(PROGRAMS):
        done += run(seed)
    assert done["captured step"] > 0.3 * done["step"]
    assert done["planned evaluation"] > 0.3 * done["evaluation"]
    assert len([name for name in done if name.startswith("_")]) > 10
