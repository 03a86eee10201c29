"""Damage every file of the kernel cache in every way and run a program with it:  python -m tests.fuzz.damage [--flips
12] [--only N]

A process with a damaged cache must end with code 0 and the very result that it has without a cache; its stderr holds no
traceback and at most one note. Prints what was tried and what failed; exit code 1 where something did.
tests/kernels/core/test_cache_damage.py runs a slice of it.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# A handful of kernels, launchers and the thread pool's own code; the result is printed to the last bit.
PROGRAM = """
import hashlib
import numpy as np
from kernels import pointwise
from kernels.core.cpu.thread_pool import set_threads
set_threads(2)
x = np.linspace(-1, 1, 40001, dtype=np.float32).reshape(1, 1, -1, 1)
y = pointwise.relu_forward(x) + pointwise.tanh_forward(x)
print("result", hashlib.sha256(y.tobytes()).hexdigest())
"""

Damage = Callable[[Path, random.Random], None]


def _truncate(share: float) -> Damage:
    return lambda path, _draw: os.truncate(path, int(path.stat().st_size * share))


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _scramble(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    content[start : start + 512] = draw.randbytes(len(content[start : start + 512]))
    path.write_bytes(content)


def _append(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(100))


def _half_old(path: Path, draw: random.Random) -> None:
    """The second half of another write: zeros, as a file system leaves it after a power failure."""
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


def _swap(path: Path, draw: random.Random) -> None:
    other = draw.choice([p for p in path.parent.iterdir() if p != path])
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _replace(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path, _draw: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Damage] = {
    **{f"truncated to {share:.0%}": _truncate(share) for share in (0.0, 0.01, 0.3, 0.9, 0.999)},
    "bytes appended": _append,
    "512 bytes scrambled": _scramble,
    "second half zeros": _half_old,
    "swapped with another": _swap,
    "missing": _replace(lambda path: None),
    "a folder": _replace(Path.mkdir),
    "a pipe": _replace(os.mkfifo),
    "a link to itself": _replace(lambda path: path.symlink_to(path)),
    "a link to nothing": _replace(lambda path: path.symlink_to("/nowhere")),
    "unreadable": lambda path, _draw: path.chmod(0),
    "text": lambda path, _draw: path.write_text("{}\n") and None,
}


class Outcome(NamedTuple):
    """How a process ended, and what it wrote."""

    code: int
    output: str
    errors: str


def run(cache: Path) -> Outcome:
    """The program with this cache, in a process that has imported everything, but neither looked at the cache nor
    started a thread.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                os.environ["AREOGRAD_CACHE"] = str(cache)
                exec(PROGRAM, {"__name__": "program"})
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        errors.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), output.read(), errors.read())


def fault(outcome: Outcome, expected: str) -> str:
    """What is wrong with a run: '' for nothing."""
    if outcome.code < 0:
        return f"crash (signal {-outcome.code})"
    if outcome.code or "Traceback" in outcome.errors:
        return f"traceback ({(outcome.errors.strip().splitlines() or ['no output'])[-1][:100]})"
    if outcome.output != expected:
        return "wrong result"
    if len(outcome.errors.splitlines()) > 1:
        return f"{len(outcome.errors.splitlines())} lines on stderr"
    return ""


def cases(cache: Path, flips: int) -> Iterator[tuple[Path, str, Damage]]:
    """Every file of the cache with every damage, `flips` single bits among them."""
    for path in sorted(p.relative_to(cache) for p in cache.rglob("*") if p.is_file()):
        for name, damage in DAMAGES.items():
            yield path, name, damage
        for k in range(flips):
            yield path, f"bit flipped {k}", _flip


def study(flips: int, seed: int, only: int = 0, say: Callable[[str], None] = print) -> collections.Counter[str]:
    """How often what happened; `only` draws that many of the cases."""
    import kernels.pointwise.cpu.activations
    from kernels.core.cpu import thread_pool

    if kernels.core.cpu.jit.store.cache_info().currsize or thread_pool._pool is not None:
        raise RuntimeError("the kernel cache was looked at before it is damaged")
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        good, damaged = Path(folder, "good"), Path(folder, "damaged")
        expected = run(good).output
        if not list(good.rglob("*.bin")) or not expected.startswith("result"):
            raise RuntimeError("the program leaves nothing in the cache")
        every = list(cases(good, flips))
        draw = random.Random(seed)
        for path, name, damage in draw.sample(every, only) if only else every:
            shutil.copytree(good, damaged)
            damage(damaged / path, draw)
            found = fault(run(damaged), expected)
            counts[found.split(" (")[0] or "fine"] += 1
            if found:
                say(f"{path}: {name}: {found}")
            shutil.rmtree(damaged)
    return counts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=12, help="single bits flipped per file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=0, help="draw that many of the cases; 0: all")
    arguments = parser.parse_args()
    counts = study(arguments.flips, arguments.seed, arguments.only)
    print(f"{counts.total()} damaged files: {', '.join(f'{n} {what}' for what, n in counts.most_common())}")
    return int(counts.total() > counts["fine"])


if __name__ == "__main__":
    sys.exit(main())
