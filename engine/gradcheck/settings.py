"""The command line's free settings: `--stride 2 --shape 2,9,11,3` become keyword arguments of an operator's builder."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from engine.cli import UsageError

WORDS = {"true": True, "false": False, "none": None}
TUPLES = ("shape", "other_shape", "sizes")


def split_arguments(argv: Sequence[str], known: Mapping[str, bool]) -> tuple[list[str], dict[str, Any]]:
    """(what the command itself understands, the rest as settings). known: option -> whether a value follows it.

    An unknown option takes the next word as its value, or is True when there is none. Raises UsageError when an option
    is given twice.
    """
    own: list[str] = []
    settings: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            own.append(word)
            continue
        option, equals, value = word.partition("=")
        if option in known:
            own.append(option)
            if known[option]:
                own += [value] if equals else [words.pop(0)] if words else []
            continue
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        key = option[2:].replace("-", "_")
        if key in settings:
            raise UsageError(f"{option} is given twice")
        settings[key] = parse(value)
        if key in TUPLES and isinstance(settings[key], int):
            settings[key] = (settings[key],)
        if key in TUPLES and not (
            isinstance(settings[key], tuple) and all(isinstance(n, int) and n > 0 for n in settings[key])
        ):
            raise UsageError(f"{option}: got {value!r}, expected positive integers such as 2,9,11,3")
    return own, settings


def parse(text: str) -> Any:
    """'2' -> 2, '2,9' -> (2, 9), 'true' -> True, 'none' -> None, '((1,2),(0,1))' -> nested tuples, anything else stays
    text.
    """
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
