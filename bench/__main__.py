"""Race our kernels:  python -m bench [conv|pool|norm|...|step|infer ...] [--device cuda] [--against torch] [--json
FILE]

Every case runs in processes of its own, ours and theirs in turn; figures are medians and quartiles over rounds. Without
family names all are run.
Frameworks: torch, jax, onnxruntime; reference stands for our own kernels' definitions (`training run` in family step).
To hold all sides to AVX2: AREOGRAD_SIMD=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
XLA_FLAGS=--xla_cpu_max_isa=AVX2 (JAX needs the second as well: bench/xla.py). On a GPU both sides are timed by CUDA
events, with the L2 cache flushed before each run. Without one, --device cuda prints no time at all: it prints FLOPs,
bytes and computed lower bounds (bench/roofline.py), and per kernel what the emulator counts (bench/counters.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from kernels.core.modules import PREFIX, load

FAMILIES = ("conv", "pool", "norm", "attention", "resample", "loss", "pointwise", "gate", "shape", "optimizer",
            "augment", "metric", "step", "infer")  # fmt: skip
# the last: our own kernels' definitions, for `training run` in family step
FRAMEWORKS = "torch", "jax", "onnxruntime", "reference"


@dataclass(frozen=True)
class Arguments:
    """Race our kernels against other frameworks, each side in a process of its own, in turn."""

    families: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which scripts to run (conv, pool, norm, attention, resample, loss, pointwise, gate, shape, optimizer, augment,
    metric, step, infer), or all.
    """
    device: Literal["cpu", "cuda"] = "cpu"
    """Device on which both sides compute."""
    against: str = "torch"
    """Frameworks (torch, jax, onnxruntime, reference), separated by commas; '' runs ours alone."""
    plot: Path | None = None
    """Write the roofline picture of all rows here (PNG or SVG)."""
    json: Path | None = None
    """Write the rows here as a JSON list (also after every case, so that an interrupted run keeps what it has)."""
    only: str = ""
    """Run only cases whose name or shape contains this."""
    rounds: int = 7
    """Number of rounds; each side runs once in a round."""
    seconds: float = 0.2
    """Seconds that a side runs in a round, about."""
    threads: int = 0
    """Threads for every library; 0: one per core."""


def run(arguments: Arguments) -> int:
    """Run the races, print a line per row."""
    from bench.emulation import real_gpus
    from bench.harness import WorkerError, limit_threads, race, rows

    unknown = [f for f in arguments.families if f not in FAMILIES]
    if unknown:
        print(f"error: unknown family {unknown[0]!r}, expected some of {', '.join(FAMILIES)}", file=sys.stderr)
        return 2
    against = tuple(name for name in arguments.against.split(",") if name)
    unknown = [name for name in against if name not in FRAMEWORKS]
    if unknown:
        print(
            f"error: --against: unknown framework {unknown[0]!r}, expected some of {', '.join(FRAMEWORKS)}",
            file=sys.stderr,
        )
        return 2
    if arguments.device == "cuda" and not real_gpus():
        return without_gpu(arguments)
    os.environ["AREOGRAD_DEVICE"] = arguments.device  # for the workers: a race on the CPU loads no CuPy
    limit_threads(arguments.threads or os.cpu_count() or 1)
    against = installed(against)
    machine = measured_machine()
    print(machine, flush=True)
    table: list[dict[str, Any]] = []
    for family in arguments.families or FAMILIES:
        for index, case in enumerate(load(f"bench.{family}").cases()):
            if arguments.only not in f"{case.name} {case.shape}":
                continue
            try:
                result = race(family, index, case.sides(against), arguments.rounds, arguments.seconds)
                new = rows(family, case, result)
            except WorkerError as error:
                print(f"{case.name} {case.shape}: {error}", file=sys.stderr)
                continue
            for row in new:
                row["percent_of_peak"] = row["gflops"] and round(100 * row["gflops"] / machine.gflops, 1)
                row["percent_of_copy"] = row["gbytes"] and round(100 * row["gbytes"] / machine.gbytes, 1)
                print(line(row), flush=True)
            table += new
            if arguments.json:
                arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    if arguments.plot:
        from bench.picture import draw

        draw(arguments.plot, table, machine)
    return 0


def installed(against: tuple[str, ...]) -> tuple[str, ...]:
    """The installed ones of the frameworks; prints a line for each of the others."""
    missing = [name for name in against if name != "reference" and importlib.util.find_spec(name) is None]
    for name in missing:
        print(f"{name} is not installed (pip install {name}): it is not raced", file=sys.stderr)
    return tuple(name for name in against if name not in missing)


def measured_machine() -> Any:
    """The machine's peaks, measured in a process of its own."""
    from kernels.core.cpu.peaks import Machine

    result = subprocess.run(
        [sys.executable, "-m", f"{PREFIX}kernels.core.cpu.peaks"], capture_output=True, text=True, check=True
    )
    return Machine(**json.loads(result.stdout))


def without_gpu(arguments: Arguments) -> int:
    """Per case FLOPs, bytes and computed lower bounds; per kernel sectors and wavefronts: counted now by the emulator,
    else as committed.
    """
    from bench import counters, emulation, roofline

    chosen = arguments.families or FAMILIES
    table = [row for family in chosen for row in roofline.rows(family, load(f"bench.{family}").cases())]
    table = [row for row in table if arguments.only in f"{row['name']} {row['shape']}"]
    print(roofline.title(), *map(roofline.line, table), sep="\n", flush=True)
    where = emulation.start("trace")
    kernels = counters.trace() if where.emulated else counters.committed()
    source = (
        "counted now, by emulation" if where.emulated else f"as committed in {counters.CEILINGS.name} ({where.reason})"
    )
    print(
        f"\nPer kernel, of one representative launch, {source}: global sectors and shared-memory wavefronts per "
        f"request\n{counters.table(kernels)}"
    )
    if arguments.json:
        arguments.json.write_text(
            json.dumps([*table, *({"name": name, **row} for name, row in kernels.items())], indent=1) + "\n"
        )
    return 0


def line(row: dict[str, Any]) -> str:
    """One row as text: name, shape, our time with quartiles, rate, and the other side with the ratio."""
    low, high = row["ours_quartiles"]
    rate = ""
    if row["gflops"]:
        rate = f"{row['gflops']:.0f} GFLOP/s {row['percent_of_peak']:.0f} %"
    elif row["gbytes"]:
        rate = f"{row['gbytes']:.1f} GB/s {row['percent_of_copy']:.0f} %"
    text = f"{row['name']:<34} {row['shape']:<24} {row['ours_ms']:9.3f} ms ({low:.3f} to {high:.3f}) {rate:>18}"
    if "ratio" in row:
        low, high = row["against_quartiles"]
        text += (
            f"   {row['against']} {row['against_mode']} {row['against_ms']:.3f} ms ({low:.3f} to {high:.3f})   ratio "
            f"{row['ratio']:.2f}"
        )
        if row["family"] in ("step", "infer"):
            text += f"   memory {row['ours_peak_mb']:.0f} and {row['against_peak_mb']:.0f} MB"
        if row["ours_value"] is not None and row["against_value"] is not None:
            text += f"   losses {row['ours_value']:.6f} and {row['against_value']:.6f}"
    elif "against_error" in row:
        text += f"   {row['against']}: {row['against_error']}"
    return text


def main() -> None:
    """The command line."""
    from engine.cli import parsed, run_command

    run_command(lambda: run(parsed(Arguments, "python -m bench")))


if __name__ == "__main__":
    main()
