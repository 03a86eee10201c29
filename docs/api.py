"""The API reference: signatures, docstrings and sources of everything public, read by griffe without importing it.

A page per operator family; `PAGES` says which modules a page takes its names from. What a package exports and no page
shows stops the build, and so does a docstring that is missing. Docstrings are plain text, not Markdown, so they are set
here: paragraphs, lines that were ended on purpose, and formulas that keep their columns.
"""

from __future__ import annotations

import ast
import html
import importlib
import os
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from blocks import ROOT, Page

FOLDER = ROOT / "docs" / "api"  # where the pages would lie: nothing is written there
COLUMNS = 120  # docstrings are wrapped at this column
METHODS = ("__call__", "__init__")  # shown although their names begin with an underscore
PRIVATE = re.compile(r"^_(?!_\w+__$)")


LABEL = re.compile(r"\w+(?:, \w+)*: |Raises |[A-Z]\w*Error ")  # what a line begins with that is about an argument


class Contents(NamedTuple):
    """A page: its title, one paragraph that says what it holds, and the modules whose public names it shows."""

    title: str
    text: str
    modules: tuple[str, ...]


def _ops(title: str, text: str, rules: str, *modules: str) -> Contents:
    """A page of operators. rules: the shapes, dtypes and errors that hold for all of them."""
    return Contents(
        title,
        f"{text} Import them from `autograd.ops`.\n\n*For all of them:* {rules}",
        tuple(f"autograd.ops.{name}" for name in modules),
    )


