"""Operators that only move values: reshape, transpose, broadcast, index, pad, concatenate. Their gradients move them
back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from autograd.checks import along, over
from autograd.function import Function, unbroadcast
from autograd.operands import Operand
from autograd.promotion import promoted
from autograd.tensor import Tensor, plain_index
from kernels import shape as kernels
from kernels.core.device import Array, array_module
from kernels.core.labels import check_places
from kernels.core.reduction import halves_in_float32

__all__ = [
    "broadcast_to",
    "concat",
    "flatten",
    "flip",
    "getitem",
    "pad",
    "reshape",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "transpose",
    "unsqueeze",
]


class Reshape(Function):
    """y = x in another shape;  dx = dy in x's shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Array) -> Array:
        self.before = x.shape
        if min(self.shape, default=0) < -1:  # which NumPy takes for -1
            raise ValueError
        return _reshaped(x, self.shape)

    def explain(self, error: Exception, x: Array) -> None:
        if not isinstance(error, (TypeError, ValueError)):
            return
        _check_integers("reshape", self.shape)
        raise ValueError(
            f"reshape: x has shape {x.shape}, got {self.shape}, expected a shape of {x.size} values with at most one -1"
        ) from None

    def backward(self, dy: Array) -> Array:
        return _reshaped(dy, self.before)


def _reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """A view where there can be one, else a copy."""
    return x.reshape(shape) if x.flags.c_contiguous else kernels.evaluate(partial(_copied, shape=shape), x)


def _copied(x: Array, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


class Transpose(Function):
    """y = x with its axes in another order;  dx = dy with the order undone."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Array) -> Array:
        return x.transpose(self.axes)

    def explain(self, error: Exception, x: Array) -> None:
        if not isinstance(error, (TypeError, ValueError)):
            return
        _check_integers("transpose", self.axes, "axes")
        expected = f"expected each of 0 to {x.ndim - 1} once" if x.ndim else "expected none"
        raise type(error)(f"transpose: x has shape {x.shape}, axes are {self.axes}, {expected}") from None

    def backward(self, dy: Array) -> Array:
        undo = sorted(range(len(self.axes)), key=lambda i: self.axes[i] % len(self.axes))
        return dy.transpose(undo)


class BroadcastTo(Function):
    """y = x repeated to a shape;  dx = dy summed over the repeated axes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Array) -> Array:
        self.before = x.shape
        return array_module(x).broadcast_to(x, self.shape)

    def explain(self, error: Exception, x: Array) -> None:
        if not isinstance(error, (TypeError, ValueError)):
            return
        _check_integers("broadcast_to", self.shape)
        raise ValueError(f"broadcast_to: x has shape {x.shape}, which does not broadcast to {self.shape}") from None

    def backward(self, dy: Array) -> Array:
        return unbroadcast(dy, self.before)


class GetItem(Function):
    """y = x[index];  dx is 0 but for dx[index] += dy (an entry picked twice gets both)."""

    def __init__(self, index: Any) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Array) -> Array:
        self.before = x.shape
        return x[self.index] if self._basic else kernels.evaluate(lambda a: a[self.index], x)

    def explain(self, error: Exception, x: Array) -> None:
        if isinstance(error, (IndexError, ValueError)):
            kind = IndexError if isinstance(error, IndexError) else ValueError
            raise kind(f"getitem: the index does not fit x {x.shape}: {error}") from None

    def backward(self, dy: Array) -> Array:
        return kernels.evaluate(self._scattered if self._basic else halves_in_float32(self._scattered), dy)

    @property
    def _basic(self) -> bool:
        """Whether the index picks a view."""
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        return all(p is None or p is Ellipsis or isinstance(p, (slice, int)) for p in parts)

    def _scattered(self, dy: Array) -> Array:
        xp = array_module(dy)
        dx = xp.zeros(self.before, dy.dtype)
        if self._basic:
            dx[self.index] = dy  # basic indexing picks nothing twice
        else:
            xp.add.at(dx, self.index, dy)
        return dx


