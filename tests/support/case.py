"""A row of the table of operators: samples that must agree everywhere, and inputs that must fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.gradcheck.catalogue.makers import Maker, Sample


@dataclass(frozen=True)
class Bad:
    """inputs that must fail with `error` and a message that matches `match`."""

    inputs: Sequence[Maker]
    error: type[Exception]
    match: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """name, operator, PyTorch's form of it (None: PyTorch has none), samples, bad inputs."""

    name: str
    fn: Callable[..., Any]
    torch: Callable[..., Any] | None
    samples: Sequence[Sample]
    bad: Sequence[Bad] = ()
