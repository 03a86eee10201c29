"""Measure how far the gradient checker can be trusted:  python -m bench.gradcheck_study [--part NAME] [--out
docs/gradients]

False alarms: correct gradients of smooth operators, 300 trials each, must never FAIL.
Power: planted bugs, 100 seeds each, by our checker and by torch.autograd.gradcheck in its slow and fast mode, the same
buggy backward pass as a custom torch.autograd.Function. Writes study.json (counts) and study.md (tables). All trials
are
seeded: a run repeats its numbers.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autograd import GradReport, gradcheck
from autograd.gradcheck import FAIL, INCONCLUSIVE, KINK, PASS
from engine.cli import UsageError, parsed, run_command
from engine.gradcheck.bugs import Bug, Spoiled, find_bug
from engine.gradcheck.catalogue import Built, find
from kernels.core.dispatch import use_kernels

SMALL = {"shape": (1, 4, 5, 1), "filters": 2}
LARGE = {"shape": (1, 32, 32, 1), "filters": 1, "padding": 1}
ALARMS: list[tuple[str, dict[str, Any]]] = [
    ("tanh", {}),
    ("sigmoid", {}),
    ("silu", {}),
    ("gelu", {}),
    ("exp", {}),
    ("div", {}),
    ("softmax", {}),
    ("log_softmax", {}),
    ("matmul", {}),
    ("conv2d", {"stride": 2, "padding": 1}),
    ("conv2d", LARGE),
    ("conv_transpose2d", {}),
    ("avg_pool2d", {}),
    ("resize_bilinear", {}),
    ("batch_norm", {}),
    ("layer_norm", {}),
    ("gate", {}),
    ("scaled_dot_product_attention", {}),
    ("polarized_channel", {}),
    ("polarized_spatial", {}),
    ("cross_entropy", {}),
    ("focal_loss", {}),
    ("dice_loss", {}),
    ("margin_loss", {}),
]
POWER: list[tuple[str, str, dict[str, Any]]] = [
    ("corner", "conv2d", LARGE),
    ("zeroed", "conv2d", LARGE),
    ("last-row", "conv2d", LARGE),
    ("tiny", "conv2d", SMALL),
    ("border", "conv2d", SMALL),
    ("half", "conv2d", SMALL),
    ("sign", "conv2d", SMALL),
    ("flipped", "conv2d", SMALL),
    ("shifted", "conv2d", SMALL),
    ("channel", "conv2d", SMALL),
    ("float32", "conv2d", SMALL),
    ("no-dilation", "conv2d", {**SMALL, "padding": 2, "dilation": 2}),
    ("no-padding", "conv2d", {**SMALL, "padding": 1}),
    ("wrong-group", "conv2d", {"shape": (1, 3, 3, 4), "filters": 4, "kernel": 2, "groups": 2}),
    ("no-mean", "batch_norm", {"shape": (2, 2, 2, 2)}),
    ("no-projection", "layer_norm", {"shape": (3, 4)}),
    ("diagonal", "softmax", {}),
    ("no-density", "gelu", {}),
    ("no-scale", "scaled_dot_product_attention", {"shape": (1, 1, 3, 4), "keys": 3, "values": 2}),
    ("no-slope", "gate", {"shape": (1, 2, 3, 2)}),
    ("no-inner", "focal_loss", {"shape": (1, 2, 3, 4)}),
    ("dice-2", "dice_loss", {"shape": (1, 2, 3, 4)}),
    ("margin-r", "margin_loss", {"shape": (1, 2, 3, 4)}),
]


@dataclass(frozen=True)
class Arguments:
    """Measure false alarms and power of the gradient checker; write docs/gradients/study.md."""

    part: str = ""
    """'alarms', 'power', or names of bugs and operators, separated by commas; the rest of an earlier study.json is
    kept.
    """
    out: Path = Path("docs/gradients")
    """The folder of study.json and study.md."""
    trials: int = 300
    """Correct trials per operator."""
    seeds: int = 100
    """Seeds per bug."""
    torch_seeds: int = 100
    """Seeds per bug for PyTorch's checker."""
    slow_seeds: int = 100
    """Seeds per bug for PyTorch's slow mode on the 32x32 convolutions, where one run takes seconds (a full Jacobian).
    """
    torch: Literal["both", "fast", "none"] = "both"
    """Modes of torch.autograd.gradcheck to run besides ours."""


