"""The precision policy: names, nesting, threads, the environment, one clear error."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from kernels.core.precision import PRECISIONS, precision, set_precision, use_precision
from tests.support.paths import ROOT


def test_blocks_nest_and_end_even_by_an_exception() -> None:
    before = precision()
    with use_precision("tf32"):
        with use_precision("bf16"):
            assert precision() == "bf16"
        with pytest.raises(KeyError), use_precision("float16"):
            raise KeyError(precision())
        assert precision() == "tf32"
    assert precision() == before


def test_set_precision_returns_what_was() -> None:
    before = precision()
    for name in PRECISIONS:
        last = precision()
        assert set_precision(name) == last
        assert precision() == name
    set_precision(before)


@pytest.mark.parametrize("bad", ["fp32", "TF32", "", "half"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(bad: str) -> None:
    before = precision()
    with (
        pytest.raises(ValueError, match=rf"precision: got '{bad}', expected one of float32, tf32, bf16, float16"),
        use_precision(bad),
    ):
        pass
    assert precision() == before


def test_threads_have_their_own_policy() -> None:
    seen = []
    with use_precision("bf16"):
        thread = threading.Thread(target=lambda: seen.append(precision()))
        thread.start()
        thread.join()
    assert seen == [precision()]


@pytest.mark.parametrize(("value", "printed"), [("TF32 ", "tf32"), ("", "float32"), ("float16", "float16")])
def test_the_environment_sets_the_start(value: str, printed: str) -> None:
    assert run(value).stdout.strip() == printed


def test_a_bad_environment_is_one_clear_line() -> None:
    last = run("single").stderr.strip().splitlines()[-1]
    assert last == "ValueError: AREOGRAD_PRECISION: got 'single', expected one of float32, tf32, bf16, float16"


def run(value: str) -> subprocess.CompletedProcess[str]:
    code = "from kernels.core.precision import precision; print(precision())"
    environment = {"AREOGRAD_PRECISION": value, "PATH": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
