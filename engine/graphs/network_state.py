"""Whether a network has changed: captured steps, inference graphs and optimizers check this before they rely on it.

A `State` holds everything that can be reached from a network: attributes of modules, what lists, dicts and other
objects in them contain, Tensors, their arrays and whether they require gradients. It compares by identity first; where
some object is another one, by value: numbers, strings and arrays by what they are, Tensors and unknown objects by
    identity. Global variables and closures are not looked at.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any
from weakref import ref

import numpy as np

from autograd import Tensor
from kernels.core.device import Array
from layers import Module

_VALUES = (int, float, complex, str, bytes, type(None), np.generic, np.dtype, range, slice)
_OPAQUE = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    np.random.Generator,
    np.ufunc,
)
_MISSING = object()
Reads = dict[int, tuple[Module, set[str]]]


class _Same:
    """An object that equals only itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


@contextmanager
def reads() -> Iterator[Reads]:
    """Within the block: which attributes of which modules are read, by the modules' ids."""
    found: Reads = {}
    before = Module.__dict__.get("__getattribute__")

    def traced(self: Module, name: str) -> Any:
        found.setdefault(id(self), (self, set()))[1].add(name)
        return object.__getattribute__(self, name)

    Module.__getattribute__ = traced  # type: ignore[method-assign]
    try:
        yield found
    finally:
        if before is None:
            del Module.__getattribute__
        else:
            Module.__getattribute__ = before  # type: ignore[method-assign]


class State:
    """A snapshot of a network. versions: count writes to Tensors as changes, too.

    read: the attributes that matter (see `reads`); None: all.
    """

    def __init__(self, net: Module, versions: bool = True, read: Reads | None = None) -> None:
        # a graph must not keep its network alive
        self._net = ref(net)
        self._versions = versions
        self._read = read
        self._look()
        self._values = self._described()

    def unchanged(self) -> bool:
        """Whether everything that matters is unchanged."""
        if all(map(is_, self._all(), self._was)) and all(map(_same_bytes, self._arrays, self._copies)):
            return True
        if self._described() != self._values:
            return False
        self._look()
        return True

    # -- by identity --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find everything that may change without its owner changing, and what it holds now."""
        self._dicts: list[dict[Any, Any]] = []
        self._lists: list[Any] = []  # whatever can be iterated over
        self._slots: list[tuple[Any, str]] = []
        self.tensors: list[Tensor] = []
        self._arrays: list[np.ndarray] = []
        seen: dict[int, Any] = {}
        for root in self._roots():
            self._visit(root, seen)
        self._copies = [a.copy() for a in self._arrays]
        names = {(type(m), name) for m, some in (self._read or {}).values() for name in some if name not in vars(m)}
        fixed = [(c, name) for c, name in names if getattr(c, name, None) is getattr(c, name, None)]
        self._classes = [c for c, _ in fixed]
        self._names = [name for _, name in fixed]
        self._was = list(self._all())

    def _roots(self) -> list[Module]:
        net = self._net()
        return [*([] if net is None else [net]), *(m for m, _ in (self._read or {}).values())]

    def _visit(self, value: Any, seen: dict[int, Any]) -> None:
        if isinstance(value, (*_VALUES, *_OPAQUE)) or id(value) in seen:
            return
        seen[id(value)] = value
        inner: list[Any] = []
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, np.ndarray):
            self._arrays.append(value)
        elif isinstance(value, dict):
            self._dicts.append(value)
            self._lists.append(value)  # its keys
            inner = list(value.values())
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            self._lists.append(value)
            inner = list(value)
        elif not hasattr(value, "__array__") and not getattr(type(value), "is_cache", False):
            names = _slots(value)
            self._slots += [(value, name) for name in names]
            inner = [getattr(value, name, _MISSING) for name in names]
            if hasattr(value, "__dict__"):
                self._dicts.append(vars(value))
                inner += vars(value).values()
        for item in inner:
            self._visit(item, seen)

    def _all(self) -> Iterator[Any]:
        tensors = self.tensors
        return chain(
            *map(dict.values, self._dicts),
            *self._lists,
            (getattr(o, name, _MISSING) for o, name in self._slots),
            map(getattr, self._classes, self._names, repeat(_MISSING)),
            map(attrgetter("data"), tensors),
            map(attrgetter("requires_grad"), tensors),
            map(attrgetter("version"), tensors if self._versions else ()),
            [State],
        )

    # -- by value -----------------------------------------------------------------------------------------------------

    def _described(self) -> list[Any]:
        out: list[Any] = []
        order: dict[int, int] = {}
        for root in self._roots():
            self._describe(root, out, order)
        return out

    def _describe(self, value: Any, out: list[Any], order: dict[int, int]) -> None:
        if isinstance(value, _VALUES):
            out.append((type(value), value))
            return
        if id(value) in order:
            out.append(("again", order[id(value)]))
            return
        order[id(value)] = len(order)
        if isinstance(value, Tensor):
            out.append((_Same(value), _Same(value.data), value.requires_grad, value.version if self._versions else 0))
        elif isinstance(value, np.ndarray):
            out.append((value.dtype, value.shape, value.tobytes()))
        elif isinstance(value, _OPAQUE) or hasattr(value, "__array__") or getattr(type(value), "is_cache", False):
            out.append(_Same(value))
        else:
            inner = self._parts(value)
            out.append((type(value), len(inner)))
            for item in inner:
                self._describe(item, out, order)

    def _parts(self, value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return list(value)
        attributes = dict(vars(value)) if hasattr(value, "__dict__") else {}
        attributes |= {name: getattr(value, name, _MISSING) for name in _slots(value)}
        if isinstance(value, Module) and self._read is not None:
            names = self._read.get(id(value), (value, set()))[1]
            of_class = {name: getattr(type(value), name, _MISSING) for name in names - attributes.keys()}
            whole = (
                attributes if "__dict__" in names else {name: attributes[name] for name in names & attributes.keys()}
            )
            attributes = whole | {name: v for name, v in of_class.items() if v is getattr(type(value), name, _MISSING)}
        return [part for name in sorted(attributes) for part in (name, attributes[name])]


def _slots(value: Any) -> list[str]:
    given = [c.__dict__.get("__slots__", ()) for c in type(value).__mro__]
    names = [name for slots in given for name in ((slots,) if isinstance(slots, str) else slots)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _same_bytes(array: Array, copy: Array) -> bool:
    return array.shape == copy.shape and array.dtype == copy.dtype and array.tobytes() == copy.tobytes()