@dataclass
class Power:
    """Detections of one bug. ours: verdict FAIL; derivative: the finite difference alone; located: a planted entry was
    among those named.
    """

    name: str
    operator: str
    text: str
    seeds: int
    ours: int = 0
    derivative: int = 0
    located: int | None = None
    slow: int | None = None
    slow_seeds: int = 0
    fast: int | None = None
    fast_seeds: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"ours": 0.0, "slow": 0.0, "fast": 0.0})


def false_alarms(name: str, settings: dict[str, Any], trials: int) -> dict[str, Any]:
    """Verdicts over correct trials, every check on; and how near error came to the bar."""
    entry = find(name)
    verdicts = dict.fromkeys((PASS, KINK, INCONCLUSIVE, FAIL), 0)
    ratios = []
    with use_kernels("reference"):
        for seed in range(trials):
            report = _check(entry.make(seed, **settings), seed)
            verdicts[report.verdict] += 1
            ratios += [t.ratio for t in report.trials]
    return {
        "name": entry.title(settings),
        "trials": trials,
        **verdicts,
        "median": float(np.median(ratios)),
        "largest": float(np.max(ratios)),
    }


def power(bug: Bug, operator: str, settings: dict[str, Any], seeds: int, torch_seeds: dict[str, int]) -> Power:
    """Detections over seeds, ours and PyTorch's (mode -> seeds), on the same inputs and the same backward."""
    entry = find(operator)
    found = Power(bug.name, entry.title(settings), bug.text, seeds)
    for mode, count in torch_seeds.items():
        setattr(found, mode, 0)
        setattr(found, f"{mode}_seeds", min(seeds, count))
    for seed in range(seeds):
        built = entry.make(seed, **settings)
        with use_kernels("reference"), bug.planted(built) as planted:
            start = time.perf_counter()
            report = _check(planted, seed)
            found.seconds["ours"] += time.perf_counter() - start
            found.ours += report.verdict == FAIL
            found.derivative += any(t.verdict == FAIL for t in report.trials)
            if isinstance(bug, Spoiled) and (places := _spoiled_entries(bug, built, seed)):
                found.located = (found.located or 0) + _located(planted, seed, places)
            for mode, count in torch_seeds.items():
                if seed >= count:
                    continue
                start = time.perf_counter()
                setattr(found, mode, getattr(found, mode) + (not _torch_passes(planted, seed, mode == "fast")))
                found.seconds[mode] += time.perf_counter() - start
    return found


def _check(built: Built, seed: int, **settings: Any) -> GradReport:
    return gradcheck(
        built.target, *built.tensors(), input_names=built.names, seed=seed, locate_errors=False, **settings
    )


def _spoiled_entries(bug: Spoiled, built: Built, seed: int) -> set[tuple[str, tuple[int, ...]]]:
    """Which entries the bug changes, for bugs that change few: the change applied to ones tells."""
    gradients = [np.random.default_rng(seed).uniform(1, 2, a.shape) for a in built.arrays]
    before = [g.copy() for g in gradients]
    bug.change(gradients)
    places = {
        (name, tuple(int(i) for i in index))
        for name, a, b in zip(built.names, before, gradients, strict=True)
        for index in np.argwhere(np.abs(a - b) > 1e-6)
    }
    return places if len(places) <= 32 else set()


def _located(built: Built, seed: int, places: set[tuple[str, tuple[int, ...]]]) -> bool:
    """Does the bisection alone name planted entries, and no others?"""
    report = gradcheck(built.target, *built.tensors(), input_names=built.names, seed=seed, invariants=False, maps=False)
    entries = report.location.entries if report.location else []
    return bool(entries) and {(e.leaf, e.index) for e in entries} <= places


def _torch_passes(built: Built, seed: int, fast: bool) -> bool:
    """torch.autograd.gradcheck with its own defaults."""
    import torch

    from autograd.gradcheck.torch_adapter import to_torch

    torch.manual_seed(seed)
    tensors = tuple(torch.from_numpy(a.copy()).requires_grad_(True) for a in built.arrays)
    return bool(torch.autograd.gradcheck(to_torch(built.fn), tensors, fast_mode=fast, raise_exception=False))


