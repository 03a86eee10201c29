"""Kill training runs at every file operation and at random moments, resume them, and compare with the run that nobody
disturbed, bit for bit.

    python -m tests.support.crashes --kills 200 --every 1       # hundreds of kills; a figure per kind as JSON on stdout
    python -m tests.support.crashes --kills 8 --every 12        # the slice of the test-suite

A file operation is a write, an fsync, a rename or a removal by engine/files.py. The process dies in the middle of it
(half of the bytes written) or right after it. In a power cut, what was not flushed to the disk by then may be lost,
too: files that were not flushed are cut short, renames and removals in a folder that was not flushed are taken back,
    each by a throw of a coin.

Runs are forked from a process in which everything is compiled, so that one takes a second or less.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import engine.files
from engine import train
from engine.report.record import Record
from engine.training import trainer
from engine.training.reporting import WALL_CLOCK, read_rows
from engine.training.run_folder import CURVES, PREDICTIONS, REPORT, STATES, holds_state
from engine.training.run_state import load_state
from tests.support.tiny_runs import NETWORK, write_tiles

SETTINGS = ["--epochs=3", "--batch=8", *NETWORK, "--threads=1", "--save-every=0.00001"]


class Disk:
    """In place of the module `os` in engine/files.py: counts its file operations and dies in, or after, the one that it
    is told to.

    at: the number of the operation, from 0; none: never. half: die in the middle of it. coin: what is lost in the power
    cut; None: the process dies, and the system lives on.
    """

    def __init__(
        self, at: int = -1, half: bool = False, coin: random.Random | None = None, backup: Path | None = None
    ) -> None:
        self.at, self.half, self.coin, self.backup = at, half, coin, backup
        # path by descriptor; what undoes an operation that was not flushed: (folder, function)
        self.count, self.files, self.lost = 0, {}, []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _operation(self, whole: Any, half: Any = None) -> Any:
        mine = self.count == self.at
        self.count += 1
        if mine and self.half:
            if half is not None:
                half()
            self.die()
        result = whole()
        if mine:
            self.die()
        return result

    def die(self) -> None:
        if self.coin is not None:
            for _, undo in reversed(self.lost):
                if self.coin.random() < 0.7:
                    undo()
        os.kill(os.getpid(), signal.SIGKILL)

    def _kept(self, path: Path) -> Path | None:
        """Another name for a file that is about to lose its own."""
        if self.backup is None or not path.exists():
            return None
        kept = self.backup / f"{os.getpid()}-{self.count}"
        os.link(path, kept)
        return kept

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        self.files[descriptor] = Path(path)
        return descriptor

    def write(self, descriptor: int, content: memoryview) -> int:
        path = self.files[descriptor]

        def cut() -> None:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, self.coin.randrange(os.path.getsize(path) + 1))

        self.lost.append((path, cut))
        return self._operation(
            lambda: os.write(descriptor, content), lambda: os.write(descriptor, content[: len(content) // 2])
        )

    def fsync(self, descriptor: int) -> None:
        path = self.files[descriptor]

        def flush() -> None:
            os.fsync(descriptor)
            self.lost = [(place, undo) for place, undo in self.lost if place != path]

        self._operation(flush)

    def replace(self, old: Path, new: Path) -> None:
        kept = self._kept(Path(new))

        def undo() -> None:
            os.replace(new, old)
            if kept is not None:
                os.link(kept, new)

        self._operation(lambda: os.replace(old, new))
        self.lost.append((Path(new).parent, undo))

    def unlink(self, path: Path) -> None:
        kept = self._kept(Path(path))
        if kept is None and not Path(path).exists():
            os.unlink(path)
        self._operation(lambda: os.unlink(path))
        if kept is not None:
            self.lost.append((Path(path).parent, lambda: os.link(kept, path)))


class Lab:
    """Runs of one tiny configuration in forked processes, and what the undisturbed one left."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tiles = folder, folder / "tiles.npz"
        write_tiles(self.tiles)
        trainer.draw = self._draw  # the pictures' files, without the seconds that drawing takes
        trainer.precompile = lambda *_: 0  # all is compiled
        trainer.bootstrap = functools.partial(trainer.bootstrap, draws=20)
        self.number, self.seconds = 0, 0.0
        self.run(folder / "first", Disk())  # compiles
        start = time.monotonic()
        disk = self.run(folder / "whole", Disk())
        self.seconds, self.operations = time.monotonic() - start, disk.count
        self.expected = fingerprint(folder / "whole")

    @staticmethod
    def _draw(record: Record, *_: Any) -> None:
        for name in (PREDICTIONS, CURVES, REPORT):
            engine.files.write_bytes(record.folder / name, b"a picture")

    def arguments(self, out: Path) -> list[str]:
        """Go on where there is a state; where there is none a new run must be let in, without --overwrite."""
        return (
            [f"--resume={out}", SETTINGS[-1], SETTINGS[-2]]
            if holds_state(out)
            else [f"--data={self.tiles}", f"--out={out}", *SETTINGS]
        )

    def run(self, out: Path, disk: Disk) -> Disk:
        """A run in this process; it must end well."""
        engine.files.os = disk
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            code = train.run(train.parse(self.arguments(out)))
        engine.files.os = os
        if code:
            raise RuntimeError(f"{out}: the run ended with {code}")
        return disk

    def forked(self, out: Path, disk: Disk, after: float | None = None) -> int:
        """A run in a process of its own, which dies as the disk says, or is killed `after` seconds. Returns its exit
        code, or less than 0.
        """
        child = os.fork()
        if not child:
            code = 99
            try:
                self.run(out, disk)
                code = 0
            except BaseException as error:
                print(f"{out}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def crash(self, disks: list[tuple[Disk, float | None]]) -> int:
        """Kill a run, and the runs that resume it, one after another as told; let the last go on to its end, and
        compare. Returns the kills.
        """
        out = self.folder / f"run-{self.number}"
        backup = self.folder / f"backup-{self.number}"
        self.number += 1
        backup.mkdir()
        kills = 0
        for disk, after in disks:
            disk.backup = backup
            code = self.forked(out, disk, after)
            if code not in (0, -signal.SIGKILL):
                raise RuntimeError(f"{out}: a run to be killed ended with {code}")
            kills += code != 0
        if code := self.forked(out, Disk()):
            raise RuntimeError(f"{out}: the resumed run ended with {code}")
        for name, value in fingerprint(out).items():
            if value != self.expected[name]:
                raise RuntimeError(f"{out}: {name} is not that of the undisturbed run")
        shutil.rmtree(out)
        shutil.rmtree(backup)
        return kills


def fingerprint(out: Path) -> dict[str, Any]:
    """All that must be the same, bit for bit; times are left out, for they never are."""
    state = load_state(out)
    clocks = ("seconds", "training_seconds")
    summary = json.loads((out / "summary.json").read_text())
    return {
        **{name: (out / name).read_bytes() for name in ("best.safetensors", "last.safetensors", "config.toml")},
        "metrics.jsonl": json.dumps(without(read_rows(out), WALL_CLOCK)),  # as text: keys have an order, too
        "summary.json": json.dumps(without(summary, ("seconds", *WALL_CLOCK))),
        "arrays": {name: array.tobytes() for name, array in state.arrays.items()},
        "progress": without(state.progress, (*clocks, *WALL_CLOCK)),
        "files": sorted(p.name for p in out.iterdir() if p.name not in STATES),
    }


def say(text: str) -> None:
    """Progress, where somebody looks."""
    if sys.stderr.isatty() or "CRASHES_VERBOSE" in os.environ:
        print(text, file=sys.stderr, flush=True)


def without(value: Any, names: tuple[str, ...]) -> Any:
    """A JSON value without some keys, however deep."""
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(v, names) for v in value] if isinstance(value, list) else value


