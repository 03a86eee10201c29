"""`Module`: something with parameters. `Parameter` and `Buffer`: the two kinds of Tensors a module owns."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from autograd import Tensor, no_grad
from autograd.html import Markup, block, code, details, faint, table, tag
from kernels.core import tracing
from kernels.core.device import default, module_of, to_device, to_numpy

M = TypeVar("M", bound="Module")
T = TypeVar("T", bound=Tensor)


class Parameter(Tensor):
    """A trained Tensor. decay: whether weight decay applies to it (not to biases and normalisation gains)."""

    __slots__ = ("decay",)

    def __init__(self, array: Any, decay: bool = True) -> None:
        super().__init__(module_of(default()).asarray(array), requires_grad=True)
        self.decay = decay


class Buffer(Tensor):
    """State that is saved with the module but not trained, such as running statistics."""

    __slots__ = ()

    def __init__(self, array: Any) -> None:
        super().__init__(module_of(default()).asarray(array))


class LoadReport(NamedTuple):
    """The result of load_state_dict: the names that were loaded, those missing from the state, those that the module
    does not have, and those whose shape is another, with the state's shape and the module's.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    misfits: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        misfits = [f"{name} {found} for {expected}" for name, (found, expected) in self.misfits.items()]
        for what, names in (("missing", self.missing), ("unknown", self.unexpected), ("of another shape", misfits)):
            if names:
                parts.append(f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
        return "; ".join(parts)


class Module:
    """Base of all layers: call it to run `forward`.

    Parameters, Buffers and modules are found among the attributes, in the order of their assignment, and in lists,
    tuples and dicts there, however deep; their dotted names are the path, such as "heads.left.0.weight". What is shared
    counts once, under its first name. In other places (a set, a generator, an object that is no Module) they are not
    found, and a Tensor that is neither a Parameter nor a Buffer is no part of the state.
    """

    training = True

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}: forward is not implemented")

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        """`forward` of these inputs, which a subclass defines."""
        tracer = tracing.current.tracer
        if tracer is None:
            return self.forward(*inputs, **settings)
        return tracer.run(tracing.LAYER, self, self.forward, *inputs, **settings)

    # -- what is inside -----------------------------------------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the modules directly inside."""
        return ((name, value) for name, value in _found(vars(self)) if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module, whose name is empty, and of all inside it; each once."""
        seen: set[int] = set()
        return ((name, module) for name, module in self._paths(prefix, seen))

    def _paths(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
        if id(self) in seen:
            return
        seen.add(id(self))
        yield prefix, self
        for name, child in self.children():
            yield from child._paths(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once."""
        return (module for _, module in self.named_modules())

    def apply(self: M, function: Callable[[Module], Any]) -> M:
        """Call function(module) for all modules inside, then for this one; returns this one."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    @overload
    def named_tensors(self, *, prefix: str = "", shared: bool = False) -> Iterator[tuple[str, Tensor]]: ...

    @overload
    def named_tensors(self, kind: type[T], prefix: str = "", shared: bool = False) -> Iterator[tuple[str, T]]: ...

    def named_tensors(self, kind: Any = Tensor, prefix: str = "", shared: bool = False) -> Iterator[tuple[str, Any]]:
        """(dotted name, Tensor) of all Parameters and Buffers inside (or of one `kind`): each once, or, if `shared`,
        under all its names.
        """
        found: list[tuple[str, Any]] = []
        self._collect(found, kind, prefix, None if shared else set(), [])
        return iter(found)

    def _collect(
        self, to: list[tuple[str, Any]], kind: Any, prefix: str, seen: set[int] | None, path: list[Module]
    ) -> None:
        """The Tensors of this module, then of those inside. seen: what has been met, if each is wanted once. path: the
        modules around this one.
        """
        if id(self) in seen if seen is not None else any(module is self for module in path):
            return
        if seen is not None:
            seen.add(id(self))
        inner = []
        for name, value in _found(vars(self)):
            if isinstance(value, Module):
                inner.append((name, value))
            elif seen is None or id(value) not in seen:
                if isinstance(value, kind):
                    to.append((prefix + name, value))
                if seen is not None:
                    seen.add(id(value))
        around = [*path, self]
        for name, value in inner:
            value._collect(to, kind, f"{prefix}{name}.", seen, around)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, Parameter) of all parameters inside, each once."""
        return self.named_tensors(Parameter)

    def parameters(self) -> list[Parameter]:
        """All parameters inside, each once."""
        return [p for _, p in self.named_parameters()]

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return sum(p.size for p in self.parameters())

    def freeze(self, *patterns: str) -> list[str]:
        """Stop training the parameters whose dotted names match a pattern, such as "encoder.*" or "*.bias"; their
        gradients are forgotten.

        Returns the names. Raises ValueError when a pattern matches none. An optimizer leaves frozen parameters as they
        are.
        """
        return self._require(patterns, "freeze", False)

    def unfreeze(self, *patterns: str) -> list[str]:
        """Train the parameters whose dotted names match a pattern again. Returns the names; ValueError when a pattern
        matches none.
        """
        return self._require(patterns, "unfreeze", True)

    def _require(self, patterns: tuple[str, ...], what: str, trained: bool) -> list[str]:
        known = dict(self.named_tensors(Parameter, shared=True))
        for pattern in patterns:
            if not fnmatch.filter(known, pattern):
                first = ", ".join(dict.fromkeys(name.split(".")[0] for name in known))
                raise ValueError(
                    f"{what}: no parameter matches {pattern!r}; the names begin with "
                    f"{first or 'nothing: there are none'}"
                )
        names = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        for name in names:
            known[name].requires_grad = trained
            known[name].grad = None
        return names

    # -- what it looks like -------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The text in the brackets of the module's line in its repr; by default the shapes of its own parameters."""
        own = [f"{name} {value.shape}" for name, value in _found(vars(self)) if isinstance(value, Parameter)]
        return ", ".join(own)

    def __repr__(self) -> str:
        return "\n".join(self._lines("", []))

    def _repr_html_(self) -> str:
        return block(self._tree("", []))

    def _tree(self, name: str, path: list[Module]) -> Markup:
        """This module and those below it, folded away, with the shapes of its own parameters and buffers."""
        title = [faint(f"{name}: ")] if name else []
        if any(module is self for module in path):
            return tag("div", *title, type(self).__name__, ", which is around")
        count = self.parameter_count()
        size = [faint(f"  {count:,} parameter{'s' * (count != 1)}")] if count else []
        title += [tag("b", type(self).__name__), code(f"({self.extra_repr()})"), *size]
        own = [
            (inner, str(value.shape), str(value.dtype), _kind(value))
            for inner, value in _found(vars(self))
            if isinstance(value, (Parameter, Buffer))
        ]
        inside = [child._tree(inner, [*path, self]) for inner, child in self.children()]
        if not own and not inside:
            return tag("div", *title, style="margin-left: 1em")
        tables = [table(own, left=4)] if own else []
        return details(tag("span", *title), *tables, *inside, unfolded=not path)

    def _lines(self, name: str, path: list[Module]) -> list[str]:
        """The tree below this module, a line per module, indented by depth."""
        count = self.parameter_count()
        size = f"  {count:,} parameter{'s' * (count != 1)}" if count else ""
        line = "  " * len(path) + (f"{name}: " if name else "") + f"{type(self).__name__}({self.extra_repr()}){size}"
        if any(module is self for module in path):
            return ["  " * len(path) + f"{name}: {type(self).__name__}, which is around"]
        return [line, *(text for inner, child in self.children() for text in child._lines(inner, [*path, self]))]

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by dotted name, as NumPy arrays; what is shared stands there under all
        its names.

        Raises ValueError where two have the same name, as those at the keys 1 and "1" of a dict.
        """
        state: dict[str, np.ndarray] = {}
        for name, t in self.named_tensors(shared=True):
            if name in state:
                raise ValueError(f"state_dict: two parameters or buffers have the name {name}")
            state[name] = to_numpy(t.data).copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadReport:
        """Overwrite parameters and buffers by the arrays (or Tensors) of the same names.

        strict: ValueError naming what is missing, left over or of another shape; then nothing is changed. Otherwise
        what fits is loaded, and the report says what did not.
        """
        own = dict(self.named_tensors(shared=True))
        shapes = {name: tuple(state[name].shape) for name in own if name in state}
        misfits = {name: (shape, own[name].shape) for name, shape in shapes.items() if shape != own[name].shape}
        loaded = [name for name in shapes if name not in misfits]
        report = LoadReport(loaded, sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys()), misfits)
        if strict:
            _refuse(report)
        with no_grad():
            for name in loaded:
                value = state[name].data if isinstance(state[name], Tensor) else state[name]
                array = to_numpy(value) if isinstance(state[name], Tensor) else np.asarray(value)
                own[name].copy_(to_device(array.astype(own[name].dtype, copy=False), own[name].device))
        return report

    def to(self: M, device: str | None = None, dtype: Any = None) -> M:
        """Move all parameters and buffers to a device and / or a float dtype, in place; gradients are dropped."""
        for _, tensor in self.named_tensors():
            array = tensor.data if dtype is None else tensor.data.astype(dtype)
            tensor._data = array if device is None else to_device(array, device)  # not .data, which holds to its device
            tensor.grad = None
            tensor.touch()
        return self

    def train(self: M, mode: bool = True) -> M:
        """Training behaviour (batch statistics, dropout) on or off, for all modules inside."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Evaluation behaviour: `train(False)`."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.zero_grad()


def _found(values: Any, prefix: str = "", around: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(name, value) of the Parameters, Buffers and modules in a dict, list or tuple, and in those in it; around: those
    that it is in.
    """
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, (Parameter, Buffer, Module)):
            yield f"{prefix}{key}", value
        elif isinstance(value, (list, tuple, dict)) and not any(value is outer for outer in around):
            yield from _found(value, f"{prefix}{key}.", (*around, value))


def _kind(tensor: Tensor) -> str:
    return "buffer" if isinstance(tensor, Buffer) else "parameter" if tensor.requires_grad else "parameter, frozen"


def changed(module: Module, **defaults: Any) -> list[str]:
    """ "name=value" of the module's attributes that differ from their defaults, for its repr."""
    return [
        f"{name}={getattr(module, name)!r}" for name, default in defaults.items() if getattr(module, name) != default
    ]


def _refuse(report: LoadReport) -> None:
    """Raise ValueError unless everything fitted."""
    names = len(report.missing) + len(report.unexpected)
    if names:
        lists = [
            f"{what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for what, names in (("missing", report.missing), ("unknown", report.unexpected))
            if names
        ]
        raise ValueError(f"load_state_dict: {names} names do not fit: {'; '.join(lists)}")
    for name, (found, expected) in report.misfits.items():
        raise ValueError(f"load_state_dict: {name} has shape {found}, expected {expected}")


class Sequential(Module):
    """Modules one after another, as torch.nn.Sequential: y = m_n(... m_1(x)). len, indices, slices and append are those
    of a list.
    """

    def __init__(self, *modules: Module) -> None:
        self.steps = list(modules)

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.steps)

    @overload
    def __getitem__(self, index: int) -> Module: ...

    @overload
    def __getitem__(self, index: slice) -> Sequential: ...

    def __getitem__(self, index: Any) -> Any:
        """A module, or for a slice a Sequential of them."""
        return Sequential(*self.steps[index]) if isinstance(index, slice) else self.steps[index]

    def __setitem__(self, index: int, module: Module) -> None:
        self.steps[index] = module

    def append(self, module: Module) -> Sequential:
        """One more at the end; returns this module."""
        self.steps.append(module)
        return self


class Identity(Module):
    """x itself, whatever it is, as torch.nn.Identity."""

    def forward(self, x: Any) -> Any:
        return x