def run(arguments: Arguments) -> int:
    """Run the chosen parts, merge them into study.json, write study.md."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = arguments.out / "study.json"
    study = json.loads(store.read_text()) if arguments.part and store.exists() else {"alarms": {}, "power": {}}
    parts = set(arguments.part.split(","))
    alarms = [(n, s) for n, s in ALARMS if parts & {"", "alarms", n}]
    bugs = [row for row in POWER if parts & {"", "power", row[0]}]
    if not alarms and not bugs:
        raise UsageError(
            f"--part: got {arguments.part!r}, expected 'alarms', 'power', an operator of the false-alarm study or a "
            "bug of the power study"
        )
    for name, settings in alarms:
        row = false_alarms(name, settings, arguments.trials)
        study["alarms"][row["name"]] = row
        print(row, flush=True)
        _write(study, store)
    for name, operator, settings in bugs:
        few = min(arguments.torch_seeds, arguments.slow_seeds) if settings is LARGE else arguments.torch_seeds
        modes = {"slow": few, "fast": arguments.torch_seeds}
        modes = modes if arguments.torch == "both" else {"fast": modes["fast"]} if arguments.torch == "fast" else {}
        found = power(find_bug(name), operator, settings, arguments.seeds, modes)
        study["power"][name] = vars(found)
        print(vars(found), flush=True)
        _write(study, store)
    missed = [n for n, p in study["power"].items() if p["ours"] < 0.99 * p["seeds"]]
    wrong = [n for n, a in study["alarms"].items() if a[FAIL]]
    for text in (*(f"{n}: false alarms" for n in wrong), *(f"{n}: detected less often than 99 %" for n in missed)):
        print(text, file=sys.stderr)
    return 1 if missed or wrong else 0


def _write(study: dict[str, Any], store: Path) -> None:
    order = {name: k for k, (name, _, _) in enumerate(POWER)}
    study["power"] = dict(sorted(study["power"].items(), key=lambda item: order.get(item[0], 99)))
    store.write_text(json.dumps(study, indent=1) + "\n")
    store.with_suffix(".md").write_text(text_of(study))


def text_of(study: dict[str, Any]) -> str:
    """The tables as Markdown."""
    trials = sum(a["trials"] for a in study["alarms"].values())
    false = sum(a[FAIL] for a in study["alarms"].values())
    lines = [
        "# Can the gradient checker be believed?",
        "",
        "Made by `python -m bench.gradcheck_study`; every trial is seeded, so a run repeats these counts.",
        "",
        "## False alarms",
        "",
        (
            f"{trials} checks of correct gradients with all checks on (derivative, layouts, exact and complex steps, "
            f"...): {false} FAIL."
        ),
        "error / bar says how much room there is: at 1 a right gradient would be called wrong.",
        "",
        "| operator | trials | PASS | INCONCLUSIVE | FAIL | error / bar, median | largest |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        (
            f"| {a['name']} | {a['trials']} | {a[PASS]} | {a[INCONCLUSIVE]} | {a[FAIL]} | {a['median']:.1e} | "
            f"{a['largest']:.1e} |"
        )
        for a in study["alarms"].values()
    ]
    lines += [
        "",
        "## Power",
        "",
        (
            "Share of seeds in which a planted bug is called FAIL. PyTorch runs the same backward pass through a "
            "custom "
            "`torch.autograd.Function`,"
        ),
        (
            "on the same inputs, with the default tolerances of `torch.autograd.gradcheck`. *Derivative*: our finite "
            "difference alone, without the"
        ),
        "other checks. *Located*: the bisection named planted entries and no others (bugs of up to 32 entries).",
        "",
        f"{max((p['seeds'] for p in study['power'].values()), default=0)} seeds each.",
        "",
        "| bug | operator | ours | derivative | located | PyTorch slow | PyTorch fast |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for p in study["power"].values():
        rates = [_rate(p[key], p["seeds"]) for key in ("ours", "derivative", "located")]
        for mode in ("slow", "fast"):
            count = p[f"{mode}_seeds"]
            rates.append(_rate(p[mode], count) + (f" of {count}" if 0 < count != p["seeds"] else ""))
        lines.append(f"| {p['name']}: {p['text']} | {p['operator']} | " + " | ".join(rates) + " |")
    return "\n".join(lines) + "\n"


def _rate(count: int | None, seeds: int) -> str:
    return "" if not seeds or count is None else f"{100 * count / seeds:.0f} %"


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m bench.gradcheck_study")))


if __name__ == "__main__":
    main()
