"""The shapes of an operator's arrays, declared once in a line and compared before any kernel runs.

    conv2d_forward = operator(reference.conv2d_forward, "x+ (N, H, W, C); w (*window.kernel, C // groups, K); b? (K)",
    ...)

A kernel takes some sizes from one array and reads another with them: a misfit would be read beyond its end. Items are
separated by semicolons; each is an argument's name, signs, kinds of numbers (float where nothing is said) and axes:

    b?              may be None                         total!          is written to: must be writeable
    maps+           a tuple of arrays that agree but for their last axis, which counts as the sum
    norm.weight     an array in a record
    xs*             a sequence of arrays, xs*? of arrays and Nones, xs?*? the same or None; i is the index within it
    any bool int float                                  kinds of numbers; any: all real ones
    (N, *S, C)      a capital letter is a size, a starred one a run of sizes: any value at first, and then the same
    everywhere; _ is any size
    (*window.kernel, C // groups, 1 | C)                anything else is computed from sizes and arguments; | separates
    what may be
    < (N, T)        the array broadcasts to these axes
    where K % groups == 0                               a condition

Valid calls are remembered by the shapes and the arguments that the line names, so a call like an earlier one costs a
look-up. Arrays are those of NumPy and CuPy; TypeError for anything else and for other kinds of numbers, ValueError for
shapes that do not fit.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

KINDS = {"float": "fV", "int": "iu", "bool": "b", "any": "fiubV"}  # V: ml_dtypes' bfloat16
_MOST = 4096  # calls that are remembered
_ITEM = re.compile(r"([\w.]+)([?+*!]*)((?: \w+)*) (< )?\((.*)\)")
_SIZE = re.compile(r"[A-Z]\w*|_")


class Item(NamedTuple):
    """An array argument: its name, signs, kinds of numbers, whether it need only broadcast, and its axes."""

    name: str
    optional: bool
    several: str  # "", "+" or "*"
    holes: bool
    written: bool
    kinds: tuple[str, ...]
    broadcast: bool
    axes: tuple[str, ...]
    text: str


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text, cut at separators that stand outside all brackets."""
    parts = [""]
    depth = 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _item(text: str) -> Item:
    found = _ITEM.fullmatch(text)
    if found is None:
        raise ValueError(f"shapes: got {text!r}, expected a name, signs, kinds and axes in brackets")
    name, signs, kinds, broadcast, axes = found.groups()
    several = next((sign for sign in "+*" if sign in signs), "")
    before, _, after = signs.partition(several) if several else (signs, "", "")
    return Item(
        name,
        "?" in before,
        several,
        "?" in after,
        "!" in signs,
        tuple(kinds.split()) or ("float",),
        bool(broadcast),
        tuple(_split(axes, ",")),
        axes,
    )


