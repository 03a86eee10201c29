"""Every operator against PyTorch, forward and backward, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cases import SAMPLE_IDS, SAMPLES, Case, Sample
from test_gradients import call, differentiable, gradients, tensors

from autograd import Tensor

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
