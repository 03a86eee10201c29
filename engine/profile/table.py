"""The text of a profile's tables."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from engine.errors import cut
from engine.profile.rows import Row

if TYPE_CHECKING:
    from engine.profile.result import Peaks, Profile

_MOST_NAMED = 3  # algorithms in a line
_WIDEST = 60  # characters of a name


def lines(profile: Profile, by: str, top: int) -> list[str]:
    """A header, a line per row, the sum, and what the columns mean."""
    found = profile.rows(by)
    shown = found if top <= 0 else found[:top]
    peaks = profile.peaks
    total = sum(row.seconds for row in found)
    labels = _labels(shown, by)
    width = max([len(by), *map(len, labels)])
    head = f"{by:<{width}}  {'calls':>5} {'ms':>9} {'share':>6} {'GFLOP/s':>8} {'MB':>8} {'GB/s':>6} {'FLOP/B':>7} "
    out = [f"{head}{'of peak':>8}  served by"]
    out += [_line(label, row, width, total, peaks, profile.timed) for label, row in zip(labels, shown, strict=True)]
    if rest := found[len(shown) :]:
        label = f"{len(rest)} more"
        out.append(_line(label, _sum(rest, label), width, total, peaks, profile.timed))
    out.append(_line("sum", _sum(found, "sum"), width, total, peaks, profile.timed))
    return out


def summary(profile: Profile) -> list[str]:
    """See Profile.summary."""
    many = f"{profile.steps} step{'s' * (profile.steps != 1)}"
    out = []
    if not profile.timed:
        out.append(f"{many} recorded; no times: the device is emulated")
    else:
        out.append(f"{many} recorded: {_ms(profile.step_seconds)} a step, operator by operator")
        plain = profile.unprofiled.get("uncaptured")
        if plain:
            cost = profile.step_seconds / plain - 1
            out.append(f"without the profile: {_ms(plain)} (the profile costs {cost:+.1%})")
        captured = profile.unprofiled.get("captured")
        if captured:
            out.append(f"captured, as training runs it: {_ms(captured)}")
    memory = profile.memory
    if memory is not None:
        where = f" of {memory.layer}" if memory.layer else ""
        resident = f"; resident at most {memory.resident / 2**20:,.0f} MiB" if memory.resident else ""
        out.append(f"most memory: {memory.in_use / 2**20:,.1f} MiB in use, in {memory.operator}{where}{resident}")
    if profile.peaks is not None:
        out.append(f"peaks: {profile.peaks}")
    return out


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _labels(rows: list[Row], by: str) -> list[str]:
    """The names of the rows; those of calls with their layer and shape, in columns."""
    names = [cut(row.name, _WIDEST) for row in rows]
    if by != "call":
        return names
    shapes = ["x".join(map(str, row.shape)) for row in rows]
    first, second = max(map(len, names), default=0), max((len(row.layer) for row in rows), default=0)
    parts = zip(names, rows, shapes, strict=True)
    return [f"{name:<{first}}  {row.layer:<{second}}  {shape}".rstrip() for name, row, shape in parts]


def _sum(rows: list[Row], name: str) -> Row:
    def total(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Row(
        name,
        sum(row.calls for row in rows),
        sum(row.nanoseconds for row in rows),
        total([row.flops for row in rows]),
        total([row.bytes for row in rows]),
    )


def _line(label: str, row: Row, width: int, total: float, peaks: Peaks | None, timed: bool) -> str:
    seconds = row.seconds if timed else 0.0
    gflops = row.flops / seconds / 1e9 if row.flops and seconds else 0.0
    gbytes = row.bytes / seconds / 1e9 if row.bytes and seconds else 0.0
    intensity = row.flops / row.bytes if row.flops and row.bytes else 0.0
    cells = (
        f"{row.calls or '':>5}",
        f"{_number(1e3 * seconds, 2):>9}",
        f"{_share(seconds, total):>6}",
        f"{_number(gflops, 1):>8}",
        f"{_number((row.bytes or 0) / 1e6, 1):>8}",
        f"{_number(gbytes, 1):>6}",
        f"{_number(intensity, 1):>7}",
        f"{of_peak(gflops, gbytes, intensity, peaks):>9}",
    )
    return f"{label:<{width}}  {' '.join(cells)}  {_algorithms(row.algorithms)}".rstrip()


def of_peak(gflops: float, gbytes: float, intensity: float, peaks: Peaks | None) -> str:
    """The share of the peak that bounds a row: '54 % c' of the multiply-adds (compute), '31 % m' of the bandwidth of
    memory. A row is bound by memory below as many FLOPs per byte as the two peaks are apart, and where it states none.
    """
    if peaks is None or not (gflops or gbytes):
        return ""
    if intensity > peaks.gflops / peaks.gbytes or not gbytes:
        return f"{100 * gflops / peaks.gflops:.0f} % c"
    return f"{100 * gbytes / peaks.gbytes:.0f} % m"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value else ""


def _share(seconds: float, total: float) -> str:
    return f"{seconds / total:.1%}" if seconds and total else ""


def _algorithms(served: Counter[str]) -> str:
    named = [name if n == 1 else f"{name} x{n}" for name, n in served.most_common()]
    return ", ".join(named if len(named) <= _MOST_NAMED else [*named[:_MOST_NAMED], "..."])
