"""Rows of the table of cases.py: elementary functions, reductions, indices, order, einsum, linear layers, norms of
groups, and losses of values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import ops
from engine.gradcheck.catalogue.makers import away, constant, distinct, labels, positive
from engine.gradcheck.catalogue.makers import normal as N
from engine.gradcheck.catalogue.makers import sample as s
from tests.support import torch_array_forms as forms
from tests.support.case import Bad, Case

INDEX = labels(3, 2, classes=4)
ZEROS = constant(np.array([[0.0, 2, -3], [0, 0, 4], [1, 2, 3]]))
NUMBER = constant(np.array(0.7))
TARGETS = constant(np.array([[0.0, 1, 0.3], [1, 1, 0.9]]))


def first(op: Any) -> Any:
    """The first of op's results."""
    return lambda *arrays, **settings: op(*arrays, **settings)[0]


def _bad_axis(error: type[Exception] = IndexError) -> Bad:
    return Bad([N(2, 3)], error, "axis is 2, expected -2 to 1", {"axis": 2})


ELEMENTARY = [
    Case("abs", ops.abs, forms.abs, [s(away(3, 5))]),
    Case(
        "clip",
        ops.clip,
        forms.clip,
        [
            s(constant(np.array([-1.7, -0.9, 0.2, 0.8, 1.3])), min=-1, max=1.1),
            s(away(3, 5), min=0.0, note="min"),
            s(away(3, 5), max=0.1, note="max"),
            s(N(4), min=1.0, max=-1.0, note="crossed"),
        ],
        [Bad([N(3)], ValueError, "neither min nor max"), Bad([N(3)], TypeError, "clip: min: got str", {"min": "0"})],
    ),
    Case(
        "clip between Tensors",
        ops.clip,
        forms.clip,
        [
            s(N(3, 5), constant(np.full((3, 1), -0.3)), N(5), note="broadcast, some crossed"),
            s(N(3, 5), N(5), constant(None), note="min"),
            s(N(5), constant(None), N(3, 1), note="max"),
            s(N(3, 5), N(3, 1), max=0.4, note="a number"),
        ],
        [Bad([N(3), N(2)], ValueError, "broadcast")],
    ),
    Case("minimum", ops.minimum, forms.minimum, [s(N(2, 1, 4), N(3, 1)), s(N(4), N(2, 4))]),
    Case("maximum", ops.maximum, forms.maximum, [s(N(2, 1, 4), N(3, 1)), s(N(4), N(2, 4))]),
    Case("sin", ops.sin, forms.sin, [s(N(3, 5))]),
    Case("cos", ops.cos, forms.cos, [s(N(3, 5))]),
    Case("erf", ops.erf, forms.erf, [s(N(3, 5)), s(constant(np.linspace(-7, 7, 37)), note="range")]),
    Case(
        "softplus",
        ops.softplus,
        forms.softplus,
        [
            s(N(3, 5)),
            s(N(3, 5), beta=2.5, threshold=1.0),
            s(constant(np.array([-800.0, -30, 0, 19, 21, 800])), note="extremes"),
        ],
    ),
]

REDUCTIONS = [
    Case(
        "min",
        ops.min,
        forms.min,
        [s(distinct(2, 3, 4)), s(distinct(2, 3, 4), axis=1), s(distinct(3, 4), axis=-1, keepdims=True)],
    ),
    Case(
        "var",
        ops.var,
        forms.var,
        [s(N(2, 3, 4)), s(N(2, 3, 4), axis=(0, 2), correction=0), s(N(2, 3, 4), axis=-1, keepdims=True, correction=2)],
        [Bad([constant(np.arange(4))], TypeError, "var: x is int64, expected floating point")],
    ),
    Case(
        "std",
        ops.std,
        forms.std,
        [s(N(2, 3, 4)), s(N(2, 3, 4), axis=(0, 2), correction=0), s(N(2, 3, 4), axis=-1, keepdims=True)],
        [Bad([constant(np.arange(4))], TypeError, "std: x is int64, expected floating point")],
    ),
    Case(
        "prod",
        ops.prod,
        forms.prod,
        [
            s(N(2, 3, 4)),
            s(N(2, 3, 4), axis=1),
            s(N(2, 3, 4), axis=(0, -1), keepdims=True),
            s(ZEROS, axis=1, note="zeros"),
            s(ZEROS, axis=0, note="zeros down"),
        ],
    ),
    Case(
        "logsumexp",
        ops.logsumexp,
        forms.logsumexp,
        [
            s(N(2, 3, 4)),
            s(N(2, 3, 4), axis=(0, 2)),
            s(N(2, 3, 4), axis=-1, keepdims=True),
            s(constant(np.array([[1000.0, 999, -1000], [-900.0, -901, -902]])), axis=1, note="extremes"),
        ],
    ),
    Case("cumsum", ops.cumsum, forms.cumsum, [s(N(2, 3, 4), axis=1), s(N(5), axis=-1)], [_bad_axis()]),
]

