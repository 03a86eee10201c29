"""The documents: every block of every page runs, the site is whole, on a wide screen and on a telephone, and its lists
agree with the sources.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import browser as chromium
from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "docs"))

api, blocks, build, formulas = (importlib.import_module(name) for name in ("api", "blocks", "build", "formulas"))
pytest.importorskip("matplotlib")
PAGES = build.sources()


@pytest.fixture(scope="session")
def page_of(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    """A page, run once in this session: parallel workers take it from each other."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "pages"
    folder.mkdir(exist_ok=True)

    def page(source: Path) -> Any:
        path = folder / f"{blocks.key(source)}.pickle"
        if not path.exists():
            content = pickle.dumps(build.run(source))
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(content)
            part.replace(path)
        return pickle.loads(path.read_bytes())

    return page


@pytest.mark.parametrize("source", PAGES, ids=build.place)
def test_every_block_runs(source: Path, page_of: Callable[[Path], Any]) -> None:
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


def test_the_table_of_contents_has_every_page() -> None:
    written = {path.relative_to(build.DOCS).as_posix() for path in build.DOCS.rglob("*.md")}
    named = [name for section in build.NAV.values() for name in section if name != "api/"]
    assert len(named) == len(set(named)) > 30
    assert written - set(named) == set(), "add the page to NAV in docs/build.py"
    assert set(named) - written == set(build.ELSEWHERE), "NAV in docs/build.py names a missing page"


@pytest.mark.parametrize(
    "source", [p for p in PAGES if p.parent.name in ("gradients", "tutorials")], ids=lambda path: path.stem
)
def test_code_fits_beside_the_contents(source: Path) -> None:
    for block in re.findall(r"^```python.*?\n(.*?)^```$", source.read_text(), re.MULTILINE | re.DOTALL):
        assert max(map(len, block.splitlines())) <= 88, block


def test_the_page_about_cupy_names_every_function() -> None:
    text = (build.DOCS / "cupy.md").read_text()
    assert set(re.findall(r"\bnn\.([a-z]\w*)", text)) == set(importlib.import_module("kernels.nn").__all__)


