"""The checks that the command runs: every chosen entry, variant and seed, collected in one `Result` per variant."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from autograd import GradReport, gradcheck
from autograd.gradcheck import FAIL, INCONCLUSIVE, KINK, PASS
from engine.gradcheck.bugs import Bug
from engine.gradcheck.catalogue import Built, Entry
from engine.gradcheck.fast import compare
from kernels.core.dispatch import use_kernels

ORDER = (PASS, KINK, INCONCLUSIVE, FAIL)


@dataclass
class Result:
    """One variant of one entry over all seeds: the worst verdict, error and bar of the worst seed,
    totals of the rest.
    """

    entry: Entry
    settings: Mapping[str, Any]
    verdict: str = PASS
    ok: bool = True
    error: float = 0.0
    bar: float = 0.0
    evaluations: int = 0
    seconds: float = 0.0
    seeds: int = 0
    notes: list[str] = field(default_factory=list)
    report: GradReport | None = None  # of the worst seed
    built: Built | None = None  # of the first seed
    bug: Bug | None = None

    @property
    def title(self) -> str:
        """Name and settings."""
        return self.entry.title(self.settings)

    def row(self) -> dict[str, Any]:
        """The row for JSON; of the worst seed's report what it has."""
        own = {
            key: getattr(self, key)
            for key in ("verdict", "error", "bar", "evaluations", "seconds", "seeds", "ok", "notes")
        }
        detail = {k: v for k, v in ({} if self.report is None else self.report.row()).items() if k not in own}
        row = {
            "name": self.entry.name,
            **own,
            "kind": self.entry.kind,
            "settings": {k: str(v) for k, v in self.settings.items()},
        } | ({"break": self.bug.name} if self.bug else {})
        merged = {**detail, **row}
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in merged.items()}

    def add(
        self, ok: bool, verdict: str, error: float, bar: float, evaluations: int, seconds: float, notes: Sequence[str]
    ) -> bool:
        """Count one seed; True when it is the worst so far."""
        worse = self.seeds == 0 or (ORDER.index(verdict), error / max(bar, 1e-300)) > (
            ORDER.index(self.verdict),
            self.error / max(self.bar, 1e-300),
        )
        if worse:
            self.verdict = verdict
            self.error = error
            self.bar = bar
            self.notes = list(notes)
        self.ok = self.ok and ok
        self.evaluations += evaluations
        self.seconds += seconds
        self.seeds += 1
        return worse


@dataclass(frozen=True)
class Plan:
    """How to check: backend 'reference', 'cpu' or 'cuda'; dtype; device; the seeds; directions per seed;
    a planted bug.
    """

    backend: str = "reference"
    dtype: str = "float64"
    device: str = "cpu"
    seeds: int = 1
    directions: int = 1
    bug: Bug | None = None


def check_all(entries: Sequence[Entry], settings: Mapping[str, Any], plan: Plan) -> Iterator[Result]:
    """A Result per variant: those of the catalogue, or the one given by `settings`."""
    for entry in entries:
        variants = [settings] if settings else [*entry.variants, *entry.kinks]
        for variant in variants:
            yield check(entry, variant, plan)


def check(entry: Entry, settings: Mapping[str, Any], plan: Plan) -> Result:
    """All seeds of one variant."""
    result = Result(entry, settings, bug=plan.bug)
    for seed in range(plan.seeds):
        built = entry.make(seed, **settings)
        result.built = result.built or built
        if plan.dtype != "float64":
            found = compare(built, plan.dtype, plan.device)
            served = f"fast code served {found.served[0]} of {found.served[1]} kernel calls"
            result.add(found.ok, found.verdict, found.error, found.bar, 3, found.seconds, [*found.notes, served])
            continue
        report = run(built, entry.title(settings), seed, plan)
        if result.add(
            report.ok, report.verdict, report.error, report.bar, report.evaluations, report.seconds, report.notes
        ):
            result.report = report
    return result


def run(built: Built, name: str, seed: int, plan: Plan) -> GradReport:
    """The finite-difference check of one built entry, with the plan's bug planted."""
    if built.module is not None:
        built.module.to(plan.device)
    started = time.perf_counter()
    with (
        use_kernels("reference" if plan.backend == "reference" else "fast"),
        plan.bug.planted(built) if plan.bug else nullcontext(built) as planted,
    ):
        report = gradcheck(
            planted.target,
            *planted.tensors(device=plan.device),
            input_names=planted.names,
            seed=seed,
            directions=plan.directions,
            name=name,
            convention=planted.convention,
            convention_input=planted.convention_input,
        )
    report.seconds = time.perf_counter() - started
    return report
