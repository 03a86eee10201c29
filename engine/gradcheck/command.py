"""Check gradients:  python -m engine.gradcheck [OPERATOR ...] [--stride 2 --shape 2,9,11,3 ...] [--break NAME] [--html
FILE]

Without names every operator, loss, block and the network. Options that the command does not know are settings of the
operator.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from engine.cli import Output, UsageError, parsed, run_command, use_threads
from engine.gradcheck.settings import split_arguments

if TYPE_CHECKING:
    from engine.gradcheck.catalogue import Entry
    from engine.gradcheck.checks import Plan, Result

STYLES = {"PASS": "green", "KINK": "cyan", "INCONCLUSIVE": "yellow", "FAIL": "bold red"}


@dataclass(frozen=True)
class Arguments:
    """Check gradients against derivatives with an error bar. Exit code 0: all proven; 1: something is wrong or
    unproven; 2: bad input.

    Any other option is a setting of the named operator (see --list).

    Examples:
      python -m engine.gradcheck                            everything, in a few minutes
      python -m engine.gradcheck conv2d --stride 2 --padding 1 --shape 2,9,11,3
      python -m engine.gradcheck conv2d --break corner      plant a bug and see where it is
      python -m engine.gradcheck --backend cpu --html gradients.html
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Operators, losses, blocks, or the kinds 'operator', 'loss', 'block', 'network'; by default everything."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """List what can be checked, with its settings."""
    backend: Literal["reference", "cpu", "cuda"] = "reference"
    """Gradients to check: those of the reference code, or of the fast kernels of the CPU or of CUDA."""
    dtype: Literal["auto", "float32", "float64"] = "auto"
    """float64: finite differences. float32 (default of the fast backends): comparison with the float64 reference's
    gradient.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; by default the backend's."""
    seeds: int = 1
    """Number of seeds; each gives other inputs, directions and weights."""
    directions: int = 1
    """Number of random directions per seed."""
    break_: Annotated[str, tyro.conf.arg(name="break")] = ""
    """Plant a bug in a copy of the operator and see what the check says; 'list' shows their names."""
    json: Path | None = None
    """Write the rows here as a JSON list ('-': to the standard output, instead of the table)."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """Print the details of every check, also of those that are proven."""
    html: Path | None = None
    """Write a page here: step-size curves, heat maps, kink maps and formulas."""
    threads: int = 0
    """Number of threads for CPU kernels; 0: as many as AREOGRAD_THREADS says, else one per core."""


def run(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    from engine.help import options_of

    options = [option for option in options_of(Arguments) if not option.positional]
    known = {option.name: bool(option.values) for option in options}
    known |= dict.fromkeys(("--help", "-h", "--version", *(option.short for option in options if option.short)), False)
    own, settings = split_arguments(argv, known)
    arguments = parsed(Arguments, "python -m engine.gradcheck", own)
    from engine.gradcheck.bugs import BUGS

    if arguments.break_ == "list":
        for bug in BUGS.values():
            print(f"{bug.name:<14} {bug.operator:<29} {bug.text}")
        return 0
    if arguments.list:
        return _list()
    entries, settings, plan = _plan(arguments, settings)
    use_threads(arguments.threads)
    _check_target(arguments.json, "--json")
    _check_target(arguments.html, "--html")
    results = _checked(entries, settings, plan, arguments)
    if arguments.json:
        text = json.dumps([r.row() for r in results], indent=1, allow_nan=False) + "\n"
        print(text, end="") if str(arguments.json) == "-" else arguments.json.write_text(text)
    if arguments.html:
        from engine.gradcheck.page import write_page

        write_page(arguments.html, results, plan)
        arguments.output.note(f"page: {arguments.html}")
    return 0 if all(r.ok for r in results) else 1


def _list() -> int:
    from engine.gradcheck.catalogue import catalogue

    for entry in catalogue().values():
        print(f"{entry.kind:<9} {entry.name:<34} {', '.join(entry.settings())}")
    return 0


def _plan(arguments: Arguments, settings: dict[str, Any]) -> tuple[list[Entry], dict[str, Any], Plan]:
    """The checks to run, and how. Raises UsageError for options that do not fit together."""
    from engine.gradcheck.bugs import find_bug
    from engine.gradcheck.catalogue import KINDS, catalogue, find
    from engine.gradcheck.checks import Plan
    from kernels.core import device

    for name in ("seeds", "directions"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name}: got {getattr(arguments, name)}, expected at least 1")
    bug = find_bug(arguments.break_) if arguments.break_ else None
    names = arguments.names or ((bug.operator,) if bug else ())
    entries = [
        e
        for name in names
        for e in ([x for x in catalogue().values() if x.kind == name] if name in KINDS else [find(name)])
    ]
    entries = entries or list(catalogue().values())
    if settings and len(entries) != 1:
        raise UsageError(
            f"settings ({', '.join('--' + k for k in settings)}) need the name of one operator; --list shows which it "
            "has"
        )
    if bug:
        if len(entries) != 1:
            raise UsageError(f"--break {bug.name}: name one operator to break, such as {bug.operator}")
        settings = {**bug.settings, **settings} if entries[0].name == bug.operator else settings
    dtype = (
        arguments.dtype
        if arguments.dtype != "auto"
        else "float64"
        if arguments.backend == "reference" or bug
        else "float32"
    )
    if dtype == "float32" and arguments.backend == "reference":
        raise UsageError(
            "--dtype float32: the reference is checked by finite differences, which need float64; choose --backend "
            "cpu or cuda"
        )
    if dtype == "float32" and bug:
        raise UsageError(f"--break {bug.name}: bugs are planted for finite differences, which need --dtype float64")
    where = arguments.device if arguments.device != "auto" else "cuda" if arguments.backend == "cuda" else "cpu"
    if (arguments.backend, where) in (("cpu", "cuda"), ("cuda", "cpu")):
        raise UsageError(f"--device {where} does not fit --backend {arguments.backend}")
    device.choose(where)
    if bug:  # one variant: what the bug needs, or the operator's first
        settings = settings or dict(entries[0].variants[0])
    return entries, settings, Plan(arguments.backend, dtype, where, arguments.seeds, arguments.directions, bug)


def _check_target(path: Path | None, option: str) -> None:
    """Fail before the work, not after it."""
    if path is None or str(path) == "-":
        return
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option} {path}: {'is a folder' if path.is_dir() else 'its folder does not exist'}")


def _checked(entries: list[Entry], settings: dict[str, Any], plan: Plan, arguments: Arguments) -> list[Result]:
    """Run all checks, with a table on the terminal; details of what is not proven, or of a single row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from engine.gradcheck.checks import check_all

    console = Console(highlight=False, markup=False)
    progress = Console(stderr=True, quiet=arguments.output.quiet, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 118)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, style in (
        ("operator", {"overflow": "fold"}),
        ("verdict", {}),
        *((n, {"justify": "right"}) for n in ("error", "bar", "evaluations", "seconds")),
    ):
        table.add_column(name, **style)  # type: ignore[arg-type]
    results = []
    with progress.status("") as status:
        for result in check_all(entries, settings, plan) if not plan.bug else _single(entries[0], settings, plan):
            results.append(result)
            status.update(result.title)
            numbers = f"{result.error:.1e}", f"{result.bar:.1e}", str(result.evaluations), f"{result.seconds:.3f}"
            table.add_row(result.title, Text(result.verdict, STYLES[result.verdict]), *numbers)
    if str(arguments.json) != "-":
        _print(console, table, results, arguments.verbose)
    return results


def _single(entry: Entry, settings: dict[str, Any], plan: Plan) -> list[Result]:
    from engine.gradcheck.checks import check

    return [check(entry, settings, plan)]


def _print(console: Any, table: Any, results: list[Result], verbose: bool) -> None:
    console.print(table)
    all_of_them = verbose or len(results) == 1
    for result in results:
        if result.bug:
            console.print(f"\nplanted: {result.bug.name}, {result.bug.text}")
        if result.report is not None and (not result.ok or all_of_them):
            console.print("\n" + result.report.table(), soft_wrap=True)
            if result.report.heatmap():
                console.print("\n" + result.report.heatmap(), soft_wrap=True)
        elif result.notes and (not result.ok or all_of_them):
            console.print(f"\n{result.title}: " + "; ".join(result.notes), soft_wrap=True)
    counts = {v: sum(r.verdict == v for r in results) for v in STYLES}
    seconds = sum(r.seconds for r in results)
    told = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    console.print(f"\n{len(results)} checks in {seconds:.1f} s: {told}")


def main() -> None:
    """The command line."""
    run_command(lambda: run(sys.argv[1:]))