def study(folder: Path, kills: int, every: int, seed: int) -> dict[str, Any]:
    """`kills` at random moments, and two at every `every`-th file operation: in the middle and after it. Returns the
    counts.

    Every other of the latter is a power cut. RuntimeError at the first difference.
    """
    lab, rng = Lab(folder), random.Random(seed)
    start = time.monotonic()
    at_operations = power = 0
    for half in (True, False):
        for at in range(rng.randrange(every), lab.operations, every):
            cut = (at_operations + half) % 2 == 0
            if not lab.crash([(Disk(at, half, random.Random(rng.random()) if cut else None), None)]):
                raise RuntimeError(f"operation {at} of {lab.operations} never came")
            at_operations, power = at_operations + 1, power + cut
            say(f"{at_operations} kills at operations, {power} of them power cuts")
    moments = 0
    while moments < kills:
        times = [rng.uniform(0, 1.1 * lab.seconds) for _ in range(rng.choice((1, 1, 2, 3)))]
        moments += lab.crash([(Disk(), after) for after in times])
        say(f"{moments} kills at random moments")
    return {
        "kills_at_random_moments": moments,
        "kills_at_file_operations": at_operations,
        "of_them_power_cuts": power,
        "file_operations_of_a_run": lab.operations,
        "resumed_runs_that_differ": 0,
        "seconds_of_a_run": round(lab.seconds, 2),
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills at random moments")
    parser.add_argument("--every", type=int, default=1, help="kill at every N-th file operation, in four ways each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(study(Path(folder), arguments.kills, arguments.every, arguments.seed), indent=2))


if __name__ == "__main__":
    main()
