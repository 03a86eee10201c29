"""Every operator against float64 central differences, and what any gradient must satisfy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import SAMPLE_IDS, SAMPLES, Case, Sample

from autograd import Tensor, assert_gradients, ops
from kernels.loss import TERMS


def tensors(sample: Sample, seed: int = 0, layout: str = "plain") -> list[Any]:
    """The inputs of a sample: float64 arrays as Tensors that require gradients, in one of three memory layouts."""
    out: list[Any] = []
    for array in sample.arrays(seed):
        if not isinstance(array, np.ndarray) or array.dtype != np.float64:
            out.append(array)
            continue
        if layout == "reversed":  # Fortran order
            array = np.array(array, order="F")
        elif layout == "strided" and array.ndim:  # every second element of a larger array, backwards
            big = np.zeros((*array.shape[:-1], 2 * array.shape[-1]))
            big[..., ::-2] = array
            array = big[..., ::-2]
        out.append(Tensor(array, requires_grad=True))
    return out


def call(case: Case, sample: Sample, inputs: list[Any]) -> Tensor:
    return case.fn(*inputs, **sample.settings)


def gradients(case: Case, sample: Sample, inputs: list[Any], cotangent: np.ndarray) -> list[np.ndarray | None]:
    for x in inputs:
        if isinstance(x, Tensor):
            x.zero_grad()
    call(case, sample, inputs).backward(cotangent)
    return [x.grad.data if isinstance(x, Tensor) and x.grad is not None else None for x in inputs]


def differentiable(case: Case, inputs: list[Any]) -> list[Any]:
    """batch_norm's running statistics are state, not inputs."""
    for k in statistics(case):
        inputs[k].requires_grad = False
    return inputs


def statistics(case: Case) -> tuple[int, ...]:
    """Where the running statistics are among the inputs."""
    return {"batch_norm": (3, 4), "conv2d_batch_norm": (4, 5)}.get(case.name.split()[0], ())


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
