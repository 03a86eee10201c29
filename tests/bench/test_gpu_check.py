"""The GPU check without a GPU: packages from wheels, outcomes kept as they come, limits, the page, and races within one
process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from bench.emulation import real_gpus
from bench.gpu_check import page, wheels
from bench.gpu_check.__main__ import Part, parts, run_part
from bench.harness import Case, race_here, rows
from tests.support.paths import ROOT


def wheel(folder: Path, package: str, *files: str) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as archive:
        for file in (*files, f"{package}-1.0.dist-info/METADATA"):
            archive.writestr(file, "")


def test_only_what_is_missing_is_unpacked(tmp_path) -> None:
    wheel(tmp_path / "wheels", "lonely", "lonely_package/__init__.py", "lonely_module.py")
    wheel(tmp_path / "wheels", "numpy", "numpy/__init__.py")
    lines = wheels.unpack(tmp_path / "wheels", tmp_path / "target")
    assert lines == ["lonely-1.0-py3-none-any.whl: unpacked", "numpy-1.0-py3-none-any.whl: not needed"]
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == [
        "lonely-1.0.dist-info",
        "lonely_module.py",
        "lonely_package",
    ]


def test_outcomes_are_kept_while_tests_run(tmp_path) -> None:
    """A run that is killed leaves what it found."""
    (tmp_path / "test_it.py").write_text(
        "import os, pytest, time\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'one is not two'\n"
        "def test_skipped(): pytest.skip('why not')\n"
        "def test_slow(): time.sleep(2.1)\n"
        "def test_after(): pass\n"
        "def test_killed(): os.kill(os.getpid(), 9)\n"
    )
    counts = tmp_path / "counts.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "bench.gpu_check.counts",
        "--counts",
        str(counts),
        "-c",
        os.devnull,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--rootdir", ".", "test_it.py"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == -9
    kept = json.loads(counts.read_text())
    assert kept["outcomes"] == {"passed": 2, "failed": 1, "skipped": 1}
    (failure,) = kept["failures"]
    assert failure["test"].endswith("test_bad")
    assert "one is not two" in failure["message"]


@pytest.mark.parametrize(
    ("code", "seconds", "state"),
    [("pass", 30, "passed"), ("raise SystemExit(3)", 30, "failed"), ("import time; time.sleep(60)", 1, "cut")],
)
def test_a_part_ends_in_time_and_says_how(tmp_path, code: str, seconds: float, state: str) -> None:
    start = time.monotonic()
    with open(tmp_path / "log.txt", "w") as log:
        row = run_part(Part("epochs", "", 60, (sys.executable, "-c", code)), seconds, tmp_path, log)
    assert row["state"] == state
    assert time.monotonic() - start < 30


def test_a_part_that_cannot_run_here_says_why(tmp_path) -> None:
    with open(tmp_path / "log.txt", "w") as log:
        row = run_part(Part("memcheck", "", 60, (), missing="compute-sanitizer is not there"), 60, tmp_path, log)
    assert (row["state"], row["note"]) == ("skipped", "compute-sanitizer is not there")


@pytest.mark.parametrize("emulated", [True, False])
def test_the_parts_run_modules_that_exist_and_leave_at_most_eight_files(tmp_path, emulated: bool) -> None:
    found = list(parts(tmp_path, emulated))
    assert [part.name for part in found][:2] == ["doctor", "tests"]
    files = {"check.json", "check.html", "log.txt", "doctor.json"}
    for part in found:
        assert importlib.util.find_spec(part.command[part.command.index("-m") + 1]) or part.missing
        files |= {Path(word).name for word in part.command if word.startswith(str(tmp_path))}
    assert len(files) <= 8


@pytest.mark.skipif(real_gpus() > 0, reason="there is a GPU: the check would run")
def test_without_a_gpu_and_an_emulator_it_is_one_line_and_exit_code_2(tmp_path) -> None:
    environment = os.environ | {
        "AREOGRAD_EMULATOR": str(tmp_path),
        "PYTHON": sys.executable,
        "OUT": str(tmp_path / "out"),
    }
    command = ["bash", str(ROOT / "bench" / "gpu_check.sh"), "--only", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the GPU check: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


RACED = {
    "name": "conv2d 3x3",
    "shape": "1x2 -> 3 <tf32>",
    "family": "conv",
    "ours_ms": 0.5,
    "gflops": 900.0,
    "gbytes": 100.0,
    "flops_per_byte": 9.0,
    "percent_of_peak": 90.0,
    "percent_of_copy": 10.0,
    "ours_peak_mb": 7.0,
    "against": "torch",
    "against_mode": "nchw",
    "against_ms": 0.6,
    "against_peak_mb": 8.0,
    "ratio": 1.2,
    "machine": {"name": "a GPU", "gflops": 1000.0, "gbytes": 1000.0, "tensor_gflops": 8000.0},
}


def test_the_page_shows_every_result(tmp_path) -> None:
    (tmp_path / "log.txt").write_text("## memcheck: ...\n========= ERROR SUMMARY: 0 errors\n")
    part = {"part": "bench", "what": "", "state": "cut", "seconds": 1.5, "note": "1 rows"}
    (tmp_path / "check.json").write_text(json.dumps({"device": "a real GPU", "emulated": False, "parts": [part]}))
    (tmp_path / "bench.json").write_text(json.dumps([RACED]))
    failure = {"test": "test_conv.py::test_it", "message": "a < b & c"}
    (tmp_path / "tests.json").write_text(json.dumps({"outcomes": {"failed": 1, "passed": 7}, "failures": [failure]}))
    page.write(tmp_path)
    text = (tmp_path / "check.html").read_text()
    for piece in ("a real GPU", "cut", "a &lt; b &amp; c", "1x2 -&gt; 3 &lt;tf32&gt;", "1.2", "torch nchw", "<svg"):
        assert piece in text
    assert page.note("tests", tmp_path) == "1 failed, 7 passed"
    assert page.note("bench", tmp_path) == "1 rows; as fast as PyTorch or faster in 1 of 1"
    assert page.note("memcheck", tmp_path) == "ERROR SUMMARY: 0 errors"
    assert page.note("compiled", tmp_path) == "no result"


def test_a_race_in_one_process_goes_on_without_what_fails(monkeypatch) -> None:
    ran = []
    now = [0.0]
    monkeypatch.setattr("bench.harness.time.perf_counter", lambda: now[0])

    def build(name: str):
        if name == "broken":
            raise RuntimeError("no such algorithm\nand more")
        return lambda: ran.append(name)

    others = {name: (lambda name=name: build(name)) for name in ("slow", "broken")}
    case = Case("a case", "1", lambda: build("ours"), {"torch": others}, flops=4_000_000)
    clock = {"ours": 2.0, "slow": 3.0}

    def timed(run) -> float:
        run()
        now[0] += clock[ran[-1]] / 1000
        return clock[ran[-1]]

    result = race_here(case, case.sides(("torch",)), 3, 0.0041, timed, lambda: 10.0)
    assert result["torch/broken"] == {"error": "torch/broken: RuntimeError: no such algorithm"}
    (row,) = rows("conv", case, result)
    assert (row["ours_ms"], row["against_ms"], row["ratio"], row["gflops"]) == (2.0, 3.0, 1.5, 2.0)
    # once and three timed, then in turn, as often as fits: twice and once
    assert ran == ["ours"] * 4 + ["slow"] * 4 + ["ours", "ours", "slow"] * 3
