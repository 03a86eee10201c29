"""Line charts over epochs as SVG. The page's style sheet colours them, so that they follow its light or dark scheme."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 16, 32  # margins
_COLOURS = 8  # the style sheet's --s0 ... --s7
_MARKED = 14  # markers on a line
_NOTHING = "–"  # the text of no value
# One in each colour: what a reader who sees no colours tells lines by. Paths around 0, 0.
_MARKERS = (
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "M-2.7-2.7h5.4v5.4h-5.4z",
    "M0-3.6L3.4 2.6H-3.4z",
    "M0-3.8L3.8 0L0 3.8L-3.8 0z",
    "M0 3.6L3.4-2.6H-3.4z",
)


class Series(NamedTuple):
    """A line: a value per epoch of its chart, None where there is none."""

    name: str
    values: Sequence[float | None]


class Line(NamedTuple):
    """A line as the legend shows it: its name, its classes in the style sheet, its marker, and its values as text."""

    name: str
    style: str
    marker: str
    texts: list[str]

    @property
    def last(self) -> str:
        """The last value that there is."""
        return next(text for text in reversed(self.texts) if text != _NOTHING)


class Chart(NamedTuple):
    """A chart for the page.

    svg: the drawing.  lines: the legend.  epochs, places: where each epoch is, in units of the drawing.
    note: a sentence below the title.
    """

    title: str
    note: str
    svg: str
    lines: list[Line]
    epochs: list[int]
    places: list[float]

    @property
    def end(self) -> str:
        """The epoch of the lines' last values, in words."""
        same = all(line.texts[-1] != _NOTHING for line in self.lines)
        return f"epoch {self.epochs[-1]}" if same else "the last epoch of each"

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {
            "epochs": self.epochs,
            "places": self.places,
            "texts": [line.texts for line in self.lines],
            "end": self.end,
            "last": [line.last for line in self.lines],
            "width": _WIDTH,
        }


def line_chart(
    title: str,
    epochs: Sequence[int],
    series: Sequence[Series],
    form: str = ".3f",
    logarithmic: bool = False,
    best: int | None = None,
    note: str = "",
) -> Chart | None:
    """The chart of some series over epochs; None where no series has a value.

    form: how values are written.  logarithmic: a logarithmic axis, where the values span a factor of ten or more.
    best: an epoch to mark.
    """
    series = [Series(name, [_number(v) for v in values]) for name, values in series]
    values = [v for line in series for v in line.values if v is not None]
    if not values:
        return None
    positive = [v for v in values if v > 0]
    logarithmic = logarithmic and bool(positive) and max(positive) >= 10 * min(positive)
    scale, ticks = _logarithmic(positive) if logarithmic else _linear(values)
    places = _places(epochs)
    parts = [_frame(ticks, epochs, places)]
    if best in epochs:
        x = places[epochs.index(best)]
        parts.append(
            f'<path class="best" d="M{x} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
            f'<text class="tick" x="{x}" y="{_TOP - 5}" text-anchor="middle">best</text>'
        )
    lines = []
    for k, line in enumerate(series):
        if all(v is None for v in line.values):  # its style stays free, so that a run has one style in all charts
            continue
        style = f"s{k % _COLOURS} d{k // _COLOURS % 3}"
        marker = _MARKERS[k % len(_MARKERS)]
        points = [
            None if v is None or (logarithmic and v <= 0) else (x, round(scale(v), 1))
            for x, v in zip(places, line.values, strict=True)
        ]
        parts.append(_drawn(points, style, marker))
        lines.append(Line(line.name, style, marker, [_NOTHING if v is None else format(v, form) for v in line.values]))
    parts.append(f'<path class="cursor" d="M0 {_TOP}V{_HEIGHT - _BOTTOM}" hidden/>')
    label = html.escape(_described(title, epochs, lines))
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return Chart(title, note, svg, lines, list(epochs), places)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _places(epochs: Sequence[int]) -> list[float]:
    """Where the epochs are; a single one is in the middle."""
    first, last = epochs[0], epochs[-1]
    inner = _WIDTH - _LEFT - _RIGHT
    return [round(_LEFT + inner * ((epoch - first) / (last - first) if last > first else 0.5), 1) for epoch in epochs]


def _linear(values: Sequence[float]) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant: room on both sides
        low, high = low - (0.1 * abs(low) or 1), high + (0.1 * abs(high) or 1)
    ticks = [float(t) for t in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    return _between(ticks[0], ticks[-1], ticks, lambda v: v)


def _logarithmic(values: Sequence[float]) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    low, high = (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))))
    every = max(1, -(-(high - low) // 5))
    return _between(low, high, [10.0**k for k in range(low, high + 1, every)], math.log10)


def _between(
    low: float, high: float, ticks: Sequence[float], of: Callable[[float], float]
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """A scale from values to heights in the drawing, and its ticks with their text."""
    bottom = _HEIGHT - _BOTTOM

    def scale(value: float) -> float:
        return bottom - (bottom - _TOP) * (of(value) - low) / (high - low)

    return scale, [(round(scale(t), 1), f"{round(t, 12):.4g}".replace("e-0", "e-")) for t in ticks]


def _frame(ticks: Sequence[tuple[float, str]], epochs: Sequence[int], places: Sequence[float]) -> str:
    """Grid lines and the numbers beside them. Epochs are whole."""
    from matplotlib.ticker import MaxNLocator

    bottom = _HEIGHT - _BOTTOM
    parts = [
        f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>'
        for y, text in ticks
    ]
    wanted = MaxNLocator(nbins=7, integer=True).tick_values(epochs[0], epochs[-1])
    place = dict(zip(epochs, places, strict=True))
    parts += [
        f'<path class="grid" d="M{place[epoch]} {bottom}v4"/>'
        f'<text class="tick" x="{place[epoch]}" y="{bottom + 16}" text-anchor="middle">{epoch}</text>'
        for epoch in dict.fromkeys(round(t) for t in wanted)
        if epoch in place
    ]
    return "".join(parts) + f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" text-anchor="end">epoch</text>'


def _drawn(points: Sequence[tuple[float, float] | None], style: str, marker: str) -> str:
    """A line with gaps where there are no points, and markers, on all epochs where they are few."""
    path = ""
    joined = False
    for point in points:
        if point is not None:
            path += f"{'L' if joined else 'M'}{point[0]} {point[1]}"
        joined = point is not None
    there = [point for point in points if point is not None]
    marked = there[:: max(1, -(-len(there) // _MARKED))]
    marks = "".join(f'<path transform="translate({x} {y})" d="{marker}"/>' for x, y in marked)
    return f'<g class="{style}"><path class="line" d="{path}"/><g class="mark">{marks}</g></g>'


def _described(title: str, epochs: Sequence[int], lines: Sequence[Line]) -> str:
    """The chart in words: each line's first and last value."""
    values = [f"{line.name} from {line.texts[0]} to {line.last}" for line in lines[:8]]
    more = f", and {len(lines) - 8} more" if len(lines) > 8 else ""
    return f"{title}, epochs {epochs[0]} to {epochs[-1]}: {'; '.join(values)}{more}"
