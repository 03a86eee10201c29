"""Rows: further functions of values, extremes and statistics over axes, indexing by arrays, sorting, and products."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from autograd import ops

from .arithmetic import BROADCAST, RANGE, as_seen, of_numbers, one_operand, two_operands
from .choices import Choices
from .norms import INFINITE_GAIN, MEAN
from .operands import (
    INTEGERS,
    Case,
    Operand,
    array,
    broadcastable,
    case,
    dtype,
    finite_cotangent,
    laid_out,
    length,
    other_dtype,
    palette,
    shape,
    tensor,
)
from .reductions import NO_AXES, all_or, axis, reduced
from .table import Difference, Row
from .windows import CONVOLUTIONS, conv_arguments

F = torch.nn.functional
BOUNDS = (None, -1, 0, 2, -0.5, 1.5, float("nan"), float("inf"), -float("inf"), 1)


def _clip(d: Choices) -> Case:
    """Bounds that are numbers, or Tensors or arrays that broadcast with x."""
    dims, name = shape(d), dtype(d, 15)
    x = tensor(d, dims, name, palette(d, 30))
    if d.chance(55):
        return case(d, [x, None, None], min=d.pick(BOUNDS), max=d.pick(BOUNDS))
    bounds: list[Operand | None] = []
    for _ in range(2):
        kind = d.integer(0, 9)
        other = dtype(d, 30) if d.chance(15) else name
        if kind < 6:
            bounds.append(tensor(d, broadcastable(d, dims), other, palette(d, 20)))
        elif kind < 8:
            bounds.append(array(d, broadcastable(d, dims), other, palette(d, 20)))
            as_seen(x, bounds[-1])
        else:
            bounds.append(None)
    return case(d, [x, *bounds], min=None, max=None)


def _our_clip(x: Any, low: Any, high: Any, min: Any, max: Any) -> Any:
    return ops.clip(x, min if low is None else low, max if high is None else high)


def _torch_clip(x: Any, low: Any, high: Any, min: Any, max: Any) -> Any:
    """PyTorch's, for which a plain array without axes becomes a Tensor of the dtype in which it meets x."""
    if low is None and high is None:
        return torch.clamp(x, min, max)
    low, high = (
        b if b is None or isinstance(b, torch.Tensor) else torch.tensor(b, dtype=torch.result_type(x, b))
        for b in (low, high)
    )
    return torch.clamp(x, low, high)


def _softplus(d: Choices) -> Case:
    return case(
        d,
        [tensor(d, shape(d), dtype(d), palette(d, 30))],
        beta=d.pick((1.0, 2.0, 0.5, 1)),
        threshold=d.pick((20.0, 1.0, 0.0, 20)),
    )


def _spread(d: Choices) -> Case:
    made = reduced(5)(d)
    made.settings["correction"] = d.pick((1, 0, 2, 0.5))
    return made


def _one_axis(d: Choices) -> Case:
    x = tensor(d, shape(d), dtype(d, 15), palette(d, 25))
    return case(d, [x], axis=axis(d, x.values.ndim, many=False))


def _arg(d: Choices) -> Case:
    x = tensor(d, shape(d), dtype(d, 30), palette(d, 25), grad=False)
    return case(d, [x], axis=None if d.chance(20) else axis(d, x.values.ndim, many=False), keepdims=d.chance(40))


def _sort(d: Choices) -> Case:
    made = _one_axis(d)
    made.settings["descending"] = d.chance(50)
    return made


def _argsort(d: Choices) -> Case:
    made = _sort(d)
    made.operands[0].grad = False
    return made


def _topk(d: Choices) -> Case:
    made = _one_axis(d)
    x, ax = made.operands[0].values, made.settings["axis"]
    long = (x.shape or (1,))[ax] if -max(x.ndim, 1) <= ax < max(x.ndim, 1) else 1
    made.settings |= {"k": d.integer(0, long) + (2 if d.chance(4) else 0), "largest": d.chance(50)}
    return made


def _topk_torch(x: Any, axis: int, k: int, largest: bool) -> Any:
    return torch.topk(x, k, axis, largest)[0]


def index(d: Choices, dims: tuple[int, ...], size: int, wrong: int = 4) -> Operand:
    """Integers from 0 to size - 1, rarely one outside."""
    values = np.asarray(d.generator().integers(0, max(size, 1), dims))
    if values.size and d.chance(wrong):
        values.flat[-1] = size
    given = laid_out(
        values.astype(d.pick(INTEGERS) if d.chance(25) else "int64"),
        d.pick(("C", "strided", "F", "swapped", "read-only")),
    )
    return Operand(np.array(given, np.int64), given, d.pick(("array", "tensor")), False)


