"""What each speed mechanism of the CPU path is worth:  python -m bench.mechanisms [--only TEXT] [--kernels]

Whole training steps at widths 8, 16 and 32 and inference of one image and of 16, with one mechanism switched off at a
time. Every variant runs in a process of its own, and all of them in turn within a round, so a slow minute hits them
alike. A ratio is the time without the mechanism divided by the time with it: 1.02 means that it brings 2 %.

A ratio of whole steps is uncertain by several percent on a shared machine. `--kernels` adds up the kernels of a step
instead, each launch with its least time over many steps: other work on the machine only lengthens a launch, so the sum
is certain to less than a percent, which `all on`, measured three times, shows. It leaves out what happens between
launches: what capture saves is not in it.

Most mechanisms are asked for by a function that says whether they serve a layer; switching one off replaces this
function.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import tyro

from bench.harness import Case, Run, WorkerError, race
from kernels.core.modules import load
from kernels.core.tracing import KERNEL, trace

CONV = "kernels.conv.cpu"
DIRECT = f"{CONV}.direct"
STEPS = {"step, width 8": (8, 16), "step, width 16": (16, 32), "step, width 32": (32, 16)}  # width and batch
IMAGES = {"1 image": 1, "16 images": 16}
_SECONDS = 0.5  # that a side runs in a round, about


def _replace(value: Any, *places: str) -> Callable[[], None]:
    """A function that puts `value` in these places, each 'module:name'."""

    def switch() -> None:
        for place in places:
            module, _, name = place.partition(":")
            owner = load(module)
            if not hasattr(owner, name):
                raise AttributeError(f"{place} is not there")
            setattr(owner, name, value)

    return switch


def _no(*_args: Any, **_settings: Any) -> bool:
    return False


def _one(*_args: Any, **_settings: Any) -> int:
    return 1


def _none(*_args: Any, **_settings: Any) -> None:
    return None


def _not_served(*_args: Any, **_settings: Any) -> Any:
    return NotImplemented


def _never_donated() -> None:
    """Nobody learns that a gradient's memory is free."""
    from autograd import Function

    def donated(function: Any) -> tuple[bool, ...]:
        return (False,) * len(function.outputs)

    Function.donated = property(donated, lambda _function, _value: None)  # type: ignore[assignment]


def _no_software_prefetch() -> None:
    """No prefetch far in advance: what `Target.prefetches` decides. These kernels have the keys of those that prefetch,
    so they get a cache of their own.
    """
    from kernels.core.cpu import target
    from kernels.core.cpu.jit import store

    os.environ["AREOGRAD_CACHE"] = str(store().folder.parent / "without-prefetch")
    store.cache_clear()
    real = target.target()
    quiet = replace(real, prefetches=False)
    for module in list(sys.modules.values()):
        if getattr(module, "target", None) is target.target and module is not target:
            module.target = lambda: quiet  # type: ignore[attr-defined]
    target.target = lambda: quiet  # type: ignore[assignment]


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
        _replace(packed, f"{name}:packed_once")()


def _not_captured() -> None:
    """Every step and every inference calls the operators from Python."""
    from autograd import Tensor
    from engine.graphs import cpu_inference, cpu_step

    cpu_step.CapturedPasses = lambda passes: passes  # type: ignore[assignment, misc]
    cpu_inference.InferenceGraph = lambda net, _x: lambda x: net(Tensor(x))  # type: ignore[assignment, misc]


@dataclass(frozen=True)
class Mechanism:
    """off: what switches it off. lines: those of the product that would go with it, about."""

    off: Callable[[], None]
    lines: int


