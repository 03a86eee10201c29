"""The switch of the CUDA emulator."""

from __future__ import annotations

import importlib.util

import pytest

from bench import emulation


@pytest.fixture
def without_cupy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`start` reads the switch and then starts nothing."""
    monkeypatch.delenv("CUPY_ON_CPU", raising=False)
    monkeypatch.setattr(emulation, "emulator", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return monkeypatch


@pytest.mark.parametrize("word", ["fast", "FAST", " Trace ", "", " "])
def test_the_mode_is_a_word_in_either_case(without_cupy: pytest.MonkeyPatch, word: str) -> None:
    without_cupy.setenv("AREOGRAD_EMULATE", word)
    assert emulation.start().reason.startswith("CuPy is not installed")


def test_another_mode_is_named(without_cupy: pytest.MonkeyPatch) -> None:
    without_cupy.setenv("AREOGRAD_EMULATE", "quick")
    with pytest.raises(ValueError, match="AREOGRAD_EMULATE: got 'quick', expected one of fast, check, trace"):
        emulation.start()
