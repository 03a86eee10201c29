"""The tutorial about a new operator is the recipe: its edits, applied to a copy of the tree, are all that the suite
asks for, and touch as few files as it says.

The page says "At the end of `FILE`:", "In `FILE`, after `TEXT`:" or "In `FILE`, in place of `TEXT`:" and shows a block;
TEXT stands in the file once. `after` is the line below the one that holds it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bench import emulation
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "tutorials" / "operator.md"
EDIT = re.compile(
    r"(?:at\s+the\s+end\s+of|in)\s+`(?P<file>[\w/.]+)`"
    r"(?:,\s+(?P<where>after|in\s+place\s+of)\s+`(?P<text>[^\n]+)`)?:\n\n```[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
FOLDERS = ("autograd", "bench", "docs", "engine", "examples", "kernels", "layers", "tests")
NAME = "logsigmoid"


class Edit(NamedTuple):
    """One change of a file."""

    file: str
    where: str  # "", "after" or "in place of"
    text: str
    code: str

    def apply(self, root: Path) -> None:
        """Change the file in a copy of the tree."""
        path = root / self.file
        source = path.read_text(encoding="utf-8")
        if not self.where:
            gap = "\n" * (3 if self.code.startswith(("def ", "class ", "@")) else 1)
            path.write_text(source.rstrip("\n") + gap + self.code, encoding="utf-8")
            return
        assert source.count(self.text) == 1, f"{self.file}: {self.text!r} stands there {source.count(self.text)} times"
        if self.where == "after":
            at = source.index("\n", source.index(self.text)) + 1
            source = source[:at] + self.code + source[at:]
        else:
            source = source.replace(self.text, self.code.rstrip("\n"))
        path.write_text(source, encoding="utf-8")


def stages() -> dict[str, list[Edit]]:
    """The edits under every heading of the page."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        edits = [
            Edit(m["file"], " ".join((m["where"] or "").split()), m["text"] or "", m["code"])
            for m in EDIT.finditer(body)
        ]
        if edits:
            found[title] = edits
    return found


def copied(root: Path) -> Path:
    """A copy of the tree."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, root / path.name)
    return root


def suite(root: Path, *arguments: str, emulate: str = "") -> None:
    """Run tests of the copy."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    if emulate:
        environment |= {"AREOGRAD_EMULATE": emulate, "AREOGRAD_EMULATOR": str(emulation.folder())}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_the_page_has_its_stages() -> None:
    found = stages()
    assert list(found) == ["The operator", "A CPU kernel", "A CUDA kernel"]
    edits = [edit for stage in found.values() for edit in stage]
    assert len(edits) == PAGE.read_text(encoding="utf-8").count("```python shown") + 1, "an edit is not recognised"
    for count, titles in ((4, 1), (5, 2), (7, 3)):  # and kernels/RESOURCES.md, which a command writes
        assert len({edit.file for stage in list(found.values())[:titles] for edit in stage}) == count


def test_the_recipe_holds(tmp_path: Path) -> None:
    """After the first stage nothing is missing in any table, and the generic tests pass for the operator; after the
    others those of its kernels do.
    """
    tree = copied(tmp_path / "tree")
    of_operator, of_cpu, of_cuda = stages().values()
    for edit in of_operator:
        edit.apply(tree)
    suite(tree, "tests", "-m", "table")
    suite(
        tree, *(f"tests/{folder}" for folder in ("autograd", "conformance", "engine/gradcheck", "kernels")), "-k", NAME
    )
    for edit in of_cpu:
        edit.apply(tree)
    suite(tree, "tests/kernels", "-k", NAME)
    for edit in of_cuda:
        edit.apply(tree)
    if (emulation.folder() / "__init__.py").exists() and importlib.util.find_spec("cupy") is not None:
        suite(tree, "tests/cuda/test_pointwise.py", "-k", NAME, emulate="check")
