"""Entries for the operators on arrays that are not of neural networks alone: reductions, indices, order, einsum, losses
between arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autograd import ops
from engine.gradcheck.catalogue.entry import Built, Entry
from engine.gradcheck.catalogue.makers import labels, normal, positive
from engine.gradcheck.catalogue.operators import MAKERS, Rng, _entry, binary, unary
from kernels.core.device import to_device

Shape = tuple[int, ...]


def chosen(op: Callable[..., Any]) -> Callable[..., Built]:
    """A builder for minimum and maximum. values 'kink': both from -1, 0 and 1, so that some are equal."""
    plain = binary(op)

    def build(rng: Rng, *, shape: Shape = (2, 1, 4), other_shape: Shape = (3, 1), values: str = "normal") -> Built:
        if values == "normal":
            return plain(rng, shape=shape, other_shape=other_shape)
        x = MAKERS[values](*shape)(rng)
        return Built(lambda x: op(x, 0.0), [x], ["x"], convention="share")

    return build


def clipped(
    rng: Rng, *, shape: Shape = (3, 5), min: float | None = -0.42, max: float | None = 0.33, between: bool = False
) -> Built:
    """Between two numbers, or between Tensors (a row and a column), some of which cross."""
    if between:
        return Built(
            ops.clip, [normal(*shape)(rng), normal(shape[0], 1)(rng), normal(shape[1])(rng) + 0.5], ["x", "min", "max"]
        )
    return Built(lambda x: ops.clip(x, min, max), [MAKERS["distinct"](*shape)(rng)], ["x"])


def einsum(
    rng: Rng, *, equation: str = "bij,bjk->bik", shape: Shape = (2, 3, 4), other_shape: Shape = (2, 4, 2)
) -> Built:
    """Operands of two shapes; of as many as the equation names, the first two."""
    shapes = [shape, other_shape][: equation.count(",") + 1]
    arrays = [normal(*some)(rng) for some in shapes]
    return Built(lambda *x: ops.einsum(equation, *x), arrays, ["x", "y"][: len(arrays)])


def stack(rng: Rng, *, shape: Shape = (2, 3), axis: int = 0) -> Built:
    """Three arrays of one shape."""
    return Built(lambda *x: ops.stack(x, axis), [normal(*shape)(rng) for _ in range(3)], ["a", "b", "c"])


def take(rng: Rng, *, shape: Shape = (4, 5), axis: int = 0, count: int = 7) -> Built:
    """That many numbers, some of them twice."""
    index = rng.integers(0, shape[axis], count)
    return Built(lambda x: ops.take(x, to_device(index, x.device), axis), [normal(*shape)(rng)], ["x"])


def gather(rng: Rng, *, shape: Shape = (4, 5), axis: int = 0) -> Built:
    """An index of x's shape."""
    index = rng.integers(0, shape[axis], shape)
    return Built(lambda x: ops.gather(x, axis, to_device(index, x.device)), [normal(*shape)(rng)], ["x"])


def scatter_add(rng: Rng, *, shape: Shape = (4, 5), axis: int = 0) -> Built:
    """An index and a source of x's shape."""
    index = rng.integers(0, shape[axis], shape)
    arrays = [normal(*shape)(rng), normal(*shape)(rng)]
    return Built(lambda x, src: ops.scatter_add(x, axis, to_device(index, x.device), src), arrays, ["x", "src"])


def embedding(rng: Rng, *, shape: Shape = (5, 3), count: int = 8) -> Built:
    """A table of `shape` and that many numbers, some of them twice."""
    index = labels(count, classes=shape[0])(rng)
    return Built(lambda w: ops.embedding(to_device(index, w.device), w), [normal(*shape)(rng)], ["weight"])


def ordered(op: Callable[..., Any], **fixed: Any) -> Callable[..., Built]:
    """A builder for the values of sort and topk."""
    return unary(lambda x, **settings: op(x, **settings)[0], "distinct", (3, 5), **fixed)


def between(
    op: Callable[..., Any], targets: Callable[[Shape], Any] = lambda shape: normal(*shape)
) -> Callable[..., Built]:
    """A builder for a loss between two arrays of one shape."""

    def build(rng: Rng, *, shape: Shape = (3, 4), **settings: Any) -> Built:
        return Built(lambda x, t: op(x, t, **settings), [normal(*shape)(rng), targets(shape)(rng)], ["input", "target"])

    return build


def logits(rng: Rng, *, shape: Shape = (3, 4), weighted: bool = False, reduction: str = "mean") -> Built:
    """Targets between 0 and 1; weights for positives and for values."""
    target, weight, positives = (rng.uniform(0.1, 1, shape) for _ in range(3))

    def fn(x: Any, t: Any) -> Any:
        w, p = (to_device(a.astype(x.dtype), x.device) if weighted else None for a in (weight, positives))
        return ops.binary_cross_entropy_with_logits(x, t, w, reduction, p)

    return Built(fn, [normal(*shape)(rng), target], ["input", "target"])


