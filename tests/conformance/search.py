"""Long runs: cases from seeds, shrunk where they are findings."""

from __future__ import annotations

import faulthandler
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from .check import Finding, check
from .choices import Choices, Replayed
from .table import Row, table

Job = tuple[str, int, int, int]  # row, seed, first case, last case + 1
KEPT = 2  # findings of a kind that are kept per row


@dataclass
class Tally:
    """What came of a row's cases."""

    tried: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For the file of results."""
        return {
            "tried": self.tried,
            "compared": dict(self.compared),
            "findings": dict(self.findings),
            "examples": self.examples,
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Tally:
        """What `as_json` gave."""
        return cls(saved["tried"], Counter(saved["compared"]), Counter(saved["findings"]), saved["examples"])


def case_seed(seed: int, row: str, k: int) -> int:
    """The seed of a row's case k in the run with a seed."""
    return random.Random(f"{seed}/{row}/{k}").getrandbits(60)


def attempt(row: Row, choices: Choices) -> tuple[str, Finding | None]:
    """What was compared, or the finding."""
    try:
        return check(row, row.draw(choices)), None
    except Finding as finding:
        return "finding", finding


def shrink(row: Row, record: list[int], finding: Finding, budget: int = 150) -> Finding:
    """A smaller case with a finding of the same kind: choices are left out, set to the simplest, and halved, while the
    finding stays.
    """
    best, changed = list(record), True

    def still(candidate: list[int]) -> bool:
        nonlocal best, finding, budget
        budget -= 1
        replayed = Replayed(candidate)
        try:
            other = attempt(row, replayed)[1]
        except Exception:  # a record that draws nothing sensible
            return False
        if other is None or other.kind != finding.kind:
            return False
        best, finding = replayed.record, other
        return True

    while changed and budget > 0:
        changed = False
        k = 0
        while k < len(best) and budget > 0:
            value = best[k]
            tries = [[*best[:k], *best[k + 1 :]]] + [
                [*best[:k], smaller, *best[k + 1 :]]
                for smaller in dict.fromkeys((0, value // 2, value - 1))
                if 0 <= smaller < value
            ]
            smaller = next((t for t in tries if (len(t), t) < (len(best), best) and still(t)), None)
            changed |= smaller is not None
            k += smaller is None
    return finding


def run(row: Row, seed: int, start: int, stop: int, tally: Tally) -> None:
    """Cases start to stop - 1 of a row, counted into `tally`."""
    for k in range(start, stop):
        choices = Choices(case_seed(seed, row.name, k))
        what, finding = attempt(row, choices)
        tally.tried += 1
        if finding is None:
            tally.compared[what] += 1
            continue
        tally.findings[finding.kind] += 1
        examples = tally.examples.setdefault(finding.kind, [])
        if len(examples) < KEPT:
            examples.append(f"case {k}: {shrink(row, choices.record, finding)}")


def work(job: Job) -> tuple[str, dict[str, Any]]:
    """The row of a job, and its tally as JSON."""
    name, seed, start, stop = job
    faulthandler.enable()
    torch.set_num_threads(1)
    tally = Tally()
    run(table()[name], seed, start, stop, tally)
    return name, tally.as_json()
