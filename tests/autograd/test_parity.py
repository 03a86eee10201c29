"""Every operator against PyTorch, forward and backward, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from autograd import Tensor
from tests.support.cases import SAMPLE_IDS, SAMPLES, Case, Sample
from tests.support.gradient_checks import call, differentiable, gradients, tensors
from tests.support.misprints import Mutant, assert_caught, on_samples, planted

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")


@pytest.mark.parametrize(("case", "sample"), SAMPLES, ids=SAMPLE_IDS)
def test_equals_pytorch(case: Case, sample: Sample) -> None:
    if case.torch is None:
        pytest.skip("PyTorch has no such operator")
    inputs = differentiable(case, tensors(sample))
    theirs = [
        torch.tensor(x.data, requires_grad=x.requires_grad)
        if isinstance(x, Tensor)
        else torch.as_tensor(x)
        if isinstance(x, np.ndarray)
        else x
        for x in inputs
    ]
    y, t = call(case, sample, inputs), case.torch(*theirs, **sample.settings)
    assert y.shape == tuple(t.shape)
    assert np.abs(y.data - t.detach().numpy()).max() <= 1e-12 * max(1, t.abs().max().item())
    cotangent = np.random.default_rng(1).standard_normal(y.shape)
    t.backward(torch.tensor(cotangent))
    for k, (mine, other) in enumerate(zip(gradients(case, sample, inputs, cotangent), theirs, strict=True)):
        if mine is None:
            continue
        expected = np.zeros(mine.shape) if other.grad is None else other.grad.numpy()
        assert np.abs(mine - expected).max() <= 1e-11 * max(1, np.abs(expected).max()), f"gradient of input {k}"


def test_first_maximum_wins_as_in_pytorch() -> None:
    """Ties on purpose: a constant map."""
    x = np.zeros((1, 4, 6, 2))
    from autograd import ops

    mine = Tensor(x, requires_grad=True)
    ops.max_pool2d(mine, 3, 1, 1).backward(np.ones((1, 4, 6, 2)))
    theirs = torch.zeros((1, 2, 4, 6), dtype=torch.float64, requires_grad=True)
    torch.nn.functional.max_pool2d(theirs, 3, 1, 1).sum().backward()
    assert (mine.grad.data == theirs.grad.permute(0, 2, 3, 1).numpy()).all()


def test_running_statistics_move_as_in_pytorch() -> None:
    from autograd import ops

    rng = np.random.default_rng(0)
    mean, var = Tensor(np.zeros(3)), Tensor(np.ones(3))
    norm = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    for _ in range(3):
        x = rng.standard_normal((2, 4, 5, 3)) * 2 + 1
        ops.batch_norm(Tensor(x), Tensor(np.ones(3)), Tensor(np.zeros(3)), mean, var, training=True)
        norm(torch.tensor(x).permute(0, 3, 1, 2))
    np.testing.assert_allclose(mean.data, norm.running_mean.numpy(), rtol=1e-13)
    np.testing.assert_allclose(var.data, norm.running_var.numpy(), rtol=1e-13)


# -- planted mistakes --------------------------------------------------------------------------------------------------


MUTANTS = [
    Mutant(
        "same padding on the wrong side",
        "kernels.core.geometry:padding_pairs",
        "totals[0] // 2, totals[0] - totals[0] // 2",
        "totals[0] - totals[0] // 2, totals[0] // 2",
        on_samples(test_equals_pytorch, "conv2d"),
    ),
    Mutant(
        "last maximum wins",
        "kernels.pool.reference:max_pool2d_forward",
        "offset = rank.argmax(3)",
        "offset = r * s - 1 - rank[:, :, :, ::-1].argmax(3)",
        test_first_maximum_wins_as_in_pytorch,
    ),
    Mutant(
        "padding counted as 0 in max pooling",
        "kernels.pool.reference:max_pool2d_forward",
        "-xp.inf",
        "0.0",
        on_samples(test_equals_pytorch, "max_pool2d"),
    ),
    Mutant(
        "divisor counts the padding the wrong way",
        "kernels.resample.reference:average_matrix",
        "if count_include_pad",
        "if not count_include_pad",
        on_samples(test_equals_pytorch, "avg_pool2d"),
    ),
    Mutant(
        "half-pixel shift missing",
        "kernels.resample.reference:bilinear_matrix",
        "(i + 0.5) * (n / out) - 0.5",
        "i * (n / out)",
        on_samples(test_equals_pytorch, "resize_bilinear"),
    ),
    Mutant(
        "running variance biased",
        "kernels.norm.reference:batch_norm_running",
        "variance * (rows / (rows - 1))",
        "variance",
        test_running_statistics_move_as_in_pytorch,
    ),
    Mutant(
        "margin: label's weight instead of the wrong class's",
        "kernels.loss.reference:margin",
        "other = w * (m - t)",
        "other = pixels.label_weight * (m - t)",
        on_samples(test_equals_pytorch, "margin_loss"),
    ),
    Mutant(
        "IoU: union counts the intersection twice",
        "kernels.loss.regions:iou",
        "sums.truth - sums.hit",
        "sums.truth",
        on_samples(test_equals_pytorch, "iou_loss"),
    ),
    Mutant(
        "Tversky: alpha and beta swapped",
        "kernels.loss.regions:_missed",
        "spec.beta * (sums.truth",
        "spec.alpha * (sums.truth",
        on_samples(test_equals_pytorch, "tversky_loss"),
    ),
    Mutant(
        "generalized Dice: size not squared",
        "kernels.loss.regions:generalized_dice",
        "** 2",
        "",
        on_samples(test_equals_pytorch, "generalized_dice_loss"),
    ),
    Mutant(
        "metric losses: product for the smaller",
        "kernels.loss.reference:metric",
        "xp.minimum(m * p, soft)",
        "(p * soft)",
        on_samples(test_equals_pytorch, "dice_semimetric_loss"),
    ),
    Mutant(
        "top-k: one pixel fewer",
        "kernels.loss.reference:top_k",
        "rank < k",
        "rank < k - 1",
        on_samples(test_equals_pytorch, "top_k_loss"),
    ),
    Mutant(
        "top-k: ignored pixels among the hardest",
        "kernels.loss.reference:top_k",
        "-xp.inf)",
        "xp.inf)",
        on_samples(test_equals_pytorch, "top_k_loss"),
    ),
    Mutant(
        "boundary: distances of the wrong sign within",
        "kernels.loss.reference:signed_distances",
        "1 - _to",
        "_to",
        on_samples(test_equals_pytorch, "boundary_loss"),
    ),
    Mutant(
        "Lovasz: errors in ascending order",
        "kernels.loss.reference:lovasz",
        "xp.argsort(-e",
        "xp.argsort(e",
        on_samples(test_equals_pytorch, "lovasz_softmax"),
    ),
    Mutant(
        "labels off by one",
        "kernels.loss.reference:pixels_of",
        "xp.arange(first, classes)",
        "xp.arange(first, classes) - 1",
        on_samples(test_equals_pytorch, "cross_entropy"),
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