def linear(rng: Rng, *, shape: Shape = (2, 3, 4), features: int = 5, bias: bool = True) -> Built:
    """x (..., C), so many output features."""
    arrays = [normal(*shape)(rng), normal(features, shape[-1])(rng)] + ([normal(features)(rng)] if bias else [])
    return Built(lambda x, w, b=None: ops.linear(x, w, b), arrays, ["input", "weight", "bias"][: len(arrays)])


def conv1d(
    rng: Rng,
    *,
    shape: Shape = (2, 9, 4),
    filters: int = 6,
    kernel: int = 3,
    stride: int = 1,
    padding: Any = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Built:
    """x (N, L, C), filters of `kernel`."""
    arrays = [normal(*shape)(rng), normal(kernel, shape[-1] // groups, filters)(rng), normal(filters)(rng)]
    return Built(
        lambda x, w, b: ops.conv1d(x, w, b, stride, padding, dilation, groups), arrays, ["input", "weight", "bias"]
    )


def grouped(op: Callable[..., Any], **fixed: Any) -> Callable[..., Built]:
    """A builder for norms with gain and offset: x (N, ..., C)."""

    def build(rng: Rng, *, shape: Shape = (2, 3, 4, 6), **settings: Any) -> Built:
        c = shape[-1]
        arrays = [normal(*shape)(rng), positive(c)(rng), normal(c)(rng)]
        return Built(lambda x, w, b: op(x, weight=w, bias=b, **{**fixed, **settings}), arrays, ["x", "weight", "bias"])

    return build


def rms_norm(rng: Rng, *, shape: Shape = (2, 5, 6), eps: float | None = None) -> Built:
    """Over the last axis."""
    return Built(lambda x, w: ops.rms_norm(x, w, eps), [normal(*shape)(rng), positive(shape[-1])(rng)], ["x", "weight"])


def smallest(rng: Rng, *, shape: Shape = (3, 4), axis: int | None = -1, values: str = "distinct") -> Built:
    """min of -x: where ties of the largest values are made, they are of the smallest."""
    x = MAKERS[values](*shape)(rng)
    return Built(lambda x: ops.min(-x, axis), [x], ["x"], convention="share" if values == "ties" else None)


A = (2, 3, 4)
ARRAY_OPERATORS: list[Entry] = [
    _entry("abs", unary(ops.abs, "away", kink="any"), kinks=({"values": "kink"},)),
    _entry("clip", clipped, {}, {"min": None}, {"between": True}),
    _entry("minimum", chosen(ops.minimum), kinks=({"values": "kink"},)),
    _entry("maximum", chosen(ops.maximum), kinks=({"values": "kink"},)),
    _entry("sin", unary(ops.sin)),
    _entry("cos", unary(ops.cos)),
    _entry("erf", unary(ops.erf)),
    _entry("softplus", unary(ops.softplus), {}, {"beta": 2.5}),
    _entry("min", smallest, {}, {"axis": None}, kinks=({"values": "ties"},)),
    _entry("var", unary(ops.var, shape=A), {}, {"axis": (0, 2), "correction": 0}),
    _entry("std", unary(ops.std, shape=A), {}, {"axis": -1, "keepdims": True}),
    _entry("prod", unary(ops.prod, shape=A), {}, {"axis": 1}),
    _entry("logsumexp", unary(ops.logsumexp, shape=A), {}, {"axis": (0, 2)}),
    _entry("cumsum", unary(ops.cumsum, shape=A, axis=1)),
    _entry("stack", stack, {}, {"axis": -1}),
    _entry("swapaxes", unary(ops.swapaxes, shape=A, axis0=0, axis1=2)),
    _entry("flip", unary(ops.flip, shape=A), {}, {"axis": (0, -1)}),
    _entry(
        "einsum",
        einsum,
        {},
        {"equation": "iij->ij", "shape": (3, 3, 2)},
        {"equation": "...i,...i", "shape": (4, 1, 3), "other_shape": (2, 3)},
    ),
    _entry("take", take, {}, {"axis": 1}),
    _entry("gather", gather, {}, {"axis": 1}),
    _entry("scatter_add", scatter_add),
    _entry("embedding", embedding),
    _entry("sort", ordered(ops.sort), {}, {"axis": 0, "descending": True}),
    _entry("topk", ordered(ops.topk, k=2)),
    _entry("mse_loss", between(ops.mse_loss)),
    _entry("l1_loss", between(ops.l1_loss)),
    _entry("smooth_l1_loss", between(ops.smooth_l1_loss)),
    _entry("binary_cross_entropy_with_logits", logits, {}, {"weighted": True, "reduction": "sum"}),
    _entry("linear", linear, {}, {"shape": (4,), "bias": False}),
    _entry("conv1d", conv1d, {}, {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
    _entry("group_norm", grouped(ops.group_norm, num_groups=3), {}, {"shape": (2, 5, 6), "eps": 0.1}),
    _entry("instance_norm", grouped(ops.instance_norm)),
    _entry("rms_norm", rms_norm, {}, {"eps": 0.1}),
]
