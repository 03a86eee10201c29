"""A long training run whose memory, file descriptors and threads must not grow:

    python -m tests.support.endurance --steps 5000

A small network on small tiles, validated, with its states written, 8 steps per epoch. After every epoch the process is
measured. The first quarter fills caches; from there on the largest of every figure in the last quarter may exceed the
largest in the second one by nothing (descriptors, threads) or by MEMORY bytes. Prints the figures as JSON; exit code 1
where something grew. tests/engine/training/test_resume.py runs a slice.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from engine import train
from engine.training.trainer import Run
from tests.support.tiny_runs import NETWORK

MEMORY = 4 << 20  # resident pages come and go; 5,000 steps that kept one kilobyte each would be 5 MB
STEPS_PER_EPOCH = 8


def figures() -> dict[str, int]:
    """What the process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident": pages * resource.getpagesize(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def measured(steps: int) -> list[dict[str, int]]:
    """The figures after every epoch of a run of at least so many steps."""
    rows: list[dict[str, int]] = []
    validate = Run._validate

    def counted(self: Run, *arguments: Any, **settings: Any) -> None:
        validate(self, *arguments, **settings)
        rows.append(figures())

    Run._validate = counted  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            tiles = Path(folder, "tiles.npz")
            rng = np.random.default_rng(0)
            pixels = np.stack([rng.integers(0, 256, (80, 16, 24)), rng.integers(0, 5, (80, 16, 24))], 1).astype(
                np.uint8
            )
            np.savez(tiles, training_set=pixels)
            epochs = -(-steps // STEPS_PER_EPOCH)
            flags = [
                f"--data={tiles}",
                f"--out={folder}/run",
                f"--epochs={epochs}",
                "--batch=8",
                "--patience=0",
                *NETWORK,
            ]
            if code := train.run(train.parse(flags)):
                raise SystemExit(code)
    finally:
        Run._validate = validate  # type: ignore[method-assign]
    return rows


def growth(rows: list[dict[str, int]]) -> dict[str, int]:
    """The largest of every figure in the last quarter, less the largest in the second quarter."""
    quarter = len(rows) // 4
    return {
        name: max(r[name] for r in rows[-quarter:]) - max(r[name] for r in rows[quarter : 2 * quarter])
        for name in rows[0]
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    steps = parser.parse_args().steps
    rows = measured(steps)
    grown = growth(rows)
    print(json.dumps({"steps": len(rows) * STEPS_PER_EPOCH, "epochs": len(rows), "growth": grown, "last": rows[-1]}))
    return int(grown["resident"] > MEMORY or grown["descriptors"] > 0 or grown["threads"] > 0)


if __name__ == "__main__":
    sys.exit(main())
