"""Planted mistakes: each one is made in a copy of a function, put in its place, and must make a named test fail.

A test-suite that stays green with one of these in place would prove nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import test_augmentation
import test_autograd
import test_core
import test_gradients
import test_metrics
import test_training
from cases import SAMPLES

from engine.gradcheck.bugs import misprinted
from kernels.core.dispatch import use_kernels
from kernels.loss import TERMS

try:
    import test_parity
    import test_twin
except pytest.skip.Exception:  # without PyTorch
    test_parity = test_twin = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Mutant:
    """In `target` (module:function or module:Class.method) replace `old` by `new`; `caught_by` must then fail."""

    name: str
    target: str
    old: str
    new: str
    caught_by: Callable[[], None]
    needs_torch: bool = False


def gradient(*names: str) -> Callable[[], None]:
    """The gradient test of all samples of these operators."""
    return lambda: (
        [test_gradients.test_gradient_equals_central_differences(c, s, "plain") for c, s in SAMPLES if c.name in names]
        and None
    )


def parity(*names: str) -> Callable[[], None]:
    """The comparison with PyTorch of all samples of these operators."""
    return lambda: [test_parity.test_equals_pytorch(c, s) for c, s in SAMPLES if c.name in names] and None


def augmented(test: Callable, *arguments) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    batch = rng.random((6, 16, 24)).astype(np.float32), rng.integers(0, 5, (6, 16, 24)).astype(np.uint8)

    def run() -> None:
        with use_kernels("reference"):  # the definition is what is mutated
            test(batch, *arguments)

    return run


def every_term_keeps_out_of_the_background() -> None:
    for term in TERMS:
        test_gradients.test_loss_gradients_sum_to_zero_over_classes(term, "mask")


def barred_labels() -> None:
    from engine.inference import labels_of

    logits = np.zeros((1, 2, 2, 5))
    logits[..., 0], logits[..., 3] = 9, 1
    assert (labels_of(logits) == 3).all()


CONV, LOSS, NORM, POINT = (
    "kernels.conv.reference:",
    "kernels.loss.reference:",
    "kernels.norm.reference:",
    "kernels.pointwise.reference:",
)
REGION = "kernels.loss.regions:"
MUTANTS = [
    Mutant(
        "same padding on the wrong side",
        "kernels.core.geometry:padding_pairs",
        "totals[0] // 2, totals[0] - totals[0] // 2",
        "totals[0] - totals[0] // 2, totals[0] // 2",
        parity("conv2d"),
        True,
    ),
    Mutant("gradient forgets the dilation", CONV + "unpatch", "i * dh : i * dh", "i : i", gradient("conv2d")),
    Mutant("gradient forgets the stride", CONV + "unpatch", "(p - 1) * sh + 1 : sh", "p", gradient("conv2d")),
    Mutant("left padding not removed", CONV + "unpatch", "left : left + size[1]", ": size[1]", gradient("conv2d")),
    Mutant(
        "filter gradient of one group only",
        CONV + "conv2d_backward_filter",
        "transpose(1, 0, 2)",
        "transpose(1, 0, 2)[:, ::-1]",
        gradient("conv2d"),
    ),
    Mutant(
        "bias gradient missing a factor",
        CONV + "backward_bias",
        "sum_pixels(dy)",
        "0.5 * sum_pixels(dy)",
        gradient("conv2d"),
    ),
    Mutant(
        "last maximum wins",
        "kernels.pool.reference:max_pool2d_forward",
        "offset = rank.argmax(3)",
        "offset = r * s - 1 - rank[:, :, :, ::-1].argmax(3)",
        lambda: test_parity.test_first_maximum_wins_as_in_pytorch(),
        True,
    ),
    Mutant(
        "padding counted as 0 in max pooling",
        "kernels.pool.reference:max_pool2d_forward",
        "-xp.inf",
        "0.0",
        parity("max_pool2d"),
        True,
    ),
    Mutant(
        "divisor counts the padding the wrong way",
        "kernels.resample.reference:average_matrix",
        "if count_include_pad",
        "if not count_include_pad",
        parity("avg_pool2d"),
        True,
    ),
    Mutant(
        "half-pixel shift missing",
        "kernels.resample.reference:bilinear_matrix",
        "(i + 0.5) * (n / out) - 0.5",
        "i * (n / out)",
        parity("resize_bilinear"),
        True,
    ),
    Mutant(
        "batch norm: mean's share missing in dx",
        NORM + "batch_norm_backward",
        "(dbias / rows)",
        "(0 * dbias)",
        gradient("batch_norm training"),
    ),
    Mutant(
        "batch norm: ReLU mask from the input",
        NORM + "batch_norm_backward",
        "xp.where(mask, dy",
        "xp.where(x > 0, dy",
        gradient("batch_norm relu"),
    ),
    Mutant(
        "running variance biased",
        NORM + "batch_norm_running",
        "variance * (rows / (rows - 1))",
        "variance",
        lambda: test_parity.test_running_statistics_move_as_in_pytorch(),
        True,
    ),
    Mutant(
        "layer norm: one term missing",
        NORM + "layer_norm_backward",
        "- xhat * (g * xhat).mean(-1, keepdims=True)",
        "",
        gradient("layer_norm"),
    ),
    Mutant(
        "softmax: Jacobian's off-diagonal missing",
        POINT + "softmax_backward",
        "(dy - (dy * y).sum(axis, keepdims=True))",
        "dy",
        gradient("softmax"),
    ),
    Mutant("gelu: density missing", POINT + "gelu_backward", "+ x * density", "", gradient("gelu")),
    Mutant(
        "attention: scale missing in the gradient",
        "kernels.attention.reference:attention_backward",
        "ds = scale * p",
        "ds = p",
        gradient("scaled_dot_product_attention"),
    ),
    Mutant(
        "polarized: division by L missing",
        "kernels.attention.reference:polarized_spatial_backward",
        "/ x.shape[1]",
        "",
        gradient("polarized_spatial"),
    ),
    Mutant(
        "polarized: swapped matrices",
        "kernels.attention.reference:polarized_channel_backward",
        "pooled.T @ du",
        "(du.T @ pooled).reshape(pooled.shape[1], -1)",
        gradient("polarized_channel"),
    ),
    Mutant(
        "gate: sigmoid's derivative missing",
        "kernels.gate.reference:gate_backward",
        "* s * (1 - s)",
        "",
        gradient("gate"),
    ),
    Mutant(
        "focal: inner derivative missing",
        LOSS + "focal",
        "* (1 + spec.gamma * xp.exp(log_py) * k)",
        "",
        gradient("focal_loss"),
    ),
    Mutant(
        "margin: label's weight instead of the wrong class's",
        LOSS + "margin",
        "other = w * (m - t)",
        "other = pixels.label_weight * (m - t)",
        parity("margin_loss"),
        True,
    ),
    Mutant("Dice: factor 2 missing in the gradient", REGION + "dice", "-2 * scale", "-scale", gradient("dice_loss")),
    Mutant(
        "IoU: union counts the intersection twice",
        REGION + "iou",
        "sums.truth - sums.hit",
        "sums.truth",
        parity("iou_loss"),
        True,
    ),
    Mutant(
        "Tversky: alpha and beta swapped",
        REGION + "_missed",
        "spec.beta * (sums.truth",
        "spec.alpha * (sums.truth",
        parity("tversky_loss"),
        True,
    ),
    Mutant(
        "Tversky: false positives missing in the gradient",
        REGION + "_missed",
        "spec.alpha * k / total",
        "0 * k",
        gradient("tversky_loss"),
    ),
    Mutant(
        "focal Tversky: outer derivative missing",
        REGION + "focal_tversky",
        "** (e - 1)",
        "** 0",
        gradient("focal_tversky_loss"),
    ),
    Mutant(
        "generalized Dice: size not squared",
        REGION + "generalized_dice",
        "** 2",
        "",
        parity("generalized_dice_loss"),
        True,
    ),
    Mutant(
        "MCC: the root's derivative missing",
        REGION + "mcc",
        "+ c * (1 - 2 * q) / (2 * spread)",
        "",
        gradient("mcc_loss"),
    ),
    Mutant(
        "metric losses: gradient above the truth",
        LOSS + "metric",
        "p < soft",
        "p > soft",
        gradient("jaccard_metric_loss"),
    ),
    Mutant(
        "metric losses: product for the smaller",
        LOSS + "metric",
        "xp.minimum(m * p, soft)",
        "(p * soft)",
        parity("dice_semimetric_loss"),
        True,
    ),
    Mutant("top-k: one pixel fewer", LOSS + "top_k", "rank < k", "rank < k - 1", parity("top_k_loss"), True),
    Mutant(
        "top-k: ignored pixels among the hardest", LOSS + "top_k", "-xp.inf)", "xp.inf)", parity("top_k_loss"), True
    ),
    Mutant(
        "boundary: distances of the wrong sign within",
        LOSS + "signed_distances",
        "1 - _to",
        "_to",
        parity("boundary_loss"),
        True,
    ),
    Mutant(
        "boundary: softmax's other classes missing",
        LOSS + "boundary",
        "(dp - (p",
        "(dp - 0 * (p",
        gradient("boundary_loss"),
    ),
    Mutant(
        "Lovasz: errors in ascending order",
        LOSS + "lovasz",
        "xp.argsort(-e",
        "xp.argsort(e",
        parity("lovasz_softmax"),
        True,
    ),
    Mutant(
        "labels off by one",
        LOSS + "pixels_of",
        "xp.arange(first, classes)",
        "xp.arange(first, classes) - 1",
        parity("cross_entropy"),
        True,
    ),
    Mutant(
        "background masked but still in the softmax",
        LOSS + "pixels_of",
        "[:, first:]",
        "",
        every_term_keeps_out_of_the_background,
    ),
    Mutant(
        "metric: class 0 left out of Keras's mean",
        "engine.training.metrics:scores",
        "iou[valid].sum() / (valid.sum() + _EPS)",
        "iou[1:][valid[1:]].sum() / (valid[1:].sum() + _EPS)",
        test_metrics.test_one_pixel_predicted_as_class_0_costs_a_fifth_in_keras,
    ),
    Mutant(
        "metric: truth and prediction swapped",
        "kernels.metric.reference:confusion_per_image",
        "truth.astype(xp.int64) * classes + prediction",
        "prediction.astype(xp.int64) * classes + truth",
        test_metrics.test_confusion_matrix_by_hand,
    ),
    Mutant(
        "stale moving average",
        "kernels.optimizer.reference:adamw_step",
        "average += (1 - average_decay) * (p - average)",
        "average += (1 - average_decay) * (p + learning_rate * mhat / (xp.sqrt(vhat) + eps) - average)",
        lambda: test_twin.test_adamw_alone_is_exact(),
        True,
    ),
    Mutant(
        "weight decay inside the gradient",
        "kernels.optimizer.reference:adamw_step",
        "g = g * clip",
        "g = g * clip + decay * p",
        lambda: test_twin.test_adamw_alone_is_exact(),
        True,
    ),
    Mutant(
        "bias correction off by a step",
        "kernels.optimizer.reference:adamw_step",
        "(1 - beta2**step)",
        "(1 - beta2**(step + 1))",
        lambda: test_twin.test_adamw_alone_is_exact(),
        True,
    ),
    Mutant(
        "augmentation: x and y swapped",
        "kernels.augment.reference:augment_batch",
        "x, y = (matrices",
        "y, x = (matrices",
        augmented(test_augmentation.test_integer_shift_equals_slicing),
    ),
    Mutant(
        "augmentation: labels interpolated",
        "kernels.augment.reference:augment_batch",
        "xp.floor(x + 0.5)",
        "xp.floor(x)",
        augmented(test_augmentation.test_half_turn_equals_both_flips),
    ),
    Mutant(
        "augmentation: edge pixel repeated",
        "kernels.augment.reference:mirror",
        "2 * n - 2",
        "2 * n - 1",
        augmented(test_augmentation.test_integer_shift_equals_slicing),
    ),
    Mutant(
        "tape: adds into a borrowed gradient",
        "autograd.tape:_Sum.add",
        "if self.owned:",
        "if True:",
        test_autograd.test_a_shared_gradient_array_is_never_written_to,
    ),
    Mutant(
        "tape: a cotangent that others need is given away",
        "autograd.tape:backward",
        "slot is not None and slot.owned for",
        "slot is not None for",
        lambda: test_autograd.test_a_cotangent_is_overwritten_only_when_nobody_else_needs_it(True),
    ),
    Mutant(
        "tape: in-place changes not noticed",
        "autograd.tensor:Tensor.touch",
        "+= 1",
        "+= 0",
        test_autograd.test_in_place_change_of_a_saved_array_is_caught_and_named,
    ),
    Mutant(
        "tape: every result kept",
        "autograd.function:_parent",
        "x if x.creator is None else",
        "x if True else",
        test_autograd.test_results_that_no_gradient_needs_are_freed_at_once,
    ),
    Mutant(
        "checkpoint: random state not restored",
        "autograd.random:replay",
        "    set_state(value)\n    try",
        "    try",
        test_autograd.test_checkpoint_gives_the_same_values_and_gradients_with_dropout,
    ),
    Mutant(
        "broadcasting undone over the wrong axes",
        "kernels.shape.reference:sum_to",
        "i + lead for i",
        "i for i",
        gradient("mul", "add"),
    ),
    Mutant(
        "Philox: rounds cut short",
        "kernels.core.random:philox",
        "range(ROUNDS)",
        "range(ROUNDS - 1)",
        test_core.test_philox_known_answers,
    ),
    Mutant(
        "recycled memory handed out while in use",
        "kernels.core.cpu.buffer_pool:Pool._free",
        "== _FREE",
        ">= _FREE",
        lambda: test_core.test_memory_from_many_threads(),
    ),
    Mutant(
        "prediction of the barred class",
        "engine.inference:labels_of",
        'first = 1 if background == "mask" else 0',
        "first = 0",
        barred_labels,
    ),
    Mutant(
        "predicted labels shifted",
        "kernels.metric.reference:predicted_labels",
        "argmax(-1) + first",
        "argmax(-1)",
        barred_labels,
    ),
    Mutant(
        "normalisation with the variance",
        "engine.inference:_Histogram.between",
        "np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())",
        "counts @ (levels - mean) ** 2 / counts.sum()",
        test_training.test_normalisation_from_the_histogram_is_exact,
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    if mutant.needs_torch and test_parity is None:
        pytest.skip("PyTorch is not installed: this mistake is caught by comparing with it")
    mutant.caught_by()  # green before, so that it is the mistake that makes it fail
    errors = (AssertionError, ValueError, IndexError, RuntimeError, pytest.fail.Exception)
    with misprinted(mutant.target, mutant.old, mutant.new), pytest.raises(errors):
        mutant.caught_by()


def test_there_are_mutants_for_every_family() -> None:
    assert len(MUTANTS) >= 12
    for part in (
        "conv",
        "pool",
        "resample",
        "norm",
        "pointwise",
        "attention",
        "gate",
        "loss",
        "optimizer",
        "augment",
        "metric",
    ):
        assert any(f"kernels.{part}" in m.target for m in MUTANTS), part