_LISTS = (
    f"{DIRECT}.multi_input_1x1:prefetch_pays",
    f"{DIRECT}.patch_backward_filter:prefetch_pays",
    f"{DIRECT}.forward:prefetch_pays",
    f"{CONV}.fused_norm_backward.pointwise:prefetch_pays",
    f"{CONV}.fused_norm_backward.winograd:tiles_prefetch",
    f"{CONV}.winograd.plan:tiles_prefetch",
)
MECHANISMS = {
    "captured steps and inference": Mechanism(_not_captured, 700),
    "Winograd": Mechanism(lambda: os.environ.update(AREOGRAD_CONV="exact"), 1800),
    "gradients of a convolution and its norm in one pass": Mechanism(_replace(_none, f"{CONV}:_norm_plan"), 630),
    "batch norm's sums taken by the convolution": Mechanism(_replace(_not_served, f"{CONV}:conv2d_norm_forward"), 60),
    "single-channel kernels": Mechanism(_replace(_no, f"{CONV}:is_single_channel"), 470),
    "filter gradient of patchify windows": Mechanism(_replace(_no, f"{DIRECT}.backward_filter:is_patchify"), 230),
    "pixel fusion": Mechanism(
        _replace(_one, f"{DIRECT}.forward:pixel_fusion", f"{DIRECT}.backward_filter:pixel_fusion"), 110
    ),
    "multi-input 1x1": Mechanism(_replace(_no, f"{DIRECT}.multi_input_1x1:serves"), 170),
    "few-tile Winograd": Mechanism(_replace(_no, f"{CONV}.winograd.few_tiles:serves"), 180),
    "packed-weight cache": Mechanism(_packed_every_time, 110),
    "donated buffers": Mechanism(_never_donated, 30),
    "gradient accumulators": Mechanism(_replace(_none, "autograd.tape:_accumulator"), 120),
    "prefetch lists": Mechanism(_replace(_no, *_LISTS), 330),
    "all software prefetch far in advance": Mechanism(_no_software_prefetch, 400),
    "z computed again in cheap layers": Mechanism(_replace(0, "autograd.ops.conv_norm:_CHEAP"), 6),
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
    kernels: bool = False
    """Add up each launch's least time in place of racing whole steps."""
    steps: int = 40
    """Steps over which --kernels takes the least times."""


class _Least:
    """A tracer that keeps the least time of every launch of a step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.least: np.ndarray | None = None

    def run(self, kind: str, subject: Any, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if kind != KERNEL:
            return call(*args, **kwargs)
        start = time.perf_counter()
        result = call(*args, **kwargs)
        self.times.append(time.perf_counter() - start)
        return result

    def within(self, _kind: str, _name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def end_step(self) -> None:
        """Raises RuntimeError where two steps launch unlike numbers of kernels."""
        times = np.array(self.times)
        self.times = []
        if self.least is not None and len(times) != len(self.least):
            raise RuntimeError(f"a step launched {len(times)} kernels, the one before {len(self.least)}")
        self.least = times if self.least is None else np.minimum(self.least, times)


def least_milliseconds(case: int, name: str, steps: int) -> float:
    """The kernels of a step, each with its least time, in a process of their own; `name`: what is switched off."""
    if name:
        MECHANISMS[name].off()
    run = cases()[case].build("ours")
    run()
    tracer = _Least()
    for _ in range(steps):
        with trace(tracer):
            run()
        tracer.end_step()
    return 1e3 * float(0 if tracer.least is None else tracer.least.sum())


def add_up(names: list[str], arguments: Arguments) -> None:
    """Print the table of --kernels."""
    chosen = [k for k, case in enumerate(cases()) if arguments.cases in case.name]
    table: dict[str, list[list[float]]] = {name: [] for name in ("", *names)}
    order = ["", *names[: len(names) // 2], "", *names[len(names) // 2 :], ""]
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in order:
            row = [pool.submit(least_milliseconds, k, name, arguments.steps).result() for k in chosen]
            table[name].append(row)
            print(f"{name or 'all on'}: {', '.join(f'{ms:.2f}' for ms in row)} ms", file=sys.stderr, flush=True)
    base = np.array(table.pop("")).min(0)
    print(f"| mechanism | lines | {' | '.join(cases()[k].name for k in chosen)} |")
    print("|---" * (2 + len(chosen)) + "|")
    print(f"| all on, ms | | {' | '.join(f'{ms:.1f}' for ms in base)} |")
    for name, (row,) in table.items():
        print(f"| {name} | {MECHANISMS[name].lines} | {' | '.join(f'{r:.3f}' for r in row / base)} |")


def main(arguments: Arguments) -> None:
    """Race, or add up, and print a table in Markdown."""
    if arguments.kernels:
        add_up([name for name in MECHANISMS if arguments.only in name], arguments)
        return
    names = [name for name in MECHANISMS if arguments.only in name]
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
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells[name].append(f"{middle:.3f} ({low:.2f} to {high:.2f})")
    print(f"| mechanism | lines | {' | '.join(shown)} |")
    print("|---" * (2 + len(shown)) + "|")
    for name, row in cells.items():
        print(f"| {name} | {MECHANISMS[name].lines} | {' | '.join(row)} |")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