PAGES = {
    "autograd": Contents(
        "autograd",
        "Tensors, the tape, the base class of operators, and the gradient checks.",
        (
            "autograd.tensor",
            "autograd.function",
            "autograd.modes",
            "autograd.checkpoint",
            "autograd.gradcheck",
            "autograd.graph",
            "autograd.random",
        ),
    ),
    "ops-arithmetic": _ops(
        "Arithmetic, comparison",
        "Operators of one number each.",
        "operands are Tensors, arrays or numbers whose shapes broadcast; the result has the common shape. Its dtype "
        "follows [the rules of promotion](../tensor.md#the-dtype-of-a-result). ValueError for shapes that do not "
        "broadcast, TypeError for what holds no numbers, and for floats where bits are combined.",
        "arithmetic",
        "elementary",
        "comparison",
        "promotion",
    ),
    "ops-reduction": _ops(
        "Reductions, order",
        "Sums, extremes and sorting along axes.",
        "x has any shape; `axis` is a number or several, counted from the end where negative, and goes, unless "
        "`keepdims` keeps it with length 1. The dtype is x's unless a line says otherwise; float16 is summed in "
        "float32. `numpy.exceptions.AxisError` for an axis that x does not have, ValueError for a maximum of nothing.",
        "reduction",
        "sorting",
    ),
    "ops-shape": _ops(
        "Shapes, indices",
        "Operators that move numbers and change none.",
        "any dtype, which the result keeps. ValueError for shapes, sizes or axes that do not fit; IndexError for an "
        "index outside its range, TypeError for one that is no integer.",
        "shape",
        "indexing",
    ),
    "ops-linear": _ops(
        "Products",
        "Matrix products and sums of products.",
        "the dtype is that of promotion, except that `linear` takes operands of one dtype (TypeError); float16 is "
        "summed in float32. ValueError for shapes that do not fit, which names both.",
        "linear",
        "einsum",
    ),
    "ops-conv": _ops(
        "Convolutions",
        "Channels come last, in images and in filters.",
        "images (N, H, W, C) or sequences (N, L, C) of float16, float32 or float64, filters and biases of the same "
        "dtype, which the result has (else TypeError). ValueError for other axes, and for channels that do not fit.",
        "conv",
        "conv1d",
        "conv_norm",
    ),
    "ops-pool": _ops(
        "Pooling, resizing",
        "Windows and grids of pixels.",
        "images (N, H, W, C); the result keeps the dtype. Means and resizing take floats only (TypeError). ValueError "
        "for other axes, sizes below 1, and windows larger than the padded image.",
        "pool",
        "resample",
    ),
    "ops-norm": _ops(
        "Norms",
        "Statistics over pixels, over channels, or over groups.",
        "floats (else TypeError); the result has x's dtype where weights and biases have it. Statistics are taken in "
        "float32 at least. ValueError for weights and biases whose shape does not fit the channels.",
        "norm",
        "group_norm",
    ),
    "ops-pointwise": _ops(
        "Activations, dropout",
        "Functions of one number, and softmax.",
        "x has any shape, which the result has, and its dtype, but for integers and booleans, which the functions of "
        "real numbers compute in float32. `numpy.exceptions.AxisError` for an axis that x does not have, ValueError "
        "for a setting outside its range.",
        "pointwise",
    ),
    "ops-attention": _ops(
        "Attention, gates",
        "Attention over pixels, and maps that weigh maps.",
        "floats; attention takes operands of one dtype (TypeError), gates follow the rules of promotion. ValueError "
        "for shapes that do not fit, which names them.",
        "attention",
        "gate",
    ),
    "ops-loss": _ops(
        "Losses",
        "Losses of classes and of values.",
        "losses of classes take logits (..., C) of floats, such as (N, H, W, C), and labels (...) of integers; the "
        "loss is a Tensor without axes, of the logits' dtype. `weight` has a number per class; pixels of "
        '`ignore_index` count nowhere; `background="mask"` treats class 0 as unlabelled. ValueError for shapes that '
        "do not fit and for a label outside its range, whose place is named; TypeError for labels that are no "
        "integers. Losses of values take two arrays whose shapes broadcast.",
        "loss",
        "regression",
    ),
    "kernels-nn": Contents(
        "Functions of arrays",
        "Convolution, pooling, batch norm, softmax and attention for NumPy and CuPy arrays, without a tape: "
        "`from kernels import nn`. What they replace: [Convolutions for CuPy](../cupy.md).\n\n*For all of them:* "
        "arrays of float16, float32 or float64, of one dtype where nothing else is said, and all on one device; the "
        "result has that dtype, is on that device, in C order, and shares no memory with them. TypeError for other "
        "arrays, ValueError for shapes and settings that do not fit, in one line that names function and argument.",
        tuple(f"kernels.nn.{name}" for name in ("conv", "conv_transpose", "pool", "norm", "pointwise", "dot_product")),
    ),
    "layers-base": Contents(
        "Modules",
        "The base class, parameters, containers, and what measures a network. Import them from `layers`.",
        ("layers.module", "layers.containers", "layers.summary", "layers.initialisers"),
    ),
    "layers-layers": Contents(
        "Layers",
        "Single layers with parameters. Import them from `layers`.\n\n*For all of them:* channels come last, and "
        "parameters are float32 until `to` changes them. A call raises what the operator named in the entry raises: "
        "ValueError for another number of axes or channels, TypeError for a dtype that it does not take.",
        (
            "layers.linear",
            "layers.conv",
            "layers.conv1d",
            "layers.norm",
            "layers.pointwise",
            "layers.pool",
            "layers.attention",
            "layers.gate",
        ),
    ),
    "layers-blocks": Contents(
        "Blocks, the network",
        "The blocks of the report's network, and the network. Import them from `layers`.\n\n*For all of them:* maps "
        "are (N, H, W, C), of the parameters' dtype: float32 until `to` changes it, else TypeError. ValueError for "
        "another number of axes or channels, in the name of the first operator that sees it. CBR is a convolution, "
        "batch norm and ReLU; 1x1, 3x3 are convolutions of that kernel, stride 1, padded to keep the size.",
        (
            "layers.residual",
            "layers.inception",
            "layers.aspp",
            "layers.strip",
            "layers.pyramid",
            "layers.bottleneck",
            "layers.unet",
        ),
    ),
    "layers-losses": Contents(
        "Losses as modules",
        "The losses of `ops` with their settings. Import them from `layers`.",
        ("layers.loss", "layers.regression"),
    ),
    "engine-fit": Contents(
        "fit, load",
        "Training any Module with any loss, and what a run has left, in Python. Import them from `engine`.",
        ("engine.training.fit", "engine.training.history", "engine.training.callbacks", "engine.trained"),
    ),
    "engine-training": Contents(
        "Training",
        "From settings to a trained network.",
        ("engine.config", "engine.build", "engine.training.trainer", "engine.training.step"),
    ),
    "engine-optimizers": Contents(
        "Optimizers, schedules",
        "Optimizers over one flat vector, and learning rates over time.",
        ("engine.training.optimizer", "engine.training.schedules"),
    ),
    "engine-inference": Contents(
        "Inference, scores",
        "From tiles and a checkpoint to labels and scores.",
        (
            "engine.training.checkpoint",
            "engine.ensemble",
            "engine.inference",
            "engine.windows",
            "engine.training.metrics",
            "engine.training.boundary",
            "engine.training.calibration",
            "engine.evaluate",
        ),
    ),
    "engine-export": Contents(
        "Export",
        "From a checkpoint to ONNX and PyTorch, and back.",
        (
            "engine.export.model",
            "engine.export.check",
            "engine.export.graph",
            "engine.export.torch_state",
            "engine.export.channels",
            "engine.export.card",
        ),
    ),
    "engine-profile": Contents(
        "Profile",
        "Where the time and the memory of a computation go ([profile](../profile.md)).",
        ("engine.profile",),
    ),
    "engine-data": Contents(
        "Data",
        "Reading, checking, cleaning, splitting and making data. Import them from `engine.data`.",
        (
            "engine.data.loading",
            "engine.data.tiles",
            "engine.data.classes",
            "engine.data.cleaning",
            "engine.data.splitting",
            "engine.data.weights",
            "engine.data.synthetic",
        ),
    ),
}
FAMILIES = (
    "attention",
    "augment",
    "conv",
    "gate",
    "loss",
    "metric",
    "norm",
    "optimizer",
    "pointwise",
    "pool",
    "resample",
    "shape",
)
SECTIONS = {
    "autograd": ["autograd"],
    "autograd.ops": [name for name in PAGES if name.startswith("ops-")],
    "layers": [name for name in PAGES if name.startswith("layers-")],
    "engine": [name for name in PAGES if name.startswith("engine-")],
    "kernels": ["kernels-nn", *(f"kernels-{family}" for family in FAMILIES)],
}
EXPORTS = ("autograd", "autograd.ops", "kernels.nn", "layers", "engine")  # packages whose __all__ must be on a page
NOT_SHOWN = {"ops", "random", "REPORT_TERMS"}  # two modules, which have entries of their own, and a constant
COMMANDS = {"main", "run"}  # of modules that are commands


