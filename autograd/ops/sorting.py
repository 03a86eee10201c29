"""Order: where the largest value is, and values in order. Indices have no gradient; sorted values hand theirs back to
where they came from.
"""

from __future__ import annotations

from autograd.checks import along, check_filled
from autograd.function import Function
from autograd.ops.indexing import places
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module
from kernels.shape import evaluate

__all__ = ["argmax", "argmin", "argsort", "sort", "topk"]


class Arg(Function):
    """The number of the first largest or smallest value along an axis (NaN counts as either); no gradient."""

    def __init__(self, method: str, axis: int | None, keepdims: bool) -> None:
        super().__init__()
        self.method, self.axis, self.keepdims = method, axis, keepdims

    def forward(self, x: Array) -> Array:
        return evaluate(self._found, x)

    def _found(self, x: Array) -> Array:
        found = getattr(x, self.method)(self.axis)
        if self.keepdims:
            shape = (
                (1,) * x.ndim if self.axis is None else tuple(1 if a == self.axis else n for a, n in enumerate(x.shape))
            )
            return found.reshape(shape)
        return found


class Sort(Function):
    """values[i] = x[indices[i]] in order along an axis;  dx[indices[i]] = dvalues[i]: a sort is a permutation. Kept:
    the first `count` of it.
    """

    def __init__(self, axis: int, descending: bool, count: int | None = None) -> None:
        super().__init__()
        self.axis, self.descending, self.count = axis, descending, count

    def forward(self, x: Array) -> tuple[Array, Array]:
        self.before = x.shape
        values, indices = evaluate(self._ordered, x)
        self.save(indices)
        return values, indices

    def backward(self, dvalues: Array, dindices: Array) -> Array:
        return evaluate(self._put_back, dvalues, *self.saved)

    def _ordered(self, x: Array) -> tuple[Array, Array]:
        xp = array_module(x)
        if not x.ndim:
            return x.copy(), xp.zeros((), "int64")
        if self.descending:  # backwards before and after, so that equal values keep their order
            indices = (
                x.shape[self.axis]
                - 1
                - xp.flip(xp.argsort(xp.flip(x, self.axis), axis=self.axis, kind="stable"), self.axis)
            )
        else:
            indices = xp.argsort(x, axis=self.axis, kind="stable")
        if self.count is not None:
            indices = indices[(slice(None),) * self.axis + (slice(self.count),)].copy()
        return x[places(indices, self.axis)], indices

    def _put_back(self, dvalues: Array, indices: Array) -> Array:
        xp = array_module(dvalues)
        dx = xp.zeros(self.before, dvalues.dtype)
        dx[places(indices, self.axis) if self.before else ()] = dvalues
        return dx


def argmax(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The number (int64) of the first largest value along `axis` (None: of x flattened), as NumPy's argmax; NaN counts
    as the largest. No gradient.
    """
    return _arg("argmax", x, axis, keepdims)


def argmin(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The number (int64) of the first smallest value along `axis` (None: of x flattened), as NumPy's argmin; NaN counts
    as the smallest. No gradient.
    """
    return _arg("argmin", x, axis, keepdims)


def _arg(name: str, x: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    place = None if axis is None else along(name, axis, x.ndim)
    if not x.size:
        check_filled(name, x.shape, None if place is None else (place,))
    return Arg(name, place if x.ndim else None, keepdims)(x.detach())


def sort(x: Tensor, axis: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """(values, indices) as torch.sort(stable=True): x in order along `axis`, and where each value was (int64); equal
    values keep their order, NaN counts as the largest.

    The gradient of the values goes back through the indices.
    """
    return Sort(along("sort", axis, x.ndim), descending)(x)


def argsort(x: Tensor, axis: int = -1, descending: bool = False) -> Tensor:
    """The indices (int64) that `sort` returns, as torch.argsort(stable=True). No gradient."""
    return Sort(along("argsort", axis, x.ndim), descending)(x.detach())[1]


def topk(x: Tensor, k: int, axis: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """(values, indices) of the k largest (or smallest) values along `axis`, in order, as torch.topk; the indices are
    int64, the gradient is that of `sort`.

    Raises ValueError unless k is from 0 to the length of the axis.
    """
    place = along("topk", axis, max(x.ndim, 1))
    if not 0 <= k <= (x.shape or (1,))[place]:
        raise ValueError(f"topk: k is {k}, expected 0 to {(x.shape or (1,))[place]} for x {x.shape} along axis {axis}")
    return Sort(place, largest, k)(x)
