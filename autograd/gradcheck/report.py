"""`GradReport`: what a gradient check found, as text, as a drawing for the terminal, and as a row for JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autograd.gradcheck.facts import Fact
from autograd.gradcheck.locate import EntryMap, Location
from autograd.gradcheck.ridders import Tableau
from autograd.html import BAD, DOUBTFUL, GOOD, bar, block, code, table, tag

PASS, FAIL, KINK, INCONCLUSIVE = "PASS", "FAIL", "KINK", "INCONCLUSIVE"
WORSE = (PASS, KINK, INCONCLUSIVE, FAIL)
SHADES = " .:-=+*#%@"


@dataclass
class Trial:
    """One direction. analytic and numeric derivatives; error and bar relative to the gradient's size; the tableau from
    which they came.

    smooth: judged by the derivative, not by the convention at a kink.
    """

    verdict: str
    analytic: float
    numeric: float
    error: float
    bar: float
    tableau: Tableau
    notes: list[str] = field(default_factory=list)
    smooth: bool = True

    @property
    def ratio(self) -> float:
        """error / bar: above 1 fails."""
        return self.error / max(self.bar, 1e-300)


@dataclass
class GradReport:
    """The findings of a check. `error` is |analytic - numeric|, `bar` its allowance; both are relative to the size of
    the gradient.

    verdict: 'PASS'; 'FAIL'; 'KINK' (not differentiable at x, and the gradient is what the convention says);
    'INCONCLUSIVE' (the bar is too wide to prove anything, or the function is not deterministic).
    convention: the one that holds at kinks, if one was named.   kinks: (output, index) of outputs with a kink at x.
    kink_distance: per output the distance along the direction to the nearest kink (inf: none seen).   resampled: how
    often another point had to be drawn.
    trials: every direction.   facts: the checks besides the derivative.   location: on FAIL, the wrong entries.   maps:
    on FAIL, for small inputs, the whole gradients.
    """

    name: str
    verdict: str
    analytic: float
    numeric: float
    error: float
    bar: float
    evaluations: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    size: int = 0
    convention: str | None = None
    kinks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    kink_distance: list[np.ndarray] = field(default_factory=list)
    resampled: int = 0
    trials: list[Trial] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    location: Location | None = None
    maps: list[EntryMap] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """PASS, or KINK where a convention was named (and so held)."""
        return self.verdict == PASS or (self.verdict == KINK and self.convention is not None)

    def __bool__(self) -> bool:
        return self.ok

    def row(self) -> dict[str, Any]:
        """The row for JSON."""
        row: dict[str, Any] = {
            key: getattr(self, key) for key in ("name", "verdict", "error", "bar", "evaluations", "seconds")
        }
        row |= {
            "seed": self.seed,
            "entries": self.size,
            "directions": len(self.trials),
            "resampled": self.resampled,
            "notes": list(self.notes),
        }
        row["facts"] = [{"name": f.name, "holds": f.holds, "detail": f.detail} for f in self.facts]
        if self.kinks:
            row["kinks"] = [[output, list(index)] for output, index in self.kinks[:20]]
        if self.location:
            wrong = [
                {"input": e.leaf, "index": list(e.index), "analytic": e.analytic, "numeric": e.numeric}
                for e in self.location.entries[:20]
            ]
            row["wrong"] = wrong
            row["pattern"] = self.location.pattern
        return {k: (None if isinstance(v, float) and not np.isfinite(v) else v) for k, v in row.items()}

    def table(self) -> str:
        """One line per fact, aligned."""
        return "\n".join(f"{key:>15}  {value}" for key, value in self._facts())

    def _repr_html_(self) -> str:
        colour = {PASS: GOOD, FAIL: BAD}.get(self.verdict, DOUBTFUL)
        verdict = tag("b", self.verdict, style=f"color: {colour}")
        # full where the error reaches its bar, empty a million times below
        share = 1 + math.log10(max(self.error / max(self.bar, 1e-300), 1e-300)) / 6
        gauge = bar(share, f"error {self.error:.1e} of {self.bar:.1e} that the differences may be off", colour)
        map_of_errors = [tag("pre", self.heatmap(), style="line-height: 1; background: none")] if self.maps else []
        rest = table([row for row in self._facts() if row[0] not in ("operator", "verdict")], left=2)
        return block(tag("div", verdict, "  ", code(self.name)), gauge, rest, *map_of_errors)

    def _facts(self) -> list[tuple[str, str]]:
        """Name and value of every fact."""
        rows = [
            ("operator", self.name),
            ("verdict", self.verdict),
            ("analytic", f"{self.analytic:+.15e}"),
            ("numeric", f"{self.numeric:+.15e}"),
            ("relative error", f"{self.error:.1e}"),
            ("error bar", f"{self.bar:.1e}"),
            ("evaluations", str(self.evaluations)),
            ("seconds", f"{self.seconds:.3f}"),
        ]
        if len(self.trials) > 1:
            ratios = sorted(t.ratio for t in self.trials)
            rows.append(
                (
                    "directions",
                    f"{len(ratios)}: error / bar median {ratios[len(ratios) // 2]:.1e}, largest {ratios[-1]:.1e}",
                )
            )
        if self.kinks:
            shown = ", ".join(str(index) for _, index in self.kinks[:4]) + (", ..." if len(self.kinks) > 4 else "")
            rows.append(("kinks", f"{len(self.kinks)} outputs: {shown}"))
        if self.resampled:
            rows.append(("resampled", f"{self.resampled} times"))
        held = sum(f.holds for f in self.facts)
        if self.facts:
            rows.append(("other checks", f"{held} of {len(self.facts)} hold"))
        rows += [("note", note) for note in self.notes]
        if self.location:
            rows += [("pattern", line) for line in self.location.pattern]
            rows += [("wrong", str(entry)) for entry in self.location.entries[:8]]
            left = len(self.location.entries) - 8
            if left > 0 or not self.location.complete:
                rows.append(
                    (
                        "",
                        f"and {left} more"
                        if self.location.complete
                        else f"and {max(left, 0)} more; the search stopped there",
                    )
                )
        return rows

    def heatmap(self, leaf: int | None = None, width: int = 72) -> str:
        """|analytic - numeric| of one checked input (by default the worst) drawn in characters, darkest where it is
        largest.

        Axes beyond the two longest are shown as the largest error over them. Empty without maps (nothing failed, or the
        input is large).
        """
        if not self.maps:
            return ""
        worst = max(range(len(self.maps)), key=lambda k: float(np.abs(self.maps[k].difference).max(initial=0)))
        m = self.maps[worst if leaf is None else leaf]
        plane, axes = flatten_to_plane(np.abs(m.difference))
        top = float(plane.max(initial=0)) or 1.0
        levels = np.where(plane > 0, 1 + (plane / top * (len(SHADES) - 2)).astype(int), 0).clip(0, len(SHADES) - 1)
        levels[plane < 1e-6 * top] = 0
        head = (
            f"|analytic - numeric| of {m.leaf} {m.analytic.shape}, rows: axis {axes[0]}, columns: axis {axes[1]}; '@' "
            f"= {top:.2e}, ' ' = right"
        )
        return "\n".join([head, *("|" + "".join(SHADES[v] for v in row[:width]) + "|" for row in levels)])


def flatten_to_plane(array: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """(2-D array of the largest values over the other axes, the two axes kept): rows and columns for 4 axes (N, H, W,
    C) unless they are short.
    """
    if array.ndim == 0:
        return array.reshape(1, 1), (0, 0)
    if array.ndim == 1:
        return array[None], (0, 0)
    if array.ndim == 4 and min(array.shape[1:3]) > 1:
        kept = [1, 2]
    else:
        kept = sorted(sorted(range(array.ndim), key=lambda a: (-array.shape[a], -a))[:2])
    others = tuple(a for a in range(array.ndim) if a not in kept)
    return array.max(axis=others) if others else array, (kept[0], kept[1])
