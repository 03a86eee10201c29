"""Moving values between maps: concatenation along channels, its inverse, and the sum that accumulates gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kernels.core.device import Array, array_module
from kernels.core.reduction import halves_in_float32


def concat_channels(xs: Sequence[Array]) -> Array:
    """Maps (..., C_i) concatenated: (..., sum C_i)."""
    return array_module(*xs).concatenate(xs, -1)


def split_channels(dy: Array, sizes: Sequence[int]) -> list[Array]:
    """The slices of (..., sum C_i) with C_i channels each (views or copies)."""
    out = []
    start = 0
    for size in sizes:
        out.append(dy[..., start : start + size])
        start += size
    return out


def accumulate(total: Array, more: Array) -> None:
    """total += more, in place."""
    total += more


def overwrite(target: Array, values: Array) -> None:
    """target = values, in place."""
    target[...] = values


def added(a: Array, b: Array) -> Array:
    """a + b."""
    return a + b


def evaluate(rule: Callable[..., Array], *arrays: Array) -> Array:
    """rule(*arrays): an expression of arrays, as an operator. A single number comes as an array without axes."""
    y = rule(*arrays)
    return np.asarray(y) if isinstance(y, np.generic) else y


def duplicate(a: Array) -> Array:
    """A copy."""
    return a.copy()


@halves_in_float32
def sum_to(dy: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: the sum of dy over the axes along which an array of `shape` was repeated."""
    if dy.shape == shape:
        return dy
    lead = dy.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and dy.shape[i + lead] != 1)
    return dy.sum(axes, keepdims=True).reshape(shape) if axes else dy.reshape(shape)