SHAPES = [
    Case(
        "stack",
        lambda *x, axis=0: ops.stack(x, axis),
        forms.stack,
        [
            s(N(2, 3), N(2, 3), N(2, 3)),
            s(N(2, 3), N(2, 3), axis=-1),
            s(N(2, 3), axis=1),
            s(NUMBER, NUMBER, note="numbers"),
        ],
        [
            Bad([N(2, 3), N(3, 3)], ValueError, r"tensor 1 has shape \(3, 3\), expected \(2, 3\)"),
            Bad([], ValueError, "no tensors"),
            Bad([N(2)], IndexError, "axis is 2, expected -2 to 1", {"axis": 2}),
        ],
    ),
    Case(
        "flip",
        ops.flip,
        forms.flip,
        [s(N(2, 3, 4)), s(N(2, 3, 4), axis=1), s(N(2, 3, 4), axis=(0, -1))],
        [
            Bad([N(2, 3)], ValueError, r"axis is \(0, -2\), expected different", {"axis": (0, -2)}),
            Bad([N(2)], ValueError, "axis is 1", {"axis": 1}),
        ],
    ),
    Case(
        "einsum",
        lambda *x, equation: ops.einsum(equation, *x),
        forms.einsum,
        [
            s(N(2, 3), N(3, 4), equation="ij,jk", note="product"),
            s(N(5, 2, 3), N(5, 3, 4), equation="bij,bjk->bki", note="batch"),
            s(N(2, 3), equation="ij->ji", note="transpose"),
            s(N(2, 3), equation="ij->", note="sum"),
            s(N(2, 3), equation="ba", note="alphabetical"),
            s(N(3, 3), equation="ii", note="trace"),
            s(N(3, 3, 2), equation="iij->ij", note="diagonal"),
            s(N(3, 3), N(3), equation="ii,i->i", note="diagonal product"),
            s(N(2), N(3), N(4), equation="i,j,k->ikj", note="outer"),
            s(N(4, 2, 3), N(3, 5), equation="...ij,jk->...ik", note="ellipsis"),
            s(N(4, 1, 3), N(2, 3), equation="...i,...i", note="ellipsis broadcast"),
            s(N(4, 2, 3), equation="...i->i", note="ellipsis summed"),
            s(N(2, 1), N(1, 3), equation="ij,ij->ij", note="size 1"),
            s(N(2, 3), N(1, 3), equation="ij,ij->", note="size 1 summed"),
            s(N(3, 4), N(4, 2), N(2, 3), equation=" ij, jk, ki -> ", note="three"),
            s(N(2, 3), N(4), equation="ij,k->i", note="summed alone"),
            s(N(2), NUMBER, equation="i,->i", note="number"),
        ],
        [
            Bad([N(2, 3), N(4, 2)], ValueError, "index 'j' of .* is 4 there and 3 elsewhere", {"equation": "ij,jk"}),
            Bad([N(2, 3)], ValueError, r"operand 0 has shape \(2, 3\), which does not fit 'i'", {"equation": "i->i"}),
            Bad([N(2, 3)], ValueError, "names 2 operands, got 1", {"equation": "ij,jk"}),
            Bad([N(2)], ValueError, "occurs twice in the result", {"equation": "i->ii"}),
            Bad([N(2)], ValueError, "has k, which no operand has", {"equation": "i->k"}),
            Bad([N(2)], ValueError, "expected letters", {"equation": "1->1"}),
            Bad([N(2, 3)], ValueError, "is 3 there and 2 elsewhere", {"equation": "ii"}),
        ],
    ),
    Case(
        "einsum of lists",
        forms.listed(ops.einsum),
        forms.einsum_of_lists,
        [
            s(N(2, 3), N(3, 4), lists=[[0, 1], [1, 2], [0, 2]], note="product"),
            s(N(2, 3), N(3, 4), lists=[[30, 2], [2, 7]], note="in the order of the numbers"),
            s(N(4, 2, 3), N(3, 5), lists=[[..., 0, 1], [1, 51], [51, ..., 0]], note="ellipsis"),
            s(N(3, 3), lists=[[5, 5], []], note="trace"),
        ],
        [
            Bad([N(2, 3)], ValueError, r"the indices \[0, 52\] hold 52, expected 0 to 51", {"lists": [[0, 52], [0]]}),
            Bad([N(2, 3)], ValueError, "which does not fit", {"lists": [[0], [0]]}),
            Bad([N(2, 3)], TypeError, "got a float, expected a list of indices", {"lists": [1.5]}),
        ],
    ),
]

