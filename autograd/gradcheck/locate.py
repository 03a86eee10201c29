"""Where a gradient is wrong: bisection of the direction, entry by entry maps, and what the wrong entries have in
common.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autograd.gradcheck.probe import Probe

STEP = 2.0**-16
BUDGET = 400  # evaluations that the bisection may spend
MANY = 24  # wrong entries after which it stops
WHOLE_MAP = 2048  # with no more entries than this, every single one is also checked by itself


@dataclass(frozen=True)
class WrongEntry:
    """One entry of the gradient: which input, index, both values, and 'border' or 'interior'."""

    leaf: str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    place: str

    @property
    def ratio(self) -> float:
        """analytic / numeric; inf when only the numeric one is 0."""
        return self.analytic / self.numeric if self.numeric else math.inf

    def __str__(self) -> str:
        where = ", ".join(map(str, self.index))
        return (
            f"{self.leaf}[{where}] ({self.place}): analytic {self.analytic:+.6e}, numeric {self.numeric:+.6e}, ratio "
            f"{self.ratio:.6g}"
        )


@dataclass
class Location:
    """entries: the wrong ones found, largest error first.  evaluations spent.  complete: no further wrong entry can
    exist.  pattern: in words.
    """

    entries: list[WrongEntry] = field(default_factory=list)
    evaluations: int = 0
    complete: bool = False
    pattern: list[str] = field(default_factory=list)


@dataclass
class EntryMap:
    """Gradient of <v, f> for one input, entry by entry: analytic and numeric, in the input's shape."""

    leaf: str
    analytic: np.ndarray
    numeric: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """analytic - numeric."""
        return self.analytic - self.numeric


def entry_maps(probe: Probe) -> list[EntryMap]:
    """The numeric gradient of every entry, four evaluations each (central differences at h and h / 2, extrapolated)."""
    maps = []
    for k, (name, g) in enumerate(zip(probe.names, probe.gradients, strict=True)):
        numeric = np.empty(g.shape)
        for flat in range(g.size):
            u: list[np.ndarray | None] = [None] * len(probe.leaves)
            u[k] = np.zeros(g.shape)
            u[k].flat[flat] = 1.0  # type: ignore[union-attr]
            numeric.flat[flat] = _derivative(probe, u, 4 * STEP)  # smooth beyond this: the error is below h^4 = 1e-17
        maps.append(EntryMap(name, g, numeric))
    return maps


def _derivative(probe: Probe, u: Sequence[np.ndarray | None], h: float = STEP) -> float:
    wide, narrow = ((probe.phi(s, u) - probe.phi(-s, u)) / (2 * s) for s in (h, h / 2))
    return narrow + (narrow - wide) / 3


def locate(probe: Probe) -> Location:
    """Find wrong entries: the error of a direction is the sum of the errors of its parts, so halves without error are
    dropped.

    A single wrong entry among n takes about 8 log2(n) evaluations. The amount by which the two halves miss their sum is
    the measuring error, and halves below ten times that count as right.
    """
    ends = np.cumsum([x.size for x in probe.points])
    start = probe.evaluations
    numbers = itertools.count()
    queue = [(-abs(total), next(numbers), 0, int(ends[-1]), total) for total in [_error(probe, ends, 0, int(ends[-1]))]]
    floor = 10 * (probe.rounding() + probe.noise() / STEP)
    wrong: list[int] = []
    while queue and probe.evaluations - start < BUDGET and len(wrong) < MANY:
        _, _, low, high, error = heapq.heappop(queue)
        if high - low == 1:
            wrong.append(low)
            continue
        middle = (low + high) // 2
        halves = [(low, middle, _error(probe, ends, low, middle)), (middle, high, _error(probe, ends, middle, high))]
        floor = max(floor, 10 * abs(halves[0][2] + halves[1][2] - error))
        for a, b, e in halves:
            if abs(e) > floor:
                heapq.heappush(queue, (-abs(e), next(numbers), a, b, e))
    entries = [_entry(probe, ends, flat) for flat in wrong]
    entries.sort(key=lambda e: -abs(e.analytic - e.numeric))
    return Location(
        entries,
        probe.evaluations - start,
        not queue,
        describe(entries, {n: x.shape for n, x in zip(probe.names, probe.points, strict=True)}),
    )


def _error(probe: Probe, ends: np.ndarray, low: int, high: int) -> float:
    """<analytic - numeric, u> over the flat entries [low, high) of all leaves, one after the other."""
    part: list[np.ndarray | None] = []
    for end, u in zip(ends, probe.u, strict=True):
        first = int(end) - u.size
        a = max(low - first, 0)
        b = min(high - first, u.size)
        if a >= b:
            part.append(None)
            continue
        piece = np.zeros(u.size)
        piece[a:b] = u.ravel()[a:b]
        part.append(piece.reshape(u.shape))
    return probe.analytic(part) - _derivative(probe, part)


