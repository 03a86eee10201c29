"""The course: every block of every page runs, and the site is whole, on a wide screen and on a telephone."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import browser as chromium
import pytest

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.mark.parametrize("source", [p for p in PAGES if p.parent == build.COURSE and p.name != "study.md"], ids=lambda path: path.stem)
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


def _site(folder: Path) -> Path:
    if importlib.util.find_spec("mkdocs") is None or not formulas.available():
        pytest.skip("the site needs the pip extra 'docs'")
    try:
        formulas.install(ROOT / "build" / "course" / "katex")
    except Exception as error:
        pytest.skip(f"KaTeX could not be fetched: {error}")
    build.build([page_of(source) for source in PAGES], folder, ROOT / "build" / "course")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def browser() -> Any:
    if chromium.EXECUTABLE is None:
        pytest.skip("no Chromium on this machine")
    with chromium.Browser() as running:
        yield running


def test_a_formula_that_does_not_parse_stops_the_build(site: Path) -> None:
    found = formulas.Formulas()
    found.take(r"$\frac{1$")
    with pytest.raises(ValueError, match="frac"):
        found.set(ROOT / "build" / "course" / "katex")


def test_pages_ask_nothing_of_a_network(site: Path) -> None:
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        for opening in ('src="http', 'src="//', "url(http", "url(//", '@import "http', 'rel="stylesheet" href="http'):
            assert opening not in text, f"{path.relative_to(site)}: {opening}"
        assert "FORMULA0E" not in text
        assert "N0E</p>" not in text


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("source", PAGES, ids=lambda path: path.stem)
def test_pages_look_right(site: Path, browser: Any, source: Path, width: int) -> None:
    page = browser.open(site / f"{source.stem}.html", width=width)
    try:
        assert page.problems == []
        formulas_wanted = sum(match["code"] is None for match in formulas.PIECES.finditer(page_of(source).markdown))
        shown = page.evaluate(
            "[...document.querySelectorAll('.katex-html')].filter(f => f.closest('details') || f.getBoundingClientRect().width > 0).length"
        )
        assert shown == formulas_wanted
        assert not formulas_wanted or page.evaluate("document.fonts.check('16px KaTeX_Math')")
        boxes = page.evaluate(
            "[...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height])"
        )
        assert len(boxes) == len(page_of(source).figures)
        assert all(w > 250 and h > 60 for w, h in boxes), boxes
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
        wide = "[...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        inside = ".filter(e => !e.closest('pre, .katex-display, .katex svg, .katex-mathml, .md-typeset__scrollwrap, figure'))"
        assert page.evaluate(f"{wide}{inside}.map(e => e.outerHTML.slice(0, 80))") == []
        assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)") >= 14
    finally:
        page.close()
