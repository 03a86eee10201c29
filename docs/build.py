"""The documentation as a site:  python docs/build.py [--out build/site]

Every code block is run (blocks.py), every formula is set (formulas.py), the API reference is made from docstrings
(api.py), every linked source file becomes a page; a block that fails, a formula that does not parse, a public name
without a docstring or a link that leads nowhere stops the build. The result needs no network and no server.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import api  # noqa: E402
import blocks  # noqa: E402
import formulas  # noqa: E402

COURSE = DOCS / "gradients"
REPORT = ROOT / "build" / "bug.html"  # made by a command of three-commands.md, and shown as it is
# The pages of the site in reading order, by section.
NAV = {
    "Start": ["index.md", "install.md"],
    "Tutorials": [
        "tutorials/train.md",
        "tutorials/predict.md",
        "tutorials/loss.md",
        "tutorials/operator.md",
        "tutorials/gradcheck.md",
        "tutorials/benchmark.md",
    ],
    "How-to": ["howto.md", "experiments.md", "export.md", "profile.md", "cupy.md"],
    "Course": [
        "gradients/index.md",
        "gradients/three-commands.md",
        *(f"gradients/{path.name}" for path in sorted(COURSE.glob("[0-9][0-9]-*.md"))),
        "gradients/study.md",
    ],
    "Explanation": ["architecture.md", "cpu.md", "cuda.md", "accuracy.md", "reliability.md"],
    "Reference": [
        "python.md",
        "tensor.md",
        "data.md",
        "gradcheck.md",
        "environment.md",
        "conformance.md",
        "glossary.md",
        "api/",
    ],
    "Results": ["results.md", "benchmarks.md", "what-did-not-pay.md"],
    "Project": ["contributing.md", "changelog.md"],
}
# Pages that lie elsewhere.
ELSEWHERE = {"benchmarks.md": ROOT / "bench" / "RESULTS.md", "changelog.md": ROOT / "CHANGELOG.md"}
# Taken as they are: records, which no build makes.
RECORDS = {COURSE / "study.md", *ELSEWHERE.values()}
# Code is left alone: a fenced block, a code span. Then the target of a link.
LINK = re.compile(
    r"^(?P<fence>`{3,}).*?^(?P=fence)\s*$|(?P<tick>`+)(?!`).+?(?P=tick)"
    r"|(?<=\]\()(?!https?:|#)(?P<target>[^)#\s]+)(?=[)#])",
    re.MULTILINE | re.DOTALL,
)
FILES = re.compile(r"^<!-- files: (\w+) -->$", re.MULTILINE)
DIAGRAM = re.compile(r"^!\[([^\]]+)\]\(([^)\s]+\.svg)\)$", re.MULTILINE)
WORDS = re.compile(r"<p>(FIGURE\w+?N\d+E)</p>|(\(?)(FORMULA\d+E)([),.;:!?]*)")
PICTURES = (".svg", ".png", ".jpg")
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".toml": "toml", ".md": "markdown", ".sh": "bash"}


def sources() -> list[Path]:
    """The written pages in reading order."""
    names = [name for section in NAV.values() for name in section if not name.endswith("/")]
    return [ELSEWHERE.get(name, DOCS / name) for name in names]


def place(source: Path) -> str:
    """Where a page lies in the site: as its file does in docs/."""
    elsewhere = {path: name for name, path in ELSEWHERE.items()}
    return elsewhere.get(source) or source.relative_to(DOCS).as_posix()


def run(source: Path) -> blocks.Page:
    """A page with its blocks run, tutorials in a folder of their own; records are taken as they are."""
    if source in RECORDS:
        return blocks.Page(source, source.read_text(encoding="utf-8"))
    REPORT.parent.mkdir(exist_ok=True)
    if source.parent == COURSE:
        page = blocks.run_page(source)
    else:
        with tempfile.TemporaryDirectory() as folder:
            page = blocks.run_page(source, Path(folder))
    return with_diagrams(page)


def with_diagrams(page: blocks.Page) -> blocks.Page:
    """The same with drawings (SVG files on a line of their own) in the page, where they follow its light or dark theme.
    Their own style is for the file alone.
    """

    def figure(match: re.Match[str]) -> str:
        word = f"FIGURE{blocks.key(page.source)}N{len(page.figures)}E"
        drawing = (page.source.parent / match[2]).read_text(encoding="utf-8")
        drawing = re.sub(r"<\?xml.*?\?>|<style>.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
        page.figures[word] = " ".join(drawing.split())
        return f'<figure class="diagram" markdown="1">\n\n{word}\n\n{match[1]}\n\n</figure>'

    page.markdown = DIAGRAM.sub(figure, page.markdown)
    return page


def family_files(match: re.Match[str]) -> str:
    """A list of the files that hold an operator family: definition, gradient, fast versions."""
    family = match[1]
    folder = ROOT / "kernels" / family
    code = [path for path in sorted(folder.rglob("*.py")) if path.read_text().count("\n") > 1]  # not bare packages
    kinds = {
        "the definition": [folder / "reference.py"],
        "the gradient on the tape": [ROOT / "autograd" / "ops" / f"{family}.py"],
        "the CPU kernels": [path for path in code if "cpu" in path.relative_to(folder).with_suffix("").parts],
        "the CUDA kernels, and their launches": [
            *sorted(folder.rglob("*.cu")),
            *(path for path in code if "cuda" in path.relative_to(folder).with_suffix("").parts),
        ],
    }
    rows = []
    for kind, paths in kinds.items():
        names = [str(path.relative_to(ROOT)) for path in paths if path.exists()]
        if names:
            first = folder.relative_to(ROOT).as_posix() + "/"
            links = [
                f"[`{name if k == 0 else name.removeprefix(first)}`](../../{name})" for k, name in enumerate(names)
            ]
            rows.append(f"- {kind}: {', '.join(links)}")
    return "\n".join(rows)


def lay_out(pages: list[blocks.Page], folder: Path) -> formulas.Formulas:
    """Write the Markdown that mkdocs reads: words for formulas and figures, links turned towards pages of the site."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ours = {page.source: place(page.source) for page in pages}
    found, linked = formulas.Formulas(), set()

    for page in pages:
        here = Path(ours[page.source]).parent

        def target(match: re.Match[str], page: blocks.Page = page, here: Path = here) -> str:
            name = match["target"]
            if name is None or name == REPORT.name:
                return match[0]
            path = (page.source.parent / name).resolve()
            if path in ours:
                return os.path.relpath(ours[path], here)
            if not path.exists():
                raise FileNotFoundError(f"{page.source.relative_to(ROOT)} links to {name}, which does not exist")
            linked.add(path)
            name = f"source/{path.relative_to(ROOT).as_posix()}"
            return os.path.relpath(name if path.suffix in PICTURES else f"{name}.md", here)

        text = LINK.sub(target, FILES.sub(family_files, page.markdown))
        out = folder / ours[page.source]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found.take(text), encoding="utf-8")
    for path in sorted(linked):
        name = path.relative_to(ROOT).as_posix()
        out = folder / "source" / f"{name}.md"
        out.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in PICTURES:
            shutil.copyfile(path, folder / "source" / name)
            continue
        text = (
            "\n".join(sorted(f.name for f in path.iterdir()))
            if path.is_dir()
            else path.read_text(encoding="utf-8").rstrip()
        )
        code = f"````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````"
        out.write_text(f"---\nsearch:\n  exclude: true\n---\n# {name}\n\n{code}\n", encoding="utf-8")
    shutil.copyfile(DOCS / "style.css", folder / "style.css")
    # without seconds
    steady = re.sub(r'(<td class="n">)\d+\.\d{3}(?=</td>)', r"\1", REPORT.read_text(encoding="utf-8"))
    (folder / COURSE.name / REPORT.name).write_text(steady, encoding="utf-8")
    return found


