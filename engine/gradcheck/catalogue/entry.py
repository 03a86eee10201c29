"""`Entry`: one operator, block or loss with the settings it can be built with. `Built`: one instance, ready to be
called and checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autograd import Tensor, observe
from engine.cli import UsageError
from kernels.core.device import to_device

KINDS = ("operator", "block", "loss", "network")


@dataclass
class Built:
    """fn of the arrays (all differentiated, named by `names`) and, for modules, the parameters behind it (names come
    with the module).

    convention: what holds at the kinks that the arrays hit on purpose, with the number of the array that decides the
        side.
    """

    fn: Callable[..., Any]
    arrays: list[np.ndarray]
    names: list[str]
    module: Any = None
    convention: str | None = None
    convention_input: int = 0

    def tensors(self, dtype: Any = np.float64, device: str = "cpu") -> list[Tensor]:
        """The arrays as Tensors that require gradients."""
        return [Tensor(to_device(array.astype(dtype), device), requires_grad=True) for array in self.arrays]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of the module, if there is one."""
        return [] if self.module is None else self.module.parameters()

    @property
    def target(self) -> Callable[..., Any]:
        """The function for gradcheck: fn, with the module's parameter names visible when there is a module."""
        if self.module is None:
            return self.fn
        fn = self.fn
        module = self.module

        class Named:
            """fn that knows its module's parameters by name."""

            named_parameters = staticmethod(module.named_parameters)

            def __call__(self, *inputs: Any) -> Any:
                return fn(*inputs)

        return Named()


@dataclass(frozen=True)
class Entry:
    """name and kind; build(rng, **settings) -> Built; variants: settings that are checked by default (the first is
    shown in pictures).

    kinks: further variants whose inputs hit kinks.   op: the public function or class, whose docstring and settings
        count.   torch: the path within torch of PyTorch's function of the same inputs, "nn.functional.silu", from which
        tests make their rows; tests/support/cases.py has the rows that need more.
    """

    name: str
    kind: str
    build: Callable[..., Built]
    op: Any
    variants: Sequence[Mapping[str, Any]] = field(default_factory=lambda: ({},))
    kinks: Sequence[Mapping[str, Any]] = ()
    torch: str = ""

    def settings(self) -> list[str]:
        """The names that `build` takes beside the generator."""
        parameters = inspect.signature(self.build).parameters
        own = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            known = list(inspect.signature(self.op).parameters)[
                2 if self.kind == "loss" else 1 if self.kind == "operator" else 0 :
            ]
            own += [name for name in known if name not in (*own, "weight", "ignore_index")]
        return own

    def make(self, seed: int = 0, **settings: Any) -> Built:
        """Build one, reproducibly; UsageError in one line for settings that do not exist or do not fit."""
        for key in settings:
            if key not in self.settings():
                raise UsageError(f"{self.name} has no setting {key!r}; it has {', '.join(self.settings()) or 'none'}")
        try:
            built = self.build(np.random.default_rng(seed), **settings)
            _probe_call(built)
        except (ValueError, TypeError, IndexError) as error:
            raise UsageError(f"{self.name} {settings or ''}: {error}") from None
        return built

    def title(self, settings: Mapping[str, Any]) -> str:
        """The name with the settings that were given."""
        return " ".join([self.name, *(f"{key}={_short(value)}" for key, value in settings.items())])

    def formula(self, built: Built) -> list[tuple[str, str]]:
        """(name, docstring) of the public function, then of every operator on its tape: the formulas forward and
        backward.
        """
        found: dict[str, str] = {}
        with observe(
            lambda function, inputs, outputs: found.setdefault(
                type(function).__name__, inspect.getdoc(type(function)) or ""
            )
        ):
            built.fn(*built.tensors())
        public = [(self.name, inspect.getdoc(self.op) or "")] if inspect.getdoc(self.op) else []
        return public + _term_formulas(self.name) + list(found.items())


def _probe_call(built: Built) -> None:
    built.fn(*built.tensors())


def _term_formulas(name: str) -> list[tuple[str, str]]:
    """The loss terms keep their formulas in kernels/loss/reference.py."""
    from kernels.loss import reference

    term = {"lovasz_softmax": "lovasz", "combined_loss": ""}.get(name, name.removesuffix("_loss"))
    names = [term] if term else ["margin", "dice", "focal", "iou"]
    return [(n, inspect.getdoc(reference.FORMULAS[n]) or "") for n in names if n in reference.FORMULAS]


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
