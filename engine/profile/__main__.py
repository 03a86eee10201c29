"""Say where the time and the memory of a training step go:  python -m engine.profile [RUN] [--preset tiny|small|report]
[--data ...] [--by operator|layer|kernel|call] [--trace FILE] [--out DIR] ...
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from engine.cli import (
    Output,
    UsageError,
    base_settings,
    check_memory,
    check_names,
    make_folder,
    parsed,
    run_command,
    use_threads,
)
from engine.config import Config, presets_explained, read_toml
from engine.data import CLASSES
from engine.training.run_folder import BEST, LAST, PROFILE, SETTINGS, TRACE, RunFolder, check_run

if TYPE_CHECKING:
    from engine.profile.result import Profile

_MOST_STEPS = 1000


@dataclass(frozen=True)
class Arguments:
    """Profile training steps: time, FLOPs and bytes per operator or layer, their share of the machine's measured peaks,
    what served each call, and the memory over time (docs/profile.md).

    Examples:
      python -m engine.profile                                  the smallest preset on built-in tiles
      python -m engine.profile --preset small --data FILE.npz   any settings of engine.train
      python -m engine.profile runs/tiny-1                      a run's network; profile.json and trace.json go there
      python -m engine.profile --by layer --top 0               all layers
      python -m engine.profile --trace step.json                for chrome://tracing or https://ui.perfetto.dev
    """

    GROUPS: ClassVar[dict[str, str]] = {"config": "the profile"}

    settings: Annotated[Config, tyro.conf.arg(name="")]
    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """A run folder: its settings and its best weights are taken, the results written to it."""
    config: Path | None = None
    """Take the settings from a config.toml; options given here win."""
    by: Literal["operator", "layer", "kernel", "call"] = "operator"
    """The rows: operators, forward and backward; layers; CPU or CUDA kernels; or every call of one step, in order."""
    top: int = 30
    """Number of rows that are printed; 0: all."""
    steps: int = 5
    """Number of steps that are recorded."""
    warm: int = 2
    """Number of steps before them."""
    json: bool = False
    """Print one JSON object instead of a table: what profile.json holds."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)
    trace: Path | None = None
    """Write the steps as a Chrome trace to this file."""
    out: Path | None = None
    """Write profile.json and trace.json to this folder; by default to RUN, if one is given."""
    threads: int = 0
    """Number of threads for CPU kernels; 0: as many as AREOGRAD_THREADS says, else one per core."""
    memory: int = 0
    """MiB of memory that a folder's decoded tiles may take, else they are read from a temporary file; 0: half of what
    is available.
    """


def parse(arguments: list[str] | None = None) -> Arguments:
    """The command line as Arguments: defaults from RUN, else from --config, else from --preset."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    check_names(arguments, "--out", "--data", "--config", "--trace")
    result = _parsed(arguments, base_settings(arguments))
    if result.run is None:
        return result
    check_run(result.run)
    return _parsed(arguments, read_toml(result.run / SETTINGS))


def _parsed(arguments: list[str], base: Config) -> Arguments:
    return parsed(Arguments, "python -m engine.profile", arguments, Arguments(base), presets_explained())


def _check(arguments: Arguments) -> None:
    """Raise UsageError for numbers out of range and options that contradict each other."""
    for name, value, least in (("steps", arguments.steps, 1), ("warm", arguments.warm, 0)):
        if not least <= value <= _MOST_STEPS:
            raise UsageError(f"--{name}: got {value}, expected {least} to {_MOST_STEPS}")
    if arguments.top < 0:
        raise UsageError(f"--top: got {arguments.top}, expected a number of rows, or 0 (all)")
    check_memory(arguments.memory)
    if arguments.run is not None and arguments.config is not None:
        raise UsageError(f"--config: {arguments.run} has settings of its own; options change them")
    if arguments.trace is not None and arguments.trace.is_dir():
        raise UsageError(f"--trace {arguments.trace}: got a folder, expected a file")


def run(arguments: Arguments) -> int:
    """Profile and print; returns the exit code."""
    from engine.graphs import CaptureError
    from engine.profile.steps import profile_steps
    from engine.training.progress import PlainReporter, QuietReporter
    from engine.training.trainer import Run

    _check(arguments)
    use_threads(arguments.threads)
    folder = arguments.run if arguments.out is None else arguments.out
    with contextlib.ExitStack() as claimed:
        if arguments.run is not None and folder is arguments.run:
            claimed.enter_context(RunFolder(arguments.run, "run"))
        start = None
        if arguments.run is not None:
            start = next((path for name in (BEST, LAST) if (path := arguments.run / name).exists()), None)
        stream = sys.stderr if arguments.json else sys.stdout
        reporter = (QuietReporter if arguments.output.quiet else PlainReporter)(CLASSES, stream)
        job = Run(arguments.settings, folder or Path(), reporter, start=start, memory=arguments.memory)
        for path, option in ((arguments.out, "--out"), (arguments.trace and arguments.trace.parent, "--trace")):
            if path is not None:
                make_folder(path, option)
        try:
            profile = profile_steps(job, arguments.steps, arguments.warm)
        except CaptureError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        if profile is not None:
            _show(profile, arguments)
            for path in _write(profile, folder, arguments.trace):
                reporter.note(f"written  {path}")
    return 0


def _show(profile: Profile, arguments: Arguments) -> None:
    if arguments.json:
        print(json.dumps(profile.to_dict(), indent=2))
        return
    print(*profile.summary(), "", profile.table(arguments.by, arguments.top), sep="\n")


def _write(profile: Profile, folder: Path | None, trace: Path | None) -> list[Path]:
    """Write the files that were asked for; returns their names."""
    written = []
    if folder is not None:
        profile.write(folder / PROFILE)
        profile.write_trace(folder / TRACE)
        written += [folder / PROFILE, folder / TRACE]
    if trace is not None:
        profile.write_trace(trace)
        written.append(trace)
    return written


def main() -> None:
    """The command line."""
    run_command(lambda: run(parse()))


if __name__ == "__main__":
    main()
