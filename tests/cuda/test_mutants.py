"""Every planted mistake of every file's MUTANTS table (see mutants.py) is caught."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from mutants import Mutant, assert_caught

HERE = Path(__file__).resolve().parent


def planted() -> list:
    """(file, mutant) of all tables that are lists of plain tuples."""
    out = []
    for path in sorted(HERE.glob("test_*.py")):
        if path.stem == "test_mutants" or "\nMUTANTS" not in path.read_text():
            continue
        rows = importlib.import_module(path.stem).MUTANTS
        out += [pytest.param(path, Mutant(*row), id=f"{path.stem}: {row[0]}") for row in rows if type(row) is tuple]
    return out


@pytest.mark.mode("check")
@pytest.mark.parametrize(("file", "mutant"), planted())
def test_planted_mistake_is_caught(file: Path, mutant: Mutant) -> None:
    assert_caught(file, mutant)
