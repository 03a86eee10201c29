"""The GPU check's own programs on the emulator: races are rehearsed, an epoch is compared with the CPU's, every kernel
is launched.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.whole, pytest.mark.mode("fast")]


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_rehearsal_runs_every_side_and_prints_no_time(tmp_path) -> None:
    file = tmp_path / "rows.json"
    printed = run(
        "bench", "pool", "metric", "shape", "--device", "cuda", "--rehearse", "--against", "cupy", "--json", str(file)
    )
    table = json.loads(file.read_text())
    assert {row["side"] for row in table} == {"ours", "cupy/functions"}
    assert all(row["launches"] > 0 for row in table if row["side"] == "ours")
    assert not any(row["error"] for row in table)
    assert printed.splitlines()[-1] == f"{len(table)} sides, 0 wrong; emulated: no times"
    assert " ms" not in printed


def test_an_epoch_starts_with_the_cpus_loss(tmp_path) -> None:
    file = tmp_path / "epochs.json"
    run("bench.gpu_check.epochs", "--json", str(file))
    rows = json.loads(file.read_text())
    assert [row["run"] for row in rows][:3] == ["CPU", "CUDA", "CUDA, graph"]
    assert all(row["first_difference"] < 1e-5 for row in rows[:3])
    assert all(0 < row["first_difference"] < 1e-2 for row in rows[3:])  # rounded operands
    assert not any("step_ms" in row for row in rows)


def test_every_kernel_is_launched_for_the_sanitizer() -> None:
    printed = run("bench.gpu_check.representatives").splitlines()
    assert printed[0].endswith("0 calls failed")
    assert printed[1] == "the emulator (fast) found 0 mistakes"
