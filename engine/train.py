"""Train the Mars-terrain segmentation network:  python -m engine.train [--preset tiny|small|report] [--data ...] [--out
DIR] ...

Tiles in, a run folder out: config.toml, metrics.jsonl (a line per epoch), summary.json, best.safetensors and
last.safetensors, report.html, curves.png, predictions.png, and the run's two last states, from which --resume goes on
(docs/reliability.md); with --profile also profile.json and trace.json (docs/profile.md). Without options it trains the
smallest preset on built-in data in a few minutes. Exit codes: 0 finished, 1 failed, 2 bad input, 130 interrupted
(Ctrl-C), 143 terminated.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from engine.cli import (
    UsageError,
    base_settings,
    check_memory,
    check_names,
    parsed,
    peek,
    run_command,
    use_threads,
)
from engine.config import Config, presets_explained, read_toml
from engine.data import CLASSES
from engine.files import finite
from engine.training.progress import REPORTERS, make_reporter
from engine.training.run_folder import (
    LAST,
    SETTINGS,
    FolderError,
    RunFolder,
    holds_run,
    holds_state,
    next_folder,
)
from engine.training.run_state import RunState, StateError, difference, load_state
from engine.training.tensorboard import TensorBoardReporter, check_installed

if TYPE_CHECKING:
    from engine.training.trainer import Run


@dataclass(frozen=True)
class Arguments:
    """Train the segmentation network, on Mars terrain or on anyone's images.

    Examples:
      python -m engine.train                                  built-in tiles, a few minutes
      python -m engine.train --preset small --data FILE.npz   real tiles, the middle network
      python -m engine.train --data PHOTOS --classes 1        images/ and masks/ of 0 and 255: one class, one logit
      python -m engine.train --data PHOTOS --classes 21 --crop 256 256
                                                              masks of 0 to 20, large images (docs/data.md)
      python -m engine.train --config runs/tiny-1/config.toml --seed 1 --out runs/again
      python -m engine.train --resume runs/tiny-1             go on with a run that was stopped or killed

    The first Ctrl-C (or SIGTERM) saves the run's state and ends with code 130 (143); a second one ends at once.
    """

    GROUPS: ClassVar[dict[str, str]] = {"out": "the run"}

    settings: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run folder; by default the next free runs/PRESET-N."""
    config: Path | None = None
    """Take the settings from a config.toml; options given here win."""
    overwrite: bool = False
    """Remove the results of the run that --out already holds, and train there again."""
    resume: Path | None = None
    """Go on with the run in this folder, bit for bit as if it had never stopped. It keeps its own settings."""
    allow_changes: bool = False
    """With --resume: go on although versions, sources, device or tiles have changed; then no longer bit for bit."""
    start: Annotated[Path | None, tyro.conf.arg(name="from", metavar="CHECKPOINT")] = None
    """Start a new run from the weights of a checkpoint, as far as they fit; one line says what was taken."""
    save_every: float = 10.0
    """Minutes between two saved states within an epoch; 0 saves only after each epoch."""
    memory: int = 0
    """MiB of memory that a folder's decoded tiles may take (twice their size while they are split); larger ones are
    read from a temporary file (in TMPDIR, else /var/tmp), with the same results. 0: half of what is available.
    """
    profile: bool = False
    """Profile some steps before the first one (docs/profile.md): the longest operators are printed, profile.json and
    trace.json written. The run's results are the same bits.
    """
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but the last lines: the scores and the files."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """Print a line for every step, with the terms of the loss."""
    json: bool = False
    """Print JSON in place of text: a line for every epoch, as in metrics.jsonl, then what summary.json holds. Notes go
    to stderr.
    """
    tensorboard: bool = False
    """Also write losses and scores as TensorBoard events to RUN/tensorboard (with --resume, give it again)."""
    threads: int = 0
    """Number of threads for CPU kernels (results do not depend on it); 0: as many as AREOGRAD_THREADS says, else one
    per core.
    """


def parse(arguments: list[str] | None = None) -> Arguments:
    """The command line as Arguments: defaults from --resume, else from --config, else from --preset, and what is given
    explicitly wins.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    check_names(arguments, "--out", "--data", "--config", "--resume", "--from")
    resumed = peek(arguments, "--resume")
    base = base_settings(arguments) if resumed is None else _state(Path(resumed)).config
    return parsed(Arguments, "python -m engine.train", arguments, Arguments(base), presets_explained())