def _within(sizes: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return all(size <= limit for size, limit in zip(sizes, most, strict=True))


def _broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return len(shape) <= len(full) and all(n in (1, m) for n, m in zip(shape[::-1], full[::-1], strict=False))


def _fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(1 in (n, m) or n == m for n, m in zip(one[::-1], other[::-1], strict=False))


# functions that expressions may call
_FUNCTIONS = {
    "within": _within,
    "broadcasts": _broadcasts,
    "fit": _fit,
    "sum": sum,
    "min": min,
    "len": len,
    "all": all,
    "zip": zip,
}


class Shapes:
    """The line of one operator; `fit(*args, **kwargs)` raises unless a call's arrays fit it."""

    def __init__(self, reference: Callable[..., Any], line: str) -> None:
        self.name = reference.__name__
        self.line = line
        self.signature = inspect.signature(reference)
        parts = _split(line, ";")
        self.items = [_item(part) for part in parts if not part.startswith("where ")]
        self.conditions = [part.removeprefix("where ") for part in parts if part.startswith("where ")]
        expressions = [axis for item in self.items for axis in item.axes] + self.conditions
        words = set(re.findall(r"[a-z_]\w*", " ".join(expressions)))
        arrays = {item.name: item for item in self.items}
        unknown = {name.partition(".")[0] for name in arrays} - self.signature.parameters.keys()
        if unknown:
            raise ValueError(f"{self.name}: its shapes name {', '.join(sorted(unknown))}, which it does not take")
        others = [
            parameter for name, parameter in self.signature.parameters.items() if name in words and name not in arrays
        ]
        # a list has no hash
        self._others = [f"tuple({p.name})" if str(p.annotation).startswith("Sequence") else p.name for p in others]
        self._code = {
            text: compile(text.removeprefix("*"), f"<shapes of {self.name}>", "eval")
            for text in self._texts(expressions)
        }
        self._key = self._made_key(arrays)
        self._known: dict[Any, bool] = {}

    @staticmethod
    def _texts(expressions: list[str]) -> list[str]:
        """Everything that must be computed."""
        return [
            choice
            for text in expressions
            for choice in _split(text, "|")
            if not _SIZE.fullmatch(choice.removeprefix("*"))
        ]

    def _made_key(self, arrays: dict[str, Item]) -> Callable[..., Any]:
        """A function with the reference's parameters that returns everything on which the comparison depends."""
        facts = []
        for name, item in arrays.items():
            own = (
                f"type({name}), {name}.shape, {name}.dtype"
                + f", getattr({name}.flags, 'writeable', True)" * item.written
            )
            one = f"None if {name} is None else ({own})" if item.optional else own
            facts.append(f"_facts({name})" if item.several else one)
        parameters = [p.replace(annotation=p.empty) for p in self.signature.parameters.values()]
        known = "".join(f"{fact}, " for fact in [*facts, *self._others])
        scope: dict[str, Any] = {"_facts": _facts}
        exec(
            (
                f"def key{self.signature.replace(parameters=parameters, return_annotation=self.signature.empty)}: "
                "return "
                f"({known})"
            ),
            scope,
        )
        scope["key"].__qualname__ = self.name  # what Python calls it where arguments are missing
        return scope["key"]

    def fit(self, *args: Any, **kwargs: Any) -> bool:
        """Whether all arrays are in the processor's byte order, or are written to, which must be done in place.

        Raises TypeError or ValueError, naming the operator, the argument and the shapes, unless the arrays fit.
        """
        key = None
        try:
            key = self._key(*args, **kwargs)
            if key in self._known:
                return self._known[key]
        except AttributeError:  # something that is no array
            pass
        except (
            TypeError
        ) as error:  # no hash: a list among the arguments; or a call with arguments that do not fit the reference's
            if "unhashable" not in str(error):
                raise
        arguments = self.signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        self._compare(arguments.arguments)
        given = [_argument(arguments.arguments, item.name) for item in self.items if not item.written]
        native = all(array.dtype.isnative for value in given for array in _arrays(value))
        try:
            if len(self._known) >= _MOST:
                self._known.clear()
            if key is not None:
                self._known[key] = native
        except TypeError:
            pass
        return native

    def native(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call's arguments, arrays that are only read in the processor's byte order."""
        arguments = self.signature.bind(*args, **kwargs)
        for item in self.items:
            name, _, field = item.name.partition(".")
            if item.written or name not in arguments.arguments:
                continue
            value = arguments.arguments[name]
            arguments.arguments[name] = (
                value._replace(**{field: _native(getattr(value, field))}) if field else _native(value)
            )
        return arguments.args, arguments.kwargs

    def written(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The arguments of a call that are written to: arrays, sequences of them, or None."""
        arguments = self.signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        return [_argument(arguments.arguments, item.name) for item in self.items if item.written]

    def _compare(self, arguments: dict[str, Any]) -> None:
        scope = {"__builtins__": {}, **_FUNCTIONS, **arguments}
        first = ""
        for item in self.items:
            value = _argument(arguments, item.name)
            if value is None and item.optional:
                continue
            scope.pop("i", None)
            if item.several:
                self._compare_several(item, value, scope, first)
            else:
                self._compare_one(item, item.name, value, scope, first)
            given = " and ".join(str(array.shape) for array in _arrays(value))
            first = first or (f" for {item.name} {given}" if given else "")
        for condition in self.conditions:
            if not self._value(condition, scope):
                used = sorted(
                    name for name in set(re.findall(r"\w+", condition)) if name in scope and name not in _FUNCTIONS
                )
                given = ", ".join(f"{name} = {shown(scope[name])}" for name in used)
                raise ValueError(f"{self.name}: expected {condition}, got {given}{first}")

    def _compare_several(self, item: Item, values: Any, scope: dict[str, Any], first: str) -> None:
        if not isinstance(values, (tuple, list)) or not (values or item.holes):
            raise TypeError(f"{self.name}: {item.name} is {shown(values)}, expected a sequence of arrays")
        total = 0
        for i, value in enumerate(values):
            scope["i"] = i
            if value is None and item.holes:
                continue
            self._compare_one(item, f"{item.name}[{i}]", value, scope, first)
            if item.several == "+":
                total += scope.pop(item.axes[-1])
        if item.several == "+":
            scope[item.axes[-1]] = total

    def _compare_one(self, item: Item, name: str, array: Any, scope: dict[str, Any], first: str) -> None:
        if not _is_array(array):
            raise TypeError(f"{self.name}: {name} is {shown(array)}, expected an array")
        kind = array.dtype.kind
        if all(kind not in KINDS[wanted] for wanted in item.kinds) or (kind == "V" and array.dtype.name != "bfloat16"):
            raise TypeError(
                f"{self.name}: {name} is {array.dtype}, expected "
                f"{' or '.join(item.kinds).replace('any', 'real numbers')}"
            )
        if not self._matches(item, array.shape, scope):
            sizes = ", ".join(self._expected(axis, scope) for axis in item.axes)
            raise ValueError(
                f"{self.name}: {name} has shape {array.shape}, expected "
                f"{'an array that broadcasts to ' * item.broadcast}({sizes}){first}"
            )
        if item.written and not getattr(array.flags, "writeable", True):
            raise ValueError(f"{self.name}: {name} is written to, but it is read-only")

    def _matches(self, item: Item, shape: tuple[int, ...], scope: dict[str, Any]) -> bool:
        """Whether a shape fits the axes; sizes that were not known yet are known then."""
        if item.broadcast:
            return _broadcasts(shape, tuple(size for axis in item.axes for size in self._sizes(axis, scope)))
        runs = [
            k
            for k, axis in enumerate(item.axes)
            if axis.startswith("*") and axis[1:] not in scope and _SIZE.fullmatch(axis[1:])
        ]
        sizes: list[list[int] | None] = [
            None if _is_free(axis, scope) else self._sizes(axis, scope) for axis in item.axes
        ]
        rest = (
            len(shape)
            - sum(
                1 if known is None or "|" in axis else len(known) for axis, known in zip(item.axes, sizes, strict=True)
            )
            + len(runs)
        )
        if rest < 0 or (rest and not runs):
            return False
        at = 0
        for axis, known in zip(item.axes, sizes, strict=True):
            if known is None:
                length = rest if axis.startswith("*") else 1
                if axis.strip("*") != "_":
                    scope[axis.strip("*")] = shape[at : at + length] if axis.startswith("*") else shape[at]
            elif "|" in axis:
                length = 1
                if shape[at] not in known:
                    return False
            else:
                length = len(known)
                if list(shape[at : at + length]) != known:
                    return False
            at += length
        return at == len(shape)

    def _sizes(self, axis: str, scope: dict[str, Any]) -> list[int]:
        """The value that an axis, or a run of them, must have; or, with |, may have."""
        if "|" in axis:
            return [size for choice in _split(axis, "|") for size in self._sizes(choice, scope)]
        value = scope[axis.removeprefix("*")] if _SIZE.fullmatch(axis.removeprefix("*")) else self._value(axis, scope)
        return list(value) if axis.startswith("*") else [value]

    def _value(self, text: str, scope: dict[str, Any]) -> Any:
        try:
            return eval(self._code[text], scope)
        except ZeroDivisionError as error:
            raise ValueError(f"{self.name}: cannot compute {text}: division by 0") from error

    def _expected(self, axis: str, scope: dict[str, Any]) -> str:
        if _is_free(axis, scope):
            return axis
        sizes = self._sizes(axis, scope)
        return (" or " if "|" in axis else ", ").join(map(str, sizes))


def _argument(arguments: dict[str, Any], name: str) -> Any:
    """An argument, or a field of a record among them."""
    name, _, field = name.partition(".")
    return getattr(arguments[name], field) if field else arguments[name]


def _is_free(axis: str, scope: dict[str, Any]) -> bool:
    """Whether an axis may still have any size."""
    name = axis.removeprefix("*")
    return bool(_SIZE.fullmatch(name)) and name not in scope


def _is_array(value: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return isinstance(value, (np.ndarray, np.generic)) or (cupy is not None and isinstance(value, cupy.ndarray))


def _arrays(value: Any) -> list[Any]:
    """The arrays of an argument."""
    return [array for array in (value if isinstance(value, (tuple, list)) else (value,)) if array is not None]


def _native(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_native, value))
    return value if value is None or value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def _facts(value: Any) -> Any:
    """The part of a sequence of arrays, or of one array, on which the comparison depends."""
    if type(value) is tuple or type(value) is list:
        return tuple([_facts(v) for v in value])
    return None if value is None else (type(value), value.shape, value.dtype, getattr(value.flags, "writeable", True))


def shown(value: Any) -> str:
    """A value for a message of one line: itself, or what it is."""
    if isinstance(value, (int, float, str, tuple, list)) or value is None or not hasattr(value, "__array__"):
        text = repr(value)
        return text if len(text) < 80 and "\n" not in text else f"a {type(value).__name__}"
    return f"a {type(value).__name__}"
