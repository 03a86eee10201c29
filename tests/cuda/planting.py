"""Planted mistakes in CUDA sources: a kernel is compiled with a piece of its text replaced, and a test must notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from kernels.core.cuda import module
from kernels.core.cuda.module import Module
from tests.cuda.device import EMULATOR, failures

MODES = ("fast", "check", "trace")


class Mutant(NamedTuple):
    """In `launcher`'s source replace `old` by `new`; `test(cp)` then fails, or the emulator finds something, from
    `mode` on.

    instances: those kernels that the test needs (so that no others are compiled). attribute: the Module's name within
        `launcher`.
    """

    name: str
    old: str
    new: str
    mode: str
    test: Callable[[Any], None]
    launcher: ModuleType
    instances: Sequence[str]
    attribute: str = "MODULE"


def assert_caught(cp: Any, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test passes on the true source and fails on the mutant's; skipped in a mode that sees less than it takes."""
    if MODES.index(mutant.mode) > (MODES.index(EMULATOR.mode()) if EMULATOR else 0):
        pytest.skip(f"seen in mode {mutant.mode} only")
    original: Module = getattr(mutant.launcher, mutant.attribute)
    source = module.source_of(original.path)
    assert source.count(mutant.old) == 1, f"{mutant.name}: its text is there {source.count(mutant.old)} times"
    for text, is_mutant in ((source, False), (source.replace(mutant.old, mutant.new), True)):
        planted = Module(original.path, mutant.instances, original.options[len(module.OPTIONS) :])
        module.registry[original.path] = original
        monkeypatch.setattr(module, "source_of", lambda path, text=text: text)
        monkeypatch.setattr(mutant.launcher, mutant.attribute, planted)
        assert _fails(cp, mutant) == is_mutant, (
            f"{mutant.name}: {'not noticed' if is_mutant else 'the test fails without it'}"
        )


def _fails(cp: Any, mutant: Mutant) -> bool:
    try:
        if EMULATOR is None:
            mutant.test(cp)
        else:
            with EMULATOR.collect() as report:
                mutant.test(cp)
            report.assert_clean()
    except failures():
        return True
    return False


def planted(mutants: Sequence[Mutant]) -> pytest.MarkDecorator:
    """Parametrises a test over mutants."""
    return pytest.mark.parametrize("mutant", mutants, ids=[m.name for m in mutants])
