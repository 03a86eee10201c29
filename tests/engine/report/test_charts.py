"""Line charts: where points lie, whole epochs, gaps, one epoch, and one style per line."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from engine.report.charts import Chart, Series, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(chart: Chart | None) -> ET.Element:
    assert chart is not None
    return ET.fromstring(chart.svg.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1).replace(" hidden/>", "/>"))


def points(line: ET.Element) -> list[tuple[float, float]]:
    path = next(p.get("d", "") for p in line.iter(f"{SVG}path") if p.get("class") == "line")
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]


def lines(svg: ET.Element) -> list[ET.Element]:
    return [g for g in svg if g.tag == f"{SVG}g"]


def ticks(svg: ET.Element) -> tuple[list[tuple[float, float]], list[str]]:
    """(value, height) of the ticks beside the chart, and the text of those below it."""
    texts = [t for t in svg.iter(f"{SVG}text") if t.get("class") == "tick"]
    beside = [
        (float(t.text or ""), float(t.get("y", 0)) - 4)
        for t in texts
        if t.get("text-anchor") == "end" and t.text != "epoch"
    ]
    return beside, [t.text or "" for t in texts if t.get("text-anchor") == "middle" and t.text != "best"]


def test_points_lie_where_the_ticks_say() -> None:
    values = [-0.2, 0.1, 0.4, 0.35]
    svg = drawn(line_chart("a", [1, 2, 3, 4], [Series("x", values)]))
    beside, below = ticks(svg)
    (low, bottom), (high, top) = beside[0], beside[-1]
    for value, (_, y) in zip(values, points(lines(svg)[0]), strict=True):
        assert y == pytest.approx(bottom + (top - bottom) * (value - low) / (high - low), abs=0.06)
    assert below == ["1", "2", "3", "4"]


def test_a_logarithmic_axis_where_values_span_a_factor_of_ten() -> None:
    svg = drawn(line_chart("a", [1, 2, 3], [Series("x", [0.01, 0.0, 10.0])], logarithmic=True))
    beside, _ = ticks(svg)
    assert [value for value, _ in beside] == [0.01, 0.1, 1, 10]
    assert [y for _, y in points(lines(svg)[0])] == pytest.approx([beside[0][1], beside[-1][1]])
    linear = drawn(line_chart("a", [1, 2], [Series("x", [1.0, 3.0])], logarithmic=True))
    heights = [y for _, y in ticks(linear)[0]]
    assert len({round(b - a, 1) for a, b in itertools.pairwise(heights)}) == 1


@pytest.mark.parametrize("value", [0.37, 0.0, -2.0, 1e-9])
def test_one_epoch_is_a_marker_in_the_middle_on_a_whole_tick(value: float) -> None:
    chart = line_chart("a", [1], [Series("x", [value])], best=1)
    svg = drawn(chart)
    assert chart is not None
    assert ticks(svg)[1] == ["1"]
    ((x, y),) = points(lines(svg)[0])
    assert 150 < x < 250
    assert 20 < y < 180
    assert any("translate" in p.get("transform", "") for p in lines(svg)[0].iter(f"{SVG}path"))
    assert any(t.text == "best" for t in svg.iter(f"{SVG}text"))


@pytest.mark.parametrize("count", [2, 7, 12, 40, 333])
def test_epochs_are_whole_and_markers_stay_few(count: int) -> None:
    epochs = list(range(1, count + 1))
    svg = drawn(line_chart("a", epochs, [Series("x", [math.sqrt(k) for k in epochs])]))
    below = ticks(svg)[1]
    assert 2 <= len(below) <= 9
    assert all(int(text) in epochs for text in below)
    marks = [p for p in lines(svg)[0].iter(f"{SVG}path") if p.get("transform")]
    assert min(count, 7) <= len(marks) <= 14
    assert len(points(lines(svg)[0])) == count


def test_gaps_and_lines_without_values() -> None:
    chart = line_chart(
        "a", [1, 2, 3], [Series("x", [1.0, None, 2.0]), Series("none", [None, math.nan, None]), Series("z", [1.0] * 3)]
    )
    svg = drawn(chart)
    assert chart is not None
    path = next(p.get("d", "") for p in lines(svg)[0].iter(f"{SVG}path") if p.get("class") == "line")
    assert path.count("M") == 2
    assert [line.name for line in chart.lines] == ["x", "z"]
    assert chart.lines[0].texts == ["1.000", "–", "2.000"]
    assert [line.style for line in chart.lines] == ["s0 d0", "s2 d0"], "a run has one style in all charts"
    assert line_chart("a", [1], [Series("x", [None])]) is None


def test_what_a_legend_says_of_lines_that_end_earlier() -> None:
    chart = line_chart("a", [1, 2, 3], [Series("x", [1.0, 2.0, None]), Series("y", [4.0, 5.0, 6.0])])
    assert chart is not None
    assert [line.last for line in chart.lines] == ["2.000", "6.000"]
    assert chart.end == "the last epoch of each"
    assert "x from 1.000 to 2.000; y from 4.000 to 6.000" in chart.svg
    whole = line_chart("a", [1, 2], [Series("x", [None, 2.0])])
    assert whole is not None
    assert whole.end == "epoch 2"


def test_lines_are_told_apart_without_colours_and_names_are_escaped() -> None:
    chart = line_chart('<"&', [1, 2], [Series(f"<b>{k}", [k, k + 1.0]) for k in range(20)])
    assert chart is not None
    assert len({(line.style, line.marker) for line in chart.lines}) == 20
    assert len({line.marker for line in chart.lines[:5]}) == 5
    svg = drawn(chart)
    assert svg.get("aria-label", "").startswith('<"&, epochs 1 to 2: <b>0 from 0.000 to 1.000')
    assert "and 12 more" in svg.get("aria-label", "")
