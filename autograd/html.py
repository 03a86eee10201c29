"""HTML for notebooks, of which every `_repr_html_` is made: elements, tables, pictures and curves.

All text is escaped (markupsafe). Styles stand in the elements and colours are the page's own or middle tones, so that
a piece needs no style sheet, no script and no network, and is readable on a light and on a dark page.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

COLOURS = ("#4477cc", "#dd6633", "#33997a", "#aa5599", "#bb9922", "#808080")
GOOD, BAD, DOUBTFUL = "#33997a", "#d2483e", "#c08a1e"
_CELL = "padding: 1px 8px; text-align: {}; white-space: nowrap"
_FAINT = "opacity: .65"


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """<name attributes>content</name>. Text is escaped, Markup is not; `_` in an attribute's name is a hyphen."""
    opening = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, opening, Markup("").join(map(escape, content)))


def block(*content: Any) -> Markup:
    """A piece as a whole: what a `_repr_html_` returns."""
    return tag("div", *content, style="line-height: 1.5; max-width: 100%; overflow-x: auto")


def faint(*content: Any) -> Markup:
    """Text that steps back."""
    return tag("span", *content, style=_FAINT)


def code(text: Any) -> Markup:
    """Text in a font of equal widths."""
    return tag("code", text, style="background: none; color: inherit; padding: 0")


def table(rows: Iterable[Sequence[Any]], head: Sequence[Any] = (), left: int = 1, strong: int | None = None) -> Markup:
    """A table. left: how many columns are text, set to the left; the others are numbers.  strong: the bold row."""

    def line(cells: Sequence[Any], kind: str, weight: str) -> Markup:
        style = f"; font-weight: {weight}; background: none"
        return tag(
            "tr",
            *(
                tag(kind, cell, style=_CELL.format("left" if k < left else "right") + style)
                for k, cell in enumerate(cells)
            ),
            style="background: none",
        )

    body = [line(cells, "td", "bold" if k == strong else "normal") for k, cells in enumerate(rows)]
    top = [tag("thead", line(head, "th", "normal"), style=_FAINT)] if head else []
    return tag("table", *top, tag("tbody", *body), style="border-collapse: collapse; margin: 4px 0; border: none")


def details(summary: Any, *content: Any, unfolded: bool = False) -> Markup:
    """A line under which more is folded away."""
    inside = tag("div", *content, style="margin-left: 1.3em")
    unfolding = {"open": "open"} if unfolded else {}
    return tag("details", tag("summary", summary, style="cursor: pointer"), inside, **unfolding)


def picture(pixels: np.ndarray, width: int, text: str = "") -> Markup:
    """uint8 (H, W) or (H, W, 3) as an image within the page, `width` pixels wide. text: for those who do not see it."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, "PNG")
    style = "image-rendering: pixelated; margin: 0 4px 0 0; display: inline-block"
    return Markup('<img src="{}" width="{}" alt="{}" style="{}">').format(
        address(content.getvalue()), width, text, style
    )


def address(content: bytes, form: str = "png") -> str:
    """The data: address of an image file's content."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode('ascii')}"


def bar(share: float, text: Any = "", colour: str = COLOURS[0]) -> Markup:
    """A bar that is filled from the left by a share of 0 to 1, with a text after it."""
    filled = tag("div", style=f"width: {100 * min(max(share, 0.0), 1.0):.1f}%; height: 100%; background: {colour}")
    outer = "display: inline-block; width: 16em; height: .6em; background: rgba(128, 128, 128, .3); margin: 0 8px 0 0"
    return tag("div", tag("div", filled, style=outer), text)


def curves(series: Mapping[str, Sequence[float]], width: int = 360, height: int = 130) -> Markup:
    """Lines over 1, 2, ..., a colour each, with a legend; what is not finite is left out. Empty without any point."""
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    if not finite:
        return Markup("")
    low, high = min(finite), max(finite)
    left, right, top, bottom = 52, 8, 8, 18
    count = max(map(len, series.values()))

    def place(k: int, value: float) -> tuple[float, float]:
        across = k / (count - 1) if count > 1 else 0.5
        up = (value - low) / (high - low) if high > low else 0.5
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    drawn: list[Markup] = []
    for colour, (name, values) in zip(_repeated(COLOURS, len(series)), series.items(), strict=True):
        points = [place(k, value) for k, value in enumerate(values) if math.isfinite(value)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(tag("polyline", tag("title", name), points=line, fill="none", stroke=colour, stroke_width="1.8"))
        drawn += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2", fill=colour) for x, y in points[-1:]]
    frame = {"stroke": "currentColor", "stroke_opacity": ".3"}
    label = {"fill": "currentColor", "fill_opacity": ".7", "font_size": "10", "text_anchor": "end"}
    drawn += [tag("line", x1=left, x2=width - right, y1=y, y2=y, **frame) for y in (top, height - bottom)]
    drawn += [tag("text", f"{v:.4g}", x=left - 6, y=place(0, v)[1] + 3, **label) for v in sorted({low, high})]
    drawn.append(tag("text", str(count), x=width - right, y=height - 4, **label))
    drawing = tag("svg", *drawn, width=width, height=height, viewBox=f"0 0 {width} {height}", role="img")
    legend = [
        tag("span", "\u2014 ", name, style=f"color: {colour}; margin-right: 1em")
        for colour, name in zip(_repeated(COLOURS, len(series)), series, strict=True)
    ]
    return tag("div", tag("div", *legend, style="margin-left: 52px"), drawing)


def _repeated(colours: Sequence[str], count: int) -> list[str]:
    return [colours[k % len(colours)] for k in range(count)]


def number(value: Any) -> str:
    """A number in few digits; other values as they are written."""
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)
