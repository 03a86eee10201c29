"""Values picked by indices, and added up by indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd.checks import along
from autograd.function import Function
from autograd.operands import Operand
from autograd.ops.shape import reshape
from autograd.tensor import Tensor, as_array
from kernels.core.device import Array, array_module, to_device
from kernels.core.labels import check_labels
from kernels.core.reduction import halves_in_float32
from kernels.shape import evaluate

__all__ = ["embedding", "gather", "scatter_add", "take"]


class Take(Function):
    """y = the entries of x along an axis at the numbers in an index of any shape;
    dx = 0 but for dx[index_i] += dy_i.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Array, index: Array) -> Array:
        self.before = x.shape
        self.save(index)
        return evaluate(self._taken, x, index)

    def backward(self, dy: Array) -> tuple[Array, None]:
        return evaluate(halves_in_float32(self._added), dy, *self.saved), None

    def _taken(self, x: Array, index: Array) -> Array:
        check_labels(self.name.lower(), "index", index, x.shape[self.axis], error=IndexError)
        return array_module(x).take(x, index, self.axis)

    def _added(self, dy: Array, index: Array) -> Array:
        xp = array_module(dy)
        dx = xp.zeros(self.before, dy.dtype)
        taken = tuple(range(self.axis, self.axis + index.ndim))
        xp.add.at(xp.moveaxis(dx, self.axis, 0), index, xp.moveaxis(dy, taken, tuple(range(index.ndim))))
        return dx


class Embedding(Take):
    """y = rows of a table;  dw[index_i] += dy_i, but for the padding row, whose gradient is 0."""

    def __init__(self, padding: int | None) -> None:
        super().__init__(0)
        self.padding = padding

    def _added(self, dy: Array, index: Array) -> Array:
        dw = super()._added(dy, index)
        if self.padding is not None:
            dw[self.padding] = 0
        return dw


