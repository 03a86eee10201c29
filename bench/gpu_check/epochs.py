"""One epoch on the CPU and on CUDA, of the same tiles from the same weights:  python -m bench.gpu_check.epochs [--json
FILE]

In float32, TF32 and bfloat16, launch by launch and as a CUDA graph. Says by how much the losses differ from the CPU's:
at the first step, which compares the kernels, and at most, which training amplifies. On the emulator a few small steps,
without times.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import emulation
from engine.cli import parsed, run_command

# (name, settings) in the order of running, the CPU first: the others are compared with it
RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("CPU", {"device": "cpu"}),
    ("CUDA", {}),
    ("CUDA, graph", {"cuda_graph": True}),
    ("CUDA, tf32, graph", {"precision": "tf32", "cuda_graph": True}),
    ("CUDA, bf16, graph", {"precision": "bf16", "cuda_graph": True}),
)


@dataclass(frozen=True)
class Arguments:
    """Train one epoch on the CPU and on CUDA and compare the losses."""

    json: Path | None = None
    """Write the rows here, after every run."""


def epoch(config: Any, folder: Path) -> tuple[list[float], float, float]:
    """(the loss of every step, the median time of a step in ms, mean IoU on the validation tiles)."""
    from engine.data import CLASSES
    from engine.training.progress import PlainReporter
    from engine.training.trainer import Run
    from kernels.core.precision import use_precision

    run = Run(config, folder, PlainReporter(CLASSES, io.StringIO()))
    losses: list[float] = []
    times: list[float] = []
    step = run._step

    def kept(*arguments: Any) -> dict[str, float]:
        start = time.perf_counter()
        terms = step(*arguments)  # its loss is a number of the host's: the device has done the step
        times.append(1e3 * (time.perf_counter() - start))
        losses.append(terms["loss"])
        return terms

    run._step = kept  # type: ignore[method-assign]
    with use_precision(config.precision):
        run._epoch(1)
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return losses, statistics.median(times), row["val_miou_fg"]


def run(arguments: Arguments) -> int:
    """Print a line per run. Exit code 1 if a run failed, or a float32 run starts with another loss than the CPU's."""
    from engine.config import Config, preset

    where = emulation.start("fast")
    if not where.mode:
        print(f"error: {where.reason}", file=sys.stderr)
        return 2
    small = Config(width=4, batch=4, epochs=1, tiles=20, encoder="residual", bottleneck="psa")
    base = replace(small if where.emulated else replace(preset("small"), epochs=1, tiles=1600), dropout=0.0)
    rows: list[dict[str, Any]] = []
    wrong = 0
    expected = np.zeros(0)
    for name, settings in RUNS:
        config = replace(base, **({"device": "cuda"} | settings))
        row: dict[str, Any] = {"run": name}
        try:
            with tempfile.TemporaryDirectory() as folder:
                losses, milliseconds, miou = epoch(config, Path(folder))
        except Exception as error:  # the other runs still tell something
            from bench.harness import in_one_line

            row["error"] = in_one_line(error)
            wrong += 1
        else:
            found = np.array(losses)
            if not rows:
                expected = found
            far = np.abs(found - expected) / np.abs(expected).max()
            row |= {"steps": len(found), "first_loss": found[0], "last_loss": found[-1], "val_miou_fg": miou}
            row |= {"first_difference": far[0], "largest_difference": far.max()}
            row |= {} if where.emulated else {"step_ms": round(milliseconds, 3)}
            wrong += config.precision == "float32" and far[0] > 1e-5
        rows.append(row)
        print(line(row), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if wrong else 0


def line(row: dict[str, Any]) -> str:
    """A run as text."""
    if "error" in row:
        return f"{row['run']:<18} {row['error']}"
    taken = f"{row['step_ms']:.2f} ms each" if "step_ms" in row else "no times"
    return (
        f"{row['run']:<18} {row['steps']} steps, {taken}, loss {row['first_loss']:.5f} to {row['last_loss']:.5f}, mIoU "
        f"{row['val_miou_fg']:.4f}; from the CPU's: first {row['first_difference']:.1e}, at most "
        f"{row['largest_difference']:.1e}"
    )


if __name__ == "__main__":
    run_command(lambda: run(parsed(Arguments, "python -m bench.gpu_check.epochs")))
