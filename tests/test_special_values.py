"""NaN and infinity come out exactly where PyTorch has them: every operator of tests/cases.py, one special value at a time, value and gradients.

A fast kernel that loses a NaN lets a diverged network train on; one that spreads it finds fault where there is none. The oracle is PyTorch's
own form of the operator; where it has none, or a naive one that is 0 times infinity where the limit is finite, the limit itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import SAMPLE_IDS, SAMPLES, Case, Sample
from fast_rule import algorithm
from test_gradients import statistics

from autograd import Tensor, ops
from kernels.core.dispatch import use_kernels
from kernels.loss import TERMS

torch = pytest.importorskip("torch")

SPECIAL = (np.nan, np.inf, -np.inf)
BACKENDS = ("reference", "fast")

# (operator, input): an infinity there is left out. What it gives hangs on the order of operations that cancel it, which the definition leaves
# open: PyTorch computes bias - mean * scale, 0 times infinity; our polarized attention takes the mean before the weights. A score of -inf is
# a key that is not kept.
INDEFINITE = {
    ("batch_norm", 1),
    ("layer_norm", 1),
    ("group_norm", 1),
    ("instance_norm", 1),
    ("conv2d_batch_norm", 2),
    ("polarized_spatial", 1),
    ("scaled_dot_product_attention", 0),
    ("scaled_dot_product_attention", 1),
    ("binary_cross_entropy_with_logits", 1),
    ("einsum", 0),
}
# PyTorch divides the product by the factor: NaN, where the product of the others is a number.
UNLIKE = {"prod"}
LOSSES = {"cross_entropy", "focal_loss", "dice_loss", "iou_loss", "lovasz_softmax", "margin_loss", "combined_loss"}  # -inf: see the tests below
LOSSES |= {"tversky_loss", "focal_tversky_loss", "generalized_dice_loss", "mcc_loss"}
# PyTorch adds 0 times the neighbour where a sample falls on a pixel. Ours leaves out what has no weight: a NaN comes out at fewer places.
FEWER = {"resize_bilinear"}
# The fast data gradient pads with zeros, and 0 times the NaN of a filter is NaN; so is a masked score in a row that is NaN. Nothing is lost.
MORE = {"conv2d", "conv1d", "conv_transpose2d", "conv2d_batch_norm", "scaled_dot_product_attention"}


def planted(case: Case, sample: Sample, per_input: int = 3, seed: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """(what and where, float32 inputs with one special value): the first place, the last and one between, of every float input."""
    inputs = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in sample.arrays(seed)]
    rng = np.random.default_rng(seed)
    for k, array in enumerate(inputs):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.size:
            continue
        for place in sorted({0, array.size - 1, *rng.integers(0, array.size, max(0, per_input - 2)).tolist()}):
            for value in SPECIAL:
                if (np.isinf(value) and (case.name.split()[0], k) in INDEFINITE) or (value == -np.inf and case.name in LOSSES):
                    continue
                changed = array.copy()
                changed.reshape(-1)[place] = value
                at = tuple(int(i) for i in np.unravel_index(place, array.shape))
                yield f"{value} at {at} of input {k}", [*inputs[:k], changed, *inputs[k + 1 :]]


def kinds(array: np.ndarray) -> np.ndarray:
    """0 for a number, 1 for NaN, 2 for inf, 3 for -inf."""
    return np.select([np.isnan(array), array == np.inf, array == -np.inf], [1, 2, 3], 0)


def of_ours(case: Case, sample: Sample, inputs: list[Any]) -> list[np.ndarray]:
    """Value and gradients by our operator; one that is missing is zero."""
    state = statistics(case)
    given = [
        Tensor(a.copy(), requires_grad=k not in state) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a for k, a in enumerate(inputs)
    ]
    narrow = {key: v.astype(np.float32) if isinstance(v, np.ndarray) and v.dtype == np.float64 else v for key, v in sample.settings.items()}
    y = case.fn(*given, **narrow)
    y.backward(cotangent(y.shape))
    return [y.data, *(np.zeros(x.shape) if x.grad is None else x.grad.data for x in given if isinstance(x, Tensor) and x.requires_grad)]


def of_torch(case: Case, sample: Sample, inputs: list[Any]) -> list[np.ndarray]:
    """The same by PyTorch, in float64: its float32 convolutions leave out what is padding, so that a NaN of the filter is not everywhere."""
    state = statistics(case)
    given = [torch.tensor(a.astype(np.float64) if a.dtype == np.float32 else a) if isinstance(a, np.ndarray) else a for a in inputs]
    leaves = [x.requires_grad_() for k, x in enumerate(given) if isinstance(x, torch.Tensor) and x.is_floating_point() and k not in state]
    y = (attention if case.name == "scaled_dot_product_attention" else case.torch)(*given, **sample.settings)
    y.backward(torch.tensor(cotangent(tuple(y.shape))).double())
    return [y.detach().numpy(), *(np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in leaves)]


def attention(q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None) -> Any:
    """softmax(scale q k^T) v written out: PyTorch's own kernel makes 0 of a row that is NaN. A row with nothing to keep gives 0."""
    s = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.swapaxes(-1, -2))
    if mask is None or mask.dtype != bool:
        return (s if mask is None else s + torch.tensor(mask)).softmax(-1) @ v
    kept, empty = torch.tensor(mask), torch.tensor(~mask.any(-1, keepdims=True))
    return s.masked_fill(~kept, -torch.inf).masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0) @ v


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def differences(case: Case, sample: Sample, backend: str) -> list[str]:
    """What comes out otherwise than PyTorch has it, in words."""
    wrong = []
    with np.errstate(all="ignore"), use_kernels(backend), algorithm("exact"):
        for what, inputs in planted(case, sample):
            for k, (got, want) in enumerate(zip(of_ours(case, sample, inputs), of_torch(case, sample, inputs), strict=True)):
                a, b = kinds(got), kinds(want)
                if case.name in FEWER:
                    b = np.where((a == 0) | (b == 1), a, b)
                if case.name in MORE:
                    a = np.where((b == 0) | (a != 0), b, a)
                if (a != b).any():
                    at = tuple(np.argwhere(a != b)[0].tolist())
                    name = f"gradient {k - 1}" if k else "value"
                    wrong.append(f"{what}: {name} at {at} is {got[at]}, PyTorch has {want[at]} ({(a != b).sum()} of {a.size})")
    return wrong


