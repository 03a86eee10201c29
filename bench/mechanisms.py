"""What each speed mechanism of the CPU path is worth:  python -m bench.mechanisms [--only TEXT] [--pairs N]

Whole training steps at widths 8, 16 and 32 and inference of one image and of 16, with one mechanism switched off at a
time. Every variant runs in a process of its own, and all of them in turn within a round, so a slow minute hits them
alike. A ratio is the time without the mechanism divided by the time with it: 1.02 means that it brings 2 %.

A ratio of whole steps is uncertain by several percent on a shared machine, whose speed changes within a minute.
`--pairs` takes the time of a step's kernels with and without a mechanism in turn, step by step in one process, and
reports the median of the ratios of neighbouring steps. It leaves out what happens between launches, so it says nothing
of capture.

Most mechanisms are asked for by a function that says whether they serve a layer; switching one off replaces this
function.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from multiprocessing import get_context
from typing import Any

import tyro

from bench.harness import Case, Run, WorkerError, race
from kernels.core.modules import load
from kernels.core.tracing import KERNEL, trace

CONV = "kernels.conv.cpu"
DIRECT = f"{CONV}.direct"
STEPS = {"step, width 8": (8, 16), "step, width 16": (16, 32), "step, width 32": (32, 16)}  # width and batch
IMAGES = {"1 image": 1, "16 images": 16}
_SECONDS = 0.5  # that a side runs in a round, about


class Replacement:
    """`value` in each of some places, 'module:name' or 'module:Class.name': for good when called, else for a block."""

    def __init__(self, value: Any, *places: str) -> None:
        self.value = value
        self.places = places

    def __call__(self) -> None:
        for owner, name in self._places():
            setattr(owner, name, self.value)

    @contextmanager
    def within(self) -> Iterator[None]:
        """Replaced in this block."""
        before = [(owner, name, getattr(owner, name)) for owner, name in self._places()]
        self()
        try:
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def _places(self) -> Iterator[tuple[Any, str]]:
        for place in self.places:
            module, _, path = place.partition(":")
            *classes, name = path.split(".")
            owner = reduce(getattr, classes, load(module))
            if not hasattr(owner, name):
                raise AttributeError(f"{place} is not there")
            yield owner, name


def _no(*_args: Any, **_settings: Any) -> bool:
    return False


def _one(*_args: Any, **_settings: Any) -> int:
    return 1


def _none(*_args: Any, **_settings: Any) -> None:
    return None


def _not_served(*_args: Any, **_settings: Any) -> Any:
    return NotImplemented


@property  # type: ignore[misc]
def _not_donated(function: Any) -> tuple[bool, ...]:
    """Nobody learns that a gradient's memory is free."""
    return (False,) * len(function.outputs)


@_not_donated.setter
def _not_donated(_function: Any, _value: Any) -> None:
    """What a tape would say is dropped."""


def _packed_every_time() -> None:
    """Filters are packed and transformed in every call."""

    def packed(_array: Any, _key: Any, make: Callable[[], Any], **_settings: Any) -> Any:
        return make()

    for name in (
        f"{CONV}.filters",
        f"{DIRECT}.forward",
        f"{DIRECT}.backward_data",
        f"{CONV}.winograd.filter_transform",
    ):
        Replacement(packed, f"{name}:packed_once")()


def _not_captured() -> None:
    """Every step and every inference calls the operators from Python."""
    from engine.graphs import cpu_step

    cpu_step.CapturedPasses = lambda passes: passes  # type: ignore[assignment, misc]
    _uncaptured_inference()


def _uncaptured_inference() -> None:
    from autograd import Tensor
    from engine.graphs import cpu_inference

    cpu_inference.InferenceGraph = lambda net, _x: lambda x: net(Tensor(x))  # type: ignore[assignment, misc]


@dataclass(frozen=True)
class Mechanism:
    """off: what switches it off. lines: those of the product that would go with it, about."""

    off: Callable[[], None]
    lines: int


_LISTS = (
    f"{DIRECT}.forward:prefetch_pays",
    f"{CONV}.fused_norm_backward.pointwise:prefetch_pays",
    f"{CONV}.fused_norm_backward.winograd:tiles_prefetch",
    f"{CONV}.winograd.plan:tiles_prefetch",
)
MECHANISMS = {
    "captured steps and inference": Mechanism(_not_captured, 700),
    "Winograd": Mechanism(lambda: os.environ.update(AREOGRAD_CONV="exact"), 1800),
    "gradients of a convolution and its norm in one pass": Mechanism(Replacement(_none, f"{CONV}:_norm_plan"), 630),
    "batch norm's sums taken by the convolution": Mechanism(
        Replacement(_not_served, f"{CONV}:conv2d_norm_forward"), 60
    ),
    "pixel fusion": Mechanism(
        Replacement(_one, f"{DIRECT}.forward:pixel_fusion", f"{DIRECT}.backward_filter:pixel_fusion"), 110
    ),
    "packed-weight cache": Mechanism(_packed_every_time, 110),
    "donated buffers": Mechanism(Replacement(_not_donated, "autograd.function:Function.donated"), 30),
    "prefetch lists": Mechanism(Replacement(_no, *_LISTS), 400),
    "gradient accumulators": Mechanism(Replacement(_none, "autograd.tape:_accumulator"), 120),
}