INDICES = [
    Case(
        "take",
        ops.take,
        forms.take,
        [s(N(4, 5), INDEX, axis=0), s(N(2, 4, 5), INDEX, axis=-2), s(N(2, 3), INDEX, note="flat")],
        [
            Bad([N(3, 2), INDEX], IndexError, r"take: index holds 3 at \(.*\), expected 0 to 2", {"axis": 0}),
            Bad([N(3, 2), constant(np.array([-1]))], IndexError, r"take: index holds -1 at \(0,\), expected 0 to 5"),
            Bad([N(3, 2), N(2)], TypeError, "the index is float64, expected integers"),
        ],
    ),
    Case(
        "gather",
        lambda x, index, axis: ops.gather(x, axis, index),
        forms.gather,
        [s(N(4, 3), INDEX, axis=0), s(N(3, 4), INDEX, axis=1), s(N(4, 5, 6), labels(7, 2, 3, classes=4), axis=-3)],
        [
            Bad([N(3, 3), INDEX], IndexError, r"gather: index holds 3 at \(.*\), expected 0 to 2", {"axis": 0}),
            Bad(
                [N(2, 4), INDEX],
                ValueError,
                r"index has shape \(3, 2\), which does not fit x \(2, 4\) along axis 1",
                {"axis": 1},
            ),
            Bad([N(4, 4), constant(np.zeros((2, 2)))], TypeError, "float64", {"axis": 1}),
            Bad([N(4, 4), INDEX], IndexError, "axis is 2, expected -2 to 1", {"axis": 2}),
        ],
    ),
    Case(
        "scatter_add",
        lambda x, index, src, axis: ops.scatter_add(x, axis, index, src),
        forms.scatter_add,
        [s(N(4, 3), INDEX, N(3, 2), axis=0), s(N(3, 4), INDEX, N(5, 3), axis=1, note="longer source")],
        [
            Bad([N(3, 3), INDEX, N(3, 2)], IndexError, r"scatter_add: index holds 3 at", {"axis": 0}),
            Bad([N(4, 3), INDEX, N(2, 2)], ValueError, r"does not fit src \(2, 2\)", {"axis": 0}),
        ],
    ),
    Case(
        "embedding",
        ops.embedding,
        forms.embedding,
        [s(INDEX, N(4, 3)), s(INDEX, N(5, 2), padding_idx=-1), s(constant(np.array(2)), N(4, 3), note="one")],
        [
            Bad([INDEX, N(3, 2)], IndexError, r"embedding: index holds 3 at \(.*\), expected 0 to 2"),
            Bad([INDEX, N(4)], ValueError, "expected 2 axes"),
            Bad([INDEX, N(4, 2)], ValueError, "padding_idx is 4, expected -4 to 3", {"padding_idx": 4}),
            Bad([N(3), N(4, 2)], TypeError, "float64"),
        ],
    ),
    Case(
        "sort",
        first(ops.sort),
        forms.sort,
        [s(distinct(3, 5)), s(distinct(4, 2, 3), axis=0, descending=True)],
        [_bad_axis()],
    ),
    Case(
        "topk",
        first(ops.topk),
        forms.topk,
        [s(distinct(3, 5), k=2), s(distinct(5, 2), k=3, axis=0, largest=False)],
        [Bad([N(2, 3)], ValueError, "k is 4, expected 0 to 3", {"k": 4})],
    ),
]

