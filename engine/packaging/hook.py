"""Build the wheel: the checkout's packages go below `areograd`, and so do the names in their imports.

In a checkout `engine`, `layers`, `autograd`, `kernels` and `bench` are packages of the top level. Other projects on
PyPI have these names, so the wheel holds one package, areograd, with the five in it. Two things change in their text:

    from kernels.core import device      from areograd.kernels.core import device
    python -m engine.train --resume      areograd train --resume

Hatchling calls `CustomBuildHook.initialize`. In an editable installation the packages stay where they are, and
areograd.layers is layers (editable.py).
"""

from __future__ import annotations

import ast
import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("autograd", "bench", "engine", "kernels", "layers")
HERE = "engine/packaging"
SUFFIXES = {".py", ".typed", ".cu", ".cuh", ".html", ".toml"}


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the wheel's files into a folder of their own, which lasts as long as the build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        self.folder = tempfile.TemporaryDirectory()
        made = Path(self.folder.name)
        package = (root / HERE / "package.py").read_text(encoding="utf-8")
        if version == "editable":
            (made / "__init__.py").write_text(package + "\n\nimport_module('areograd.checkout')\n", encoding="utf-8")
            (made / "checkout.py").write_text((root / HERE / "editable.py").read_text("utf-8"), encoding="utf-8")
            build_data["force_include_editable"] = {str(made): "areograd"}
            return
        write(root, made)
        (made / "__init__.py").write_text(package, encoding="utf-8")
        build_data["force_include"] = {str(made): "areograd"}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.folder.cleanup()


def write(root: Path, target: Path) -> None:
    """Write the files of the packages in `root` to `target`, as they are in the package areograd."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            place = path.relative_to(root)
            if path.suffix not in SUFFIXES or place.is_relative_to(HERE):
                continue
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".py":
                text = moved_imports(text, str(place))
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            (target / place).write_text(moved_commands(text), encoding="utf-8")


def moved_imports(text: str, name: str) -> str:
    """The text of a module with `areograd.` before the names of our packages in its imports.

    Raises SyntaxError for `import kernels.core`, which would bind another name than in a checkout; `from` and `as` say
    what they bind.
    """
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text, name)):
        at = getattr(node, "lineno", 1) - 1
        if isinstance(node, ast.ImportFrom) and not node.level and _is_ours(node.module or ""):
            start = len(lines[at].encode()[: node.col_offset].decode())
            lines[at] = lines[at][:start] + lines[at][start:].replace("from ", "from areograd.", 1)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if not _is_ours(alias.name):
                    continue
                if ("." in alias.name and not alias.asname) or len(node.names) > 1:
                    raise SyntaxError(f"{name}:{node.lineno}: expected `from ... import`, or `import ... as`")
                new = f"import areograd.{alias.name} as" if alias.asname else f"from areograd import {alias.name}"
                old = f"import {alias.name} as" if alias.asname else f"import {alias.name}"
                lines[at] = lines[at].replace(old, new, 1)
    return "".join(lines)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def moved_commands(text: str) -> str:
    """The text with the commands that an installation has: `areograd train` for `python -m engine.train`."""
    text = re.sub(r"python -m engine\.(\w+)", r"areograd \1", text)
    text = re.sub(r"python -m engine\b", "areograd", text)
    text = re.sub(r"python -m (bench\.\w+)", r"python -m areograd.\1", text)
    return re.sub(r"python -m bench\b", "areograd bench", text)
