"""The profile of a training run's steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autograd import random
from engine.profile.result import Profile, record
from engine.training.run_folder import PROFILE, TRACE
from kernels.core.precision import use_precision

if TYPE_CHECKING:
    from engine.training.trainer import Run

STEPS, WARM = 5, 2  # steps that are recorded, and before them
_SHOWN = 12  # operators that a run prints
_CAPTURE = 3  # steps after which a run replays what it has captured


def profile_steps(run: Run, steps: int = STEPS, warm: int = WARM) -> Profile | None:
    """A profile of `steps` steps after `warm` others, on a network of its own: the run, its weights and its random
    numbers are what they were. None when a stop was requested meanwhile.

    Steps are recorded operator by operator. The same steps without the profile, and captured as training does it, are
    timed, too: Profile.unprofiled has their means as 'uncaptured' and 'captured'.
    """
    run.report.note(f"profile: {warm} steps to warm up, {steps} recorded, {2 * steps} timed without the profile")
    with use_precision(run.config.precision), random.replay(random.state()):
        walk = _until_stopped(run, run.rehearsal(captured=False).steps())
        before = _seconds(walk, warm + (steps + 1) // 2)[warm:]
        with record(run.choice.name) as profile:
            for _ in range(steps):
                with profile.step():
                    next(walk, None)
        plain = before + _seconds(walk, steps // 2)
        del walk
        captured: list[float] = []
        if run.captures:
            captured = _seconds(_until_stopped(run, run.rehearsal(captured=True).steps()), _CAPTURE + steps)[_CAPTURE:]
    if run.stop.signal:
        return None
    means = {"uncaptured": plain, "captured": captured}
    profile.unprofiled = {name: sum(seconds) / len(seconds) for name, seconds in means.items() if seconds}
    return profile


def profile_run(run: Run) -> None:
    """Profile steps of a run: the longest operators are noted, profile.json and trace.json written to its folder."""
    profile = profile_steps(run)
    if profile is None:
        return
    for line in (*profile.summary(), *profile.table(top=_SHOWN).splitlines()):
        run.report.note(line)
    profile.write(run.out / PROFILE)
    profile.write_trace(run.out / TRACE)


def _until_stopped(run: Run, walk: Iterator[Any]) -> Iterator[Any]:
    """The steps up to a request to stop."""
    while not run.stop.signal:
        yield next(walk)


def _seconds(walk: Iterator[Any], count: int) -> list[float]:
    """The seconds of the next steps."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        next(walk, None)
        times.append(time.perf_counter() - start)
    return times
