"""A row for every operator: samples that must agree with the reference, PyTorch and finite differences, and inputs
that must fail.

The table of operators is engine/gradcheck/catalogue. An operator without a row here gets one of its entry there, with
the inputs of its first variant and the PyTorch function that the entry names. Rows here say more: further samples, bad
inputs, PyTorch's form where it is not one function of the same inputs. The generic tests do the rest. Inputs keep away
from kinks: `away` from 0 for activations, `distinct` values for maxima.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import ops
from engine.gradcheck.catalogue import Entry, catalogue
from engine.gradcheck.catalogue.makers import Sample, away, constant, distinct, labels, normal, positive
from engine.gradcheck.catalogue.makers import sample as s
from tests.support import torch_forms as forms
from tests.support import torch_losses as losses
from tests.support.array_cases import ARRAY_CASES
from tests.support.case import Bad, Case


def conv_batch_norm(
    x: Any,
    w: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    residual: Any = None,
    relu: bool = False,
    **settings: Any,
) -> Any:
    """ops.conv2d_batch_norm with its inputs in the order of the samples."""
    return ops.conv2d_batch_norm(
        x, w, weight, bias, mean, var, residual=residual, activation="relu" if relu else None, **settings
    )


N = normal
CONV = [
    s(N(2, 7, 9, 3), N(3, 3, 3, 4), N(4), note="plain"),
    s(N(2, 7, 9, 3), N(3, 3, 3, 4), N(4), padding="same", note="same"),
    s(N(1, 8, 7, 2), N(2, 4, 2, 3), N(3), padding="same", note="same even"),
    s(N(2, 9, 11, 4), N(3, 3, 4, 6), N(6), stride=2, padding=1, note="stride"),
    s(N(2, 9, 11, 4), N(3, 2, 4, 6), N(6), stride=(3, 2), padding=(1, 0), dilation=(1, 2), note="mixed"),
    s(N(2, 9, 11, 3), N(3, 3, 3, 5), N(5), padding=2, dilation=2, note="dilated"),
    s(N(2, 6, 7, 3), N(3, 3, 3, 5), N(5), padding=((2, 0), (1, 3)), note="asymmetric"),
    s(N(2, 6, 7, 6), N(3, 3, 2, 9), N(9), groups=3, padding=1, note="groups"),
    s(N(2, 6, 7, 5), N(3, 3, 1, 5), N(5), groups=5, padding=1, note="depthwise"),
    s(N(2, 6, 7, 3), N(3, 3, 1, 6), N(6), groups=3, stride=2, padding=1, note="depthwise x2 stride"),
    s(N(3, 5, 4, 7), N(1, 1, 7, 5), N(5), note="1x1"),
    s(N(1, 1, 1, 3), N(1, 1, 3, 2), N(2), note="one pixel"),
    s(N(1, 5, 1, 1), N(3, 1, 1, 1), N(1), note="size-1 axes"),
    s(N(2, 8, 8, 1), N(3, 3, 1, 8), N(8), padding=1, note="stem"),
    s(N(2, 7, 6, 3), N(5, 5, 3, 4), constant(None), padding=2, note="5x5 no bias"),
]
TRANSPOSED = [
    s(N(2, 4, 5, 3), N(2, 2, 3, 4), N(4), stride=2, note="k2 s2"),
    s(N(2, 4, 5, 3), N(3, 3, 3, 4), N(4), stride=2, padding=1, output_padding=1, note="k3 s2 p1 op1"),
    s(N(2, 4, 5, 3), N(4, 4, 3, 2), N(2), stride=2, padding=1, note="k4 s2 p1"),
    s(
        N(1, 5, 4, 3),
        N(3, 2, 3, 4),
        N(4),
        stride=(1, 3),
        padding=(1, 0),
        output_padding=(0, 2),
        dilation=(2, 1),
        note="mixed",
    ),
    s(N(2, 4, 3, 6), N(3, 3, 6, 2), N(6), stride=2, padding=1, groups=3, note="groups"),
    s(N(2, 3, 3, 4), N(1, 1, 4, 3), constant(None), note="1x1 no bias"),
    s(N(2, 4, 5, 3), N(2, 3, 3, 4), N(4), dilation=(2, 4), output_padding=(1, 3), note="padded by more than a stride"),
    s(
        N(2, 3, 4, 4),
        N(2, 2, 4, 1),
        N(4),
        stride=2,
        dilation=3,
        padding=1,
        output_padding=2,
        groups=4,
        note="depthwise, padded by a stride",
    ),
]
BN = [N(2, 4, 5, 3), positive(3), N(3), N(3), positive(3)]
POLARIZED_CHANNEL = [N(2, 12, 6), N(6), N(6, 3), N(3), N(3, 6), N(6), positive(6), N(6)]
Z = [N(2, 4, 5, 5), labels(2, 4, 5)]
Z_IGNORED = [N(2, 4, 5, 5), labels(2, 4, 5, ignored=3)]
WEIGHTS = (0.5, 1.0, 2.0, 0.7, 3.0)
LOSS_BAD = [
    Bad([N(2, 4, 5, 5), labels(2, 4, 6)], ValueError, r"labels have shape \(2, 4, 6\), expected \(2, 4, 5\)"),
    Bad([N(2, 4, 5, 5), N(2, 4, 5)], TypeError, "labels are float64, expected an integer"),
    Bad([N(2, 4, 5, 3), labels(2, 4, 5)], ValueError, r"labels holds [34] at \(.*\), expected 0 to 2"),
    Bad(Z, ValueError, "got 3 class weights for 5 classes", {"weight": (1, 2, 3)}),
    Bad(Z, ValueError, "class weights must be finite", {"weight": (1, 2, 3, 4, -1)}),
    Bad(Z, ValueError, "background.*'drop'.*train, mask", {"background": "drop"}),
]
LOSS_SAMPLES = [
    s(*Z, note="plain"),
    s(*Z, weight=WEIGHTS, note="weights"),
    s(*Z_IGNORED, ignore_index=3, weight=WEIGHTS, note="ignored"),
    s(*Z, background="mask", weight=WEIGHTS, note="background masked"),
    s(N(1, 1, 3, 5), constant(np.array([[[2, 2, 4]]])), note="absent classes"),
]
SOFT_SAMPLES = [
    s(*Z, label_smoothing=0.3, weight=WEIGHTS, note="soft truth"),
    s(*Z_IGNORED, ignore_index=3, label_smoothing=0.6, smooth=0.1, note="soft truth, ignored"),
    s(*Z, label_smoothing=0.2, background="mask", note="soft truth, background masked"),
    s(N(1, 1, 3, 5), constant(np.array([[[2, 2, 4]]])), label_smoothing=0.1, note="soft truth, absent classes"),
    s(N(1, 1, 3, 5), constant(np.array([[[2, 2, 4]]])), label_smoothing=0.1, absent="all"),
]

WRITTEN = [
    Case("add", ops.add, forms.add, [s(N(2, 3), N(2, 3)), s(N(2, 1, 4), N(3, 1), note="broadcast"), s(N(2, 3), N())]),
    Case("mul", ops.mul, forms.mul, [s(N(2, 1, 4), N(3, 1)), s(N(4), N(2, 4))]),
    Case(
        "remainder",
        ops.remainder,
        forms.remainder,
        [s(constant(np.array([1.3, -2.6, 4.1])), constant(np.array([[0.9], [-1.7]])))],
    ),
    Case(
        "power",
        ops.power,
        forms.power,
        [s(positive(2, 3), exponent=2.5), s(N(4), exponent=3), s(positive(2, 1, 4), N(3, 1), note="of a Tensor")],
        [Bad([N(2)], TypeError, "exponent: got str", {"exponent": "2"})],
    ),
    Case("where", ops.where, forms.where, [s(constant(np.array([[True], [False]])), N(2, 3), N(3))]),
    Case("sum", ops.sum, forms.sum, [s(N(2, 3, 4)), s(N(2, 3, 4), axis=(0, 2)), s(N(2, 3, 4), axis=-1, keepdims=True)]),
    Case("mean", ops.mean, forms.mean, [s(N(2, 3, 4)), s(N(2, 3, 4), axis=(0, 1)), s(N(2, 1, 4), axis=1)]),
    Case(
        "max",
        ops.max,
        forms.max,
        [s(distinct(2, 3, 4)), s(distinct(2, 3, 4), axis=1), s(distinct(3, 4), axis=-1, keepdims=True)],
    ),
    Case(
        "matmul",
        ops.matmul,
        forms.matmul,
        [
            s(N(3, 4), N(4, 2)),
            s(N(2, 1, 3, 4), N(5, 4, 2), note="batch"),
            s(N(4), N(2, 4, 3), note="vector left"),
            s(N(2, 3, 4), N(4)),
            s(N(4), N(4)),
        ],
        [Bad([N(3, 4), N(5, 2)], ValueError, r"\(3, 4\) and \(5, 2\) do not fit \(4 against 5\)")],
    ),
    Case("reshape", ops.reshape, forms.reshape, [s(N(2, 3, 4), shape=(4, -1))]),
    Case(
        "flatten",
        ops.flatten,
        forms.flatten,
        [s(N(2, 3, 4)), s(N(2, 3, 4, 1), start_dim=1, end_dim=2), s(N(2, 3, 4), start_dim=-2), s(N())],
        [
            Bad(
                [N(2, 3)],
                ValueError,
                r"start_dim 1 comes after end_dim 0 for x \(2, 3\)",
                {"start_dim": 1, "end_dim": 0},
            ),
            Bad([N(2, 3)], IndexError, "flatten: axis is 2, expected -2 to 1 for 2 axes", {"start_dim": 2}),
        ],
    ),
    Case(
        "squeeze",
        ops.squeeze,
        forms.squeeze,
        [s(N(1, 3, 1)), s(N(1, 3, 1), axis=-1), s(N(1, 3, 1), axis=1), s(N(1, 3, 1), axis=(0, 1))],
    ),
    Case(
        "swapaxes",
        ops.swapaxes,
        forms.swapaxes,
        [s(N(2, 3, 4), axis0=0, axis1=-1), s(N(2, 3), axis0=1, axis1=1), s(N(), axis0=0, axis1=-1)],
        [Bad([N(2, 3)], IndexError, "swapaxes: axis is 2, expected -2 to 1", {"axis0": 0, "axis1": 2})],
    ),
    Case("unsqueeze", ops.unsqueeze, forms.unsqueeze, [s(N(2, 3), axis=1), s(N(2, 3), axis=-1), s(N(), axis=0)]),
    Case("transpose", ops.transpose, forms.transpose, [s(N(2, 3, 4), axes=(2, 0, 1)), s(N(2, 3))]),
    Case("broadcast_to", ops.broadcast_to, forms.broadcast_to, [s(N(2, 1, 3), shape=(4, 2, 5, 3))]),
    Case(
        "getitem",
        ops.getitem,
        forms.getitem,
        [
            s(N(4, 5, 3), index=(slice(1, None), slice(None, None, 2)), note="slices"),
            s(N(4, 5), index=(0,), note="integer"),
            s(N(4, 5), index=([0, 2, 2],), note="repeated"),
        ],
    ),
    Case(
        "pad",
        ops.pad,
        forms.pad,
        [s(N(2, 3, 4), widths=((0, 1), (2, 0), (1, 1))), s(N(2, 3), widths=((1, 0), (0, 0)), value=2.5)],
        [
            Bad([N(2, 3)], ValueError, "expected 2 pairs", {"widths": ((1, 1),)}),
            Bad([N(2)], ValueError, "non-negative", {"widths": ((-1, 0),)}),
        ],
    ),
    Case(
        "concat",
        lambda *x, axis=-1: ops.concat(x, axis),
        forms.concat,
        [s(N(2, 3, 1), N(2, 3, 4), N(2, 3, 2)), s(N(2, 3), N(1, 3), axis=0)],
        [
            Bad([N(2, 3), N(3, 3)], ValueError, r"tensor 1 has shape \(3, 3\), which does not fit \(2, 3\)"),
            Bad([], ValueError, "no tensors"),
        ],
    ),
    Case(
        "split",
        lambda x, sizes: ops.concat([2.0 * part if k == 0 else part for k, part in enumerate(ops.split(x, sizes))]),
        forms.split,
        [s(N(2, 3, 6), sizes=(1, 3, 2))],
        [Bad([N(2, 3)], ValueError, "sizes .1, 1., expected .* add up to 3", {"sizes": (1, 1)})],
    ),
    Case("relu", ops.relu, forms.relu, [s(away(3, 5)), s(away(2, 3, 4, 5))]),
    Case(
        "add_relu",
        ops.add_relu,
        forms.add_relu,
        [s(away(3, 5), constant(np.full((3, 5), 0.1)))],
        [Bad([N(2, 3), N(3)], ValueError, r"add_relu: x has shape \(2, 3\) but the other map has \(3,\)")],
    ),
    Case("leaky_relu", ops.leaky_relu, forms.leaky_relu, [s(away(3, 5)), s(away(3, 5), negative_slope=0.2)]),
    Case(
        "sigmoid",
        ops.sigmoid,
        forms.sigmoid,
        [s(N(3, 5)), s(constant(np.array([-800.0, -30, 0, 30, 800])), note="extremes")],
    ),
    Case("gelu", ops.gelu, forms.gelu, [s(N(3, 5)), s(constant(np.linspace(-9, 9, 37)), note="range")]),
    Case(
        "softmax",
        ops.softmax,
        forms.softmax,
        [s(N(3, 5)), s(N(2, 3, 4), axis=1), s(constant(np.array([[1000.0, 0, -1000]])), note="extremes")],
    ),
    Case("log_softmax", ops.log_softmax, forms.log_softmax, [s(N(3, 5)), s(N(2, 3, 4), axis=1)]),
    Case(
        "conv2d",
        ops.conv2d,
        forms.conv2d,
        CONV,
        [
            Bad(
                [N(8, 6, 6, 32), N(3, 3, 16, 64)],
                ValueError,
                r"conv2d: x has 32 channels but the filter expects 16 \(x: \(8, 6, 6, 32\), w: \(3, 3, 16, 64\)\)",
            ),
            Bad([N(2, 6, 6, 3), N(3, 3, 3, 4), N(5)], ValueError, r"bias has shape \(5,\), expected \(4,\)"),
            Bad([N(2, 2, 6, 3), N(5, 3, 3, 4)], ValueError, r"window spans \(5, 3\) pixels, but the input is \(2, 6\)"),
            Bad([N(2, 6, 6, 3), N(3, 3, 3, 4)], ValueError, "stride.*0.*at least 1", {"stride": 0}),
            Bad([N(2, 6, 6, 3), N(3, 3, 3, 4)], ValueError, "'same' needs stride 1", {"stride": 2, "padding": "same"}),
            Bad([N(2, 6, 6, 3), N(3, 3, 3, 4)], ValueError, "groups = 2 must divide the 3 input", {"groups": 2}),
            Bad([N(6, 6, 3), N(3, 3, 3, 4)], ValueError, r"x has shape \(6, 6, 3\), expected 4 axes"),
            Bad([N(2, 6, 6, 3), N(3, 3, 3, 4)], ValueError, "padding.*'full'", {"padding": "full"}),
            Bad([N(2, 6, 6, 3), N(3, 3, 3, 4)], ValueError, r"dilation: got \(1, 2, 3\)", {"dilation": (1, 2, 3)}),
            Bad(
                [N(2, 6, 6, 3), lambda rng: np.zeros((3, 3, 3, 4), np.float32)],
                TypeError,
                "x is float64 but the filter is float32",
            ),
        ],
    ),
    Case(
        "conv2d_batch_norm",
        conv_batch_norm,
        forms.conv_batch_norm,
        [
            s(N(2, 5, 6, 2), N(3, 3, 2, 3), *BN[1:], padding=1),
            s(N(2, 5, 6, 2), N(3, 3, 2, 3), *BN[1:], N(2, 5, 6, 3), padding=1, relu=True, note="residual, ReLU"),
            s(N(2, 9, 7, 4), N(3, 2, 4, 3), *BN[1:], stride=2, dilation=(1, 2), relu=True, note="mixed"),
            s(N(3, 5, 4, 7), N(1, 1, 7, 3), *BN[1:], N(3, 5, 4, 3), note="1x1"),
            s(N(2, 5, 6, 6), N(3, 3, 2, 3), *BN[1:], groups=3, padding=1, note="groups"),
        ],
        [
            Bad([N(2, 5, 6, 2), N(3, 3, 3, 3), *BN[1:]], ValueError, "x has 2 channels but the filter expects 3"),
            Bad([N(2, 5, 6, 2), N(3, 3, 2, 4), *BN[1:]], ValueError, r"weight has shape \(3,\), expected \(4,\)"),
            Bad(
                [N(2, 5, 6, 2), N(3, 3, 2, 3), *BN[1:], N(2, 5, 6, 3)],
                ValueError,
                r"residual has shape \(2, 5, 6, 3\) but x has \(2, 3, 4, 3\)",
            ),
            Bad([N(1, 3, 3, 2), N(3, 3, 2, 3), *BN[1:]], ValueError, "more than one value per channel"),
        ],
    ),
    Case(
        "conv_transpose2d",
        ops.conv_transpose2d,
        forms.conv_transpose2d,
        TRANSPOSED,
        [
            Bad([N(2, 4, 4, 3), N(2, 2, 4, 3)], ValueError, "x has 3 channels but the filter expects 4"),
            Bad(
                [N(2, 4, 4, 3), N(2, 2, 3, 4)],
                ValueError,
                r"output_padding \(2, 2\) must be below stride \(2, 2\)",
                {"stride": 2, "output_padding": 2},
            ),
            Bad([N(2, 1, 1, 3), N(2, 2, 3, 4)], ValueError, r"the output would be \(0, 0\)", {"padding": 1}),
        ],
    ),
    Case(
        "max_pool2d",
        ops.max_pool2d,
        forms.max_pool2d,
        [
            s(distinct(2, 4, 6, 3), kernel_size=2),
            s(distinct(2, 7, 9, 3), kernel_size=3, stride=1, padding=1, note="3x3 s1"),
            s(distinct(1, 7, 9, 2), kernel_size=(3, 2), stride=2, padding=1, note="odd"),
            s(distinct(1, 9, 8, 2), kernel_size=2, dilation=(3, 2), stride=1, note="dilated"),
            s(distinct(1, 7, 8, 2), kernel_size=3, stride=2, ceil_mode=True, note="ceil"),
            s(distinct(1, 5, 5, 2), kernel_size=2, stride=3, padding=1, ceil_mode=True, note="ceil dropped window"),
        ],
        [
            Bad([N(2, 4, 4, 3)], ValueError, "at most half the kernel", {"kernel_size": 2, "padding": 2}),
            Bad([N(4, 4, 3)], ValueError, "expected 4 axes", {"kernel_size": 2}),
            Bad([N(1, 2, 2, 3)], ValueError, "spans", {"kernel_size": 3}),
        ],
    ),
    Case(
        "avg_pool2d",
        ops.avg_pool2d,
        forms.avg_pool2d,
        [
            s(N(2, 4, 6, 3), kernel_size=2),
            s(N(2, 7, 9, 3), kernel_size=3, stride=2, padding=1),
            s(N(2, 7, 9, 3), kernel_size=3, stride=2, padding=1, count_include_pad=False),
            s(N(2, 8, 7, 3), kernel_size=3, stride=2, padding=1, ceil_mode=True),
            s(N(2, 8, 7, 3), kernel_size=(2, 3), stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        ],
        [Bad([N(2, 4, 4, 3)], ValueError, "at most half the kernel", {"kernel_size": 2, "padding": 2})],
    ),
    Case(
        "adaptive_avg_pool2d",
        ops.adaptive_avg_pool2d,
        forms.adaptive_avg_pool2d,
        [
            s(N(2, 7, 9, 3), output_size=1),
            s(N(2, 7, 9, 3), output_size=(3, 4)),
            s(N(2, 4, 6, 3), output_size=(None, 1)),
            s(N(1, 2, 3, 2), output_size=(5, 3)),
        ],
        [Bad([N(2, 4, 4, 3)], ValueError, "output_size.*0", {"output_size": 0})],
    ),
    Case(
        "strip_pool2d",
        ops.strip_pool2d,
        forms.strip_pool2d,
        [s(N(2, 4, 6, 3)), s(N(2, 5, 6, 3), strips=2, axis=2), s(N(2, 8, 3, 2), strips=4, axis=1)],
        [Bad([N(2, 4, 4, 3)], ValueError, "axis is 3", {"axis": 3})],
    ),
    Case(
        "resize_bilinear",
        ops.resize_bilinear,
        forms.resize_bilinear,
        [
            s(N(2, 4, 5, 3), size=(8, 10)),
            s(N(2, 7, 5, 3), size=(3, 9)),
            s(N(2, 4, 5, 3), size=(7, 3), align_corners=True),
            s(N(2, 1, 5, 3), size=(4, 1), align_corners=True, note="single row"),
            s(N(1, 3, 1, 2), size=(5, 4)),
        ],
        [Bad([N(2, 4, 4, 3)], ValueError, "size", {"size": (0, 4)})],
    ),
    Case(
        "resize_nearest",
        ops.resize_nearest,
        forms.resize_nearest,
        [s(N(2, 4, 5, 3), size=(8, 10)), s(N(2, 7, 5, 3), size=(3, 9))],
    ),
    Case("resize_nearest corners", ops.resize_nearest, None, [s(N(2, 4, 5, 3), size=(8, 9), align_corners=True)]),
    Case(
        "batch_norm training",
        lambda *a, **k: ops.batch_norm(*a[:5], training=True, residual=a[5] if len(a) > 5 else None, **k),
        forms.batch_norm_training,
        [
            s(*BN),
            s(*BN, eps=1e-2),
            s(*BN, N(2, 4, 5, 3), note="residual"),
            s(N(3, 2), positive(2), N(2), N(2), positive(2), note="two axes"),
        ],
        [
            Bad([N(2, 4, 5, 3), N(3), N(4), N(3), N(3)], ValueError, r"bias has shape \(4,\), expected \(3,\)"),
            Bad([N(1, 1, 1, 3), N(3), N(3), N(3), N(3)], ValueError, "more than one value per channel"),
            Bad([*BN, N(2, 4, 4, 3)], ValueError, r"residual has shape \(2, 4, 4, 3\) but x has \(2, 4, 5, 3\)"),
            Bad(BN, ValueError, "activation is 'gelu'", {"activation": "gelu"}),
        ],
    ),
    Case(
        "batch_norm relu",
        lambda *a, **k: ops.batch_norm(*a[:5], training=True, residual=a[5], activation="relu", **k),
        forms.batch_norm_relu,
        [s(*BN, N(2, 4, 5, 3))],
    ),
    Case(
        "batch_norm evaluation",
        lambda *a, **k: ops.batch_norm(*a[:5], training=False, residual=a[5] if len(a) > 5 else None, **k),
        forms.batch_norm_evaluation,
        [s(*BN), s(*BN, N(2, 4, 5, 3), note="residual"), s(N(1, 1, 1, 3), positive(3), N(3), N(3), positive(3))],
    ),
    Case(
        "layer_norm",
        ops.layer_norm,
        forms.layer_norm,
        [s(N(2, 5, 6), positive(6), N(6)), s(N(3, 2, 2, 4), positive(4), N(4), eps=1e-3)],
        [Bad([N(2, 5), N(4), N(5)], ValueError, r"weight has shape \(4,\), expected \(5,\)")],
    ),
    Case(
        "gate",
        ops.gate,
        forms.gate,
        [s(N(2, 5, 7, 3), N(2, 5, 7, 1)), s(N(2, 5, 7, 3), N(2, 5, 7, 3), note="per channel")],
        [Bad([N(2, 5, 7, 3), N(2, 5, 8, 1)], ValueError, "gate: .*8.*7")],
    ),
    Case(
        "blend",
        ops.blend,
        forms.blend,
        [s(N(2, 5, 7, 3), N(2, 5, 7, 3), N(2, 5, 7, 1)), s(N(2, 3, 2, 3), N(2, 3, 2, 3), N(2, 3, 2, 3))],
        [Bad([N(2, 5, 7, 3), N(2, 5, 7, 2), N(2, 5, 7, 1)], ValueError, "other has")],
    ),
    Case(
        "scaled_dot_product_attention",
        ops.scaled_dot_product_attention,
        forms.attention,
        [
            s(N(2, 3, 5, 4), N(2, 3, 7, 4), N(2, 3, 7, 6)),
            s(N(1, 2, 5, 4), N(1, 2, 5, 4), N(1, 2, 5, 4), scale=0.3),
            s(N(1, 2, 5, 4), N(1, 2, 5, 4), N(1, 2, 5, 4), mask=np.tril(np.ones((5, 5), bool)), note="causal"),
            s(N(1, 2, 3, 4), N(1, 2, 5, 4), N(1, 2, 5, 4), mask=np.linspace(-2, 1, 15).reshape(3, 5), note="additive"),
            s(
                N(1, 1, 2, 4),
                N(1, 1, 3, 4),
                N(1, 1, 3, 2),
                mask=np.array([[True, False, True], [False] * 3]),
                note="empty row",
            ),
        ],
        [
            Bad([N(2, 3, 5, 4), N(2, 3, 7, 5), N(2, 3, 7, 6)], ValueError, "do not fit"),
            Bad(
                [N(2, 3, 5, 4), N(2, 3, 7, 4), N(2, 3, 7, 6)],
                ValueError,
                r"mask has shape \(5, 6\)",
                {"mask": np.ones((5, 6), bool)},
            ),
            *(
                Bad(
                    [N(2, 3, 5, 4)] * 3,
                    TypeError,
                    words,
                    {"mask": np.ones((5, 5), kind)},
                )
                for kind, words in (
                    ("int64", "the mask is int64, expected bool .* or float"),
                    ("uint8", "the mask is uint8, expected bool .* or float"),
                    ("complex64", "mask: got complex numbers, expected real ones"),
                )
            ),
        ],
    ),
    Case(
        "polarized_channel",
        ops.polarized_channel,
        forms.polarized_channel,
        [s(*POLARIZED_CHANNEL), s(*POLARIZED_CHANNEL, eps=0.1)],
        [Bad([N(2, 12, 6), N(5), *POLARIZED_CHANNEL[2:]], ValueError, r"wq has shape \(5,\), expected \(6,\)")],
    ),
    Case(
        "polarized_spatial",
        ops.polarized_spatial,
        forms.polarized_spatial,
        [s(N(2, 12, 6), N(6, 3), N(3), N(6, 3), N(3))],
        [Bad([N(2, 3, 4, 6), N(6, 3), N(3), N(6, 3), N(3)], ValueError, "expected 3 axes")],
    ),
    Case(
        "cross_entropy",
        ops.cross_entropy,
        losses.cross_entropy,
        [*LOSS_SAMPLES, s(*Z, weight=WEIGHTS, label_smoothing=0.1, note="smoothing")],
        LOSS_BAD,
    ),
    Case(
        "focal_loss",
        ops.focal_loss,
        losses.focal,
        [*LOSS_SAMPLES, s(*Z, gamma=0.5), s(*Z, gamma=0.0)],
        [Bad(Z, ValueError, "gamma is -1", {"gamma": -1.0})],
    ),
    Case(
        "dice_loss",
        ops.dice_loss,
        losses.dice,
        [*LOSS_SAMPLES, s(*Z, smooth=0.1), s(N(1, 1, 3, 5), constant(np.array([[[2, 2, 4]]])), absent="all")],
    ),
    Case(
        "iou_loss",
        ops.iou_loss,
        losses.iou,
        [*LOSS_SAMPLES, s(*Z, smooth=0.1), s(N(1, 1, 3, 5), constant(np.array([[[2, 2, 4]]])), absent="all")],
    ),
    Case(
        "tversky_loss",
        ops.tversky_loss,
        losses.tversky,
        [
            *LOSS_SAMPLES,
            s(*Z, alpha=1.5, beta=0.2, smooth=0.1),
            s(N(1, 1, 3, 5), constant(np.array([[[2, 2, 4]]])), absent="all"),
        ],
        [Bad(Z, ValueError, "alpha is -1", {"alpha": -1.0})],
    ),
    Case(
        "focal_tversky_loss", ops.focal_tversky_loss, losses.focal_tversky, [*LOSS_SAMPLES, s(*Z, power=1.5, alpha=0.5)]
    ),
    Case(
        "generalized_dice_loss",
        ops.generalized_dice_loss,
        losses.generalized_dice,
        [*LOSS_SAMPLES, s(*Z, absent="all")],
    ),
    Case("mcc_loss", ops.mcc_loss, losses.mcc, LOSS_SAMPLES),
    Case("jaccard_metric_loss", ops.jaccard_metric_loss, losses.jaccard_metric, [*SOFT_SAMPLES, *LOSS_SAMPLES]),
    Case("dice_semimetric_loss", ops.dice_semimetric_loss, losses.dice_semimetric, [*SOFT_SAMPLES, *LOSS_SAMPLES]),
    Case(
        "top_k_loss",
        ops.top_k_loss,
        losses.top_k,
        [
            *LOSS_SAMPLES,
            s(*Z, hardest=0.6, label_smoothing=0.1, weight=WEIGHTS),
            s(*Z, hardest=1.0),
            s(*Z, hardest=0.0, note="one pixel"),
        ],
        [Bad(Z, ValueError, "hardest is 1.5", {"hardest": 1.5})],
    ),
    Case(
        "boundary_loss",
        ops.boundary_loss,
        losses.boundary,
        [*LOSS_SAMPLES, s(N(1, 1, 3, 5), constant(np.array([[[2, 2, 4]]])), weight=WEIGHTS, note="two classes")],
        [Bad([N(4, 5), constant(np.zeros(4, np.int64))], ValueError, r"the boundary loss expects maps")],
    ),
    Case("lovasz_softmax", ops.lovasz_softmax, losses.lovasz, LOSS_SAMPLES),
    Case(
        "margin_loss",
        ops.margin_loss,
        losses.margin,
        [
            *LOSS_SAMPLES,
            s(*Z, reduction="sum", weight=WEIGHTS),
            s(*Z, reduction="weighted", weight=WEIGHTS),
            s(*Z, power=3, false_positive=0.5),
        ],
        [Bad(Z, ValueError, "reduction is 'max'", {"reduction": "max"})],
    ),
    Case(
        "combined_loss",
        ops.combined_loss,
        losses.combined,
        [
            *LOSS_SAMPLES,
            s(*Z, background={"margin": "mask", "iou": "mask"}, note="policy per term"),
            s(*Z, terms={"lovasz": 0.5, "cross_entropy": 1.0}),
        ],
        [Bad(Z, ValueError, "unknown term 'hinge'", {"terms": {"hinge": 1.0}})],
    ),
    *ARRAY_CASES,
]


def of_entry(entry: Entry) -> Case:
    """The row that an entry of the catalogue stands for."""
    built = entry.make(**entry.variants[0])
    theirs = forms.function_named(entry.torch) if entry.torch else None
    return Case(entry.name, built.fn, theirs, [s(*map(constant, built.arrays))])


def derived() -> list[Case]:
    """Rows of the operators that have none here."""
    # Dropout's draws are checked by hand; the fused forms and the terms of losses have rows under other names.
    rows = {case.name.split()[0] for case in WRITTEN} | {"dropout"}
    return [of_entry(entry) for entry in catalogue().values() if entry.kind == "operator" and entry.name not in rows]


CASES = [*WRITTEN, *derived()]
__all__ = ["BAD", "BAD_IDS", "CASES", "SAMPLES", "SAMPLE_IDS", "Bad", "Case", "Sample"]
SAMPLES = [(case, sample) for case in CASES for sample in case.samples]
SAMPLE_IDS = [f"{case.name}-{sample.note or k}" for case in CASES for k, sample in enumerate(case.samples)]
BAD = [(case, bad) for case in CASES for bad in case.bad]
BAD_IDS = [f"{case.name}-{k}" for case in CASES for k, _ in enumerate(case.bad)]