def cases() -> list[Case]:
    """Steps and inference, against the same without each mechanism."""
    from bench.infer import our_inference
    from bench.step import our_step

    builds = {name: partial(our_step, *size) for name, size in STEPS.items()}
    builds |= {name: partial(our_inference, count) for name, count in IMAGES.items()}
    return [
        Case(name, "", build, {"without": {other: partial(without, other, build) for other in MECHANISMS}})
        for name, build in builds.items()
    ]


def without(name: str, build: Callable[[], Run]) -> Run:
    """Switch a mechanism off in this process, then build."""
    MECHANISMS[name].off()
    return build()


@dataclass(frozen=True)
class Arguments:
    """Race whole steps and inference with one speed mechanism of the CPU path switched off at a time."""

    only: str = ""
    """Only mechanisms whose name contains this."""
    cases: str = ""
    """Only cases whose name contains this."""
    rounds: int = 12
    """Rounds; every variant runs once in each."""
    pairs: int = 0
    """Compare the kernels of this many pairs of neighbouring steps, in place of racing whole steps."""


class _Sum:
    """A tracer that adds up the time of all launches, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def run(self, kind: str, subject: Any, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if kind != KERNEL:
            return call(*args, **kwargs)
        start = time.perf_counter()
        result = call(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return result

    def within(self, _kind: str, _name: str) -> AbstractContextManager[None]:
        return nullcontext()


def _seconds_of_kernels(run: Run) -> float:
    tracer = _Sum()
    with trace(tracer):
        run()
    return tracer.seconds


def ratios_of_pairs(case: int, name: str, pairs: int) -> list[float]:
    """The time of a step's kernels without a mechanism, divided by that of the neighbouring step with it; in a process
    of its own.
    """
    _uncaptured_inference()
    off = MECHANISMS[name].off
    assert isinstance(off, Replacement)
    run = cases()[case].build("ours")
    ratios = []
    for pair in range(pairs + 2):
        seconds = {}
        for without_it in (False, True) if pair % 2 else (True, False):
            with off.within() if without_it else nullcontext():
                seconds[without_it] = _seconds_of_kernels(run)
        ratios.append(seconds[True] / seconds[False])
    return ratios[2:]  # the first steps compile and choose


def compare_pairs(names: list[str], arguments: Arguments) -> None:
    """Print the table of --pairs."""
    chosen = [(k, case.name) for k, case in enumerate(cases()) if arguments.cases in case.name]
    names = [name for name in names if isinstance(MECHANISMS[name].off, Replacement)]
    print(f"| mechanism | lines | {' | '.join(name for _, name in chosen)} |")
    print("|---" * (2 + len(chosen)) + "|", flush=True)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in names:
            row = [pool.submit(ratios_of_pairs, k, name, arguments.pairs).result() for k, _ in chosen]
            cells = " | ".join(map(_median_and_quartiles, row))
            print(f"| {name} | {MECHANISMS[name].lines} | {cells} |", flush=True)


def _median_and_quartiles(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def main(arguments: Arguments) -> None:
    """Race, or add up, and print a table in Markdown."""
    names = [name for name in MECHANISMS if arguments.only in name]
    if arguments.pairs:
        compare_pairs(names, arguments)
        return
    cells: dict[str, list[str]] = {name: [] for name in names}
    shown = []
    for index, case in enumerate(cases()):
        if arguments.cases not in case.name:
            continue
        shown.append(case.name)
        sides = ["ours", *(f"without/{name}" for name in names)]
        result = race("mechanisms", index, sides, arguments.rounds, _SECONDS)
        if failed := [side["error"] for side in result.values() if "error" in side]:
            raise WorkerError(failed[0])
        print(f"{case.name}: {result['ours']['ms']:.1f} ms", file=sys.stderr, flush=True)
        for name in names:
            ratios = [
                off / on for off, on in zip(result[f"without/{name}"]["times"], result["ours"]["times"], strict=True)
            ]
            cells[name].append(_median_and_quartiles(ratios))
    print(f"| mechanism | lines | {' | '.join(shown)} |")
    print("|---" * (2 + len(shown)) + "|")
    for name, row in cells.items():
        print(f"| {name} | {MECHANISMS[name].lines} | {' | '.join(row)} |")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