class Pad(Function):
    """y = x with a border of one value;  dx = dy without the border."""

    def __init__(self, widths: tuple[tuple[int, int], ...], value: float) -> None:
        super().__init__()
        self.widths, self.value = widths, value

    def forward(self, x: Array) -> Array:
        return kernels.evaluate(self._padded, x)

    def _padded(self, x: Array) -> Array:
        return array_module(x).pad(x, self.widths, constant_values=self.value) if x.ndim else x.copy()

    def backward(self, dy: Array) -> Array:
        return dy[tuple(slice(a, n - b) for (a, b), n in zip(self.widths, dy.shape, strict=True))]


class Concat(Function):
    """y = the inputs concatenated along an axis;  each dx is its slice of dy."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *xs: Array) -> Array:
        self.sizes = [x.shape[self.axis] for x in xs]
        if self.axis % xs[0].ndim == xs[0].ndim - 1:
            return kernels.concat_channels(xs)
        return array_module(*xs).concatenate(xs, self.axis)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        if self.axis % dy.ndim == dy.ndim - 1:
            parts = kernels.split_channels(dy, self.sizes)
            return tuple(part if need else None for part, need in zip(parts, self.needs, strict=True))
        grads = []
        start = 0
        lead = (slice(None),) * (self.axis % dy.ndim)
        for size, need in zip(self.sizes, self.needs, strict=True):
            grads.append(dy[(*lead, slice(start, start + size))] if need else None)
            start += size
        return tuple(grads)


class Split(Function):
    """The channels of x in consecutive groups;  dx = the groups' dy concatenated."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Array) -> tuple[Array, ...]:
        return tuple(kernels.split_channels(x, self.sizes))

    def backward(self, *dys: Array) -> Array:
        return kernels.concat_channels(dys)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x's values, row by row, in another shape, as torch.reshape; one entry may be -1 and follows from the others.

    Raises ValueError, which names both shapes, where they differ in the number of values and for entries below -1;
    TypeError for entries that are no integers.
    """
    return Reshape(_entries("reshape", shape))(x)


def _entries(name: str, given: Any, what: str = "shape") -> tuple[int, ...]:
    try:
        return tuple(given)
    except TypeError:
        raise TypeError(f"{name}: {what} is {given!r}, expected a tuple of integers") from None


def _check_integers(name: str, given: tuple[Any, ...], what: str = "shape") -> None:
    if not all(hasattr(n, "__index__") for n in given):
        raise TypeError(f"{name}: {what} is {given!r}, expected a tuple of integers") from None


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes start_dim to end_dim of x as one, as torch.flatten; a single number becomes a vector of one.

    Raises ValueError where start_dim comes after end_dim.
    """
    start = along("flatten", start_dim, x.ndim)
    end = along("flatten", end_dim, x.ndim)
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim} for x {x.shape}")
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def squeeze(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """x without its axes of length 1; axis: without these alone, as far as they have length 1 (as torch.squeeze)."""
    named = over("squeeze", axis, x.ndim)
    return reshape(x, tuple(n for k, n in enumerate(x.shape) if n != 1 or (named is not None and k not in named)))


def unsqueeze(x: Tensor, axis: int) -> Tensor:
    """x with a new axis of length 1 at `axis`, as torch.unsqueeze."""
    at = along("unsqueeze", axis, x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def transpose(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """x with its axes in the order `axes` (None: reversed), as torch.permute and NumPy's transpose; a view.

    Raises ValueError unless `axes` names every axis once.
    """
    return Transpose(tuple(reversed(range(x.ndim))) if axes is None else _entries("transpose", axes, "axes"))(x)


def swapaxes(x: Tensor, axis0: int, axis1: int) -> Tensor:
    """x with two axes exchanged, as torch.swapaxes; a view."""
    axes = list(range(x.ndim))
    one = along("swapaxes", axis0, x.ndim)
    other = along("swapaxes", axis1, x.ndim)
    if axes:
        axes[one], axes[other] = axes[other], axes[one]
    return transpose(x, tuple(axes))


def broadcast_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x repeated to `shape`, as torch.broadcast_to, without a copy. The gradient is summed over what was repeated.

    Raises ValueError, which names both shapes, where x does not broadcast to it.
    """
    return BroadcastTo(_entries("broadcast_to", shape))(x)


def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index], as NumPy and PyTorch index: slices, integers, integer or boolean arrays and Tensors.

    Slices and integers give a view. An entry that is picked twice gets both gradients. Raises IndexError for integers
    that are no places along their axis, and for masks and arrays that do not fit.
    """
    places = plain_index(index)
    check_places("getitem", places, x.shape)
    return GetItem(places)(x)


def pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """x with a border of `value`, as NumPy's pad: widths has one (before, after) per axis.

    Raises ValueError unless there are as many pairs as axes, of numbers from 0 on, and for a value that x's integer
    dtype does not hold.
    """
    if len(widths) != x.ndim or any(len(w) != 2 or min(w) < 0 for w in widths):
        raise ValueError(
            f"pad: got widths {widths!r}, expected {x.ndim} pairs (before, after) of non-negative ints for x {x.shape}"
        )
    if x.dtype.kind in "biu" and not _holds(x.dtype, value):
        raise ValueError(f"pad: value is {value}, which {x.dtype} does not hold")
    return Pad(tuple((int(a), int(b)) for a, b in widths), value)(x)


def _holds(dtype: np.dtype, value: float) -> bool:
    """Whether an integer dtype has room for a value, its fraction cut off."""
    if dtype.kind == "b":
        return True
    bounds = np.iinfo(dtype)
    return math.isfinite(value) and bounds.min <= int(value) <= bounds.max


def concat(tensors: Sequence[Operand], axis: int = -1) -> Tensor:
    """The tensors one after another along `axis`, as torch.cat, in the dtype of promotion.

    Raises ValueError for no tensors, and for one whose other sizes differ from the first's.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("concat: got no tensors, expected at least one")
    tensors = promoted(*tensors)
    first = tensors[0].shape
    place = along("concat", axis, len(first))
    for k, t in enumerate(tensors):
        if len(t.shape) != len(first) or any(
            a != b for i, (a, b) in enumerate(zip(t.shape, first, strict=True)) if i != place
        ):
            raise ValueError(f"concat: tensor {k} has shape {t.shape}, which does not fit {first} along axis {axis}")
    return Concat(axis)(*tensors)


def split(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """x (..., C) cut along its last axis into groups of `sizes` channels, as torch.split.

    Raises ValueError unless the sizes add up to C.
    """
    if not x.ndim or sum(sizes) != x.shape[-1] or min(sizes, default=-1) < 0:
        raise ValueError(
            f"split: got sizes {tuple(sizes)}, expected numbers that add up to {x.shape[-1] if x.ndim else 0} for x "
            f"{x.shape}"
        )
    return Split(tuple(sizes))(x)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors, all of one shape, side by side along a new axis, as torch.stack.

    Raises ValueError for no tensors or unlike shapes, IndexError for an axis that the result does not have.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("stack: got no tensors, expected at least one")
    first = tensors[0].shape
    for k, t in enumerate(tensors):
        if t.shape != first:
            raise ValueError(f"stack: tensor {k} has shape {t.shape}, expected {first} as tensor 0 has")
    if not -len(first) - 1 <= axis <= len(first):
        raise IndexError(f"stack: axis is {axis}, expected {-len(first) - 1} to {len(first)} for tensors {first}")
    place = axis % (len(first) + 1)
    return concat([reshape(t, (*first[:place], 1, *first[place:])) for t in tensors], place)


def flip(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """x backwards along `axis`, one or several (None: all), as torch.flip, but a view."""
    backwards = over("flip", tuple(range(x.ndim)) if axis is None else axis, x.ndim) or ()
    return getitem(x, tuple(slice(None, None, -1 if a in backwards else None) for a in range(x.ndim)))
