"""Operands: every operator of `autograd.ops` converts its operands here, or refuses them in its own name.

The annotations of an operator's parameters decide:

    Tensor                       a Tensor; arrays, numbers and nested lists become one
    Tensor | Sequence[Tensor]    one, or a list or tuple of them
    Operand                      the same, but arrays and numbers stay what they are, for `autograd.promotion`
    Sequence[Tensor], Sequence[Operand]
                                 several, from anything that can be iterated over

and `| None` allows None. Everything else is a setting, which the operator itself checks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from autograd.convert import array_from, kind_of
from autograd.tensor import Tensor
from kernels.core.device import Array

Operand = Any  # a Tensor, an array, a number, or nested lists of numbers
_KEPT = (Tensor, bool, int, float, np.bool_, np.integer, np.floating)
Rule = Callable[[str, Any], Any]  # what the operand is called in messages, and its value


def as_operand(what: str, value: Any) -> Any:
    """The value, if it is a Tensor or a number of Python's or NumPy's, else its array. what: the operator and the
    argument.

    Raises TypeError for what holds no real numbers, ValueError for rows of different lengths.
    """
    return value if isinstance(value, _KEPT) else _array(what, value)


def as_tensor(what: str, value: Any) -> Tensor:
    """The value as a Tensor. Raises as `as_operand`."""
    return value if isinstance(value, Tensor) else Tensor(_array(what, value))


def _array(what: str, value: Any) -> Array:
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        raise TypeError(f"{what}: got a {kind_of(value)} that holds Tensors, expected one Tensor")
    array = array_from(value, what)
    if array.dtype.kind == "c":
        raise TypeError(f"{what}: got complex numbers, expected real ones")
    return array


def _several(rule: Rule) -> Rule:
    def convert(what: str, value: Any) -> list[Any]:
        try:
            items = list(value)
        except TypeError:
            raise TypeError(f"{what}: got {kind_of(value)}, expected several Tensors or arrays") from None
        return [rule(f"{what}[{k}]", item) for k, item in enumerate(items)]

    return convert


def _one_or_several(rule: Rule) -> Rule:
    return lambda what, value: (_several(rule) if isinstance(value, (list, tuple)) else rule)(what, value)


def _optional(rule: Rule) -> Rule:
    return lambda what, value: None if value is None else rule(what, value)


_RULES = {
    "Tensor": as_tensor,
    "Tensor | None": _optional(as_tensor),
    "Sequence[Tensor]": _several(as_tensor),
    "Tensor | Sequence[Tensor]": _one_or_several(as_tensor),
    "Operand": as_operand,
    "Operand | None": _optional(as_operand),
    "Sequence[Operand]": _several(as_operand),
}


def taking_operands(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called with its operands converted (see above), or itself where it has none."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    operands = [
        (place, name, f"{function.__name__}: {name}", _RULES[kind])
        for place, name in enumerate(names)
        if (kind := function.__annotations__.get(name)) in _RULES
    ]
    if not operands:
        return function

    @functools.wraps(function)
    def operator(*given: Any, **named: Any) -> Any:
        for place, name, what, rule in operands:
            if place < len(given):
                if not isinstance(given[place], Tensor):
                    given = (*given[:place], rule(what, given[place]), *given[place + 1 :])
            elif name in named and not isinstance(named[name], Tensor):
                named[name] = rule(what, named[name])
        return function(*given, **named)

    return operator