class _Along(Function):
    """The base of operators whose index has as many axes as x and acts along one of them."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis


class Gather(_Along):
    """y[i, j] = x[index[i, j], j] along axis 0, and so along any;  dx = 0 but for dx[index[i, j], j] += dy[i, j]."""

    def forward(self, x: Array, index: Array) -> Array:
        self.before = x.shape
        self.save(index)
        return evaluate(self._picked, x, index)

    def backward(self, dy: Array) -> tuple[Array, None]:
        return evaluate(halves_in_float32(self._added), dy, *self.saved), None

    def _picked(self, x: Array, index: Array) -> Array:
        check_labels("gather", "index", index, x.shape[self.axis], error=IndexError)
        return x[places(index, self.axis)]

    def _added(self, dy: Array, index: Array) -> Array:
        xp = array_module(dy)
        dx = xp.zeros(self.before, dy.dtype)
        xp.add.at(dx, places(index, self.axis), dy)
        return dx


class ScatterAdd(_Along):
    """y = x, then y[index[i, j], j] += src[i, j] along axis 0, and so along any;  dx = dy, dsrc[i, j] = dy[index[i, j],
    j], 0 beyond the index.
    """

    def forward(self, x: Array, index: Array, src: Array) -> Array:
        self.source_shape = src.shape
        self.save(index)
        return evaluate(halves_in_float32(self._added), x, index, src)

    def backward(self, dy: Array) -> tuple[Array | None, None, Array | None]:
        return dy if self.needs[0] else None, None, evaluate(self._picked, dy, *self.saved) if self.needs[2] else None

    def _added(self, x: Array, index: Array, src: Array) -> Array:
        check_labels("scatter_add", "index", index, x.shape[self.axis], error=IndexError)
        y = x.copy()
        array_module(x).add.at(y, places(index, self.axis), src[tuple(map(slice, index.shape))])
        return y

    def _picked(self, dy: Array, index: Array) -> Array:
        dsrc = array_module(dy).zeros(self.source_shape, dy.dtype)
        dsrc[tuple(map(slice, index.shape))] = dy[places(index, self.axis)]
        return dsrc


def places(index: Array, axis: int) -> tuple[Array, ...]:
    """The index of an array that reaches index[i, j, ...] along the axis, and i, j, ... along the others."""
    xp = array_module(index)
    grid = [xp.arange(n).reshape([-1 if k == a else 1 for k in range(index.ndim)]) for a, n in enumerate(index.shape)]
    grid[axis] = index
    return tuple(grid)


def integers(name: str, index: Any, like: Tensor) -> Any:
    """An index as an array on the device of `like`, or as the Tensor that it is; TypeError unless it holds integers."""
    if not hasattr(index, "dtype"):
        index = np.asarray(index)
    if index.dtype.kind not in "iu":
        raise TypeError(f"{name}: the index is {index.dtype}, expected integers")
    return (
        index if isinstance(index, Tensor) and index.device == like.device else to_device(as_array(index), like.device)
    )


def take(x: Tensor, index: Operand, axis: int | None = None) -> Tensor:
    """x's entries along `axis` at the integers in `index`: x (A, B, C), index (I, J), axis 1 -> (A, I, J, C). axis
    None: of x flattened.

    As PyTorch's take (axis None) and index_select, and NumPy's take, but that negative numbers are refused: IndexError
    for what is not from 0 to the size - 1, TypeError unless the index holds integers. An entry that is taken twice gets
    both gradients.
    """
    if axis is None:
        x = reshape(x, (-1,))
        axis = 0
    return Take(along("take", axis, x.ndim))(x, integers("take", index, x))


def gather(x: Tensor, axis: int, index: Operand) -> Tensor:
    """One entry of x along `axis` for every entry of index, as PyTorch's gather: for axis 1, y[i, j, k] = x[i, index[i,
    j, k], k].

    index: integers, as many axes as x, along the others no longer than x.   The result has the index's shape. NumPy's
    take_along_axis. Raises IndexError for integers that are not from 0 to x's size - 1, ValueError for a shape that
    does not fit.
    """
    numbers, axis = _indexed("gather", x, axis, index)
    return Gather(axis)(x, numbers)


def scatter_add(x: Tensor, axis: int, index: Operand, src: Tensor) -> Tensor:
    """x with src's entries added at the places that index names, as PyTorch's scatter_add: for axis 1, y[i, index[i, j,
    k], k] += src[i, j, k].

    index: integers, as many axes as x and src, no longer than src, nor than x along the other axes. A place that is
    named twice gets both. Raises IndexError for integers that are not from 0 to x's size - 1, ValueError for a shape
    that does not fit, TypeError for unlike dtypes.
    """
    numbers, axis = _indexed("scatter_add", x, axis, index)
    if src.ndim != x.ndim or any(i > s for i, s in zip(numbers.shape, src.shape, strict=True)):
        raise ValueError(f"scatter_add: the index has shape {numbers.shape}, which does not fit src {src.shape}")
    if src.dtype != x.dtype:
        raise TypeError(f"scatter_add: x is {x.dtype} but src is {src.dtype}")
    return ScatterAdd(axis)(x, numbers, src)


def _indexed(name: str, x: Tensor, axis: int, index: Any) -> tuple[Any, int]:
    """The checked index of gather or scatter_add, and the axis counted from the front."""
    numbers = integers(name, index, x)
    axis = along(name, axis, x.ndim)
    if numbers.ndim != x.ndim or any(
        i > n for a, (i, n) in enumerate(zip(numbers.shape, x.shape, strict=True)) if a != axis
    ):
        raise ValueError(
            f"{name}: the index has shape {numbers.shape}, which does not fit x {x.shape} along axis {axis}"
        )
    return numbers, axis


def embedding(input: Operand, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table: input integers (...), weight (V, D) -> (..., D), as PyTorch's embedding.

    padding_idx: a row that gets no gradient (negative: counted from the end).
    Raises IndexError for integers that are not from 0 to V - 1, TypeError unless the input holds integers, ValueError
    for other shapes.
    """
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight has shape {weight.shape}, expected 2 axes (V, D)")
    if padding_idx is not None and not -len(weight) <= padding_idx < len(weight):
        raise ValueError(f"embedding: padding_idx is {padding_idx}, expected {-len(weight)} to {len(weight) - 1}")
    return Embedding(padding_idx)(weight, integers("embedding", input, weight))
