"""What each speed mechanism of the CPU path is worth:  python -m bench.mechanisms [--only TEXT] [--rounds 12]

Whole training steps at widths 8, 16 and 32 and inference of one image and of 16, with one mechanism switched off at a
time. Every variant runs in a process of its own, and all of them in turn within a round, so a slow minute hits them
alike. A ratio is the time without the mechanism divided by the time with it: 1.02 means that it brings 2 %.

Most mechanisms are asked for by a function that says whether they serve a layer; switching one off replaces this
function. Variants whose kernels come out differently keep them in a cache of their own.
"""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

CONV = "kernels.conv.cpu"
DIRECT = f"{CONV}.direct"
STEPS = {"step, width 8": (8, 16), "step, width 16": (16, 32), "step, width 32": (32, 16)}  # width and batch
IMAGES = {"1 image": 1, "16 images": 16}
_SECONDS = 0.5  # that a variant runs in a round, about


def _replace(value: Any, *places: str) -> Callable[[], None]:
    """A function that puts `value` in these places, each 'module:name'."""

    def switch() -> None:
        for place in places:
            module, _, name = place.partition(":")
            owner = importlib.import_module(module)
            *path, last = name.split(".")
            for part in path:
                owner = getattr(owner, part)
            if not hasattr(owner, last):
                raise AttributeError(f"{place} is not there")
            setattr(owner, last, value)

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
    """No prefetch far in advance: what `Target.prefetches` decides."""
    import dataclasses

    from kernels.core.cpu import target

    real = target.target()
    quiet = dataclasses.replace(real, prefetches=False)
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
    """off: what switches it off. lines: those of the product that would go with it, about.  own_cache: its absence
    changes machine code that is kept under the same key.
    """

    off: Callable[[], None]
    lines: int
    own_cache: bool = False


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
    "all software prefetch far in advance": Mechanism(_no_software_prefetch, 400, own_cache=True),
    "z computed again in cheap layers": Mechanism(_replace(0, "autograd.ops.conv_norm:_CHEAP"), 6),
}


def build(case: str) -> Callable[[], Any]:
    """A function that does one run of a case."""
    if case in STEPS:
        from bench.step import our_step

        return our_step(*STEPS[case])
    from bench.infer import our_inference

    return our_inference(IMAGES[case])


def work(name: str, case: str) -> None:
    """The worker: build, then answer every line of stdin with the milliseconds of a run, the mean over some."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if name:
        MECHANISMS[name].off()
    run = build(case)
    for _ in range(5):
        run()
    start = time.perf_counter()
    run()
    count = max(1, round(_SECONDS / (time.perf_counter() - start)))
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(count):
            run()
        print((time.perf_counter() - start) / count * 1e3, file=answers, flush=True)


class Variant:
    """A worker process."""

    def __init__(self, name: str, case: str, caches: Path) -> None:
        self.name = name
        environment = dict(os.environ)
        if name and MECHANISMS[name].own_cache:
            environment["AREOGRAD_CACHE"] = str(caches / name.replace(" ", "-"))
        command = [sys.executable, "-m", "bench.mechanisms", "--worker", name or "-", case]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.times: list[float] = []
        if self._answer() != "ready":
            raise RuntimeError(f"{name or 'the baseline'}: no answer for {case}")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self) -> None:
        """One measurement."""
        assert self.process.stdin is not None
        print("run", file=self.process.stdin, flush=True)
        self.times.append(float(self._answer()))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def race(case: str, names: list[str], rounds: int, caches: Path) -> Iterator[tuple[str, float, float, float]]:
    """For every name the median and the quartiles of the ratios to the baseline of the same round."""
    variants = [Variant(name, case, caches) for name in ("", *names)]
    try:
        for number in range(rounds):
            for variant in variants if number % 2 else reversed(variants):
                variant.run()
    finally:
        for variant in variants:
            variant.close()
    base = variants[0].times
    print(f"{case}: {statistics.median(base):.1f} ms", file=sys.stderr, flush=True)
    for variant in variants[1:]:
        ratios = [off / on for off, on in zip(variant.times, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        yield variant.name, middle, low, high


@dataclass(frozen=True)
class Arguments:
    """Race whole steps and inference with one speed mechanism of the CPU path switched off at a time."""

    only: str = ""
    """Only mechanisms whose name contains this."""
    cases: str = ""
    """Only cases whose name contains this."""
    rounds: int = 12
    """Rounds; every variant runs once in each."""
    caches: Path | None = None
    """Where variants whose kernels come out differently keep them; by default a folder that is removed at the end."""


def main(arguments: Arguments) -> None:
    """Race, and print a table in Markdown."""
    names = [name for name in MECHANISMS if arguments.only in name]
    cases = [case for case in (*STEPS, *IMAGES) if arguments.cases in case]
    cells: dict[str, list[str]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            for name, middle, low, high in race(case, names, arguments.rounds, arguments.caches or Path(folder)):
                cells[name].append(f"{middle:.3f} ({low:.2f} to {high:.2f})")
    print(f"| mechanism | lines | {' | '.join(cases)} |")
    print("|---" * (2 + len(cases)) + "|")
    for name, row in cells.items():
        print(f"| {name} | {MECHANISMS[name].lines} | {' | '.join(row)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2].removeprefix("-"), sys.argv[3])
    else:
        main(tyro.cli(Arguments))
