"""Every operator against float64 central differences, and what any gradient must satisfy."""

from __future__ import annotations

import numpy as np
import pytest

from autograd import Tensor, assert_gradients, ops
from kernels.loss import TERMS
from tests.support.cases import SAMPLE_IDS, SAMPLES, Case, Sample
from tests.support.gradient_checks import call, differentiable, gradients, statistics, tensors
from tests.support.misprints import Mutant, assert_caught, on_samples, planted


@pytest.mark.parametrize("layout", ["plain", "reversed", "strided"])
@pytest.mark.parametrize(("case", "sample"), SAMPLES, ids=SAMPLE_IDS)
def test_gradient_equals_central_differences(case: Case, sample: Sample, layout: str) -> None:
    inputs = differentiable(case, tensors(sample, layout=layout))
    assert_gradients(lambda *x: call(case, sample, list(x)), *inputs, name=case.name)


@pytest.mark.parametrize(("case", "sample"), SAMPLES, ids=SAMPLE_IDS)
def test_gradient_is_linear_repeatable_and_clean(case: Case, sample: Sample) -> None:
    """A zero cotangent gives zero, doubling it doubles, a second pass gives the same bits; inputs and cotangent are not
    written to.
    """
    inputs = differentiable(case, tensors(sample))
    before = [x.data.copy() if isinstance(x, Tensor) else x for x in inputs]
    rng = np.random.default_rng(1)
    cotangent = rng.standard_normal(call(case, sample, inputs).shape)
    kept = cotangent.copy()
    first = gradients(case, sample, inputs, cotangent)
    second = gradients(case, sample, inputs, cotangent)
    doubled = gradients(case, sample, inputs, 2 * cotangent)
    zero = gradients(case, sample, inputs, 0 * cotangent)
    assert (cotangent == kept).all()
    for k, (x, a, b, c, d) in enumerate(zip(inputs, first, second, doubled, zero, strict=True)):
        if not isinstance(x, Tensor):
            continue
        if k not in statistics(case):
            assert (x.data == before[k]).all(), f"input {k} was changed"
        if a is None:
            continue
        assert a.shape == x.shape
        assert a.dtype == x.dtype
        assert (a == b).all(), f"input {k}: not repeatable"
        np.testing.assert_allclose(c, 2 * a, rtol=1e-12, atol=1e-300)
        assert not d.any(), f"input {k}: zero cotangent, nonzero gradient"


@pytest.mark.parametrize(("case", "sample"), SAMPLES, ids=SAMPLE_IDS)
def test_only_wanted_gradients(case: Case, sample: Sample) -> None:
    """With a single input that requires a gradient, only that one gets it, and it is the same."""
    inputs = differentiable(case, tensors(sample))
    cotangent = np.random.default_rng(1).standard_normal(call(case, sample, inputs).shape)
    every = gradients(case, sample, inputs, cotangent)
    for k, x in enumerate(inputs):
        if not isinstance(x, Tensor) or not x.requires_grad:
            continue
        alone = [Tensor(y.data, requires_grad=j == k) if isinstance(y, Tensor) else y for j, y in enumerate(inputs)]
        got = gradients(case, sample, alone, cotangent)
        assert [j for j, g in enumerate(got) if g is not None] == [k]
        assert (got[k] == every[k]).all()


@pytest.mark.parametrize("background", ["train", "mask"])
@pytest.mark.parametrize("term", TERMS)
def test_loss_gradients_sum_to_zero_over_classes(term: str, background: str) -> None:
    """Adding a constant to all logits of a pixel changes no probability; ignored pixels get no gradient at all."""
    rng = np.random.default_rng(0)
    logits = Tensor(rng.standard_normal((2, 6, 7, 5)) * 3, requires_grad=True)
    labels = rng.integers(0, 5, (2, 6, 7))
    labels[0, :2] = 4
    ops.combined_loss(
        logits, labels, (1, 2, 3, 4, 5), ignore_index=4, background=background, terms={term: 1.0}
    ).backward()
    gradient = logits.grad.data
    assert np.abs(gradient.sum(-1)).max() < 1e-15
    assert not gradient[labels == 4].any()
    assert gradient[labels == 2].any()
    if background == "mask":
        assert not gradient[labels == 0].any()
        assert not gradient[..., 0].any()


def test_margin_loss_survives_confident_logits_in_float32() -> None:
    """Probabilities of 1e-40 and their fifth powers do not exist in float32; the loss works from logits."""
    logits = np.array([[[[90.0, 0, -90, 5, 1]]]])
    for label in range(5):
        results = []
        for dtype in (np.float32, np.float64):
            z = Tensor(logits.astype(dtype), requires_grad=True)
            value = ops.margin_loss(z, np.full((1, 1, 1), label))
            value.backward()
            results.append((value.item(), z.grad.data))
        assert np.isfinite(results[0][1]).all()
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
        np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-7)


def test_dropout_gradient_uses_the_same_mask() -> None:
    from autograd import random

    x = Tensor(np.ones((50, 40)), requires_grad=True)
    random.seed(3)
    y = ops.dropout(x, 0.3)
    y.backward(np.ones(y.shape))
    assert (y.data == x.grad.data).all()
    assert set(np.unique(y.data)) == {0.0, 1 / 0.7}
    assert 0.6 < (y.data > 0).mean() < 0.8
    assert ops.dropout(x, 0.3, training=False) is x
    with pytest.raises(ValueError, match="p is 1"):
        ops.dropout(x, 1.0)


# -- planted mistakes --------------------------------------------------------------------------------------------------


def check_gradient(case: Case, sample: Sample) -> None:
    test_gradient_equals_central_differences(case, sample, "plain")