def _state(folder: Path) -> RunState:
    """The state that a run goes on from; StateError with one line when there is none, or settings that differ from
    those in config.toml.
    """
    if not holds_state(folder):
        hint = f"; --from {folder / LAST} starts a new run from its weights" if (folder / LAST).exists() else ""
        raise StateError(f"--resume {folder}: holds no state of a run{hint}")
    try:
        state = load_state(folder)
    except StateError as error:
        raise StateError(f"--resume {error}") from None
    if (folder / SETTINGS).exists() and (differs := difference(read_toml(folder / SETTINGS), state.config)):
        raise StateError(
            f"--resume {folder}: in its {SETTINGS} {differs}; a run goes on with the settings that it was started with"
        )
    return state


def _check(arguments: Arguments) -> None:
    """Raise UsageError when options contradict each other."""
    if not (math.isfinite(arguments.save_every) and arguments.save_every >= 0):
        raise UsageError(f"--save-every: got {arguments.save_every}, expected minutes, or 0 (only after each epoch)")
    check_memory(arguments.memory)
    if len(outputs := [f"--{name}" for name in REPORTERS if getattr(arguments, name)]) > 1:
        raise UsageError(f"{outputs[0]}: contradicts {outputs[1]}")
    if arguments.tensorboard:
        check_installed()
    if arguments.resume is None:
        if arguments.allow_changes:
            raise UsageError("--allow-changes: goes with --resume only")
        return
    for name, given in (
        ("out", arguments.out),
        ("config", arguments.config),
        ("from", arguments.start),
        ("overwrite", arguments.overwrite),
    ):
        if given:
            raise UsageError(
                f"--resume {arguments.resume}: goes on in that folder with the run's own settings, so leave out "
                f"--{name}"
            )


def claim(arguments: Arguments) -> RunFolder:
    """The run folder, not yet entered: as given, or the next free runs/PRESET-N."""
    if arguments.resume is not None:
        return RunFolder(arguments.resume, "--resume")
    if arguments.out is None:
        return RunFolder(next_folder(Path("runs"), arguments.settings.preset), new=True)
    return RunFolder(arguments.out)


def _check_free(out: Path) -> None:
    """Raise FolderError when a run is there; the message says whether it can be resumed."""
    if not holds_run(out):
        return
    hint = ""
    if holds_state(out):
        try:
            epochs = load_state(out).progress["epoch"]
            hint = f" ({epochs} epochs done; --resume {out} goes on with it)"
        except (StateError, KeyError):
            pass
    raise FolderError(f"--out {out}: already holds a run{hint}; give another folder, or --overwrite")


def run(arguments: Arguments, kind: type[Run] | None = None) -> int:
    """Train as the Arguments say; returns the exit code. kind: the class of the run."""
    from engine.graphs import CaptureError
    from engine.training.reporting import summary_lines
    from engine.training.trainer import Run, TrainingError

    _check(arguments)
    use_threads(arguments.threads)
    with claim(arguments) as folder:
        state = None
        out = folder.path
        if arguments.resume is not None:
            state = _state(out)
            if differs := difference(arguments.settings, state.config):
                raise UsageError(f"--resume {out}: {differs}; a run keeps the settings that it was started with")
        elif not arguments.overwrite:
            _check_free(out)
        reporter = make_reporter(CLASSES, next((name for name in REPORTERS if getattr(arguments, name)), ""))
        if arguments.tensorboard:
            reporter = TensorBoardReporter(reporter, out)
        try:
            starts = state, arguments.start, arguments.save_every, arguments.allow_changes, arguments.memory
            job = (kind or Run)(arguments.settings, out, reporter, *starts, arguments.profile)
            summary = job.train()
        except (TrainingError, CaptureError) as error:
            reporter.close()
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            reporter.close()
        if summary is not None:
            print(json.dumps(finite(summary)) if arguments.json else summary_lines(summary, out))
        if not job.stop.signal:
            return 0
        resume = f"resume   python -m engine.train --resume {out}"
        print(resume, file=sys.stderr if arguments.json else sys.stdout)
        return 128 + job.stop.signal


def main() -> None:
    """The command line."""
    run_command(lambda: run(parse()))


if __name__ == "__main__":
    main()
