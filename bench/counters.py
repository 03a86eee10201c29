"""Sectors and wavefronts per request of every CUDA kernel:  python -m bench.counters [--only TEXT] [--lines] [--write]

Each representative call (bench/representatives.py) runs once in the emulator's trace mode. A request is one access by a
warp: a global one moves 32-byte sectors (4 are ideal for 32 lanes of 4 bytes, 16 for lanes of 16 bytes), a shared one
takes wavefronts (1 is ideal for 4 bytes a lane, 4 for 16). These counts hold on a GPU too; times do not, and none is
printed. `--write` makes them the committed ceilings, tests/cuda/ceilings.toml.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from typing import Any

from bench import emulation
from kernels.core.cuda import module
from kernels.core.cuda.module import launch_log
from kernels.core.modules import PREFIX

CEILINGS = emulation.ROOT / "tests" / "cuda" / "ceilings.toml"
FIGURES = {  # name -> (address space, kind): requests of that sort
    "load_sectors": ("global", "load"),
    "store_sectors": ("global", "store"),
    "load_wavefronts": ("shared", "load"),
    "store_wavefronts": ("shared", "store"),
}
HEADER = """# Ceilings, written by `python -m bench.counters --write`: of one representative aligned launch per kernel
# (bench/representatives.py) the global sectors and shared-memory wavefronts per request, counted by the emulator.
# A kernel above its ceiling fails tests/cuda/test_ceilings.py.
"""


def plain(name: str) -> str:
    """A kernel's name as NVRTC demangles it, or a name expression, in one spelling: no blanks, no casts, no parameter
    list.
    """
    name = re.sub(r"\((?:unsigned )?(?:int|long|char|short|bool)\)", "", name)
    name = name.removeprefix("void ").split("(")[0].replace("unsigned int", "unsigned")
    return name.replace(" ", "").replace("true", "1").replace("false", "0")


def committed() -> dict[str, dict[str, Any]]:
    """The ceilings by instance; none before they are first written."""
    return tomllib.loads(CEILINGS.read_text()) if CEILINGS.exists() else {}


def reported(report: Any, name: str) -> Any:
    """The report of an instance; where a template argument is an alias, of the one kernel of that template."""
    by_name = {plain(k.name): k for k in report.kernels}
    if plain(name) in by_name:
        return by_name[plain(name)]
    found = [k for full, k in by_name.items() if full.split("<")[0] == plain(name).split("<")[0]]
    if len(found) != 1:
        raise KeyError(f"{len(found)} kernels of the report fit {name}: {', '.join(by_name)}")
    return found[0]


def figures(kernel: Any) -> dict[str, float]:
    """Per FIGURES name: sectors or wavefronts per request; left out where the kernel makes no such request."""
    out = {}
    for name, (space, kind) in FIGURES.items():
        lines = [line for line in kernel.lines if line["space"] == space and line["kind"].startswith(kind)]
        requests = sum(line["requests"] for line in lines)
        if requests:
            out[name] = round(sum(line[name.split("_")[1]] for line in lines) / requests, 3)
    return out


def traffic(kernel: Any) -> dict[str, float]:
    """Bytes moved (sectors times 32), the share of them that was requested, and the shared-memory conflict factor."""
    sectors = sum(line["sectors"] for line in kernel.lines if line["space"] == "global")
    return {
        "moved_bytes": 32 * sectors,
        "efficiency": round(kernel.global_efficiency, 3),
        "conflicts": round(kernel.bank_conflict_factor, 3),
    }


def count(only: str = "", lines: bool = False) -> dict[str, dict[str, Any]]:
    """Run the representative calls in this process (the emulator traces): instance -> row. The first call that launches
    an instance counts.
    """
    from bench.representatives import DTYPES, calls

    collect = emulation.emulator().collect
    rows: dict[str, dict[str, Any]] = {}
    for dtype in DTYPES:
        for name, call in calls().items():
            if only not in f"{name} {dtype}":
                continue
            with collect() as report, launch_log() as log:
                call(dtype)
            report.assert_clean()
            for launch in log:
                kernel = reported(report, launch.kernel)
                if launch.kernel in rows:
                    row = rows[launch.kernel]
                    row["dynamic_shared"] = max(row["dynamic_shared"], launch.shared)
                    continue
                rows[launch.kernel] = {
                    "call": f"{name}, {dtype}",
                    "threads": math.prod(launch.block),
                    "dynamic_shared": launch.shared,
                    **figures(kernel),
                    **traffic(kernel),
                }
                if lines:
                    rows[launch.kernel]["lines"] = kernel.lines
    return rows


def trace(only: str = "", lines: bool = False) -> dict[str, dict[str, Any]]:
    """`count`, in this process if it traces, else in one of its own."""
    if emulation.emulator() is not None and emulation.emulator().mode() == "trace":
        return count(only, lines)
    command = [
        sys.executable,
        "-m",
        f"{PREFIX}bench.counters",
        "--json",
        "--only",
        only,
        *(["--lines"] if lines else []),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUPY_ON_CPU")} | {
        "AREOGRAD_EMULATE": "trace"
    }
    for kept in ("CUPY_ON_CPU_CACHE", "CUPY_ON_CPU_MEMORY_GB"):
        if kept in os.environ:
            environment[kept] = os.environ[kept]
    done = subprocess.run(command, cwd=emulation.ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python -m bench.counters failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def instances() -> list[str]:
    """Every instance of every registered Module, in order."""
    return [name for _, made in sorted(module.registry.items()) for name in made.instances]


def text(rows: dict[str, dict[str, Any]]) -> str:
    """ceilings.toml."""
    order = {name: k for k, name in enumerate(instances())}
    out = [HEADER]
    for name in sorted(rows, key=lambda n: order.get(n, -1)):
        row = rows[name]
        numbers = [f"{key} = {row[key]}" for key in ("threads", "dynamic_shared", *FIGURES) if key in row]
        out.append(f'["{name}"]\ncall = "{row["call"]}"\n' + "\n".join(numbers) + "\n")
    return "\n".join(out)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows for people."""
    out = [
        (
            f"{'kernel':<44} {'threads':>7} {'loads':>7} {'stores':>7} {'used':>6} {'sh. loads':>9} {'sh. stores':>10} "
            f"{'conflicts':>9}  call"
        )
    ]
    for name, row in rows.items():
        load, store, shared_load, shared_store = (f"{row[key]:.2f}" if key in row else "" for key in FIGURES)
        conflicts = f"{row['conflicts']:.2f}" if row.get("conflicts") else ""
        cells = [
            f"{name:<44}",
            f"{row['threads']:>7}",
            f"{load:>7}",
            f"{store:>7}",
            f"{row['efficiency']:>6.0%}" if "efficiency" in row else " " * 6,
        ]
        out.append(" ".join([*cells, f"{shared_load:>9}", f"{shared_store:>10}", f"{conflicts:>9}", f" {row['call']}"]))
        for line in row.get("lines", ()):
            what = "sectors" if line["space"] == "global" else "wavefronts"
            count = f"{line[what] / line['requests']:6.2f} {what} of {line['requests']} requests"
            out.append(f"    line {line['line']:4} {line['space']:6} {line['kind']:9} {count}  {line['source'][:90]}")
    return "\n".join(out)


@dataclass(frozen=True)
class Arguments:
    """Count sectors and wavefronts per request of every CUDA kernel, on the emulator."""

    only: str = ""
    """Only calls whose name contains this."""
    lines: bool = False
    """Also per source line."""
    write: bool = False
    """Write tests/cuda/ceilings.toml."""
    json: bool = False
    """Print one line of JSON instead of a table."""


def run(arguments: Arguments) -> int:
    """Count and print; exit status 1 where the emulator is not there."""
    where = emulation.start("trace")
    if where.mode != "trace":
        print(f"error: counters need the emulator's trace mode, this is {where.reason}", file=sys.stderr)
        return 1
    rows = count(arguments.only, arguments.lines)
    if arguments.write:
        CEILINGS.write_text(text(rows))
    print(json.dumps(rows) if arguments.json else table(rows))
    return 0


if __name__ == "__main__":
    from engine.cli import parsed, run_command

    run_command(lambda: run(parsed(Arguments, "python -m bench.counters")))
