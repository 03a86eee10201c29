"""The pool of threads: every chunk once, whatever happens around it; and the same bits for any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from numba import carray

from kernels.core.cpu import thread_pool
from kernels.core.cpu.arguments import F32, I64
from kernels.core.cpu.capture import CapturedGraph
from kernels.core.cpu.cores import usable_cores
from kernels.core.cpu.jit import cpu_kernel
from kernels.core.cpu.thread_pool import load, parallel, set_threads
from tests.support.fast_checks import CHECKS, arrays_of


@pytest.fixture(autouse=True)
def _team():
    before = thread_pool.threads()
    yield
    set_threads(before)


@pytest.mark.parametrize("name", CHECKS)
def test_the_same_bits_for_any_number_of_threads(name: str) -> None:
    results = []
    for count in (1, 2, 4):
        set_threads(count)
        assert thread_pool.threads() == count
        results.append(arrays_of(name))
    for arrays in results[1:]:
        assert len(arrays) == len(results[0]) > 0
        for one, other in zip(results[0], arrays, strict=True):
            assert np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


@cpu_kernel()
def count_chunks(start, stop, scratch, counts: I64, marks: F32, size: int, rounds: int, value: float):  # type: ignore[no-untyped-def]
    """Counts every chunk, and looks whether another thread writes to this one's scratch meanwhile."""
    seen, own = carray(counts, stop), carray(scratch, size)
    errors = carray(marks, stop)
    for chunk in range(start, stop):
        for i in range(size):
            own[i] = np.float32(chunk) * value
        for _ in range(rounds):
            for i in range(size):
                if own[i] != np.float32(chunk) * value:
                    errors[chunk] += np.float32(1)
        seen[chunk] += 1


def job(chunks: int, size: int = 16, rounds: int = 1) -> None:
    """Run it and assert that every chunk was computed once, undisturbed, and none beyond."""
    counts, marks = np.zeros(chunks + 3, np.int64), np.zeros(chunks + 3, np.float32)
    parallel(count_chunks, chunks, counts, marks, size, rounds, 0.5, scratch=size)
    np.testing.assert_array_equal(counts, [1] * chunks + [0] * 3)
    assert not marks.any()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_many_tiny_jobs(count: int) -> None:
    set_threads(count)
    rng = np.random.default_rng(count)
    for chunks in (0, 1, 2, 3, *rng.integers(1, 40, 2000)):
        job(int(chunks))
    job(100_000)


def test_helpers_fall_asleep_and_wake() -> None:
    """Longer pauses than a worker's patience, in between jobs of every length."""
    set_threads(4)
    for pause in (0, 0.02, 0.001, 0.05, 0.003):
        threading.Event().wait(pause)
        job(64, 1024, 20)


@cpu_kernel()
def sleeping(start, stop, scratch, block: I64, word: int):  # type: ignore[no-untyped-def]
    """Ends when a word of the pool's control block is 0: a worker has fallen asleep."""
    while load(block[0] + 8 * word):
        pass


def test_a_helper_that_falls_asleep_between_replayed_launches_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(2)
    pool, counts, marks = thread_pool.current_pool(), np.zeros(8, np.int64), np.zeros(8, np.float32)
    block, word = np.array([pool.control]), thread_pool._MEMBERS + 3 * thread_pool._LINE
    recording = CapturedGraph()
    with recording.active():
        parallel(count_chunks, 8, counts, marks, 16, 1, 0.5, scratch=16)
        parallel(sleeping, 1, block, word)
        parallel(count_chunks, 8, counts, marks, 16, 1, 0.5, scratch=16)
    wake, woken = pool.wake, []
    monkeypatch.setattr(pool, "wake", lambda: woken.append(counts[0]) or wake())
    for done in (2, 4, 6):
        woken.clear()
        recording.replay(0, len(recording))
        assert done + 1 in woken, "nobody woke the worker before the second job"
        np.testing.assert_array_equal(counts, done + 2)


