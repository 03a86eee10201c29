"""Slices of the fuzzers of all readers (python -m tests.fuzz.readers runs as many inputs as one wants)."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import ConfigError, parse_toml
from engine.data import DataError, load
from tests.support.paths import ROOT


def test_a_slice_of_the_fuzzers() -> None:
    """Other inputs every day; a fault prints the command that repeats it."""
    seed = str(int(time.time()) // 86400)
    command = [sys.executable, "-m", "tests.fuzz.readers", "--inputs", "3000", "--seconds", "40", "--seed", seed]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " 0 faults" in result.stdout


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
def test_any_text_as_toml(text: str) -> None:
    message = ""
    try:
        parse_toml(text.encode("utf-8", "surrogatepass"), "config")
    except ConfigError as error:
        message = str(error)
    assert message.isprintable()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300), name=st.sampled_from(["t.npz", "a.png"]))
def test_any_bytes_as_data(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("data")
    (folder / name).write_bytes(content)
    (folder / "a_mask.png").write_bytes(content)
    with pytest.raises(DataError) as error:
        load(folder / name if name == "t.npz" else folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "right\u202eleft", "no\udcfftext"])
def test_names_of_files_cannot_break_the_line(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match="got 1 without mask") as error:
        load(tmp_path)
    assert str(error.value).isprintable()
    assert name.encode("unicode_escape", "surrogatepass").decode() in str(error.value)
