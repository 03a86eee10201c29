"""Race our kernels:  python -m bench [conv|pool|norm|...|step|infer ...] [--device cuda] [--against torch] [--json
FILE]

Every case runs in processes of its own, ours and theirs in turn; figures are medians and quartiles over rounds. Without
family names all are run.
Frameworks: torch, jax, onnxruntime; reference stands for our own kernels' definitions (`training run` in family step).
On a GPU: torch, cupy (its own functions, where it has them) and uncaptured (our training step without a CUDA graph).
To hold all sides to AVX2: AREOGRAD_SIMD=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
XLA_FLAGS=--xla_cpu_max_isa=AVX2 (JAX needs the second as well: bench/xla.py). On a GPU all sides run in one process and
are timed by CUDA events, with the L2 cache flushed before each run. Without one, --device cuda prints no time at all:
it prints FLOPs, bytes and computed lower bounds (bench/roofline.py), and per kernel what the emulator counts
(bench/counters.py); with --rehearse it runs every side a few times, on smaller shapes.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from engine.cli import Output
from kernels.core.modules import PREFIX, load

FAMILIES = ("conv", "pool", "norm", "attention", "resample", "loss", "pointwise", "gate", "shape", "optimizer",
            "augment", "metric", "step", "infer")  # fmt: skip
# reference: our own kernels' definitions, for `training run` in family step. uncaptured: our step without a CUDA graph
FRAMEWORKS = "torch", "jax", "onnxruntime", "reference", "cupy", "uncaptured"
OURS = "reference", "uncaptured"  # that no package has to be installed for


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
    """Frameworks (torch, jax, onnxruntime, reference, cupy, uncaptured), separated by commas; '' runs ours alone."""
    compiled: Literal["also", "no", "only"] = "also"
    """Whether the modes of PyTorch that compile first take part; compiling a training step takes a minute."""
    plot: Path | None = None
    """Write the roofline picture of all rows here (PNG or SVG)."""
    json: Path | None = None
    """Write the rows here as a JSON list (also after every case, so that an interrupted run keeps what it has)."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)
    only: str = ""
    """Run only cases whose name or shape contains this."""
    rounds: int = 7
    """Number of rounds; each side runs once in a round."""
    seconds: float = 0.2
    """Seconds that a side runs in a round, about."""
    threads: int = 0
    """Threads for every library; 0: one per core."""
    rehearse: bool = False
    """With --device cuda and no GPU: run every side a few times, on smaller shapes, ours on the emulator; no times."""


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
        return rehearse(arguments, against) if arguments.rehearse else without_gpu(arguments)
    os.environ["AREOGRAD_DEVICE"] = arguments.device  # for the workers: a race on the CPU loads no CuPy
    limit_threads(arguments.threads or os.cpu_count() or 1)
    against = installed(against, arguments.output)
    on_gpu = arguments.device == "cuda"
    machine = load("kernels.core.cuda.peaks").measure() if on_gpu else measured_machine()
    arguments.output.note(str(machine))
    table: list[dict[str, Any]] = []
    for family, index, case in chosen_cases(arguments):
        sides = [side for side in case.sides(against) if runs(side, arguments.compiled)]
        if arguments.compiled == "only" and len(sides) == 1:
            continue
        try:
            if on_gpu:
                result = on_device(case, sides, arguments)
            else:
                result = race(family, index, sides, arguments.rounds, arguments.seconds)
            new = rows(family, case, result)
        except WorkerError as error:
            print(f"{case.name} {case.shape}: {error}", file=sys.stderr)
            continue
        peak = machine.peak(case.precision) if on_gpu else machine.gflops
        for row in new:
            row["percent_of_peak"] = row["gflops"] and round(100 * row["gflops"] / peak, 1)
            row["percent_of_copy"] = row["gbytes"] and round(100 * row["gbytes"] / machine.gbytes, 1)
            if on_gpu:
                row["machine"] = asdict(machine)
            print(line(row), flush=True)
        table += new
        if arguments.json:
            arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    if arguments.plot:
        from bench.picture import draw

        draw(arguments.plot, table, machine)
    return 0


def chosen_cases(arguments: Arguments) -> Iterator[tuple[str, int, Any]]:
    """(family, index, case) of every chosen case."""
    for family in arguments.families or FAMILIES:
        for index, case in enumerate(load(f"bench.{family}").cases()):
            if arguments.only in f"{case.name} {case.shape}":
                yield family, index, case


def runs(side: str, compiled: str) -> bool:
    """Whether a side takes part, by --compiled: ours does always."""
    return side == "ours" or compiled == "also" or (compiled == "only") == side.endswith("/compile")


def on_device(case: Any, sides: list[str], arguments: Arguments) -> dict[str, dict[str, Any]]:
    """A race on the GPU, and the memory freed that it took."""
    from bench.gpu_clock import device_memory, events
    from bench.harness import race_here

    try:
        return race_here(case, sides, arguments.rounds, arguments.seconds, events, device_memory)
    finally:
        gc.collect()
        importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


def rehearse(arguments: Arguments, against: tuple[str, ...]) -> int:
    """Run every side of every case: 'ran' or what was wrong, a line each. Exit code 1 if anything was wrong."""
    from bench import emulation, shapes
    from bench.harness import in_one_line
    from kernels.core.cuda.module import launch_log

    where = emulation.start("fast")
    if not where.emulated:
        print(f"error: --rehearse: {where.reason}", file=sys.stderr)
        return 2
    os.environ["AREOGRAD_DEVICE"] = "cuda"
    shapes.reduce()
    wrong = 0
    table = []
    against = installed(against, arguments.output)
    for family, _, case in chosen_cases(arguments):
        for side in case.sides(against):
            if not runs(side, arguments.compiled):
                continue
            error = ""
            with launch_log() as log:
                try:
                    run = case.build(side)
                    for _ in range(4):  # as often as a race does before it takes times; a graph is captured meanwhile
                        run()
                except Exception as raised:  # a rehearsal is there to find them all
                    error = in_one_line(raised)
                    wrong += not side.startswith("torch/")  # PyTorch stands in on the CPU, and is not what is rehearsed
            row = {"family": family, "name": case.name, "shape": case.shape, "side": side, "launches": len(log)}
            table.append(row | {"error": error})
            print(f"{case.name:<34} {case.shape:<32} {side:<24} {error or f'ran, {len(log)} launches'}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table)} sides, {wrong} wrong; emulated: no times")
    return 1 if wrong else 0


def installed(against: tuple[str, ...], output: Output) -> tuple[str, ...]:
    """The installed ones of the frameworks; prints a line for each of the others."""
    missing = [name for name in against if name not in OURS and importlib.util.find_spec(name) is None]
    for name in missing:
        output.note(f"{name} is not installed (pip install {name}): it is not raced")
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