def navigation(titles: dict[Path, str]) -> list[dict[str, Any]]:
    """mkdocs' table of contents, from the title of every page."""
    out: list[dict[str, Any]] = []
    for section, names in NAV.items():
        entries: list[Any] = []
        for name in names:
            path = ELSEWHERE.get(name, DOCS / name)
            if name == "api/":
                for package, stems in api.SECTIONS.items():
                    pages = [{titles[api.FOLDER / f"{stem}.md"]: f"api/{stem}.md"} for stem in stems]
                    entries += pages if len(pages) == 1 else [{package: pages}]
            elif path in titles:
                entries.append({titles[path] if path.parent == COURSE else titles[path].partition(":")[0]: name})
        out.append({section: entries if len(names) > 1 else names[0]})
    return out


def held(before: str, html: str, after: str) -> str:
    """A formula with the punctuation around it moved inside, where no line breaks: a browser may break a line at the
    edge of a formula.
    """
    first, last = '<span class="katex-base">', "</span>" * 3
    if first not in html or not html.endswith(last):
        raise ValueError(f"not the HTML that KaTeX makes: {html[:60]} ... {html[-60:]}")
    if before:
        html = html.replace(first, f'{first}<span class="held">{before}</span>', 1)
    if after:
        html = f'{html.removesuffix(last)}<span class="held">{after}</span>{last}'
    return html


def build(pages: list[blocks.Page], out: Path, work: Path) -> None:
    """The site of these pages in `out`; `work` keeps KaTeX and what is made on the way."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config

    pages = [*pages, *api.pages()]
    found = lay_out(pages, work / "docs")
    nav = navigation({page.source: page.title for page in pages})
    config = load_config(str(DOCS / "mkdocs.yml"), docs_dir=str(work / "docs"), site_dir=str(out), nav=nav, strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    mkdocs_build(config)
    words = found.set(work / "katex")
    for page in pages:
        words |= page.figures
    tex = {word: key[0] for key, word in found.found.items()}
    for path in [*out.rglob("*.html"), *out.rglob("search_index.js*")]:
        html, plain = path.read_text(encoding="utf-8"), not path.name.endswith(".html")
        table = {word: " ".join(re.sub(r'[\\"]', "", text).split()) for word, text in tex.items()} if plain else words
        put = "{}{}{}".format if plain else held
        html = WORDS.sub(lambda m, t=table, put=put: t.get(m[1], "") if m[1] else put(m[2], t[m[3]], m[4]), html)
        up = "../" * (len(path.relative_to(out).parts) - 1)
        path.write_text(html.replace("https://unpkg.com/iframe-worker/shim", up + formulas.SHIM), encoding="utf-8")
    formulas.copy_assets(work / "katex", out)


def main() -> None:
    """Run the pages, build the site, say how long it took."""
    parser = argparse.ArgumentParser(description="Build the documentation as a site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="where the site goes")
    parser.add_argument(
        "--only", default="", help="run only the pages whose name contains this text, and print their Markdown"
    )
    options = parser.parse_args()
    start, pages = time.perf_counter(), []
    for source in sources():
        if options.only in source.name:
            begin = time.perf_counter()
            pages.append(run(source))
            print(
                f"{source.relative_to(ROOT)}  {time.perf_counter() - begin:.1f} s  {len(pages[-1].figures)} figures",
                file=sys.stderr,
            )
    if options.only:
        print("\n".join(page.markdown for page in pages))
        return
    build(pages, options.out.resolve(), ROOT / "build" / "course")
    print(f"{options.out / 'index.html'}  {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
