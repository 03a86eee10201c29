"""Help pages name every option that the parser takes, in the width of the terminal; wrong options get a near one."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import tyro

import bench.__main__
from engine import doctor, dual, evaluate, train
from engine.__main__ import COMMANDS
from engine.cli import UsageError, parsed
from engine.config import preset
from engine.experiment import __main__ as experiment
from engine.export import __main__ as export
from engine.gradcheck import command as gradcheck
from engine.help import options_of, page
from engine.predict import __main__ as predict
from engine.profile import __main__ as profile
from engine.report import command as report

KINDS = {
    "bench": bench.__main__.Arguments,
    "doctor": doctor.Arguments,
    "dual": dual.Arguments,
    "evaluate": evaluate.Arguments,
    "experiment": experiment.Arguments,
    "export": export.Arguments,
    "gradcheck": gradcheck.Arguments,
    "predict": predict.Arguments,
    "profile": profile.Arguments,
    "report": report.Arguments,
    "train": train.Arguments,
}


@dataclass(frozen=True)
class Inner:
    """Settings."""

    GROUPS: ClassVar[dict[str, str]] = {"rate": "how fast", "depth": "how deep"}

    rate: float = 0.1
    """How fast
    it learns.
    """
    kind: Literal["a", "b"] = "a"
    """Which."""
    depth: int | None = None
    """How deep."""


@dataclass(frozen=True)
class Outer:
    """Do a thing.

    It is done in two
    sentences.

    Examples:
      thing --rate 1
    """

    file: Annotated[Path, tyro.conf.Positional]
    """What to read."""
    inner: Annotated[Inner, tyro.conf.arg(name="")] = Inner()
    start: Annotated[Path | None, tyro.conf.arg(name="from", metavar="CHECKPOINT")] = None
    """Where to begin."""
    quick: bool = True
    """Do it quickly."""
    slow: Annotated[bool, tyro.conf.arg(aliases=["-s"])] = False
    """Do it slowly."""
    size: tuple[int, int] = (1, 2)
    """Height and width."""


PAGE = """\
usage: thing [OPTIONS] FILE

Do a thing.

It is done in two sentences.

Examples:
  thing --rate 1

arguments:
  FILE                What to read.

how fast:
  --rate X            How fast it learns. (default: 0.5)
  --kind a|b          Which. (default: a)

how deep:
  --depth N           How deep.
  --from CHECKPOINT   Where to begin.
  --no-quick          Do it quickly.
  -s, --slow          Do it slowly.
  --size N N          Height and width. (default: 1 2)

More of it.

--help, --version, and --debug, which shows the traceback of an error, go with every command."""


def test_a_page() -> None:
    assert page(Outer, "thing", Outer(Path(), Inner(rate=0.5)), "More of it.") == PAGE


def test_every_command_has_a_page_here() -> None:
    assert set(KINDS) == set(COMMANDS)


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("command", KINDS)
def test_a_page_names_every_option_of_the_parser(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[command]
    options = {"default": train.Arguments(preset("tiny"))} if command == "train" else {}
    parser = tyro.extras.get_parser(kind, use_underscores=False, **options)  # type: ignore[arg-type]
    taken = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    shown = {option.name for option in options_of(kind) if not option.positional}
    assert shown == {name for name in taken if not name.startswith("--no-")} - {"--help"}
    assert all(option.text for option in options_of(kind)), "an option has no docstring"
    for columns in (60, 100, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = page(kind, f"python -m engine.{command}", **options)
        assert max(len(line) for line in text.splitlines() if not line.startswith("  python")) <= max(columns, 103)
        assert not re.search(r"\x1b", text)


def test_the_page_of_a_command_with_required_arguments_needs_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(Outer, "thing", ["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: thing [OPTIONS] FILE\n")
    with pytest.raises(SystemExit) as end:
        parsed(Outer, "thing", ["--version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["x", "--rat", "1"], "did you mean --rate? "),
        (["x", "--rat=1"], "did you mean --rate? "),
        (["x", "--rate", "1", "--sice", "1", "2"], "did you mean --size? "),
        (["x", "--nothing-like-it"], ""),
    ],
)
def test_an_unknown_option_is_set_beside_a_near_one(arguments: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parsed(Outer, "thing", arguments)
    assert str(error.value).endswith(f"({hint}--help lists the options)")


def test_the_line_is_the_same_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    with pytest.raises(UsageError, match="nrecognized options: --rat"):
        parsed(Outer, "thing", ["x", "--rat", "1"])


def test_a_wrong_value_is_no_unknown_option() -> None:
    with pytest.raises(UsageError, match="--kind") as error:
        parsed(Outer, "thing", ["x", "--kind", "c"])
    assert "did you mean" not in str(error.value)
