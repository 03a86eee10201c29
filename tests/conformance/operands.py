"""Arguments that are arrays: their shapes, dtypes, values, and how they lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .choices import Choices

FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int64", "int32", "uint8", "int8", "int16")
PALETTES = ("integers", "normal", "positive", "special", "large", "tiny")
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0)
LAYOUTS = ("C", "F", "reversed", "strided", "transposed", "broadcast", "swapped", "read-only", "offset")


@dataclass
class Operand:
    """values: native and contiguous, which PyTorch gets.  given: the same values, laid out as drawn, which our operator
    gets.

    form: 'tensor', 'array' (plain NumPy), 'scalar' (of NumPy) or 'number' (of Python).  grad: whether its gradient is
        compared.
    """

    values: Any
    given: Any
    form: str = "tensor"
    grad: bool = True
    layout: str = "C"

    def __repr__(self) -> str:
        if self.form in ("number", "scalar"):
            return repr(self.given)
        text = np.array2string(self.values, threshold=40, separator=", ").replace("\n", "")
        return f"{self.form}({text}, {self.given.dtype.str} {self.values.shape} {self.layout}{', grad' * self.grad})"


@dataclass
class Case:
    """One call: operands (None: left out), settings (keyword arguments, the same for both), the seed of the cotangent,
    who serves the kernels.
    """

    operands: list[Operand | None]
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    backend: str = "fast"
    special_cotangent: bool = False

    def __repr__(self) -> str:
        words = [repr(o) for o in self.operands] + [f"{k}={v!r}" for k, v in self.settings.items()]
        return (
            f"({', '.join(words)})"
            + (f" on the {self.backend}" if self.backend != "fast" else "")
            + (" dy special" if self.special_cotangent else "")
        )


def case(d: Choices, operands: Sequence[Operand | None], **settings: Any) -> Case:
    """A case with what all rows draw alike."""
    return Case(list(operands), settings, d.integer(0, 999), "reference" if d.chance(12) else "fast", d.chance(3))


def finite_cotangent(draw: Callable[[Choices], Case]) -> Callable[[Choices], Case]:
    """Of an infinite cotangent these gradients are differences of infinities, whose terms depend on the order of
    operations.
    """

    def drawn(d: Choices) -> Case:
        made = draw(d)
        made.special_cotangent = False
        return made

    return drawn


def shape(d: Choices, low: int = 0, high: int = 4, size: int = 5) -> tuple[int, ...]:
    """A shape of low to high axes; one axis in twenty is empty, one in five has length 1."""
    return tuple(length(d, size) for _ in range(d.integer(low, high)))


def length(d: Choices, size: int = 5) -> int:
    """The length of an axis."""
    k = d.integer(0, 19)
    return 0 if k == 19 else 1 if k < 4 else d.integer(1, size)


def broadcastable(d: Choices, target: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts against `target`, or, rarely, one that does not."""
    if d.chance(3):
        return shape(d)
    kept = target[d.integer(0, len(target)) :]
    return tuple(1 if d.chance(25) else n for n in kept)


def dtype(d: Choices, integers: int = 0, half: int = 10) -> str:
    """float32 mostly, float64 often, float16 in `half`, an integer or bool in `integers` of a hundred cases."""
    k = d.integer(0, 99)
    if k >= 100 - integers:
        return d.pick((*INTEGERS, "bool"))
    if k >= 100 - integers - half:
        return "float16"
    return "float64" if k >= 60 else "float32"


def palette(d: Choices, rare: int = 20) -> str:
    """Which values: ties and zeros, normal ones, or (in `rare` of a hundred cases) NaN, infinities, large and tiny
    ones.
    """
    return d.pick(PALETTES[3:]) if d.chance(rare) else d.pick(PALETTES[:3])


