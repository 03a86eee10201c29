"""The parts that all command lines share. An error is one line and exit code 2. Ctrl-C and SIGTERM end a command
quietly, with 130 and 143. A command goes on when its output cannot be written. `--debug`, which every command takes,
shows the whole traceback of an error, with its cause. `Output` is the --quiet of the commands that print notes.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from engine.config import PRESETS, Config, preset, read_toml
from engine.errors import InputError, printable, reading, reason
from engine.files import OutputError
from engine.signals import Terminated, terminated_by_exception
from kernels.core.device import DeviceError
from kernels.core.modules import version

_Kind = TypeVar("_Kind")


class UsageError(InputError):
    """The command line asks for something impossible; the message names the argument."""


@dataclass(frozen=True)
class Output:
    """What a command prints beside its result, an option of every command that prints such things."""

    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print the result and errors only, no notes and no progress; where the result is files, print nothing."""

    def note(self, text: str, end: str = "\n") -> None:
        """Print a note, or progress, to stderr, unless --quiet was given."""
        if not self.quiet:
            print(text, end=end, file=sys.stderr, flush=True)


EXPECTED = (InputError, OutputError, DeviceError)
_ENVIRONMENT = re.compile(r"AREOGRAD_[A-Z]+: ")  # how kernels/ names an environment variable that holds nonsense


def run_command(main: Callable[[], int | None]) -> None:
    """Run `main` and exit: 0 or what it returns; 2 with one line for bad input; 130 after Ctrl-C, 143 after SIGTERM.

    If output was lost, other than to a reader who has gone, a line says so and 0 becomes 1.
    """
    debug = "--debug" in sys.argv[1:]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--debug"]
    lost = _use_robust_streams()
    try:
        with terminated_by_exception():
            code = main()
    except Terminated:
        code = 143
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if not _is_expected(error):
            raise
        if debug:
            traceback.print_exc()
        text = "not enough memory" if isinstance(error, MemoryError) and not str(error) else str(error)
        print(f"error: {printable(text)}", file=sys.stderr)
        code = 2
    for error in lost():
        print(f"error: the output could not be written ({reason(error)})", file=sys.stderr)
        code = code or 1
    sys.exit(code)


def _is_expected(error: Exception) -> bool:
    return isinstance(error, (*EXPECTED, MemoryError)) or (
        isinstance(error, ValueError) and bool(_ENVIRONMENT.match(str(error)))
    )


class _Stream(io.FileIO):
    """A standard stream that drops text which cannot be written: to a pipe whose reader has gone, to a full disk."""

    error: OSError | None = None

    def write(self, data: Any) -> int | None:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)


def _use_robust_streams() -> Callable[[], list[OSError]]:
    """Make stdout and stderr take any text and outlive their readers. Returns a function that lists the errors of
    stdout, other than a closed pipe.
    """
    stdout: _Stream | None = None
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed before we started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
        elif stream is getattr(sys, f"__{name}__"):  # not one that a test or a notebook has put there
            raw = _Stream(number, "w", closefd=False)
            by_lines = number == 2 or stream.line_buffering or stream.write_through
            text = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=by_lines
            )
            stream.flush()
            setattr(sys, name, text)
            stdout = raw if number == 1 else stdout

    def lost() -> list[OSError]:
        sys.stdout.flush()
        return (
            [stdout.error]
            if stdout is not None and stdout.error is not None and stdout.error.errno != errno.EPIPE
            else []
        )

    return lost


def parsed(
    kind: type[_Kind], prog: str, args: Sequence[str] | None = None, default: Any = None, more: str = ""
) -> _Kind:
    """The command line as a `kind`, a dataclass. Raises UsageError, one line, where tyro would print a box of many.

    --help and --version print and end the command. args: in place of the command line. default: an instance with the
    options' defaults.  more: what the help page says behind the options.
    """
    from engine.help import options_of, page

    args = list(sys.argv[1:] if args is None else args)
    if "--help" in args or "-h" in args:
        print(page(kind, prog, default, more))
        raise SystemExit(0)
    if "--version" in args:
        print(version())
        raise SystemExit(0)
    options = {} if default is None else {"default": default}
    output = io.TextIOWrapper(io.BytesIO(), "utf-8")  # by the encoding tyro decides how it draws the box
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()) as box:
        try:
            with reading(UsageError, "the command line cannot be read"):
                return tyro.cli(kind, prog=prog, args=args, use_underscores=False, **options)
        except SystemExit as end:
            if end.code != 2:
                output.seek(0)
                print(output.read(), end="", file=sys.__stdout__)
                raise
    lines = [line.strip("│ \n") for line in box.getvalue().splitlines() if line[:1] == "│"]
    rule = next((k for k, line in enumerate(lines) if line[:1] == "─"), len(lines))
    line = " ".join(lines[:rule]) or "the command line cannot be read"
    known = {option.name for option in options_of(kind)}
    wrong = next((a.partition("=")[0] for a in args if a.startswith("--") and a.partition("=")[0] not in known), None)
    close = difflib.get_close_matches(wrong, known, 1) if wrong and "nrecognized" in line else []
    raise UsageError(f"{line} ({f'did you mean {close[0]}? ' if close else ''}--help lists the options)")


def peek(arguments: Sequence[str], name: str) -> str | None:
    """The value of an option before the real parsing: `--name value` or `--name=value`."""
    for k, argument in enumerate(arguments):
        if argument == name and k + 1 < len(arguments):
            return arguments[k + 1]
        if argument.startswith(name + "="):
            return argument.split("=", 1)[1]
    return None


def check_names(arguments: Sequence[str], *options: str) -> None:
    """Raise UsageError where one of these options, which take a name, was given an empty one."""
    for option in options:
        if peek(arguments, option) == "":
            raise UsageError(f"{option}: got an empty name")


def base_settings(arguments: Sequence[str]) -> Config:
    """The settings that the other options change: those of --config, else those of --preset."""
    path, chosen = peek(arguments, "--config"), peek(arguments, "--preset")
    if path is not None:
        return read_toml(Path(path))
    return preset(chosen if chosen in PRESETS else PRESETS[0])


def use_threads(count: int) -> None:
    """Let CPU kernels use `count` threads (0: as many as AREOGRAD_THREADS says, else one per core);
    UsageError below 0.
    """
    if count < 0:
        raise UsageError(f"--threads: got {count}, expected the number of threads, or 0 (one per core)")
    if count:
        from kernels.core.cpu.cores import capped
        from kernels.core.cpu.thread_pool import set_threads

        set_threads(capped(count, "--threads"))


def check_memory(memory: int) -> None:
    """Raise UsageError unless --memory is a number of MiB."""
    if not 0 <= memory <= 1 << 30:
        raise UsageError(f"--memory: got {memory}, expected MiB, or 0 (half of what is available)")


def make_folder(path: Path, argument: str = "--out") -> None:
    """Create a folder and make sure that it can be written to; UsageError otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{argument} {path}: cannot write there ({error.strerror})") from None
