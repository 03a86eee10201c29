"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def by_the_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The choice of algorithms is the cost model's, not a timing's; the number of threads is put back."""
    from kernels.core import threads  # CUDA tests must set up their device before anything of the engine is imported

    monkeypatch.setenv("AREOGRAD_TUNE", "0")
    before = threads.threads()
    yield
    threads.set_threads(before)
