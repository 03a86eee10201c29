"""NaN and infinity in the CUDA kernels: the trace of the CPU tests (special_values.py) for operators with kernels of
their own; and the losses.
"""

from __future__ import annotations

import cupy
import numpy as np
import pytest

from kernels.core.device import CUDA, to_numpy
from kernels.loss import LossSpec, loss_backward, loss_forward, reference
from tests.support.cases import SAMPLES, Case, Sample
from tests.support.special_values import differences

# Operators with kernels of their own; the losses (below) aside.
KERNELS = ("concat", "relu", "add_relu", "leaky_relu", "sigmoid", "silu", "gelu", "softmax", "log_softmax", "gate",
           "blend", "max_pool2d", "avg_pool2d", "resize_bilinear", "layer_norm", "batch_norm relu",
           "batch_norm evaluation", "batch_norm training", "polarized_channel", "polarized_spatial",
           "scaled_dot_product_attention", "conv_transpose2d", "conv2d", "conv2d_batch_norm")  # fmt: skip
TRACED: dict[str, tuple[Case, Sample]] = {}  # the first sample of each
for row in SAMPLES:
    if row[0].name in KERNELS and row[0].torch is not None:
        TRACED.setdefault(row[0].name, row)


@pytest.mark.parametrize("name", KERNELS)
def test_special_values_come_out_where_pytorch_has_them(name: str) -> None:
    wrong = differences(*TRACED[name], "fast", CUDA, per_input=2)
    assert not wrong, "\n".join(wrong[:10])


TERMS = ("cross_entropy", "focal", "dice", "iou", "margin", "tversky", "focal_tversky", "generalized_dice", "mcc")


def both(logits: np.ndarray, labels: np.ndarray, spec: LossSpec) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient by the CUDA kernels."""
    z, y = cupy.asarray(logits), cupy.asarray(labels)
    value, _, state = loss_forward(z, y, spec)
    return to_numpy(value), to_numpy(loss_backward(cupy.ones((), z.dtype), z, y, spec, state))


def pixels(classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 5, 7, classes)).astype(np.float32), rng.integers(0, classes, (2, 5, 7))


@pytest.mark.parametrize("classes", [5, 7])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_an_ignored_pixel_holds_counts_nowhere(term: str, value: float, classes: int) -> None:
    logits, labels = pixels(classes)
    labels[0, 1, 2] = 9
    changed = logits.copy()
    changed[0, 1, 2, 1:3] = value
    want, got = (both(z, labels, LossSpec(((term, 1.0),), ignore_index=9)) for z in (logits, changed))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert np.isfinite(got[0])
    assert not got[1][0, 1, 2].any()


@pytest.mark.parametrize("classes", [5, 7])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("where", ["another class", "the label", "all but the label"])
def test_a_logit_of_minus_infinity_is_the_limit(term: str, where: str, classes: int) -> None:
    """The oracle: the definition in float64 with -600 in its place. At the label two terms are infinite."""
    logits, labels = pixels(classes)
    far, label = logits.astype(np.float64), labels[1, 2, 3]
    places = {
        "another class": [(label + 1) % classes],
        "the label": [label],
        "all but the label": [c for c in range(classes) if c != label],
    }[where]
    logits[1, 2, 3, places], far[1, 2, 3, places] = -np.inf, -600
    spec = LossSpec(((term, 1.0),))
    value, gradient = both(logits, labels, spec)
    if where == "the label" and term in ("cross_entropy", "focal"):
        assert value == np.inf
    else:
        np.testing.assert_allclose(value, reference.loss_forward(far, labels, spec)[0], rtol=1e-5)
    np.testing.assert_allclose(
        gradient, reference.loss_backward(np.float64(1), far, labels, spec, None), rtol=1e-4, atol=1e-6
    )
