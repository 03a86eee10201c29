"""Fixtures that several test files share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.support", "tests.cuda")  # checks that stand outside test modules

# a shell starts its background jobs so; what they start would inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def same_threads() -> Iterator[None]:
    """The number of threads is put back."""
    # Not at the top: CUDA tests must set up their device before anything of the engine is imported.
    from kernels.core.cpu import thread_pool

    before = thread_pool.threads()
    yield
    thread_pool.set_threads(before)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a few small tiles of noise."""
    from tests.support.tiny_runs import write_tiles

    path = tmp_path_factory.mktemp("data") / "tiles.npz"
    write_tiles(path)
    return path


@pytest.fixture(scope="session")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that nobody disturbed."""
    from tests.support.tiny_runs import flags, run

    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(flags(tiles, out)) == 0
    return out
