"""Rows: operators that move values, and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autograd import Tensor, ops

from .choices import Choices
from .operands import Case, broadcastable, case, dtype, length, other_dtype, palette, shape, tensor
from .reductions import axis
from .table import Difference, Row

BACKWARDS = Difference(
    "slices with a negative step",
    "NumPy has them; PyTorch does not",
    "allow",
    lambda c: any(isinstance(i, slice) and (i.step or 1) < 0 for i in c.settings["index"]),
)
APART = Difference(
    "an integer and an array with a slice between them",
    "the array's axis comes first, as in NumPy; PyTorch takes the integer first and leaves the axis in its place",
    "other",
    lambda c: _apart(c.settings["index"]),
)


def _nothing_taken(c: Case) -> bool:
    """Whether an array holds no place along its axis, and slices leave nothing anyway."""
    x, index = c.operands[0].values, c.settings["index"]
    parts = index if isinstance(index, tuple) else (index,)
    try:
        if x[tuple(np.zeros_like(p) if isinstance(p, np.ndarray) and p.dtype.kind in "iu" else p for p in parts)].size:
            return False
        x[index]
    except IndexError as error:
        return "out of bounds" in str(error)
    return False


NOTHING_TAKEN = Difference(
    "an index outside its axis where nothing is taken",
    "refused, as in NumPy; PyTorch does not look at it",
    "refuse",
    _nothing_taken,
)
MIXED = Difference(
    "matrix products of different dtypes",
    "they promote as sums and products do; PyTorch refuses",
    "allow",
    lambda c: c.operands[0].values.dtype != c.operands[1].values.dtype,
)
CROPS = Difference(
    "pad with negative widths",
    "refused, because indexing cuts off",
    "refuse",
    lambda c: any(min(w) < 0 for w in c.settings["widths"]),
)


def _apart(index: tuple[Any, ...]) -> bool:
    """Whether integers and arrays stand in more than one group, and both occur."""
    kinds = "".join("i" if isinstance(i, int) else "a" if isinstance(i, np.ndarray) else "s" for i in index)
    return "i" in kinds and "a" in kinds and len(kinds.strip("s").replace("s", " ").split()) > 1


def _any(d: Choices, low: int = 0) -> Any:
    return tensor(d, shape(d, low), dtype(d, 15), palette(d, 10))


def _factors(d: Choices, n: int) -> tuple[int, ...]:
    dims = []
    while len(dims) < 4 and not d.chance(25):
        divisors = [k for k in range(1, n + 1) if n % k == 0] or [0]
        dims.append(d.pick(divisors))
        n //= dims[-1] or 1
    return (*dims, n)


def _reshape(d: Choices) -> Case:
    x = _any(d)
    dims = list(_factors(d, x.values.size)) if not d.chance(6) else list(shape(d))
    if dims and d.chance(30):
        dims[d.integer(0, len(dims) - 1)] = -1 if d.chance(90) else -d.integer(2, 5)
    return case(d, [x], shape=d.pick((tuple, list))(dims))


def _flatten(d: Choices) -> Case:
    x = _any(d)
    n = max(x.values.ndim, 1)
    ends = [d.integer(-n, n - 1) + n * d.chance(3) for _ in range(2)]
    ends = sorted(ends, key=lambda a: a % n) if d.chance(90) else ends
    return case(d, [x], start_dim=ends[0], end_dim=ends[1])


def _squeeze(d: Choices) -> Case:
    dims = tuple(1 if d.chance(40) else n for n in shape(d))
    return case(d, [tensor(d, dims, dtype(d, 15))], axis=axis(d, len(dims)))


def _torch_squeeze(x: Any, axis: Any) -> Any:
    return x.squeeze() if axis is None else x.squeeze(axis)


def _unsqueeze(d: Choices) -> Case:
    x = _any(d)
    return case(d, [x], axis=axis(d, x.values.ndim + 1, many=False))


def _transpose(d: Choices) -> Case:
    x = _any(d)
    order, n = list(range(x.values.ndim)), x.values.ndim
    for k in range(n - 1, 0, -1):
        j = d.integer(0, k)
        order[k], order[j] = order[j], order[k]
    order = [a - n * d.chance(30) for a in order]
    if d.chance(4):
        order = [*order[1:], order[-1]] if order and d.chance(50) else [*order, 0]
    return case(d, [x], axes=None if d.chance(15) else tuple(order))


def _torch_transpose(x: Any, axes: Any) -> Any:
    return x.permute(tuple(reversed(range(x.ndim))) if axes is None else axes)


def _swapaxes(d: Choices) -> Case:
    x = _any(d)
    n = max(x.values.ndim, 1)
    one, other = (d.integer(-n, n - 1) + n * d.chance(3) for _ in range(2))
    return case(d, [x], axis0=one, axis1=other)


def _broadcast_to(d: Choices) -> Case:
    dims = shape(d)
    return case(d, [tensor(d, broadcastable(d, dims), dtype(d, 15))], shape=dims)


def _torch_broadcast_to(x: Any, shape: Any) -> Any:
    return x.broadcast_to(shape)


def _index(d: Choices, n: int, long: int) -> Any:
    kind = d.integer(0, 9)
    if kind < 3:
        bound = [None, *range(-n - 1, n + 2)]
        return slice(d.pick(bound), d.pick(bound), d.pick((None, 1, 2, 3, -1) if d.chance(30) else (None, 1, 2)))
    if kind < 5:
        return d.integer(-n - 1, n) if d.chance(5) else d.integer(-n, n - 1) if n else 0
    if kind == 5:
        return None
    if kind == 6:
        return Ellipsis
    if kind == 7:
        return [bool(d.chance(50)) for _ in range(n)]
    return [d.integer(-n, n - 1) if n and not d.chance(2) else n for _ in range(long)]


def _getitem(d: Choices) -> Case:
    x = _any(d)
    if d.chance(5):
        mask = np.asarray(np.random.default_rng(d.integer(0, 99)).random(x.values.shape) < 0.5)
        return case(d, [x], index=(mask,))
    long, parts = d.integer(0, 4), []
    left = list(x.values.shape)
    while left and not d.chance(25):
        part = _index(d, left[0], long)
        if part is Ellipsis and Ellipsis in [p for p in parts if p is Ellipsis]:
            continue
        parts.append(part)
        if part is not None and part is not Ellipsis:
            left.pop(0)
    return case(
        d,
        [x],
        index=tuple(
            np.array(p, np.bool_ if p and isinstance(p[0], bool) else np.int64) if isinstance(p, list) else p
            for p in parts
        ),
    )


def _torch_getitem(x: Any, index: Any) -> Any:
    return x[tuple(torch.from_numpy(np.array(i)) if isinstance(i, np.ndarray) else i for i in index)]


def _pad(d: Choices) -> Case:
    x = _any(d)
    low = -1 if d.chance(4) else 0
    widths = tuple((d.integer(low, 3), d.integer(low, 3)) for _ in range(x.values.ndim))
    return case(d, [x], widths=widths, value=d.pick((0.0, 2.5, 1, -1, float("inf"), float("nan"))))


def _torch_pad(x: Any, widths: Any, value: Any) -> Any:
    return torch.nn.functional.pad(x, [w for pair in reversed(widths) for w in pair], value=value)


NO_FILL = Difference(
    "padding integers by nothing, with a value that they do not hold",
    "refused; PyTorch does not look at the value then",
    "refuse",
    lambda c: (
        c.operands[0].values.dtype.kind in "iu"
        and not np.isfinite(c.settings["value"])
        and not any(w for pair in c.settings["widths"] for w in pair)
    ),
)


def _concat(d: Choices) -> Case:
    dims, name = list(shape(d, 1)), dtype(d, 15)
    ax = d.integer(-len(dims), len(dims) - 1)
    operands = []
    for _ in range(d.integer(1, 4)):
        dims[ax] = length(d)
        own = list(dims)
        if d.chance(3):
            own[d.integer(0, len(own) - 1)] += 1
        operands.append(tensor(d, tuple(own), dtype(d, 15) if d.chance(4) else name))
    return case(d, operands, axis=len(dims) if d.chance(3) else ax)


def _split(d: Choices) -> Case:
    sizes = [d.integer(1, 4) for _ in range(d.integer(1, 4))]
    if d.chance(10):
        sizes[d.integer(0, len(sizes) - 1)] = d.pick((0, -1))
    total = sum(sizes) + d.chance(4)
    return case(d, [tensor(d, (*shape(d, 0, 3), max(total, 0)), dtype(d, 10))], sizes=tuple(sizes))


def _matmul(d: Choices) -> Case:
    name, batch = dtype(d, 8, 6), shape(d, 0, 2)
    n, m, k = (d.integer(1, 5) if not d.chance(10) else d.pick((0, 1, 17, 64)) for _ in range(3))
    left = d.pick(((*batch, n, k), (*batch, n, k), (k,)))
    right = d.pick(((k, m), (*broadcastable(d, batch), k, m), (k,)))
    if d.chance(4):
        right = shape(d, 0, 3)
    return case(d, [tensor(d, left, name), tensor(d, right, other_dtype(d, name, 3))])


def _set(x: Tensor, y: Tensor, index: Any) -> Tensor:
    z = Tensor(np.array(x.data))
    z[index] = y
    return z


ROWS = [
    Row("reshape", _reshape, ops.reshape, lambda x, shape: x.reshape(tuple(shape)), "element"),
    Row("flatten", _flatten, ops.flatten, lambda x, start_dim, end_dim: x.flatten(start_dim, end_dim), "element"),
    Row("squeeze", _squeeze, ops.squeeze, _torch_squeeze, "element"),
    Row("unsqueeze", _unsqueeze, ops.unsqueeze, lambda x, axis: x.unsqueeze(axis), "element"),
    Row("transpose", _transpose, ops.transpose, _torch_transpose, "element"),
    Row("swapaxes", _swapaxes, ops.swapaxes, lambda x, axis0, axis1: x.swapaxes(axis0, axis1), "element"),
    Row("broadcast_to", _broadcast_to, ops.broadcast_to, _torch_broadcast_to),
    Row(
        "getitem",
        _getitem,
        lambda x, index: ops.getitem(x, index),
        _torch_getitem,
        words=("getitem", "index"),
        differences=(NOTHING_TAKEN, BACKWARDS, APART),
    ),
    Row("pad", _pad, ops.pad, _torch_pad, "element", differences=(CROPS, NO_FILL)),
    Row("concat", _concat, lambda *xs, axis: ops.concat(xs, axis), lambda *xs, axis: torch.cat(xs, axis), "element"),
    Row("split", _split, ops.split, lambda x, sizes: x.split(list(sizes), -1), "element"),
    Row("matmul", _matmul, ops.matmul, torch.matmul, differences=(MIXED,)),
]