def test_scratch_grows_and_belongs_to_one_thread() -> None:
    set_threads(4)
    for size in (16, 5000, 100, 60_000):
        job(40, size, 3)


def test_two_python_threads_at_once() -> None:
    """The second caller computes alone; both are right. Teams may change meanwhile."""
    set_threads(2)
    failures: list[BaseException] = []

    def many() -> None:
        try:
            for chunks in range(1, 400):
                job(chunks % 23 + 1, 64, 2)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=many) for _ in range(3)]
    for caller in callers:
        caller.start()
    for count in (3, 1, 4, 2):
        set_threads(count)
    for caller in callers:
        caller.join(120)
        assert not caller.is_alive()
    assert not failures, failures[0]


def test_a_mistaken_call_leaves_the_team_usable() -> None:
    set_threads(2)
    counts, marks = np.zeros(9, np.int64), np.zeros(9, np.float32)
    for arguments in (
        (counts, marks.astype(np.float64), 16, 1, 0.5),
        (counts[::2], marks, 16, 1, 0.5),
        (counts, marks),
    ):
        with pytest.raises(TypeError):
            parallel(count_chunks, 5, *arguments)
        job(7)
    assert not counts.any()


def test_scratch_that_cannot_be_had_is_not_believed_in() -> None:
    """A MemoryError for the scratch memory of one job must not make the next one write beyond what there is."""
    set_threads(2)
    pool = thread_pool.current_pool()
    with pytest.raises(MemoryError):
        parallel(count_chunks, 5, np.zeros(9, np.int64), np.zeros(9, np.float32), 16, 1, 0.5, scratch=10**16)
    assert pool.scratch.array.shape[1] >= pool.scratch.floats
    job(9, 40_000)


def test_after_a_fork() -> None:
    """Threads do not survive a fork; the child makes its own pool. (In a process of its own: a child that hangs must
    not hang the tests.)
    """
    code = """
import os, sys, numpy as np
from kernels import pointwise
from kernels.core.cpu.thread_pool import set_threads, threads
set_threads(2)
x = np.linspace(-1, 1, 300_001, dtype=np.float32)
want = pointwise.relu_forward(x)
child = os.fork()
if child == 0:
    same = all((pointwise.relu_forward(x) == want).all() for _ in range(50))
    os._exit(0 if same and threads() >= 1 else 1)
assert os.waitpid(child, 0)[1] == 0
assert (pointwise.relu_forward(x) == want).all() and threads() == 2
print("both")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert result.stdout.strip() == "both", result.stderr


def test_the_knob_and_its_mistakes() -> None:
    with pytest.raises(ValueError, match="threads: got 0, expected at least 1"):
        set_threads(0)
    show = "from kernels.core.cpu.thread_pool import threads; print(threads())"
    for value, answer in (
        ("1", "1"),
        ("", str(usable_cores())),
        (str(usable_cores() + 1), str(usable_cores())),
        ("100000", str(usable_cores())),
    ):
        result = subprocess.run(
            [sys.executable, "-c", show],
            capture_output=True,
            text=True,
            env={**os.environ, "AREOGRAD_THREADS": value},
            check=False,
        )
        assert result.stdout.strip() == answer, result.stderr
        warning = f"AREOGRAD_THREADS: got {value}, but this process may use {answer} core"
        assert (warning in result.stderr) == (value not in ("", answer))
        assert result.stderr.count("\n") <= 1
    result = subprocess.run(
        [sys.executable, "-c", show],
        capture_output=True,
        text=True,
        env={**os.environ, "AREOGRAD_THREADS": "two"},
        check=False,
    )
    assert "ValueError: AREOGRAD_THREADS: got 'two', expected a positive number" in result.stderr


def test_blas_keeps_out_of_the_way() -> None:
    """Beside our pool BLAS has one thread."""
    from threadpoolctl import threadpool_info

    set_threads(1)
    set_threads(2)
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} <= {1}