def every_term_keeps_out_of_the_background() -> None:
    for term in TERMS:
        test_loss_gradients_sum_to_zero_over_classes(term, "mask")


MUTANTS = [
    Mutant(
        "gradient forgets the dilation",
        "kernels.conv.reference:unpatch",
        "i * dh : i * dh",
        "i : i",
        on_samples(check_gradient, "conv2d"),
    ),
    Mutant(
        "gradient forgets the stride",
        "kernels.conv.reference:unpatch",
        "(p - 1) * sh + 1 : sh",
        "p",
        on_samples(check_gradient, "conv2d"),
    ),
    Mutant(
        "left padding not removed",
        "kernels.conv.reference:unpatch",
        "left : left + size[1]",
        ": size[1]",
        on_samples(check_gradient, "conv2d"),
    ),
    Mutant(
        "filter gradient of one group only",
        "kernels.conv.reference:conv2d_backward_filter",
        "transpose(1, 0, 2)",
        "transpose(1, 0, 2)[:, ::-1]",
        on_samples(check_gradient, "conv2d"),
    ),
    Mutant(
        "bias gradient missing a factor",
        "kernels.conv.reference:backward_bias",
        "sum_pixels(dy)",
        "0.5 * sum_pixels(dy)",
        on_samples(check_gradient, "conv2d"),
    ),
    Mutant(
        "batch norm: mean's share missing in dx",
        "kernels.norm.reference:batch_norm_backward",
        "(dbias / rows)",
        "(0 * dbias)",
        on_samples(check_gradient, "batch_norm training"),
    ),
    Mutant(
        "batch norm: ReLU mask from the input",
        "kernels.norm.reference:batch_norm_backward",
        "xp.where(mask, dy",
        "xp.where(x > 0, dy",
        on_samples(check_gradient, "batch_norm relu"),
    ),
    Mutant(
        "layer norm: one term missing",
        "kernels.norm.reference:layer_norm_backward",
        "- xhat * (g * xhat).mean(-1, keepdims=True)",
        "",
        on_samples(check_gradient, "layer_norm"),
    ),
    Mutant(
        "softmax: Jacobian's off-diagonal missing",
        "kernels.pointwise.reference:softmax_backward",
        "(dy - (dy * y).sum(axis, keepdims=True))",
        "dy",
        on_samples(check_gradient, "softmax"),
    ),
    Mutant(
        "gelu: density missing",
        "kernels.pointwise.reference:gelu_backward",
        "+ x * density",
        "",
        on_samples(check_gradient, "gelu"),
    ),
    Mutant(
        "attention: scale missing in the gradient",
        "kernels.attention.reference:attention_backward",
        "ds = scale * p",
        "ds = p",
        on_samples(check_gradient, "scaled_dot_product_attention"),
    ),
    Mutant(
        "polarized: division by L missing",
        "kernels.attention.reference:polarized_spatial_backward",
        "/ x.shape[1]",
        "",
        on_samples(check_gradient, "polarized_spatial"),
    ),
    Mutant(
        "polarized: swapped matrices",
        "kernels.attention.reference:polarized_channel_backward",
        "pooled.T @ du",
        "(du.T @ pooled).reshape(pooled.shape[1], -1)",
        on_samples(check_gradient, "polarized_channel"),
    ),
    Mutant(
        "gate: sigmoid's derivative missing",
        "kernels.gate.reference:gate_backward",
        "* s * (1 - s)",
        "",
        on_samples(check_gradient, "gate"),
    ),
    Mutant(
        "focal: inner derivative missing",
        "kernels.loss.reference:focal",
        "* (1 + spec.gamma * xp.exp(log_py) * k)",
        "",
        on_samples(check_gradient, "focal_loss"),
    ),
    Mutant(
        "Dice: factor 2 missing in the gradient",
        "kernels.loss.regions:dice",
        "-2 * scale",
        "-scale",
        on_samples(check_gradient, "dice_loss"),
    ),
    Mutant(
        "Tversky: false positives missing in the gradient",
        "kernels.loss.regions:_missed",
        "spec.alpha * k / total",
        "0 * k",
        on_samples(check_gradient, "tversky_loss"),
    ),
    Mutant(
        "focal Tversky: outer derivative missing",
        "kernels.loss.regions:focal_tversky",
        "** (e - 1)",
        "** 0",
        on_samples(check_gradient, "focal_tversky_loss"),
    ),
    Mutant(
        "MCC: the root's derivative missing",
        "kernels.loss.regions:mcc",
        "+ c * (1 - 2 * q) / (2 * spread)",
        "",
        on_samples(check_gradient, "mcc_loss"),
    ),
    Mutant(
        "metric losses: gradient above the truth",
        "kernels.loss.reference:metric",
        "p < soft",
        "p > soft",
        on_samples(check_gradient, "jaccard_metric_loss"),
    ),
    Mutant(
        "boundary: softmax's other classes missing",
        "kernels.loss.reference:boundary",
        "(dp - (p",
        "(dp - 0 * (p",
        on_samples(check_gradient, "boundary_loss"),
    ),
    Mutant(
        "background masked but still in the softmax",
        "kernels.loss.reference:pixels_of",
        'first = 1 if spec.background_of(term) == "mask" else 0',
        "first = 0",
        every_term_keeps_out_of_the_background,
    ),
    Mutant(
        "broadcasting undone over the wrong axes",
        "kernels.shape.reference:sum_to",
        "i + lead for i",
        "i for i",
        on_samples(check_gradient, "mul", "add"),
        ValueError,  # the sum has another number of elements
        "cannot reshape array",
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