def values(rng: np.random.Generator, dims: tuple[int, ...], name: str, kind: str) -> np.ndarray:
    """An array of a dtype with values from a palette."""
    if name == "bool":
        return rng.random(dims) < 0.5
    kindless = np.dtype(name).kind
    if kindless in "iu":
        info = np.iinfo(name)
        wide = (info.min, info.max) if kind in ("special", "large") else (0 if kindless == "u" else -4, 5)
        return rng.integers(*wide, dims, name, endpoint=True)
    if kind == "integers":
        return np.asarray(rng.integers(-3, 4, dims)).astype(name)
    x = rng.standard_normal(dims)
    if kind == "positive":
        x = np.abs(x) + 0.1
    elif kind == "large":
        x = x * 10.0 ** rng.integers(0, 4 if name == "float16" else 19, dims)
    elif kind == "tiny":
        x = x * 10.0 ** rng.integers(-6 if name == "float16" else -36, 0, dims)
    elif kind == "special":
        x = np.where(rng.random(dims) < 0.2, rng.choice(SPECIAL, dims), x)
    return np.asarray(x).astype(name)


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """The same values (those of x itself, for 'broadcast': the first along an axis repeated) in another layout."""
    if layout == "F" and x.ndim:
        return np.asfortranarray(x)
    if layout == "reversed":
        return x[(..., *(slice(None, None, -1),) * x.ndim)].copy()[(..., *(slice(None, None, -1),) * x.ndim)]
    if layout == "strided":
        wide = np.zeros(tuple(2 * n for n in x.shape), x.dtype)
        every = (..., *(slice(None, None, 2),) * x.ndim)
        wide[every] = x
        return wide[every]
    if layout == "transposed" and x.ndim > 1:
        return np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1)
    if layout == "broadcast" and x.ndim and 0 not in x.shape:
        return np.broadcast_to(x[:1].copy(), x.shape)
    if layout == "swapped":
        return x.astype(x.dtype.newbyteorder())
    if layout == "offset":
        return np.concatenate([np.zeros(1, x.dtype), x.ravel()])[1:].reshape(x.shape)
    copy = x.copy()
    copy.flags.writeable = layout != "read-only"
    return copy


def tensor(d: Choices, dims: tuple[int, ...], name: str, kind: str | None = None, grad: bool | None = None) -> Operand:
    """A Tensor operand of drawn values and layout. grad None: drawn, for floats."""
    kind = palette(d) if kind is None else kind
    x = np.asarray(values(d.generator(), dims, name, kind), name)
    layout = d.pick(LAYOUTS) if d.chance(40) else "C"
    given = laid_out(x, layout)
    wanted = np.dtype(name).kind == "f" and (not d.chance(15) if grad is None else grad)
    return Operand(np.ascontiguousarray(given.astype(name)).reshape(x.shape), given, "tensor", wanted, layout)


def array(d: Choices, dims: tuple[int, ...], name: str, kind: str | None = None) -> Operand:
    """A plain NumPy array of drawn values and layout, which has no gradient."""
    made = tensor(d, dims, name, kind, grad=False)
    made.form = "array"
    return made


def other_dtype(d: Choices, name: str, percent: int = 4) -> str:
    """Mostly `name`; in `percent` of a hundred cases another floating dtype: an operand that does not fit."""
    return d.pick([f for f in FLOATS if f != name]) if d.chance(percent) else name


NUMBERS = (2, 0, 1, -1, 3, 0.5, -2.0, 0.0, True, 1e30, float("nan"), float("inf"), -float("inf"), 7, 300)


def number(d: Choices) -> Operand:
    """A Python number, or one of NumPy's, or a 0-d array: all are weak."""
    value = d.pick(NUMBERS)
    form = d.pick(("number", "number", "scalar", "array"))
    if form == "number":
        return Operand(value, value, "number", False)
    kind = (
        np.bool_
        if isinstance(value, bool)
        else d.pick((np.float64, np.float32))
        if isinstance(value, float)
        else d.pick((np.int64, np.int16))
    )
    given = kind(value)
    return Operand(given.item(), given if form == "scalar" else np.asarray(given), "scalar", False)
