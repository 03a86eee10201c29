"""Interrupts within the thread pool: an exception at any step of the interpreter, and real signals,
leave it working.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kernels import pointwise
from kernels.core.cpu import capture, thread_pool
from kernels.core.cpu.cores import quota
from kernels.core.cpu.deferral import signals_deferred
from tests.support.paths import ROOT

X = np.linspace(-1, 1, 300_001, dtype=np.float32).reshape(1, 1, -1, 1)
EXPECTED = np.maximum(X, 0)


@pytest.fixture(autouse=True)
def _team() -> Iterator[None]:
    before = thread_pool.threads()
    thread_pool.set_threads(3)
    pointwise.relu_forward(X)
    yield
    thread_pool.set_threads(before)


def interrupted(function: Callable[[], object], at: int) -> bool:
    """Call it with a KeyboardInterrupt at the at-th step of the interpreter within threads.py and recording.py; whether
    it got so far.
    """
    files, left = (thread_pool.__file__, capture.__file__), [at]

    def trace(frame, event, _argument):  # type: ignore[no-untyped-def]
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if left[0] < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def works() -> None:
    """All members of the pool compute, and nobody has kept it."""
    pool = thread_pool.current_pool()
    assert pool.block[thread_pool._BUSY] == 0
    np.testing.assert_array_equal(pointwise.relu_forward(X), EXPECTED)


def recorded_job() -> Callable[[], object]:
    made, place = capture.CapturedGraph(), {}
    with made.active():
        place["y"] = pointwise.relu_forward(X)

    def job() -> None:
        made.replay(0, len(made))
        np.testing.assert_array_equal(place["y"], EXPECTED)

    job()  # compiled from here on
    return job


def scratch_job() -> None:
    """More scratch memory than there is, for another kernel's argument list."""
    pool = thread_pool.current_pool()
    pool.reserve(pool.scratch.floats + 1024)
    pointwise.relu_forward(X)


JOBS: dict[str, Callable[[], Callable[[], object]]] = {
    "a launch": lambda: lambda: pointwise.relu_forward(X),
    "a replay": recorded_job,
    "more scratch": lambda: scratch_job,
    "another pool": lambda: lambda: thread_pool.set_threads(5 - thread_pool.threads()),
}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("asleep", [False, True])
def test_an_exception_at_every_step(name: str, asleep: bool) -> None:
    """Steps are counted up until the job ends before its exception; workers that watch, and workers that sleep and have
    to be woken.
    """
    thread_pool.set_threads(2)
    job = JOBS[name]()
    at = 0
    while True:
        if asleep:
            time.sleep(0.01)
        if not interrupted(job, at):
            break
        works()
        at += 1
    assert at > 10, "the injection has missed the code"
    assert thread_pool.threads() in (2, 3)
    works()


def test_signals_at_random_moments() -> None:
    """A timer's handler that raises, a thousand times, while kernels run."""

    def handler(_signal, _frame):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    before, raised = signal.signal(signal.SIGALRM, handler), 0
    try:
        stop = time.monotonic() + 60
        while raised < 1000 and time.monotonic() < stop:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + raised % 97 * 1e-5)
                for _ in range(1000):
                    pointwise.relu_forward(X)
            except KeyboardInterrupt:
                raised += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised > 100
    works()


def test_an_interrupt_while_compiling(tmp_path: Path) -> None:
    """It is raised when the function is compiled, and the next call finds it; llvmlite would be broken for good by an
    exception in its work.
    """
    code = """
import os, signal, threading, numpy as np
from kernels import pointwise
from kernels.pointwise.cpu import activations as cpu
x, hits = np.linspace(-1, 1, 101, dtype=np.float32), 0
for k in range(40):
    timer = threading.Timer(0.02 + 0.02 * k, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        y = pointwise.tanh_forward(x)
        timer.cancel()
        timer.join()
        break
    except KeyboardInterrupt:
        hits += 1
assert hits and signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(float(pointwise.relu_forward(x).sum()), np.abs(y - np.tanh(x)).max() < 1e-6)
"""
    environment = {"AREOGRAD_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert (result.returncode, result.stdout) == (0, "25.5 True\n"), result.stderr


def test_the_second_signal_is_not_deferred() -> None:
    """Who presses Ctrl-C twice does not want to wait; the handlers are put back."""
    steps = []

    def pressed_twice() -> None:
        with signals_deferred():
            for step in ("first", "second"):
                signal.raise_signal(signal.SIGINT)
                steps.append(step)

    with pytest.raises(KeyboardInterrupt):
        pressed_twice()
    assert steps == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_while_compiling_and_writing(tmp_path: Path) -> None:
    """A process that is killed at any moment leaves a cache that the next one uses, or compiles anew,
    without a word.
    """
    code = (
        "import numpy as np; from kernels import pointwise; x = np.ones((1, 1, 9, 1), np.float32); "
        "print(pointwise.tanh_forward(x).sum() > 6)"
    )
    environment = {"AREOGRAD_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "PATH": ""}
    for k in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(1 + k * 0.5)
        process.terminate()
        assert process.wait(60) in (-signal.SIGTERM, 0)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")


@pytest.mark.parametrize(
    ("files", "groups", "cores"),
    [
        ({"cpu.max": "max 100000"}, "0::/\n", float("inf")),
        ({"cpu.max": "150000 100000"}, "0::/\n", 1.5),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "300000 100000"}, "0::/a/b\n", 3.0),
        (
            {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"},
            "4:memory:/a\n3:cpu,cpuacct:/a\n0::/\n",
            0.5,
        ),
        (
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            "3:cpu,cpuacct:/\n",
            float("inf"),
        ),
        ({"cpu.max": "200000 100000"}, "0::/not/mounted/here\n", 2.0),
        ({"cpu.max": "nonsense"}, "0::/\nnonsense\n", float("inf")),
        ({}, None, float("inf")),
    ],
)
def test_quotas_of_control_groups(files: dict[str, str], groups: str | None, cores: float, tmp_path: Path) -> None:
    """Both versions, the group's own and those around it."""
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if groups is not None:
        (tmp_path / "mine").write_text(groups)
    assert quota(tmp_path / "fs", tmp_path / "mine") == cores