def variables_read(text: str) -> set[str]:
    """The environment variables that a Python source reads. ValueError for a name that is computed."""

    def environ(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and node.attr == "environ"

    tree, loops, found = ast.parse(text), dict[str, list[str]](), set[str]()
    for node in ast.walk(tree):  # for name in ("A", "B"), for name, value in (("A", 1), ("B", 2))
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            target = node.target.elts[0] if isinstance(node.target, ast.Tuple) else node.target
            items = [item.elts[0] if isinstance(item, ast.Tuple) and item.elts else item for item in node.iter.elts]
            names = [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            loops.setdefault(getattr(target, "id", ""), []).extend(names)
    for node in ast.walk(tree):
        key: ast.AST | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if (
                environ(node.func.value) and node.func.attr in ("get", "setdefault", "pop")
            ) or node.func.attr == "getenv":
                key = node.args[0]
        elif isinstance(node, ast.Subscript) and environ(node.value) and isinstance(node.ctx, ast.Load):
            key = node.slice
        elif isinstance(node, ast.Compare) and any(environ(operand) for operand in node.comparators):
            key = node.left
        if isinstance(key, ast.Constant):
            found.add(key.value)
        elif key is not None:
            names = loops.get(getattr(key, "id", ""), [])
            if not names:
                raise ValueError(f"line {node.lineno}: which environment variable is read here?")
            found |= set(names)
    return found


def test_variables_are_found_where_a_source_reads_them() -> None:
    text = """
import os
os.environ.get("A"); os.environ["B"]; "C" in os.environ; os.getenv("D"); os.environ.setdefault("E", "1")
os.environ["SET"] = "1"; dict(os.environ, GIVEN="1")
for name, default in (("F", 1), ("G", 2)):
    os.environ.get(name)
"""
    assert variables_read(text) == set("ABCDEFG")
    with pytest.raises(ValueError, match="line 2"):
        variables_read("import os\nos.environ[name]")


def test_the_page_about_the_environment_lists_what_is_read() -> None:
    read: dict[str, Path] = {}
    for folder in ("kernels", "autograd", "layers", "engine", "bench", "tests", "docs", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path != Path(__file__).resolve():
                text = path.read_text(encoding="utf-8")
                if "environ" in text or "getenv" in text:
                    read |= dict.fromkeys(variables_read(text), path)
    read |= dict.fromkeys(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE), ROOT / "Makefile")
    page = (build.DOCS / "environment.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert len(listed) == len(set(listed)) > 20
    missing = {name: str(path.relative_to(ROOT)) for name, path in read.items() if name not in listed}
    assert not missing, "add them to docs/environment.md"
    assert set(listed) - set(read) == set(), "nothing reads these any more: take them out of docs/environment.md"
    everywhere = "".join(path.read_text(encoding="utf-8") for path in PAGES) + (ROOT / "README.md").read_text()
    assert set(re.findall(r"\bAREOGRAD_[A-Z_]+\b", everywhere)) <= set(listed), "a page names an unknown switch"


def test_the_reference_shows_every_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe")
    pages = {page.source.stem: page.markdown for page in api.pages()}
    assert [path.stem for path in api.paths()] == list(pages)
    for text in ("bias: Tensor | None = None", "Raises ValueError", "sum_{r,s,c}", "](../../autograd/ops/conv.py#"):
        assert text in pages["ops-conv"]
    assert "where K % groups" not in pages["ops-conv"]
    assert "where C % groups == K % groups == 0 < groups" in pages["kernels-conv"]
    monkeypatch.delitem(api.PAGES, "ops-conv")
    with pytest.raises(LookupError, match="conv2d"):
        api.pages()


def test_a_public_name_without_a_docstring_stops_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe")
    monkeypatch.setattr(api._module("autograd.ops.pool")["max_pool2d"], "docstring", None)
    with pytest.raises(LookupError, match="max_pool2d is public and has no docstring"):
        api.pages()


def test_docstrings_are_set_as_they_were_written() -> None:
    """Lines that were wrapped are joined, others are not; what Markdown would read as markup is no markup."""
    wrapped = "word " * 21 + "last\nmore."
    assert api._prose(f"{wrapped}\nx: an *array* of $5$, `a < b`.\ny[i] = sum_j x[j].") == [
        "",
        f"<p>{wrapped.replace(chr(10), ' ')}<br>x: an &#42;array&#42; of &#36;5&#36;, <code>a &lt; b</code>."
        "<br><code>y[i] = sum_j x[j].</code></p>",
        "",
    ]


def test_a_failing_block_stops_the_build(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        blocks.run_page(page)
    assert caught.traceback[-1].lineno + 1 == 5, "the traceback names the line of the page"


def test_a_page_is_the_same_twice(page_of: Callable[[Path], Any]) -> None:
    source = build.COURSE / "01-chain-rule.md"
    again = build.run(source)
    assert again.markdown == page_of(source).markdown
    assert again.figures == page_of(source).figures


def test_formulas_are_found_outside_code_only() -> None:
    found = formulas.Formulas()
    text = found.take("a $x_1$ b `$y$` $$z$$ $x_1$\n\n```python\ncost = '$5$'\n```\n")
    assert text == "a FORMULA0E b `$y$` FORMULA1E FORMULA0E\n\n```python\ncost = '$5$'\n```\n"
    assert list(found.found) == [("x_1", False), ("z", True)]


def test_the_picture_of_readme_takes_tiles_at_quantiles() -> None:
    picture = importlib.import_module("picture")
    assert [picture.at(np.array([4, 3, 2, 1, 0]), quantile) for quantile in (0, 0.5, 0.76, 1)] == [4, 2, 1, 0]


# One test, so that parallel workers do not each build a site.
def test_the_site(tmp_path: Path, page_of: Callable[[Path], Any]) -> None:
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
    pages = [page_of(source) for source in PAGES]
    build.build(pages, tmp_path, work)
    assert broken_links(tmp_path) == []
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
        for wanted in [*pages, *api.pages()]:
            place = Path(build.place(wanted.source)).with_suffix(".html")
            page = browser.open(tmp_path / place, width=1280)
            for width in (1280, 390):
                page.resize(width)
                assert faults(page, wanted, width) == [], f"{place} at {width} pixels"
            page.close()


def broken_links(site: Path) -> list[str]:
    """Links of the written pages that lead to no file of the site, or to a place in a page that is not there."""
    found, places = [], dict[Path, set[str]]()
    for path in sorted(site.rglob("*.html")):
        if path.is_relative_to(site / "source") or path.name in ("404.html", build.REPORT.name):
            continue
        article = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        for link in re.findall(r'<a [^>]*?href="(?!https?:|mailto:)([^"]*)"', article):
            name, _, place = link.partition("#")
            target = Path(os.path.normpath(path.parent / name)) if name else path
            if not target.is_file():
                found.append(f"{path.relative_to(site)}: {link}")
            elif place and target.suffix == ".html":
                if target not in places:
                    places[target] = set(re.findall(r'\b(?:id|name)="([^"]*)"', target.read_text(encoding="utf-8")))
                if place not in places[target]:
                    found.append(f"{path.relative_to(site)}: {link}")
    return found


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
    fonts = page.evaluate("[...document.fonts].filter(f => f.family.startsWith('KaTeX')).map(f => f.status)")
    if count and ("loaded" not in fonts or "error" in fonts):
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