def _take(d: Choices) -> Case:
    x = tensor(d, shape(d, 1), dtype(d, 15), palette(d, 10))
    ax = None if d.chance(20) else axis(d, x.values.ndim, many=False)
    size = x.values.size if ax is None else x.values.shape[ax] if -x.values.ndim <= ax < x.values.ndim else 1
    return case(d, [x, index(d, shape(d, 0, 2), size)], axis=ax)


def _torch_take(x: Any, i: Any, axis: int | None) -> Any:
    if axis is None:
        return torch.take(x, i)
    picked = torch.index_select(x, axis, i.reshape(-1))
    ax = axis % x.ndim
    return picked.reshape((*x.shape[:ax], *i.shape, *x.shape[ax + 1 :]))


def _gather_arguments(d: Choices) -> tuple[Operand, Operand, int]:
    x = tensor(d, shape(d, 1, 3), dtype(d, 10), palette(d, 10))
    ax = axis(d, x.values.ndim, many=False)
    ax = ax if -x.values.ndim <= ax < x.values.ndim else 0
    dims = [d.integer(0, n) if d.chance(30) else n for n in x.values.shape]
    dims[ax] = length(d)
    if len(dims) > 1 and d.chance(3):
        dims = dims[:-1]
    return x, index(d, tuple(dims), x.values.shape[ax]), ax


def _gather(d: Choices) -> Case:
    x, i, ax = _gather_arguments(d)
    return case(d, [x, i], axis=ax)


def _scatter_add(d: Choices) -> Case:
    x, i, ax = _gather_arguments(d)
    dims = tuple(n + d.integer(0, 1) for n in i.values.shape)
    return case(d, [x, i, tensor(d, dims, other_dtype(d, x.values.dtype.name, 3), palette(d, 10))], axis=ax)


def _embedding(d: Choices) -> Case:
    rows, width = length(d, 6), length(d, 5)
    weight = tensor(d, (rows, width), dtype(d), palette(d, 10))
    padding = d.integer(-rows, rows - 1) if rows and d.chance(30) else None
    return case(d, [index(d, shape(d, 0, 3), rows), weight], padding_idx=padding)


def _stack(d: Choices) -> Case:
    dims, name = shape(d, 0, 3), dtype(d, 15)
    operands = [
        tensor(d, shape(d) if d.chance(2) else dims, dtype(d, 15) if d.chance(4) else name)
        for _ in range(d.integer(1, 4))
    ]
    return case(d, operands, axis=axis(d, len(dims) + 1, many=False))


def _flip(d: Choices) -> Case:
    x = tensor(d, shape(d), dtype(d, 15))
    return case(d, [x], axis=axis(d, x.values.ndim))


def _torch_flip(x: Any, axis: Any) -> Any:
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return torch.flip(x, tuple(axes))


EQUATIONS = (
    "ij,jk->ik",
    "bij,bjk->bik",
    "i,i->",
    "ij->ji",
    "ii->i",
    "ij->",
    "ij,j",
    "...ij,...jk->...ik",
    "bqd,bkd->bqk",
    "i,j->ij",
    "ij,ij->ij",
    "abc,cd,de->abe",
)


def _einsum(d: Choices) -> Case:
    equation, name = d.pick(EQUATIONS), dtype(d, 0, 6)
    sizes = {letter: length(d, 4) for letter in sorted(set(equation) - set("->,."))}
    operands = []
    for term in equation.split("->")[0].split(","):
        lead = shape(d, 0, 2) if term.startswith("...") and not operands else ()
        dims = (*lead, *(sizes[letter] + d.chance(1) for letter in term.replace(".", "")))
        operands.append(tensor(d, dims, other_dtype(d, name, 2), palette(d, 10)))
    return case(
        d, operands, equation=equation, numbers=d.generator().permutation(52).tolist() if d.chance(35) else None
    )


def _listed(xs: Sequence[Any], equation: str, numbers: list[int]) -> list[Any]:
    """The arguments of the other form: every operand with the list of its indices, `numbers` in the place of letters;
    the result's list last.
    """
    left, arrow, out = equation.partition("->")
    names = dict(zip(sorted(set(equation) - set("->,.")), numbers, strict=False))

    def indices(term: str) -> list[Any]:
        return [... if part == "..." else names[part] for part in re.findall(r"\.\.\.|[a-z]", term)]

    given = [part for x, term in zip(xs, left.split(","), strict=True) for part in (x, indices(term))]
    return [*given, indices(out)] if arrow else given


