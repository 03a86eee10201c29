"""Planted mistakes in Python: each one is made in a copy of a function, put in its place, and must make a check fail.

A test-suite that stays green with one of these in place would prove nothing about it. The mistakes stand in the file of
the tests that catch them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from engine.gradcheck.bugs import misprinted
from tests.support.cases import SAMPLES, Case, Sample


@dataclass(frozen=True)
class Mutant:
    """In `target` (module:function or module:Class.method) replace `old` by `new`; a comparison in `caught_by` then
    fails. A mistake that ends otherwise says how: the exception and a pattern of its message.
    """

    name: str
    target: str
    old: str
    new: str
    caught_by: Callable[[], None]
    fails_with: type[BaseException] = AssertionError
    message: str | None = None


def planted(mutants: Sequence[Mutant]) -> pytest.MarkDecorator:
    """Parametrises a test over mutants."""
    return pytest.mark.parametrize("mutant", mutants, ids=[mutant.name for mutant in mutants])


def assert_caught(mutant: Mutant) -> None:
    """The check passes, and fails in the way that is expected once the mistake is planted."""
    try:
        mutant.caught_by()
    except pytest.skip.Exception as skipped:
        pytest.fail(f"{mutant.name}: its check is skipped ({skipped})")
    with misprinted(mutant.target, mutant.old, mutant.new), pytest.raises(mutant.fails_with, match=mutant.message):
        mutant.caught_by()


def on_samples(check: Callable[[Case, Sample], None], *operators: str) -> Callable[[], None]:
    """The check of all samples of these operators; one that has no sample is an error."""
    samples = [(case, sample) for case, sample in SAMPLES if case.name in operators]
    assert {case.name for case, _ in samples} == set(operators), operators

    def run() -> None:
        for case, sample in samples:
            check(case, sample)

    return run
