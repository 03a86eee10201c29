"""The trace of special values: every operator of cases.py with one NaN or infinity among its inputs, ours beside
PyTorch's.

The oracle is PyTorch's own form of the operator; where it has none, or a naive one that is 0 times infinity where the
limit is finite, the limit itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from autograd import Tensor
from kernels.core.device import CPU, to_device, to_numpy
from kernels.core.dispatch import use_kernels
from tests.support.cases import Case, Sample
from tests.support.fast_rule import forced_algorithm
from tests.support.gradient_checks import statistics

torch = pytest.importorskip("torch")

SPECIAL = (np.nan, np.inf, -np.inf)

# (operator, input): an infinity there is left out. What it gives hangs on the order of operations that cancel it, which
# the definition leaves open: PyTorch computes bias - mean * scale, 0 times infinity; our polarized attention takes the
# mean before the weights. A score of -inf is a key that is not kept.
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
# -inf: see the tests below
LOSSES = {"cross_entropy", "focal_loss", "dice_loss", "iou_loss", "lovasz_softmax", "margin_loss", "combined_loss"}
LOSSES |= {
    "tversky_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "mcc_loss",
    "jaccard_metric_loss",
    "dice_semimetric_loss",
}
LOSSES |= {"top_k_loss", "boundary_loss"}
# PyTorch adds 0 times the neighbour where a sample falls on a pixel. Ours leaves out what has no weight: a NaN comes
# out at fewer places.
FEWER = {"resize_bilinear"}
# The fast data gradient pads with zeros, and 0 times the NaN of a filter is NaN; so is a masked score in a row that is
# NaN. Nothing is lost.
MORE = {"conv2d", "conv1d", "conv_transpose2d", "conv2d_batch_norm", "scaled_dot_product_attention"}


def planted(case: Case, sample: Sample, per_input: int = 3, seed: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """(what and where, float32 inputs with one special value): the first place, the last and one between, of every
    float input.
    """
    inputs = [
        a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in sample.arrays(seed)
    ]
    rng = np.random.default_rng(seed)
    for k, array in enumerate(inputs):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.size:
            continue
        for place in sorted({0, array.size - 1, *rng.integers(0, array.size, max(0, per_input - 2)).tolist()}):
            for value in SPECIAL:
                if (np.isinf(value) and (case.name.split()[0], k) in INDEFINITE) or (
                    value == -np.inf and case.name in LOSSES
                ):
                    continue
                changed = array.copy()
                changed.reshape(-1)[place] = value
                at = tuple(int(i) for i in np.unravel_index(place, array.shape))
                yield f"{value} at {at} of input {k}", [*inputs[:k], changed, *inputs[k + 1 :]]


def kinds(array: np.ndarray) -> np.ndarray:
    """0 for a number, 1 for NaN, 2 for inf, 3 for -inf."""
    return np.select([np.isnan(array), array == np.inf, array == -np.inf], [1, 2, 3], 0)


def of_ours(case: Case, sample: Sample, inputs: list[Any], device: str = CPU) -> list[np.ndarray]:
    """Value and gradients by our operator; one that is missing is zero."""
    state = statistics(case)

    def moved(a: Any) -> Any:
        narrow = a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a
        return to_device(narrow.copy(), device) if isinstance(narrow, np.ndarray) else narrow

    given = [
        Tensor(moved(a), requires_grad=k not in state)
        if isinstance(a, np.ndarray) and a.dtype == np.float32
        else moved(a)
        for k, a in enumerate(inputs)
    ]
    y = case.fn(*given, **{key: moved(value) for key, value in sample.settings.items()})
    y.backward(moved(cotangent(y.shape)))
    leaves = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    return [to_numpy(y.data), *(np.zeros(x.shape) if x.grad is None else to_numpy(x.grad.data) for x in leaves)]


def of_torch(case: Case, sample: Sample, inputs: list[Any]) -> list[np.ndarray]:
    """The same by PyTorch, in float64: its float32 convolutions leave out what is padding, so that a NaN of the filter
    is not everywhere.
    """
    state = statistics(case)
    given = [
        torch.tensor(a.astype(np.float64) if a.dtype == np.float32 else a) if isinstance(a, np.ndarray) else a
        for a in inputs
    ]
    leaves = [
        x.requires_grad_()
        for k, x in enumerate(given)
        if isinstance(x, torch.Tensor) and x.is_floating_point() and k not in state
    ]
    y = (attention if case.name == "scaled_dot_product_attention" else case.torch)(*given, **sample.settings)
    y.backward(torch.tensor(cotangent(tuple(y.shape))).double())
    return [y.detach().numpy(), *(np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in leaves)]


def attention(q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None) -> Any:
    """softmax(scale q k^T) v written out: PyTorch's own kernel makes 0 of a row that is NaN. A row with nothing to keep
    gives 0.
    """
    s = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.swapaxes(-1, -2))
    if mask is None or mask.dtype != bool:
        return (s if mask is None else s + torch.tensor(mask)).softmax(-1) @ v
    kept, empty = torch.tensor(mask), torch.tensor(~mask.any(-1, keepdims=True))
    return s.masked_fill(~kept, -torch.inf).masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0) @ v


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def lost(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Where one of two numbers is 0 and the other is not (nor lost to rounding beside the largest): a gradient that was
    closed, or opened.
    """
    numbers = np.isfinite(got) & np.isfinite(want)
    least = 1e-5 * np.abs(want, where=np.isfinite(want), out=np.zeros(want.shape)).max(initial=0)
    return numbers & (((got == 0) & (np.abs(want) > least)) | ((want == 0) & (np.abs(got) > least)))


def differences(case: Case, sample: Sample, backend: str, device: str = CPU, per_input: int = 3) -> list[str]:
    """What comes out otherwise than PyTorch has it, in words: NaN, infinities, and among numbers 0 where PyTorch has
    none, or the reverse.
    """
    wrong = []
    with np.errstate(all="ignore"), use_kernels(backend), forced_algorithm("exact"):
        for what, inputs in planted(case, sample, per_input):
            for k, (got, want) in enumerate(
                zip(of_ours(case, sample, inputs, device), of_torch(case, sample, inputs), strict=True)
            ):
                a, b = kinds(got), kinds(want)
                if case.name in FEWER:
                    b = np.where((a == 0) | (b == 1), a, b)
                if case.name in MORE:
                    a = np.where((b == 0) | (a != 0), b, a)
                a = np.where(lost(got, want), 4, a)
                if (a != b).any():
                    at = tuple(np.argwhere(a != b)[0].tolist())
                    name = f"gradient {k - 1}" if k else "value"
                    wrong.append(
                        f"{what}: {name} at {at} is {got[at]}, PyTorch has {want[at]} ({(a != b).sum()} of {a.size})"
                    )
    return wrong