def _einsum_of(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *xs, equation, numbers: f(equation, *xs) if numbers is None else f(*_listed(xs, equation, numbers))


def _linear(d: Choices) -> Case:
    name, inside, outside = dtype(d, 2, 6), length(d, 9), length(d, 6)
    x = tensor(d, (*shape(d, 0, 3), inside), name, palette(d, 10))
    w = tensor(d, (outside, inside + d.chance(2)), other_dtype(d, name, 2), palette(d, 6))
    b = None if d.chance(30) else tensor(d, (outside + d.chance(2),), other_dtype(d, name, 2), palette(d, 6))
    return case(d, [x, w, b])


def _conv1d(d: Choices) -> Case:
    (x, w, b), settings = conv_arguments(d)
    name = w.values.dtype.name
    padding = settings["padding"]
    settings |= {k: v if isinstance(v, int) else v[0] for k, v in settings.items() if k in ("stride", "dilation")}
    settings["padding"] = padding if isinstance(padding, (int, str)) else d.integer(0, 3)
    dims = x.values.shape
    x = tensor(d, (dims[0], dims[2], dims[3]) if len(dims) == 4 else dims, name, palette(d, 12))
    return case(d, [x, tensor(d, w.values.shape[1:], name, palette(d, 6)), b], **settings)


def _torch_conv1d(x: Any, w: Any, b: Any, **settings: Any) -> Any:
    return F.conv1d(x.permute(0, 2, 1), w.permute(2, 1, 0).contiguous(), b, **settings).permute(0, 2, 1)


def _group_norm(d: Choices) -> Case:
    name, groups = dtype(d, 0, 6), d.integer(1, 4)
    c = groups * d.integer(1, 4) + d.chance(2)
    vectors = [None if d.chance(30) else tensor(d, (c + d.chance(2),), name, palette(d, 6)) for _ in range(2)]
    return case(
        d,
        [tensor(d, (length(d, 3), *shape(d, 0, 2), c), name, palette(d, 10)), *vectors],
        num_groups=groups,
        eps=d.pick((1e-5, 1e-2)),
    )


def _torch_group_norm(x: Any, w: Any, b: Any, num_groups: int, eps: float) -> Any:
    """Composed: PyTorch's own operator crashes for some combinations of gradients."""
    if x.shape[-1] % num_groups or any(v is not None and v.shape != x.shape[-1:] for v in (w, b)):
        raise ValueError("does not fit")
    n, *pixels, c = x.shape
    groups = x.reshape(n, -1 if x.numel() else 0, num_groups, c // num_groups)
    var, mean = torch.var_mean(groups, (1, 3), correction=0, keepdim=True)
    y = ((groups - mean) * (var + eps).rsqrt()).reshape(n, *pixels, c)
    y = y if w is None else y * w
    return y if b is None else y + b


def _rms_norm(d: Choices) -> Case:
    name, c = dtype(d, 0, 6), length(d, 6)
    weight = None if d.chance(30) else tensor(d, (c + d.chance(2),), name, palette(d, 6))
    return case(
        d,
        [tensor(d, (*shape(d, 0, 3), c), name, palette(d, 12)), weight],
        eps=d.pick((1e-5, 1e-2, 1e-6, None)),
        name=name,
    )


def _our_rms_norm(x: Any, w: Any, eps: float | None, name: str) -> Any:
    return ops.rms_norm(x, w, eps)


def _torch_rms_norm(x: Any, w: Any, eps: float | None, name: str) -> Any:
    """name: the dtype of the case, whose epsilon counts, also where PyTorch computes in float64."""
    if eps is None and x.dtype != getattr(torch, name):
        eps = torch.finfo(torch.float32).eps
    return F.rms_norm(x, x.shape[-1:], w, eps)


def _single(
    name: str, other: Callable[..., Any], draw: Callable[[Choices], Case] | None = None, **settings: Any
) -> Row:
    return Row(name, draw or one_operand(), getattr(ops, name), other, "element", **settings)


def _over(name: str, method: str, draw: Callable[[Choices], Case] | None = None, **settings: Any) -> Row:
    return Row(
        name,
        draw or reduced(),
        getattr(ops, name),
        all_or(method),
        differences=(NO_AXES, *settings.pop("differences", ())),
        **settings,
    )


def _torch_prod(x: Any, axis: Any, keepdims: bool) -> Any:
    """PyTorch's takes one axis: the others after each other, from the last one."""
    if axis == ():
        return x.prod()
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if any(not -max(x.ndim, 1) <= a < max(x.ndim, 1) for a in axes) or len({a % max(x.ndim, 1) for a in axes}) < len(
        axes
    ):
        raise IndexError("no such axes")
    for a in sorted((a % max(x.ndim, 1) for a in axes), reverse=True):
        x = x.prod(a, keepdim=keepdims)
    return x.clone() if axis is not None or x.ndim else x.prod()


def _count(c: Case) -> int:
    """How many values are reduced to one."""
    x, ax = c.operands[0].values, c.settings["axis"]
    axes = range(x.ndim) if ax is None else ax if isinstance(ax, tuple) else (ax,)
    return int(np.prod([x.shape[a] for a in axes if -x.ndim <= a < x.ndim]))


def _has_ties(c: Case) -> bool:
    x, ax = c.operands[0].values, c.settings["axis"]
    if not x.size or not -x.ndim <= ax < x.ndim:
        return False
    s = np.sort(x.astype(np.float64), ax)
    with np.errstate(all="ignore"):
        return bool((np.diff(s, axis=ax) == 0).any()) or int(np.isnan(x.astype(np.float64)).sum()) > 1


TIES = Difference(
    "topk among equal values", "the first ones are taken; PyTorch does not specify which", "value", _has_ties
)
MASKS = Difference(
    "argmax, argmin and topk of booleans",
    "they have an order as integers have; PyTorch refuses",
    "allow",
    lambda c: c.operands[0].values.dtype == bool,
)


def _finite_product(c: Case) -> bool:
    """Whether the magnitudes' products over the axes are finite in x's dtype."""
    x, axis = c.operands[0].values, c.settings["axis"]
    with np.errstate(all="ignore"):
        try:
            return bool(
                np.isfinite(np.prod(np.maximum(np.abs(x), 1), None if axis == () else axis, dtype=x.dtype)).all()
            )
        except (ValueError, IndexError):  # no such axes
            return True


NOT_FINITE = Difference(
    "the gradient of prod where a factor or the product is NaN or infinite",
    "it is the product of the other factors; PyTorch divides the whole product by the factor",
    "value",
    lambda c: c.operands[0].values.dtype.kind == "f" and not _finite_product(c),
)
NO_INDEX = Difference(
    "an index without numbers whose axes do not fit",
    "refused as any other; PyTorch does not look at it",
    "refuse",
    lambda c: (
        not c.operands[1].values.size
        and _misfits(c.operands[1].values.shape, c.operands[0].values.shape, c.settings["axis"])
    ),
)


def _misfits(index: tuple[int, ...], x: tuple[int, ...], axis: int) -> bool:
    return len(index) != len(x) or any(
        i > n for a, (i, n) in enumerate(zip(index, x, strict=True)) if a != axis % len(x)
    )


LARGER_SOURCE = Difference(
    "scatter_add with a source larger than the index",
    "entries that the index does not name have gradient 0; PyTorch's backward raises",
    "allow",
    lambda c: c.operands[1].values.shape != c.operands[2].values.shape,
)
FEW_VALUES = Difference(
    "var and std of no more values than the correction",
    "the value is NaN or infinite, as PyTorch's; PyTorch's gradients over all axes and over some differ",
    "value",
    lambda c: _count(c) <= c.settings["correction"],
)
ONE_VALUE = Difference(
    "group norm over single values, or none",
    "a value less its own mean is 0 whatever it is; PyTorch raises for a batch of one only",
    "may refuse",
    lambda c: int(np.prod(c.operands[0].values.shape[1:])) < 2 * c.settings["num_groups"],
)
ONE_BIAS = Difference(
    "a bias of one number for more features",
    "refused; PyTorch broadcasts it",
    "refuse",
    lambda c: c.operands[2] is not None and c.operands[2].values.shape == (1,) != c.operands[1].values.shape[:1],
)
WIDER_BOUND = Difference(
    "clip between two bounds of which only one has axes that x lacks",
    "all three are broadcast; PyTorch's clamp writes the upper one into a result that is too small, and raises",
    "allow",
    lambda c: all(o is not None for o in c.operands) and len({np.shape(o.values) for o in c.operands}) > 1,
)
ORDER = Difference(
    "einsum of three operands, one of them with NaN or infinity",
    (
        "which two are multiplied first is left open, and with it whether an infinity meets a 0 or another infinity "
        "before it is summed"
    ),
    "infinite",
    lambda c: (
        len(c.operands) == 3
        and (c.special_cotangent or not all(np.isfinite(o.values.astype(np.float64)).all() for o in c.operands))
    ),
)
ONE_DTYPE = Difference(
    "einsum of Tensors of different dtypes",
    "one dtype is required; PyTorch promotes in some equations and raises in others",
    "refuse",
    lambda c: len({o.values.dtype for o in c.operands}) > 1,
)

ROWS = [
    _single("abs", torch.abs, smooth=False),
    Row("clip", _clip, _our_clip, _torch_clip, smooth=False, cancels=BROADCAST, differences=(RANGE, WIDER_BOUND)),
    _single("sin", torch.sin),
    _single("cos", torch.cos),
    _single("erf", torch.erf),
    _single("softplus", F.softplus, _softplus),
    _single("maximum", of_numbers(torch.maximum), two_operands, smooth=False, cancels=BROADCAST, differences=(RANGE,)),
    _single("minimum", of_numbers(torch.minimum), two_operands, smooth=False, cancels=BROADCAST, differences=(RANGE,)),
    _over("min", "amin", scale="element", smooth=False),
    _over("var", "var", _spread, differences=(FEW_VALUES,)),
    _over("std", "std", _spread, differences=(FEW_VALUES,)),
    _over("logsumexp", "logsumexp"),
    Row("prod", reduced(), ops.prod, _torch_prod, differences=(NO_AXES, NOT_FINITE)),
    Row("cumsum", _one_axis, ops.cumsum, lambda x, axis: torch.cumsum(x, axis)),
    Row(
        "argmax",
        _arg,
        ops.argmax,
        lambda x, axis, keepdims: torch.argmax(x, axis, keepdim=keepdims),
        differences=(MASKS,),
    ),
    Row(
        "argmin",
        _arg,
        ops.argmin,
        lambda x, axis, keepdims: torch.argmin(x, axis, keepdim=keepdims),
        differences=(MASKS,),
    ),
    Row(
        "sort",
        _sort,
        ops.sort,
        lambda x, axis, descending: torch.sort(x, dim=axis, descending=descending, stable=True),
        "element",
        smooth=False,
    ),
    Row(
        "argsort",
        _argsort,
        ops.argsort,
        lambda x, axis, descending: torch.argsort(x, dim=axis, descending=descending, stable=True),
    ),
    Row(
        "topk",
        _topk,
        lambda x, axis, k, largest: ops.topk(x, k, axis, largest)[0],
        _topk_torch,
        "element",
        smooth=False,
        differences=(MASKS, TIES),
    ),
    Row("take", _take, ops.take, _torch_take, "element"),
    Row(
        "gather",
        _gather,
        lambda x, i, axis: ops.gather(x, axis, i),
        lambda x, i, axis: torch.gather(x, axis, i),
        "element",
        differences=(NO_INDEX,),
    ),
    Row(
        "scatter_add",
        _scatter_add,
        lambda x, i, s, axis: ops.scatter_add(x, axis, i, s),
        lambda x, i, s, axis: torch.scatter_add(x, axis, i, s),
        differences=(NO_INDEX, LARGER_SOURCE),
    ),
    Row("embedding", _embedding, ops.embedding, F.embedding),
    Row("stack", _stack, lambda *xs, axis: ops.stack(xs, axis), lambda *xs, axis: torch.stack(xs, axis), "element"),
    Row("flip", _flip, ops.flip, _torch_flip, "element"),
    Row(
        "einsum",
        _einsum,
        _einsum_of(ops.einsum),
        _einsum_of(torch.einsum),
        differences=(ONE_DTYPE, ORDER),
    ),
    Row("linear", _linear, ops.linear, F.linear, cancels="a sum of products", differences=(ONE_BIAS,)),
    Row("conv1d", _conv1d, ops.conv1d, _torch_conv1d, words=("conv1d", "conv2d"), differences=CONVOLUTIONS),
    Row(
        "group_norm",
        finite_cotangent(_group_norm),
        lambda x, w, b, num_groups, eps: ops.group_norm(x, num_groups, w, b, eps),
        _torch_group_norm,
        words=("group_norm", "layer_norm"),
        differences=(ONE_VALUE, INFINITE_GAIN),
        cancels=MEAN,
    ),
    Row("rms_norm", finite_cotangent(_rms_norm), _our_rms_norm, _torch_rms_norm, cancels=MEAN),
]