def paths() -> list[Path]:
    """Where the pages would lie, in reading order."""
    return [FOLDER / f"{name}.md" for names in SECTIONS.values() for name in names]


def pages() -> list[Page]:
    """All pages. Raises LookupError for an exported name that no page shows or that has no docstring."""
    shown: set[str] = set()
    out = [_page(name, contents, shown) for name, contents in PAGES.items()]
    out += [_family(family) for family in FAMILIES]
    for package in EXPORTS:
        missing = set(importlib.import_module(package).__all__) - shown - NOT_SHOWN
        if missing:
            raise LookupError(f"no page of the API reference shows {', '.join(sorted(missing))} of {package}")
    order = {path: k for k, path in enumerate(paths())}
    return sorted(out, key=lambda page: order[page.source])


@cache
def _package(name: str) -> Any:
    import griffe

    return griffe.load(name, search_paths=[str(ROOT)], allow_inspection=False)


def _module(path: str) -> Any:
    package, _, rest = path.partition(".")
    return _package(package)[rest] if rest else _package(package)


def _public(module: Any) -> list[Any]:
    """The classes and functions that a module defines (a package: that it exports), in the order of their lines."""
    import griffe

    exports = {str(name) for name in module.exports or ()}
    found = []
    for name, member in module.members.items():
        if PRIVATE.match(name) or name in COMMANDS or (exports and name not in exports):
            continue
        if member.is_alias:
            if not exports or not module.is_init_module:
                continue
            try:
                member = member.final_target
            except griffe.AliasResolutionError:  # a constant that is assigned together with others
                continue
        if member.is_class or member.is_function:
            found.append(member)
    return sorted(found, key=lambda member: (str(member.filepath), member.lineno))


def _page(name: str, contents: Contents, shown: set[str]) -> Page:
    out = [f"# {contents.title}", "", contents.text]
    for path in contents.modules:
        operators = path.startswith("autograd.ops.")
        if path == "autograd.ops.promotion":
            path = "autograd.promotion"
        known = set(importlib.import_module("autograd.ops").__all__) if operators else None
        if path.startswith("engine.data."):
            known = set(_module("engine.data").members)
        if path in ("autograd.function", "autograd.tensor", "autograd.modes", "autograd.checkpoint", "autograd.graph"):
            known = set(importlib.import_module("autograd").__all__)
        for package in ("kernels.nn", "layers"):
            if path.startswith(f"{package}."):
                known = set(importlib.import_module(package).__all__)
        members = [member for member in _public(_module(path)) if known is None or member.name in known]
        if not members:
            raise LookupError(f"the API reference finds nothing in {path}")
        if len(contents.modules) > 1 and not operators:
            summary = _docstring(_module(path)).split("\n\n")[0]
            out += ["", f'<p class="module"><code>{path}</code> {_inline(" ".join(summary.split()))}</p>']
        for member in members:
            shown.add(member.name)
            out += _entry(member, operators)
    return Page(FOLDER / f"{name}.md", "\n".join(out) + "\n")


