"""Every reader on inputs that nobody should write:  python -m tests.fuzz.readers --inputs 1000000 [--reader npz]
[--seed 0]

Real files are mutated (bits, lengths, places swapped, numbers replaced by extreme ones; PNG chunks, archive members and
headers with their checksums set right again), and files are made from grammars. A reader may return, or raise an
InputError of one printable line. Anything else is
a fault: another exception, a crash, more than SECONDS of computation for an input, more than MEMORY, or a file written.
Inputs are run in processes of a block each, with the limits set; a block that dies is run again input by input.
`tests/fuzz/test_fuzz.py` runs a slice.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import InputError
from tests.fuzz.inputs import READERS, Reader

SECONDS, MEMORY, BLOCK = 10.0, 1 << 30, 500
LONG = ("command", "classes", "layout")  # are given names of any length, which command lines cut


class Hang(BaseException):
    """An input took too long. No Exception, so that no reader's edge takes it for bad input."""


def _alarm(_signal: int, _frame: Any) -> None:
    raise Hang


def check(reader: Reader, draw: random.Random, folder: Path) -> str:
    """One input: '' when all is well, else what happened."""
    path = reader.write(draw, folder)
    before = {p: p.stat().st_size for p in folder.rglob("*") if not p.is_symlink()}
    _timers(SECONDS)
    try:
        reader.read(path)
    except InputError as error:
        text = str(error)
        if (len(text) > 1000 and reader.name not in LONG) or not text.isprintable():
            return f"message of {len(text)} characters: {text[:200]!r}"
    except Hang:
        return "hang"
    except SystemExit as error:
        if error.code not in (0, 2):
            return f"exit code {error.code}"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:100]} ({Path(last.filename).name}:{last.lineno})"
    finally:
        _timers(0)
    if {p: p.stat().st_size for p in folder.rglob("*") if not p.is_symlink()} != before:
        return "a file was written"
    return ""


def _timers(seconds: float) -> None:
    """Call `_alarm` after so many seconds of computation, or twelve times as many on the clock: on a busy machine an
    input waits, too.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)


def _limit(room: int) -> None:
    """No more address space than `room` bytes on top of what this process has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))


def run_block(reader: Reader, seed: int, numbers: range, tell: Callable[[str], None]) -> None:
    """Inputs of one block, in this process. Each is drawn from (seed, its number) alone."""
    signal.signal(signal.SIGALRM, _alarm)
    signal.signal(signal.SIGPROF, _alarm)
    warnings.simplefilter("ignore")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # as engine.cli makes the standard streams
        nothing = stack.enter_context(open(os.devnull, "w", errors="backslashreplace"))
        stack.enter_context(contextlib.redirect_stdout(nothing))
        stack.enter_context(contextlib.redirect_stderr(nothing))
        for number in numbers:
            place = Path(folder, str(number))
            place.mkdir()
            found = check(reader, random.Random(f"{reader.name} {seed} {number}"), place)
            if found:
                tell(f"{reader.name} {seed} {number}: {found}\n")


def forked(reader: Reader, seed: int, numbers: range) -> tuple[list[str], int]:
    """The faults of a block that a process of its own has run, and its largest memory in bytes."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        try:
            _limit(MEMORY)
            run_block(
                reader,
                seed,
                numbers,
                lambda line: os.write(theirs, line.encode(errors="backslashreplace")[:4000]) and None,
            )
            os._exit(0)
        finally:
            os._exit(1)
    os.close(theirs)
    with os.fdopen(ours, errors="replace") as lines:
        faults = lines.read().splitlines()
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if len(numbers) > 1:  # what hangs is run again alone: a process that waits for a busy machine is no fault
        hung = [fault for fault in faults if fault.endswith(": hang")]
        again = [
            forked(reader, seed, range(number, number + 1))[0]
            for number in (int(fault.split()[2].rstrip(":")) for fault in hung)
        ]
        faults = [fault for fault in faults if fault not in hung] + [fault for found in again for fault in found]
    if code and len(numbers) > 1:  # it died: find where
        return [
            fault for number in numbers for fault in forked(reader, seed, range(number, number + 1))[0]
        ], usage.ru_maxrss * 1024
    if code:
        faults.append(f"{reader.name} {seed} {numbers.start}: the process died ({code})")
    return faults, usage.ru_maxrss * 1024


def blocks(readers: list[Reader], inputs: int) -> Iterator[tuple[Reader, range]]:
    """Blocks of all readers in turn, each reader with its share."""
    total = sum(reader.share for reader in readers)
    left = {reader.name: (0, round(inputs * reader.share / total)) for reader in readers}
    while any(start < stop for start, stop in left.values()):
        for reader in readers:
            start, stop = left[reader.name]
            if start < stop:
                end = min(start + max(1, round(BLOCK * reader.share)), stop)
                left[reader.name] = end, stop
                yield reader, range(start, end)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after that many")
    parser.add_argument("--reader", action="append", choices=sorted(READERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="run this input only, in this process")
    arguments = parser.parse_args()
    readers = [READERS[name] for name in arguments.reader or READERS]
    if arguments.number is not None:
        run_block(readers[0], arguments.seed, range(arguments.number, arguments.number + 1), sys.__stdout__.write)
        return 0
    start, counts, faults, largest = time.monotonic(), collections.Counter[str](), 0, 0
    for reader, numbers in blocks(readers, arguments.inputs):
        found, memory = forked(reader, arguments.seed, numbers)
        counts[reader.name] += len(numbers)
        faults, largest = faults + len(found), max(largest, memory)
        print(*found, sep="\n", end="\n" if found else "", flush=True)
        if time.monotonic() - start > arguments.seconds:
            break
    shares = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(
        f"{counts.total():,} inputs ({shares}), {faults} faults, at most {largest >> 20} MB, "
        f"{time.monotonic() - start:.0f} s"
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