MODULES = [
    Case(
        "linear",
        ops.linear,
        forms.linear,
        [s(N(3, 4), N(2, 4), N(2)), s(N(2, 3, 4), N(5, 4)), s(N(4), N(3, 4), N(3), note="vector")],
        [
            Bad([N(3, 4), N(4, 2)], ValueError, r"input has shape \(3, 4\), weight \(4, 2\)"),
            Bad([N(3, 4), N(2, 4), N(4)], ValueError, r"bias has shape \(4,\), expected \(2,\)"),
            Bad([N(3, 4), lambda rng: np.zeros((2, 4), np.float32)], TypeError, "input is float64, weight float32"),
        ],
    ),
    Case(
        "conv1d",
        ops.conv1d,
        forms.conv1d,
        [
            s(N(2, 9, 3), N(3, 3, 4), N(4)),
            s(N(2, 9, 4), N(3, 2, 6), N(6), stride=2, padding=2, dilation=2, groups=2),
            s(N(2, 7, 3), N(4, 3, 5), constant(None), padding=(1, 0), note="one side"),
            s(N(1, 5, 2), N(4, 2, 3), N(3), padding="same", note="same"),
        ],
        [
            Bad([N(9, 3), N(3, 3, 4)], ValueError, r"input has shape \(9, 3\), expected 3 axes"),
            Bad([N(2, 9, 3), N(3, 2, 4)], ValueError, "x has 3 channels but the filter expects 2"),
            Bad([N(2, 9, 3), N(3, 3, 4)], ValueError, r"stride: got \(1, 1\), expected an int", {"stride": (1, 1)}),
        ],
    ),
    Case(
        "group_norm",
        lambda x, weight=None, bias=None, num_groups=1, eps=1e-5: ops.group_norm(x, num_groups, weight, bias, eps),
        forms.group_norm,
        [
            s(N(2, 3, 4, 6), positive(6), N(6), num_groups=3),
            s(N(3, 4), num_groups=2, note="no pixels"),
            s(N(2, 5, 4), positive(4), num_groups=1, eps=1e-2),
        ],
        [
            Bad([N(2, 3, 4)], ValueError, "num_groups is 3, expected a divisor of the 4 channels", {"num_groups": 3}),
            Bad([N(2, 3, 4), N(3)], ValueError, r"weight has shape \(3,\), expected \(4,\)"),
            Bad([N(2, 1, 4)], ValueError, "has 1 values, expected at least 2", {"num_groups": 4}),
        ],
    ),
    Case(
        "instance_norm",
        ops.instance_norm,
        forms.instance_norm,
        [s(N(2, 3, 4, 5), positive(5), N(5)), s(N(2, 6, 3), eps=1e-2)],
        [Bad([N(4)], ValueError, r"x has shape \(4,\), expected \(N, ..., C\)")],
    ),
    Case(
        "rms_norm",
        ops.rms_norm,
        forms.rms_norm,
        [s(N(2, 5, 6), positive(6)), s(N(3, 4), eps=0.1)],
        [Bad([N(2, 3), N(2)], ValueError, r"weight has shape \(2,\), expected \(3,\)")],
    ),
]


def _reductions(*inputs: Any, **settings: Any) -> list[Any]:
    return [s(*inputs, reduction=reduction, **settings) for reduction in ("mean", "sum", "none")]


def _bad_reduction(*inputs: Any) -> Bad:
    return Bad(inputs, ValueError, "reduction is 'max', expected 'mean', 'sum' or 'none'", {"reduction": "max"})


LOSSES = [
    Case("mse_loss", ops.mse_loss, forms.mse_loss, _reductions(N(2, 3), N(2, 3)), [_bad_reduction(N(2), N(2))]),
    Case("l1_loss", ops.l1_loss, forms.l1_loss, _reductions(N(2, 3), N(2, 3)), [_bad_reduction(N(2), N(2))]),
    Case(
        "smooth_l1_loss",
        ops.smooth_l1_loss,
        forms.smooth_l1_loss,
        [*_reductions(N(2, 3), N(2, 3), beta=0.7), s(N(2, 3), N(2, 3)), s(N(2, 3), N(2, 3), beta=0.0, note="absolute")],
        [Bad([N(2), N(2)], ValueError, "beta is -1", {"beta": -1}), _bad_reduction(N(2), N(2))],
    ),
    Case(
        "binary_cross_entropy_with_logits",
        ops.binary_cross_entropy_with_logits,
        forms.binary_cross_entropy_with_logits,
        [
            *_reductions(N(2, 3), TARGETS),
            s(N(2, 3), TARGETS, pos_weight=np.array([0.5, 2.0, 3.0]), note="positives"),
            s(
                N(2, 3),
                TARGETS,
                weight=np.array([[1.0], [0.2]]),
                pos_weight=np.array(2.0),
                reduction="sum",
                note="weights",
            ),
            s(constant(np.array([-800.0, -30, 30, 800])), constant(np.array([1.0, 0.5, 0, 1])), note="extremes"),
        ],
        [
            _bad_reduction(N(2), N(2)),
            Bad([N(2), N(3)], ValueError, r"target has shape \(3,\), expected \(2,\)"),
            Bad(
                [N(2), N(2)],
                ValueError,
                r"pos_weight has shape \(4, 2\), which does not fit input \(2,\)",
                {"pos_weight": np.ones((4, 2))},
            ),
        ],
    ),
]

ARRAY_CASES = [*ELEMENTARY, *REDUCTIONS, *SHAPES, *INDICES, *MODULES, *LOSSES]