def _entry(probe: Probe, ends: np.ndarray, flat: int) -> WrongEntry:
    k = int(np.searchsorted(ends, flat, side="right"))
    g = probe.gradients[k]
    index = tuple(int(i) for i in np.unravel_index(flat - (int(ends[k]) - g.size), g.shape))
    u: list[np.ndarray | None] = [None] * len(probe.leaves)
    u[k] = np.zeros(g.shape)
    u[k][index] = 1.0  # type: ignore[index]
    return WrongEntry(probe.names[k], index, float(g[index]), _derivative(probe, u), place(index, g.shape))


def from_maps(maps: list[EntryMap], floor: float) -> Location:
    """The same from whole maps: every entry whose error is above `floor`."""
    entries = [
        WrongEntry(m.leaf, index, float(m.analytic[index]), float(m.numeric[index]), place(index, m.analytic.shape))
        for m in maps
        for index in (tuple(int(i) for i in row) for row in np.argwhere(np.abs(m.difference) > floor))
    ]
    entries.sort(key=lambda e: -abs(e.analytic - e.numeric))
    pattern = describe(entries, {m.leaf: m.analytic.shape for m in maps})
    for m in maps:
        pattern += rearranged(m, floor)
    return Location(entries, 0, True, pattern)


def place(index: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """'corner', 'border' or 'interior'. With 4 axes rows and columns decide (1, 2), else all axes longer than 2."""
    axes = [1, 2] if len(shape) == 4 else list(range(len(shape)))
    at_edge = [index[a] in (0, shape[a] - 1) for a in axes if shape[a] > 2]
    if not any(at_edge):
        return "interior"
    return "corner" if all(at_edge) and len(at_edge) > 1 else "border"


_RATIOS = {
    0.5: "a factor 2 is missing",
    2.0: "a factor 2 too many",
    -1.0: "the sign is wrong",
    0.0: "the analytic gradient is 0",
}


def describe(entries: list[WrongEntry], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What the wrong entries have in common: a ratio, an index along an axis, the border. One line per finding."""
    lines = []
    for leaf in dict.fromkeys(e.leaf for e in entries):
        own = [e for e in entries if e.leaf == leaf]
        total = math.prod(shapes[leaf])
        lines.append(
            f"{leaf} {shapes[leaf]}: {len(own)} of {total} entries wrong"
            + (", all of them" if len(own) == total else "")
        )
        ratios = np.array([e.ratio for e in own])
        spread = float(np.ptp(ratios)) if np.isfinite(ratios).all() else math.inf
        ratio = float(np.median(ratios))
        if all(e.numeric == 0 for e in own):
            lines.append(f"{leaf}: the numeric gradient is 0 in all of them")
        elif spread <= 0.1 * abs(ratio - 1):
            known = next((f" ({text})" for value, text in _RATIOS.items() if abs(ratio - value) < 1e-3), "")
            lines.append(
                f"{leaf}: analytic = {ratio:.6g} x numeric" + (" in all of them" if len(own) > 1 else "") + known
            )
        elif (np.abs(ratios - 1) < 1e-6).all():
            lines.append(f"{leaf}: wrong from the seventh digit on: is something computed in float32?")
        if len(own) == total or total < 2:
            continue
        for axis, n in enumerate(shapes[leaf]):
            values = {e.index[axis] for e in own}
            if n > 1 and len(values) == 1 and len(own) > 1:
                value = values.pop()
                end = ", the last" if value == n - 1 else ", the first" if value == 0 else ""
                lines.append(f"{leaf}: all at index {value} of axis {axis}{end}")
        places = {e.place for e in own}
        if len(places) == 1 and len(own) > 1:
            lines.append(f"{leaf}: all in the {places.pop()}")
    return lines


def rearranged(m: EntryMap, floor: float) -> list[str]:
    """Is the analytic gradient the numeric one with an axis flipped, two axes swapped, or shifted by one?"""
    a = m.analytic
    n = m.numeric
    if not (np.abs(a - n) > floor).any():
        return []
    lines = []
    for axis in range(n.ndim):
        if n.shape[axis] < 2:
            continue
        if (np.abs(a - np.flip(n, axis)) <= floor).all():
            lines.append(f"{m.leaf}: the analytic gradient is the numeric one flipped along axis {axis}")
        for by in (1, -1) if n.shape[axis] > 2 else ():
            if (np.abs(a - np.roll(n, by, axis)) <= floor).all():
                lines.append(f"{m.leaf}: the analytic gradient is the numeric one shifted by {by:+d} along axis {axis}")
    for i, j in itertools.combinations(range(n.ndim), 2):
        if n.shape[i] == n.shape[j] > 1 and (np.abs(a - n.swapaxes(i, j)) <= floor).all():
            lines.append(f"{m.leaf}: the analytic gradient is the numeric one with axes {i} and {j} swapped")
    return lines
