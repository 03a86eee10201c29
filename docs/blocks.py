"""Executed documents: the code blocks of a Markdown page, run from top to bottom in one namespace, and what they print
and draw.

    ```python                   shown; what it prints follows it
    ```python shown             a fragment: shown, not run
    ```python hidden            run, not shown; what it prints is
    ```python figure Caption    run, folded away; its figure is shown with that caption
    ```console                  every line after "$ " is run by a shell; the output follows

A block that raises stops the build, with the line of the page in the traceback. Every chapter of the course
(docs/gradients) begins with PREAMBLE, as its first page says; other pages import what they use.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
PREAMBLE = """\
import numpy as np
import matplotlib.pyplot as plt
from autograd import Function, Tensor, gradcheck, ops

def leaf(*shape, seed=0):
    \"\"\"A random float64 Tensor that wants a gradient.\"\"\"
    return Tensor(np.random.default_rng(seed).normal(size=shape), requires_grad=True)


def brief(report):
    \"\"\"Verdict, error, what the error may be, and of what.\"\"\"
    error, bar = f"error {report.error:.0e}", f"bar {report.bar:.0e}"
    return f"{report.verdict}   {error}   {bar}   {report.name}"
"""
FENCE = re.compile(r"^```(\w*)[ ]?(.*)$")
# Times differ from run to run; a page that is built twice must not: the row "seconds", the column "seconds", "in 0.2
# s", "41 images/s  0:07", and what is compiled in the first run only.
UNSTEADY = re.compile(
    r"^ *seconds +[\d.]+\n?|(?<=\S) +seconds(?=\n)|(?<=\d) +\d+\.\d{3}(?=\n)| in [\d.]+ s\b"
    r"|  \d+ images/s  [\d:]+|^compiling kernels .*\n",
    re.MULTILINE,
)
INK = "#010203"  # matplotlib's ink; becomes currentColor, so that a figure follows the page's light or dark theme
STYLE = {
    "svg.fonttype": "path",
    "figure.figsize": (7.2, 3.0),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.prop_cycle": "cycler('color', ['#4477cc', '#dd6633', '#33997a', '#aa5599', '#bb9922', '#777777'])",
    "legend.frameon": False,
    "image.interpolation": "nearest",
    "lines.linewidth": 1.8,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass
class Page:
    """A page that has been run: its Markdown with the outputs in place, its figures (SVG) by the word that stands for
    each.
    """

    source: Path
    markdown: str = ""
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The text of the first heading."""
        found = re.search(r"^# (.+)$", self.markdown, re.MULTILINE)
        return found.group(1) if found else self.source.stem


def key(source: Path) -> str:
    """Letters and digits that name a page."""
    path = source.relative_to(ROOT) if source.is_relative_to(ROOT) else Path(source.name)
    return re.sub(r"[^A-Za-z0-9]", "", path.with_suffix("").as_posix())


def run_page(source: Path, folder: Path = ROOT) -> Page:
    """Run all blocks of a page, in a folder. Raises whatever a block raises."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    page, out, namespace = Page(source), [], {"__name__": "__page__"}
    if source.parent.name == "gradients":
        exec(PREAMBLE, namespace)
    lines = source.read_text(encoding="utf-8").splitlines()
    at = 0
    check = importlib.import_module("autograd.gradcheck.check")
    unhurried = mock.patch.object(check, "MAP_SECONDS", math.inf)  # else a busy machine draws fewer heat maps
    style = plt.rc_context(STYLE | {"svg.hashsalt": source.stem})
    with style, warnings.catch_warnings(), unhurried, contextlib.chdir(folder):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Creating legend")  # it warns when the machine is busy
        while at < len(lines):
            opening = FENCE.match(lines[at])
            if opening is None:
                out.append(lines[at])
                at += 1
                continue
            end = next((k for k in range(at + 1, len(lines)) if lines[k].rstrip() == "```"), None)
            if end is None:
                raise SyntaxError(f"{source.name}:{at + 1}: this block has no end")
            out += _block(page, namespace, opening.group(1), opening.group(2), lines[at + 1 : end], at + 1)
            at = end + 1
    page.markdown = "\n".join(out) + "\n"
    return page


def _block(page: Page, namespace: dict[str, Any], language: str, flags: str, code: list[str], line: int) -> list[str]:
    """The Markdown lines that take a block's place."""
    kind, _, caption = flags.partition(" ")
    if language == "console":
        return ["```console", *(text for command in code for text in _console(command)), "```"]
    if language == "python" and kind == "shown":
        return ["```python", *code, "```"]
    if language != "python":
        return [f"```{language}", *code, "```"]
    if kind not in ("", "hidden", "figure"):
        raise SyntaxError(f"{page.source.name}:{line}: a block is plain, 'shown', 'hidden' or 'figure', got {kind!r}")
    printed = run_block("\n".join(code), namespace, page.source, line)
    shown = ["```python", *code, "```"]
    output = (
        [
            "",
            '<div class="output" markdown="1">',
            "",
            "```text",
            *printed.rstrip("\n").splitlines(),
            "```",
            "",
            "</div>",
            "",
        ]
        if printed
        else []
    )
    if kind == "figure":
        word = f"FIGURE{key(page.source)}N{len(page.figures)}E"
        page.figures[word] = _figure(caption, f"{page.source.name}:{line}")
        folded = [
            '<details class="code" markdown="1">',
            "<summary>The code of this figure</summary>",
            "",
            *shown,
            "",
            "</details>",
        ]
        return [*output, '<figure markdown="1">', "", word, "", caption, "", "</figure>", "", *folded]
    return output if kind == "hidden" else [*shown, *output]


def run_block(code: str, namespace: dict[str, Any], source: Path, line: int) -> str:
    """Run one block and return what it printed. Tracebacks name the page's own lines."""
    program = compile("\n" * line + code, str(source), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        exec(program, namespace)
    return UNSTEADY.sub("", stdout.getvalue())


def _console(line: str) -> list[str]:
    if not line.startswith("$ "):
        return [line]
    command = re.sub(r"\bpython\b", sys.executable, line[2:], count=1)
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: a check that failed, which a page may want to show
        raise RuntimeError(f"{line}\n{done.stdout}{done.stderr}")
    return [line, *UNSTEADY.sub("", done.stdout + "\n").rstrip().splitlines()]


def _figure(caption: str, where: str) -> str:
    import matplotlib.pyplot as plt

    if not plt.get_fignums():
        raise RuntimeError(f"{where}: the block drew no figure")
    for ax in plt.gcf().axes:
        if ax.images:
            ax.spines[:].set_visible(False)
    stream = io.StringIO()
    plt.gcf().savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close("all")
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    label = re.sub(r"[$\\`*{}]", "", caption).replace('"', "'").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