def _entry(member: Any, operator: bool = False) -> list[str]:
    """A class or a function: heading, signature, docstring, gradient, attributes and methods, source."""
    out = ["", f"## {member.name} {{ #{member.name} }}", ""]
    if member.is_function:
        out += ["```python", *signature(member.name, member.parameters, member.returns), "```", ""]
        out += _prose(_docstring(member))
        if operator:
            out += _gradient(member)
    else:
        out += _class(member)
    return [*out, "", _source(member)]


def _class(member: Any) -> list[str]:
    bases = ", ".join(str(base) for base in member.bases)
    init = member.members.get("__init__")
    fields = [
        attribute
        for attribute in member.members.values()
        if attribute.is_attribute
        and not attribute.is_alias
        and not PRIVATE.match(attribute.name)
        and "property" not in attribute.labels
        and attribute.annotation is not None
    ]
    made_of_fields = (
        any("dataclass" in str(decorator.value) for decorator in member.decorators) or "NamedTuple" in bases
    )
    head = f"class {member.name}({bases})" if bases else f"class {member.name}"
    out = ["```python", head, "```", ""]
    if init is not None and not init.is_alias and not made_of_fields:
        parameters = [p for p in init.parameters if p.name != "self"]
        out = ["```python", *signature(member.name, parameters, None), "```", ""]
    out += _prose(_docstring(member))
    if made_of_fields and fields:
        out += ["", '<table class="fields"><tbody>']
        for attribute in fields:
            kind = f"{attribute.annotation}" + (f" = {attribute.value}" if attribute.value is not None else "")
            text = attribute.docstring.value if attribute.docstring else ""
            out.append(
                f"<tr><td><code>{attribute.name}</code><br><code class='type'>{_text(kind)}</code></td>"
                f"<td>{_inline(' '.join(text.split()))}</td></tr>"
            )
        out += ["</tbody></table>"]
    for method in member.members.values():
        if method.is_alias or PRIVATE.match(method.name) or method.name == "__init__":
            continue
        described = method.docstring is not None
        if method.is_function and described and (not method.name.startswith("_") or method.name in METHODS):
            parameters = [p for p in method.parameters if p.name not in ("self", "cls")]
            out += ["", f"### {method.name} {{ #{member.name}.{method.name} }}", ""]
            out += [
                "```python",
                *signature(method.name, parameters, method.returns),
                "```",
                "",
                *_prose(_docstring(method)),
            ]
        elif method.is_attribute and "property" in method.labels and described:
            out += ["", f"### {method.name} {{ #{member.name}.{method.name} }}", ""]
            out += [
                "```python",
                f"{method.name}: {method.annotation}  # property",
                "```",
                "",
                *_prose(_docstring(method)),
            ]
    return out


def _gradient(member: Any) -> list[str]:
    """The mathematics of an operator: the docstrings of the Function classes that it calls."""
    body = ast.parse(member.source.strip() if not member.source.startswith(" ") else "pass")
    module = member.module
    out: list[str] = []
    for name in dict.fromkeys(node.id for node in ast.walk(body) if isinstance(node, ast.Name)):
        made = module.members.get(name)
        if made is None or made.is_alias or not made.is_class or made.docstring is None:
            continue
        out += [
            "",
            '<div class="gradient">',
            f"<p><b>Gradient</b> <code>{name}</code></p>",
            *_prose(_docstring(made)),
            "</div>",
        ]
    return out


