"""The course: every block of every page runs, and the site is whole, on a wide screen and on a telephone."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import browser as chromium
from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "docs"))

blocks, build, formulas = (importlib.import_module(name) for name in ("blocks", "build", "formulas"))
pytest.importorskip("matplotlib")
PAGES = build.sources()
_run: dict[Path, Any] = {}


def page_of(source: Path) -> Any:
    """A page, run once in this process."""
    if source not in _run:
        _run[source] = build.run(source)
    return _run[source]


@pytest.mark.parametrize("source", PAGES, ids=lambda path: path.stem)
def test_every_block_runs(source: Path) -> None:
    page = page_of(source)
    if source.name[:2].isdigit():
        for part in ("Derivation", "Code", "Check", "Picture", "Exercise", "In this engine"):
            assert f"\n## {part}" in page.markdown, f"{source.name} has no part {part}"
        assert page.figures, f"{source.name} has no figure"
        assert "<summary>Answer</summary>" in page.markdown
        assert "gradcheck(" in page.markdown


@pytest.mark.parametrize("family", ["conv", "attention", "loss"])
def test_files_are_listed_by_their_device(family: str) -> None:
    """Files of a folder `cpu` are on the CPU's line, whatever launches CUDA kernels on CUDA's."""
    lines = build.family_files(build.FILES.match(f"<!-- files: {family} -->")).splitlines()
    cpu, cuda = (next(line for line in lines if f"the {device} kernels" in line) for device in ("CPU", "CUDA"))
    for path in sorted((ROOT / "kernels" / family).rglob("*.py")):
        text, link = path.read_text(), f"/{path.relative_to(ROOT)})"
        compiles = "kernels.core.cpu.jit import" in text
        launches = "kernels.core.cuda.module import" in text
        assert not (compiles and launches), path
        assert (link in cuda) or not launches, path
        assert (link in cpu) or not compiles, path
        assert not (link in cuda and link in cpu), path


def test_links_lead_somewhere() -> None:
    """Those of all documents, outside of code."""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md"), *ROOT.glob("*.md")]
    assert len(pages) > 20
    for page in pages:
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert target == build.REPORT.name or (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@pytest.mark.parametrize(
    "source", [p for p in PAGES if p.parent == build.COURSE and p.name != "study.md"], ids=lambda path: path.stem
)
def test_code_fits_beside_the_contents(source: Path) -> None:
    for block in re.findall(r"^```python.*?\n(.*?)^```$", source.read_text(), re.MULTILINE | re.DOTALL):
        assert max(map(len, block.splitlines())) <= 88, block


def test_a_failing_block_stops_the_build(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        blocks.run_page(page)
    assert caught.traceback[-1].lineno + 1 == 5, "the traceback names the line of the page"


def test_a_page_is_the_same_twice() -> None:
    source = build.COURSE / "01-chain-rule.md"
    again = build.run(source)
    assert again.markdown == page_of(source).markdown
    assert again.figures == page_of(source).figures


def test_formulas_are_found_outside_code_only() -> None:
    found = formulas.Formulas()
    text = found.take("a $x_1$ b `$y$` $$z$$ $x_1$\n\n```python\ncost = '$5$'\n```\n")
    assert text == "a FORMULA0E b `$y$` FORMULA1E FORMULA0E\n\n```python\ncost = '$5$'\n```\n"
    assert list(found.found) == [("x_1", False), ("z", True)]


# One test, so that parallel workers do not each build a site.
def test_the_site(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or not formulas.available():
        pytest.skip("the site needs the pip extra 'docs'")
    work = ROOT / "build" / "course"
    try:
        formulas.install(work / "katex")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"KaTeX could not be fetched: {error}")
    wrong = formulas.Formulas()
    wrong.take(r"$\frac{1$")
    with pytest.raises(ValueError, match="frac"):
        wrong.set(work / "katex")
    small = formulas.Formulas()
    small.take("($n$),")
    (html,) = small.set(work / "katex").values()
    text = re.sub(r"<[^>]*>", "", build.held("(", html, "),").partition('class="katex-html"')[2])
    assert text.endswith("(n),"), "punctuation stays with its formula"
    build.build([page_of(source) for source in PAGES], tmp_path, work)
    for path in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        for opening in (
            'src="http',
            'src="//',
            "url(http",
            "url(//",
            '@import "http',
            'rel="stylesheet" href="http',
            "FORMULA0E",
            "N0E</p>",
        ):
            assert opening not in text, f"{path.relative_to(tmp_path)}: {opening}"
    if chromium.EXECUTABLE is None:
        pytest.skip("the site is whole; no Chromium on this machine to look at it")
    with chromium.Browser() as browser:
        for source in PAGES:
            for width in (1280, 390):
                page = browser.open(tmp_path / f"{source.stem}.html", width=width)
                assert faults(page, page_of(source), width) == [], f"{source.stem} at {width} pixels"
                page.close()


def faults(page: Any, wanted: Any, width: int) -> list[str]:
    """What is wrong with a page as the browser shows it."""
    found = list(page.problems)
    count = sum(match["code"] is None for match in formulas.PIECES.finditer(wanted.markdown))
    seen = (
        "[...document.querySelectorAll('.katex-html')].filter(f => f.closest('details') || "
        "f.getBoundingClientRect().width > 0).length"
    )
    if (shown := page.evaluate(seen)) != count:
        found.append(f"{shown} formulas of {count}")
    if count and not page.evaluate("document.fonts.check('16px KaTeX_Math')"):
        found.append("the formulas' font is missing")
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    if len(boxes) != len(wanted.figures) or any(w < 250 or h < 60 for w, h in boxes):
        found.append(f"figures of sizes {boxes}, expected {len(wanted.figures)}")
    if (scroll := page.evaluate("document.documentElement.scrollWidth")) > width:
        found.append(f"the page is {scroll} pixels wide")
    wide = "[...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    own = (
        "pre, .katex-display, .katex svg, .katex-mathml, .md-typeset__scrollwrap, figure"  # these scroll by themselves
    )
    found += page.evaluate(
        f"{wide}.filter(e => !e.closest('{own}')).map(e => 'sticks out: ' + e.outerHTML.slice(0, 80))"
    )
    if page.evaluate("parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)") < 14:
        found.append("the text is too small")
    return found
