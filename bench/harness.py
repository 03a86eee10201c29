"""Races between programs: each runs in a process of its own, in turn, so that thread pools and caches do not disturb
each other.

A `Case` says what is computed, how we do it and how others do it. A worker process builds one side of one case and then
runs it on demand; `race` asks the sides in turn, round after round, and compares medians. All times are wall clock.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.errors import reason
from kernels.core.modules import PREFIX

Run = Callable[[], Any]
Build = Callable[[], Run]


@dataclass(frozen=True)
class Case:
    """name and shape identify it.  ours() builds our side, theirs[framework][mode]() another's; what they build runs
    once per call.

    flops, bytes: of one run (bytes: the ideal traffic), for GFLOP/s and GB/s; 0 where that says nothing.
    precision: of the products, one of kernels.core.precision's names; it decides which peak counts.
    """

    name: str
    shape: str
    ours: Build
    theirs: dict[str, dict[str, Build]] = field(default_factory=dict)
    flops: int = 0
    bytes: int = 0
    precision: str = "float32"

    def build(self, side: str) -> Run:
        """Build 'ours' or 'framework/mode'."""
        if side == "ours":
            return self.ours()
        framework, mode = side.split("/")
        return self.theirs[framework][mode]()

    def sides(self, against: tuple[str, ...]) -> list[str]:
        """All sides of the race against the named frameworks."""
        return ["ours"] + [f"{f}/{mode}" for f in against if f in self.theirs for mode in self.theirs[f]]


class WorkerError(RuntimeError):
    """A worker process could not build or run its side; the message is its last line."""


class Worker:
    """A process that holds one side of one case."""

    def __init__(self, family: str, index: int, side: str) -> None:
        self.side = side
        command = [sys.executable, "-m", f"{PREFIX}bench.worker", family, str(index), side]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, request: str) -> Any:
        """Send one request line, return the JSON answer.

        Between two requests the process is stopped: thread pools spin on when their work is done, on the cores that the
        other sides run on.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            assert self.process.stderr is not None
            lines = self.process.stderr.read().strip().splitlines()
            raise WorkerError(f"{self.side}: {lines[-1] if lines else 'the worker died'}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def workers(family: str, index: int, sides: list[str]) -> Iterator[list[Worker]]:
    """One worker per side, closed at the end."""
    made = [Worker(family, index, side) for side in sides]
    try:
        yield made
    finally:
        for worker in made:
            worker.close()


def race(family: str, index: int, sides: list[str], rounds: int = 7, seconds: float = 0.2) -> dict[str, dict[str, Any]]:
    """Run all sides in turn: per side the median, quartiles and times of all rounds in ms, and peak memory in MB.

    Every round each side runs for about `seconds` (at least once); the round's figure is its median run.
    """
    with workers(family, index, sides) as made:
        alive: list[Worker] = []
        counts: dict[str, int] = {}
        failed: dict[str, str] = {}
        results: dict[str, float | None] = {}
        for worker in made:
            try:
                answer = worker.ask("warm")
                once = answer["ms"]
                results[worker.side] = answer.get("value")
                counts[worker.side] = max(1, min(1000, int(seconds * 1000 / max(once, 1e-3))))
                alive.append(worker)
            except WorkerError as error:
                failed[worker.side] = str(error)
        times: dict[str, list[float]] = {w.side: [] for w in alive}
        for _ in range(rounds):
            for worker in alive:
                times[worker.side].append(statistics.median(worker.ask(f"run {counts[worker.side]}")["ms"]))
        out: dict[str, dict[str, Any]] = {side: {"error": message} for side, message in failed.items()}
        for worker in alive:
            out[worker.side] = _figures(times[worker.side], worker.ask("memory")["mb"], results[worker.side])
    return out


def _figures(times: list[float], memory: float, value: float | None) -> dict[str, Any]:
    """What a race says of a side: median and quartiles of its times in ms, peak memory in MB, its first loss."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"ms": median, "low": low, "high": high, "peak_mb": memory, "value": value, "times": times}


def race_here(
    case: Case,
    sides: list[str],
    rounds: int,
    seconds: float,
    timed: Callable[[Run], float],
    memory: Callable[[], float],
) -> dict[str, dict[str, Any]]:
    """The same as `race` within this process, for a GPU: libraries that only launch kernels do not disturb each other,
    and a process for every side would take longer than the race.

    timed(run): the time of one run in ms.   memory(): MB of the device's memory that are taken now.
    """
    alive: dict[str, Run] = {}
    values: dict[str, Any] = {}
    grown: dict[str, float] = {}
    counts: dict[str, int] = {}
    out: dict[str, dict[str, Any]] = {}
    for side in sides:
        before = memory()
        try:
            run = case.build(side)
            first = run()
            for _ in range(3):
                start = time.perf_counter()
                timed(run)
                whole = time.perf_counter() - start  # with the flush of the cache
        except Exception as error:  # whatever a library raises must not end the race of the others
            out[side] = {"error": f"{side}: {in_one_line(error)}"}
            continue
        alive[side] = run
        values[side] = first if isinstance(first, float) else None
        grown[side] = memory() - before
        counts[side] = max(1, min(1000, int(seconds / max(whole, 1e-6))))
    times: dict[str, list[float]] = {side: [] for side in alive}
    for _ in range(rounds):
        for side, run in alive.items():
            times[side].append(statistics.median(timed(run) for _ in range(counts[side])))
    return out | {side: _figures(times[side], round(grown[side], 1), values[side]) for side in alive}


def in_one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    return f"{type(error).__name__}: {reason(error)}"


def rows(family: str, case: Case, result: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The JSON rows of a race: one per framework, against the best of its modes;
    one without `against` if we ran alone.
    """
    ours = result["ours"]
    if "error" in ours:
        raise WorkerError(f"{case.name} {case.shape}: {ours['error']}")
    base = {
        "name": case.name,
        "family": family,
        "shape": case.shape,
        "precision": case.precision,
        "ours_ms": round(ours["ms"], 4),
        "ours_quartiles": [round(ours["low"], 4), round(ours["high"], 4)],
        "ours_peak_mb": ours["peak_mb"],
        "gflops": round(case.flops / ours["ms"] / 1e6, 2) if case.flops else None,
        "gbytes": round(case.bytes / ours["ms"] / 1e6, 2) if case.bytes else None,
        "flops_per_byte": round(case.flops / case.bytes, 3) if case.flops and case.bytes else None,
        "ours_value": ours.get("value"),
    }
    out = []
    for framework in {side.split("/")[0]: None for side in result if side != "ours"}:
        modes = {side.split("/")[1]: r for side, r in result.items() if side.startswith(framework + "/")}
        good = {mode: r for mode, r in modes.items() if "ms" in r}
        if not good:
            out.append({**base, "against": framework, "against_error": next(iter(modes.values()))["error"]})
            continue
        mode = min(good, key=lambda m: good[m]["ms"])
        best = good[mode]
        out.append(
            {
                **base,
                "against": framework,
                "against_mode": mode,
                "against_ms": round(best["ms"], 4),
                "against_quartiles": [round(best["low"], 4), round(best["high"], 4)],
                "against_peak_mb": best["peak_mb"],
                "against_value": best.get("value"),
                "against_modes": {m: round(r["ms"], 4) for m, r in good.items()},
                "ratio": round(best["ms"] / ours["ms"], 3),
            }
        )
    return out or [base]


def limit_threads(count: int) -> None:
    """Ask every library that will be loaded in this process or its children for `count` threads."""
    for name in (
        "AREOGRAD_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "PJRT_NPROC",
    ):
        os.environ[name] = str(count)