def _family(family: str) -> Page:
    """The page of a kernel family: what each public kernel takes, gives, and by which modules it is served."""
    package = importlib.import_module(f"kernels.{family}")
    dispatch = importlib.import_module("kernels.core.dispatch")
    path = ROOT / "kernels" / family / "__init__.py"
    out = [f"# kernels.{family}", "", _sentence(package.__doc__)]
    out += ["", "How to read the lines of shapes: [`kernels/core/shapes.py`](../../kernels/core/shapes.py)."]
    for name, kernel in vars(package).items():
        if not isinstance(kernel, dispatch.Operator) or name.startswith("_"):
            continue
        reference = _module(kernel.reference.__module__)[kernel.reference.__name__]
        out += ["", f"## {name} {{ #{name} }}", "", "```python"]
        out += [*signature(name, reference.parameters, reference.returns), "```", "", *_prose(_docstring(reference))]
        if kernel.line:
            items = [" ".join(item.split()) for item in kernel.line.split(";")]
            out += ["", '<p class="label">Arrays</p>', "", "```text", *items, "```"]
        devices = {"cpu": "CPU", "cuda": "CUDA"}
        served = [f"{devices[device]} `{module}`" for device, module in kernel.modules.items()]
        fast = f"Fast: {', '.join(served)}. " if served else ""
        out += ["", f"{fast}{_source(reference, 'Definition: ')}"]
    out += ["", f"Declared in [`{path.relative_to(ROOT)}`](../../{path.relative_to(ROOT)})."]
    return Page(FOLDER / f"kernels-{family}.md", "\n".join(out) + "\n")


def signature(name: str, parameters: Any, returns: Any) -> list[str]:
    """A signature as the source has it: in one line where it fits beside the contents, else a parameter a line."""
    parts: list[str] = []
    kinds = [str(p.kind.value) for p in parameters]
    for k, p in enumerate(parameters):
        kind = kinds[k]
        if kind == "keyword-only" and not any(
            "variadic positional" in seen or seen == "keyword-only" for seen in kinds[:k]
        ):
            parts.append("*")
        star = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        text = f"{star}{p.name}" + (f": {p.annotation}" if p.annotation is not None else "")
        if p.default is not None and not star:
            text += f" = {p.default}" if p.annotation is not None else f"={p.default}"
        parts.append(text)
        if kind == "positional-only" and (k + 1 == len(kinds) or kinds[k + 1] != "positional-only"):
            parts.append("/")
    arrow = f" -> {returns}" if returns is not None else ""
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= 88:
        return [line]
    return [f"{name}(", *(f"    {part}," for part in parts), f"){arrow}"]


def _docstring(member: Any) -> str:
    if member.docstring is None:
        raise LookupError(f"{member.path} is public and has no docstring")
    return str(member.docstring.value)


def _sentence(text: str | None) -> str:
    return _inline(" ".join((text or "").split("\n\n")[0].split()))


def _text(text: str) -> str:
    return html.escape(text, quote=False).replace("$", "&#36;")


def _inline(text: str) -> str:
    """Plain text as HTML that Markdown leaves alone; what stands between backticks is code."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(f"<code>{_text(part)}</code>" if k % 2 else _mute(_text(part)) for k, part in enumerate(parts))


def _mute(text: str) -> str:
    """Without what Markdown would read as markup, where a text stands outside of an HTML block."""
    return re.sub(r"[*_\[\]`\\|~^]", lambda match: f"&#{ord(match[0])};", text)


def _prose(text: str) -> list[str]:
    """A docstring as HTML: paragraphs; lines that were ended before the wrapping column; indented blocks as code."""
    out: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") for line in lines):
            out += ["", "```text", *(line[4:] for line in lines), "```", ""]
            continue
        rows = [lines[0].strip()]
        for before, line in pairwise(lines):
            first = line.split()[0]
            wrapped = len(before) + 1 + len(first) > COLUMNS - 8  # 4 or 8 columns of indentation were taken off
            if (wrapped and not (before.endswith(".") and LABEL.match(line))) or line.startswith("  "):
                rows[-1] += " " + line.strip()
            else:
                rows.append(line.strip())
        body = "<br>".join(_formula(row) for row in rows)
        out += ["", f"<p>{body}</p>", ""]
    return out


def _formula(row: str) -> str:
    """A line; in code's type where it is a formula rather than a sentence."""
    words = re.findall(r"[A-Za-z]{4,}", row)
    formula = re.search(r"(?:^|[\w\])}]) (?:=|<-|->|<=) ", row) and len(words) <= 5
    return f"<code>{_text(row)}</code>" if formula and "`" not in row else _inline(row)


def _source(member: Any, before: str = "Source: ") -> str:
    path = Path(os.path.relpath(str(member.filepath), ROOT)).as_posix()
    return f"{before}[`{path}`, line {member.lineno}](../../{path}#__codelineno-0-{member.lineno})"
