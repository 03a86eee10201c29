"""Formulas: LaTeX between dollar signs, set by KaTeX while the site is built, so that pages need neither a script nor a
network.

A formula that KaTeX does not understand stops the build.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("katex@0.19.1", "iframe-worker@1.0.4")  # the second lets the search run in a page that is opened as a file
# Code is left alone: a fenced block, a code span. Then $$display$$ and $inline$.
PIECES = re.compile(
    r"(?P<code>^```.*?^```\s*$|(?P<tick>`+).+?(?P=tick))|\$\$(?P<display>.+?)\$\$|\$(?P<inline>(?:\\.|[^$\\\n]|\n(?!\n))+?)\$",
    re.M | re.S,
)
SHIM = "assets/iframe-worker.js"
MACROS = {
    r"\T": r"^{\mathsf{T}}",
    r"\R": r"\mathbb{R}",
    r"\g": r"\bar{#1}",
    r"\dd": r"\mathrm{d}",
    r"\inner": r"\langle #1, #2 \rangle",
    r"\iv": r"[\,#1\,]",
}
SET = """
const katex = require("katex"), macros = JSON.parse(process.argv[1]);
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(formulas.map(([tex, displayMode]) => {
  try { return katex.renderToString(tex, {displayMode, macros: {...macros}, throwOnError: true, strict: "error"}); }
  catch (error) { return {tex, error: error.message}; }
})));
"""


class Formulas:
    """Collects the formulas of all pages; `take` leaves a word in the place of each."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, bool], str] = {}

    def take(self, markdown: str) -> str:
        """The Markdown with a word for every formula: what is between is not touched by Markdown then."""

        def word(match: re.Match[str]) -> str:
            if match["code"]:
                return match[0]
            display = match["display"] is not None
            key = ((match["display"] if display else match["inline"]).strip(), display)
            return self.found.setdefault(key, f"FORMULA{len(self.found)}E")

        return PIECES.sub(word, markdown)

    def set(self, folder: Path) -> dict[str, str]:
        """HTML (with MathML for readers that want it) by word."""
        module = install(folder)
        done = subprocess.run(
            [executable("node"), "-e", SET, json.dumps(MACROS)],
            input=json.dumps(list(self.found)),
            capture_output=True,
            text=True,
            check=True,
            cwd=module,
        )
        html = json.loads(done.stdout)
        for result in html:
            if isinstance(result, dict):
                raise ValueError(f"formula {result['tex']!r}: {result['error']}")
        return dict(zip(self.found.values(), html, strict=True))


def install(folder: Path) -> Path:
    """The folder of the KaTeX package; fetched by npm once."""
    modules, stamp = folder / "node_modules", folder / " ".join(PACKAGES)
    if not stamp.exists():
        folder.mkdir(parents=True, exist_ok=True)
        flags = (
            "--no-package-lock",
            "--no-save",
            "--no-audit",
            "--no-fund",
            "--silent",
            "--prefix",
            str(folder.resolve()),
        )
        # npm starts the node that it finds there
        path = f"{Path(executable('node')).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(
            [executable("npm"), "install", *flags, *PACKAGES], check=True, cwd=folder, env=os.environ | {"PATH": path}
        )
        stamp.touch()
    return modules / "katex"


def copy_assets(folder: Path, site: Path) -> None:
    """KaTeX's style sheet and fonts (woff2 only), and the search's shim, into the site."""
    dist, target = folder / "node_modules" / "katex" / "dist", site / "assets" / "katex"
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    style = re.sub(r',url\(fonts/[^)]+\.(?:woff|ttf)\) format\("[^"]+"\)', "", (dist / "katex.min.css").read_text())
    (target / "katex.min.css").write_text(style)
    for font in sorted((dist / "fonts").glob("*.woff2")):
        shutil.copyfile(font, target / "fonts" / font.name)
    shutil.copyfile(folder / "node_modules" / "iframe-worker" / "shim" / "index.js", site / SHIM)


def available() -> bool:
    """Whether Node, which runs KaTeX, is installed beside this Python or on the path."""
    return _find("node") is not None


def executable(name: str) -> str:
    """Node's program of that name: the one that the pip extra `docs` brings, else the one on the path."""
    found = _find(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: pip install --editable '.[docs]'")
    return found


def _find(name: str) -> str | None:
    own = Path(sys.executable).parent
    return shutil.which(name, path=str(own)) or shutil.which(name)