WITH_TORCH = [
    (case, sample, name) for (case, sample), name in zip(SAMPLES, SAMPLE_IDS, strict=True) if case.torch is not None and case.name not in UNLIKE
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("case", "sample"), [row[:2] for row in WITH_TORCH], ids=[row[2] for row in WITH_TORCH])
def test_special_values_come_out_where_pytorch_has_them(case: Case, sample: Sample, backend: str) -> None:
    assert not (wrong := differences(case, sample, backend)), "\n".join(wrong[:10])


# -- losses ---------------------------------------------------------------------------------------------------------------------


OPERATORS = {
    "cross_entropy": ops.cross_entropy,
    "focal": ops.focal_loss,
    "dice": ops.dice_loss,
    "iou": ops.iou_loss,
    "margin": ops.margin_loss,
    "lovasz": ops.lovasz_softmax,
    "tversky": ops.tversky_loss,
    "focal_tversky": ops.focal_tversky_loss,
    "generalized_dice": ops.generalized_dice_loss,
    "mcc": ops.mcc_loss,
}


def loss_of(term: str, logits: np.ndarray, labels: np.ndarray, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient."""
    z = Tensor(logits.copy(), requires_grad=True)
    value = OPERATORS[term](z, labels, **settings)
    value.backward()
    return value.data, z.grad.data


def pixels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 5, 7, 4)).astype(np.float32), rng.integers(0, 4, (2, 5, 7))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("value", SPECIAL)
def test_what_an_ignored_pixel_holds_counts_nowhere(term: str, value: float, backend: str) -> None:
    logits, labels = pixels()
    labels[0, 1, 2] = 9
    changed = logits.copy()
    changed[0, 1, 2, 1:3] = value
    with use_kernels(backend):
        want, got = (loss_of(term, z, labels, ignore_index=9) for z in (logits, changed))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert np.isfinite(got[0])
    assert not got[1][0, 1, 2].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("where", ["another class", "the label", "all but the label"])
@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_a_logit_of_minus_infinity_is_the_limit(term: str, where: str, gamma: float, backend: str) -> None:
    """The oracle: the same in float64 with -600 in its place, where e^-600 is a normal number, 3e-261. At the label two terms are infinite."""
    logits, labels = pixels(1)
    settings = {"gamma": gamma} if term == "focal" else {}
    far = logits.astype(np.float64)
    label = labels[1, 2, 3]
    places = {"another class": [(label + 1) % 4], "the label": [label], "all but the label": [c for c in range(4) if c != label]}[where]
    logits[1, 2, 3, places], far[1, 2, 3, places] = -np.inf, -600
    with use_kernels(backend), np.errstate(all="raise", under="ignore"):
        value, gradient = loss_of(term, logits, labels, **settings)
    with use_kernels("reference"):
        want, slope = loss_of(term, far, labels, **settings)
    if where == "the label" and term in ("cross_entropy", "focal"):
        assert value == np.inf
    else:
        np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_float16_logits_are_summed_in_float32(term: str) -> None:
    """Value and gradient are float32's, rounded to float16: a thousand and more pixels add up to more than 2,048 in no sum of 11 bits."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((1, 64, 128, 3)).astype(np.float16), rng.integers(0, 3, (1, 64, 128))
    value, gradient = loss_of(term, logits, labels)
    want, slope = loss_of(term, logits.astype(np.float32), labels)
    assert value.dtype == gradient.dtype == np.float16
    np.testing.assert_allclose(value, want, rtol=2.0**-10)
    np.testing.assert_allclose(gradient, slope, rtol=2.0**-9, atol=2.0**-24)


def test_float16_keeps_what_is_small_beside_the_sums() -> None:
    """By hand, p = 1/2 everywhere: Dice has I = 2048 and U = 8192 in both classes, 1 - 4097 / 8193; the cross-entropy is log 2."""
    zeros = np.zeros((8192, 2), np.float16)
    halves = np.arange(8192) % 2
    assert abs(float(loss_of("dice", zeros, halves)[0]) - 0.5) < 1e-3
    many = np.zeros((65_536, 2), np.float16)
    assert abs(float(loss_of("cross_entropy", many, np.arange(65_536) % 2)[0]) - np.log(2)) < 1e-3
