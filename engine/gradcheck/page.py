"""The page of `--html`: one file, no network, pictures inside. The template is page.html in the same folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autograd.gradcheck import EntryMap, numeric_gradients, step_curve
from engine.gradcheck.checks import Plan, Result
from engine.gradcheck.pictures import curve_svg, kink_png, montage, signed_png
from kernels.core.dispatch import use_kernels

MAP_SECONDS = 5.0  # CPU time for one operator's entry by entry gradients
MAP_ENTRIES = 3000


@dataclass
class Picture:
    """A data: address with the pixels' count, so that the page can enlarge it by a whole number, and its caption."""

    source: str
    width: int
    height: int
    caption: str

    @property
    def shown(self) -> int:
        """Width on the page in CSS pixels."""
        return self.width * max(2, min(26, 300 // max(self.width, 1), 260 // max(self.height, 1)))


@dataclass
class Section:
    """All about one result."""

    result: Result
    anchor: str
    formulas: list[tuple[str, str]] = field(default_factory=list)
    curve: str = ""
    maps: list[tuple[str, list[Picture]]] = field(default_factory=list)
    kinks: list[Picture] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    heatmap: str = ""


def write_page(path: Path, results: Sequence[Result], plan: Plan) -> None:
    """Write the page. Every entry has a section for its first variant, for kinks, and for whatever is not proven."""
    import jinja2

    sections: list[Section] = []
    links: dict[int, str] = {}
    for k, result in enumerate(results):
        shown = (
            result.entry.variants[0] == result.settings
            or result.settings in result.entry.kinks
            or not result.ok
            or len(results) < 10
        )
        if shown and result.report is not None and result.built is not None:
            sections.append(_section(result, plan, f"check-{k}"))
            links[k] = sections[-1].anchor
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    counts = {v: sum(r.verdict == v for r in results) for v in ("PASS", "KINK", "INCONCLUSIVE", "FAIL")}
    path.write_text(
        template.render(results=list(enumerate(results)), sections=sections, links=links, counts=counts, plan=plan)
    )


def _section(result: Result, plan: Plan, anchor: str) -> Section:
    built = result.built
    report = result.report
    if built is None or report is None:
        raise ValueError(f"{result.title}: there is no finite-difference check to draw")
    section = Section(result, anchor, result.entry.formula(built))
    backend = "reference" if plan.backend == "reference" else "fast"
    if built.module is not None:
        built.module.to(plan.device)
    with use_kernels(backend), plan.bug.planted(built) if plan.bug else nullcontext(built) as planted:
        inputs = planted.tensors(device=plan.device)
        started = time.process_time()
        curve = step_curve(planted.target, *inputs, input_names=planted.names)
        each = (time.process_time() - started) / (2 * len(curve.steps))
        section.curve = curve_svg(curve, anchor, bool(report.kinks))
        entries = sum(x.size for x in (*inputs, *planted.parameters))
        maps: list[EntryMap] = report.maps
        if not maps and entries <= MAP_ENTRIES and 4 * entries * each < MAP_SECONDS:
            maps = numeric_gradients(planted.target, *inputs, input_names=planted.names)
    section.maps = [(f"{m.leaf} {m.analytic.shape}", _pictures(m)) for m in maps]
    if not maps:
        section.text.append(f"Entry by entry maps are left out: {entries} entries with 4 evaluations each.")
    section.kinks = [_kink_picture(k, d) for k, d in enumerate(report.kink_distance) if np.isfinite(d).any()]
    section.heatmap = report.heatmap()
    return section


def _pictures(m: EntryMap) -> list[Picture]:
    """Analytic and numeric on one scale, the difference on its own."""
    is_filter = m.analytic.ndim == 4 and m.leaf.split(".")[-1] in ("w", "weight")
    largest = max(float(np.abs(m.analytic).max(initial=0)), float(np.abs(m.numeric).max(initial=0)))
    most = float(np.abs(m.difference).max(initial=0))
    h, w = montage(m.analytic, is_filter).shape
    return [
        Picture(signed_png(m.analytic, largest, is_filter), w, h, f"analytic, up to ±{largest:.3g}"),
        Picture(signed_png(m.numeric, largest, is_filter), w, h, "numeric, same scale"),
        Picture(signed_png(m.difference, max(most, 1e-9 * largest), is_filter), w, h, f"difference, up to ±{most:.1e}"),
    ]


def _kink_picture(k: int, distance: np.ndarray) -> Picture:
    h, w = montage(distance).shape
    at = int((distance < 1e-6).sum())
    near = float(distance.min())
    text = (
        f"output {k} {distance.shape}: {at} kinks at the point itself"
        if at
        else f"output {k} {distance.shape}: nearest kink at {near:.1e}"
    )
    return Picture(kink_png(distance), w, h, text)
