"""The help page of a command, made from its options: a dataclass with a docstring behind every field.

The page has the class's docstring with its examples, then the options in groups. A class names its groups by their
first field:  GROUPS: ClassVar = {"preset": "what to train", ...}
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

_INDENT = 22  # columns before the text of an option
_WIDEST = 110
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """name: as it is written, --learning-rate, or DATA (its metavar) for a positional argument.
    short: another name, such as -q.   values: what may follow it.  group: the title that it begins, if it does.
    """

    name: str
    short: str
    values: str
    text: str
    default: str
    group: str

    @property
    def positional(self) -> bool:
        """Whether it is given without a name."""
        return not self.name.startswith("-")


def options_of(kind: type, default: Any = None) -> Iterator[Option]:
    """The options of a dataclass, those of a dataclass in it (its settings) in place. default: an instance with other
    defaults.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = _docstrings(kind)
    groups = getattr(kind, "GROUPS", {})
    for field in dataclasses.fields(kind):
        hint, marks = hints[field.name], []
        if typing.get_origin(hint) is typing.Annotated:
            hint, *marks = typing.get_args(hint)
        value = _default(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(hint):
            yield from options_of(typing.cast(type, hint), value)
            continue
        configured = [mark for mark in marks if hasattr(mark, "metavar")]
        names = [mark.name for mark in configured if mark.name is not None]
        metavars = [mark.metavar for mark in configured if mark.metavar is not None]
        name = (names or [field.name])[0].replace("_", "-")
        positional = tyro.conf.Positional in marks
        short = [alias for mark in configured for alias in mark.aliases or ()]
        values = (metavars or [name.upper() if positional else _values(hint)])[0]
        yield Option(
            values if positional else f"--{'no-' if value is True else ''}{name}",
            ", ".join(short),
            "" if positional else values,
            texts.get(field.name, ""),
            "" if positional else _shown(value),
            groups.get(field.name, ""),
        )


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _shown(value: Any) -> str:
    """A default as it would be typed; nothing where there is none, or where it is off."""
    if value is None or isinstance(value, bool) or value in ("", ()):
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _values(hint: Any) -> str:
    """What follows an option of this type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _values(next(kind for kind in inner if kind is not type(None)))
    if origin is typing.Literal:
        return "|".join(map(str, inner))
    if origin is tuple:
        return f"{_values(inner[0])} ..." if inner[-1] is ... else " ".join(map(_values, inner))
    return "" if hint is bool else _METAVARS.get(hint, "VALUE")


def _docstrings(kind: type) -> dict[str, str]:
    """The strings behind the fields of a class, each as one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assignments = zip(body.body, body.body[1:]) if isinstance(body, ast.ClassDef) else ()
    return {
        before.target.id: " ".join(behind.value.value.split())
        for before, behind in assignments
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(behind, ast.Expr)
        and isinstance(behind.value, ast.Constant)
        and isinstance(behind.value.value, str)
    }


def page(kind: type, prog: str, default: Any = None, more: str = "") -> str:
    """The whole help page. more: paragraphs behind the options."""
    width = min(_WIDEST, shutil.get_terminal_size((100, 24)).columns)
    options = list(options_of(kind, default))
    positionals = "".join(f" {option.name}" for option in options if option.positional)
    lines = [f"usage: {prog} [OPTIONS]{positionals}", "", *_flowed(inspect.getdoc(kind) or "", width)]
    title = "options"
    shown = None
    for option in sorted(options, key=lambda option: not option.positional):
        title = "arguments" if option.positional else option.group or ("options" if title == "arguments" else title)
        if title != shown:
            lines += ["", f"{title}:"]
            shown = title
        lines += _entry(option, width)
    common = "--help, --version, and --debug, which shows the traceback of an error, go with every command."
    return "\n".join([*lines, "", *(_flowed(more, width) if more else []), *([""] if more else []), common])


def _entry(option: Option, width: int) -> list[str]:
    head = f"  {option.short + ', ' if option.short else ''}{option.name} {option.values}".rstrip()
    text = option.text + (f" (default: {option.default})" if option.default else "")
    body = textwrap.wrap(text, width - _INDENT, break_on_hyphens=False)
    if len(head) < _INDENT - 1 and body:
        return [f"{head:<{_INDENT}}{body[0]}", *(" " * _INDENT + line for line in body[1:])]
    heads = textwrap.wrap(head.strip(), width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    return [*heads, *(" " * _INDENT + line for line in body)]


def _flowed(text: str, width: int) -> list[str]:
    """Paragraphs filled to the width; lines that are indented, and those before them, stay as they are."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        if lines:
            lines.append("")
        rows = paragraph.strip("\n").split("\n")
        lines += rows if any(row.startswith(" ") for row in rows) else textwrap.wrap(" ".join(rows), width)
    return lines
