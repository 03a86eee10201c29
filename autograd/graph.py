"""Draw the tape: which operators made a result, with the shapes that flow between them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from autograd.function import Function
from autograd.tensor import Tensor


def graph(result: Tensor, names: dict[int, str] | None = None) -> str:
    """The tape behind `result` as graphviz dot text. names: id(tensor) -> label for leaves, e.g. parameter names."""
    names = names or {}
    lines = ["digraph tape {", '  node [shape=box, fontname="Helvetica", fontsize=10];', "  rankdir=TB;"]
    seen: set[int] = set()

    def leaf(tensor: Tensor) -> str:
        key = f"t{id(tensor)}"
        if id(tensor) not in seen:
            seen.add(id(tensor))
            label = f"{names.get(id(tensor), 'leaf')}\\n{tensor.shape}"
            lines.append(f'  {key} [label="{label}", style=filled, fillcolor="#dde8f5"];')
        return key

    lines.append(f'  result [label="result\\n{result.shape}", style=filled, fillcolor="#f5e6d3"];')
    todo: list[Function] = []
    if result.creator is None:
        lines.append(f"  {leaf(result)} -> result;")
    else:
        todo.append(result.creator)
        lines.append(f"  f{id(result.creator)} -> result;")
    while todo:
        function = todo.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        lines.append(f'  f{id(function)} [label="{function.name}", style="rounded,filled", fillcolor="#eeeeee"];')
        for parent in function.parents:
            if parent is None:
                continue
            source = leaf(parent) if parent.creator is None else f"f{id(parent.creator)}"
            lines.append(f'  {source} -> f{id(function)} [label="{parent.shape}", fontsize=8];')
            if parent.creator is not None:
                todo.append(parent.creator)
    return "\n".join([*lines, "}"])


def draw(result: Tensor, path: str | Path, names: dict[int, str] | None = None) -> Path:
    """Write the graph to `path`: .dot text, or .svg when graphviz's `dot` program is installed. Returns what was
    written.
    """
    path = Path(path)
    text = graph(result, names)
    if path.suffix == ".svg" and shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg", "-o", str(path)], input=text, text=True, check=True)
        return path
    path = path.with_suffix(".dot")
    path.write_text(text)
    return path
