"""The GPU check:  bash bench/gpu_check.sh [--out DIR] [--minutes 10] [--only PART ...] [--wheels DIR]

Parts, in order, so that a run that is cut short still tells the most: doctor, tests, memcheck, racecheck, epochs,
bench, compiled. Each is a process of its own with a limit of its own. Results are written as they come: check.json (how
each part ended), doctor.json, tests.json, epochs.json, bench.json, compiled.json, log.txt, and check.html, which shows
them all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import emulation

Name = Literal["doctor", "tests", "memcheck", "racecheck", "epochs", "bench", "compiled"]
SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
# the whole steps first, then the kernels, convolutions first
ORDER = ("step", "infer", "conv", "norm", "pointwise", "gate", "pool", "attention", "loss", "optimizer", "resample",
         "shape", "augment", "metric")  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Check everything that only a real GPU can tell, the most important first; without one, rehearse it on the
    emulator.

    Exit code 0: all parts passed. 1: one failed or was cut short. 2: CUDA code cannot run here.

    Examples:
      bash bench/gpu_check.sh
      bash bench/gpu_check.sh --out results --minutes 5
      bash bench/gpu_check.sh --only tests epochs --wheels ../wheels
    """

    out: Path = Path(os.environ.get("OUT") or "build/gpu")
    """The folder for the results; by default $OUT, else build/gpu."""
    minutes: float = 10.0
    """Minutes that all parts may take together on a GPU; a rehearsal takes what it takes."""
    only: tuple[Name, ...] = ()
    """Only these parts."""


@dataclass(frozen=True)
class Part:
    """limit: seconds that it may take. mode: of the emulator. missing: why it cannot run here, or ''."""

    name: str
    what: str
    limit: float
    command: tuple[str, ...]
    mode: str = "fast"
    missing: str = ""


def parts(out: Path, emulated: bool) -> Iterator[Part]:
    """All parts in order, for a GPU or for a rehearsal."""
    python = (sys.executable, "-m")
    yield Part("doctor", "versions, the device, what is missing", 60, (*python, "engine.doctor", "--json"))
    workers = str(min(16, os.cpu_count() or 1))
    spread = ("-n", workers, "--dist", "worksteal") if importlib.util.find_spec("xdist") else ()
    plugin = ("-p", "bench.gpu_check.counts", "--counts", str(out / "tests.json"), "-p", "no:cacheprovider")
    yield Part(
        "tests",
        "all of tests/cuda: every kernel against its definition",
        240,
        # A planted mistake reads or writes where it must not: on a GPU that would end the context of later tests.
        (*python, "pytest", "tests/cuda", "-m", "not whole", "-k", "not planted", *spread, *plugin),
        missing="" if importlib.util.find_spec("pytest") else "pytest is not installed",
    )
    launches = (*python, "bench.gpu_check.representatives")
    for tool, mode in (("memcheck", "check"), ("racecheck", "trace")):
        watched = (SANITIZER, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *launches)
        yield Part(
            tool,
            f"a launch of every kernel under {'the emulator' if emulated else 'compute-sanitizer'}: {tool}",
            60,
            launches if emulated else watched,
            mode,
            "" if emulated or Path(SANITIZER).exists() else "compute-sanitizer is not there",
        )
    epochs = (*python, "bench.gpu_check.epochs", "--json", str(out / "epochs.json"))
    yield Part("epochs", "one epoch on the CPU and on CUDA", 100, epochs)
    rehearsal = ("--rehearse",) if emulated else ("--rounds", "5", "--seconds", "0.01")
    race = (*python, "bench", "--device", "cuda", "--against", "torch,cupy,uncaptured", *rehearsal)
    for name, families, compiled in (("bench", ORDER, "no"), ("compiled", ("step", "infer"), "only")):
        yield Part(
            name,
            "races with torch.compile" if name == "compiled" else "every kernel, training step and inference, raced",
            600,
            (*race[:3], *families, *race[3:], "--compiled", compiled, "--json", str(out / f"{name}.json")),
        )


def run_part(part: Part, seconds: float | None, out: Path, log: Any) -> dict[str, Any]:
    """Run a part for at most `seconds`; how it ended. What it prints goes to the log, what doctor prints to
    doctor.json.
    """
    row: dict[str, Any] = {"part": part.name, "what": part.what}
    if part.missing:
        return row | {"state": "skipped", "note": part.missing}
    print(f"\n## {part.name}: {' '.join(part.command)}", file=log, flush=True)
    start = time.monotonic()
    with open(out / "doctor.json", "w") if part.name == "doctor" else nullcontext(log) as printed:
        process = subprocess.Popen(
            part.command,
            cwd=emulation.ROOT,
            env=os.environ | {"AREOGRAD_EMULATE": part.mode, "PYTHONUNBUFFERED": "1"},
            stdout=printed,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            # the doctor's 1: it would mend something, most often because the tree is not installed
            good = code == 0 or (part.name, code) == ("doctor", 1)
            row |= {"state": "passed" if good else "failed", "exit_code": code}
        except subprocess.TimeoutExpired:
            row["state"] = "cut"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return row | {"seconds": round(time.monotonic() - start, 1)}


def run(arguments: Arguments) -> int:
    """Run the parts, write their results."""
    from bench.gpu_check import page

    begun = time.monotonic()
    where = emulation.start("fast")
    if not where.mode:
        print(f"error: the GPU check: {where.reason}", file=sys.stderr)
        return 2
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    print(f"the GPU check, {where.reason}: results in {arguments.out}", flush=True)
    with open(out / "log.txt", "w") as log:
        for part in parts(out, where.emulated):
            if arguments.only and part.name not in arguments.only:
                continue
            left = 60 * arguments.minutes - (time.monotonic() - begun)
            if where.emulated:
                row = run_part(part, None, out, log)
            elif left < 10:
                row = {"part": part.name, "what": part.what, "state": "not begun"}
            else:
                row = run_part(part, min(part.limit, left), out, log)
            row["note"] = row.get("note") or page.note(part.name, out)
            rows.append(row)
            print(f"{part.name:<10} {row['state']:<9} {row.get('seconds', 0):>6.1f} s   {row['note']}", flush=True)
            (out / "check.json").write_text(
                json.dumps({"device": where.reason, "emulated": where.emulated, "parts": rows}, indent=1) + "\n"
            )
            page.write(out)
    return 0 if all(row["state"] in ("passed", "skipped") for row in rows) else 1


def main() -> None:
    """The command line."""
    from engine.cli import parsed, run_command

    run_command(lambda: run(parsed(Arguments, "bash bench/gpu_check.sh")))


if __name__ == "__main__":
    main()
