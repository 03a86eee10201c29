"""Every operator of support/cases.py on CuPy arrays, forward and backward, whether or not a CUDA kernel serves it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autograd import Tensor, ops
from kernels.core.device import array_module, to_numpy
from kernels.core.dispatch import use_kernels
from tests.cuda.agreement import DTYPES, SEEDS, agree
from tests.support.cases import SAMPLE_IDS, SAMPLES, Case, Sample
from tests.support.gradient_checks import differentiable


def laid_out(cp: Any, array: np.ndarray, seed: int) -> Any:
    """On the device: as it is, in Fortran order, or as every second element of a larger array, backwards; the seed says
    which.
    """
    if seed % 3 == 1 and array.ndim:
        return cp.asarray(np.ascontiguousarray(array.T)).T
    if seed % 3 == 2 and array.ndim:
        big = cp.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        big[..., ::-2] = cp.asarray(array)
        return big[..., ::-2]
    return cp.asarray(array)


def inputs_of(cp: Any, case: Case, sample: Sample, seed: int, dtype: Any, exact: bool, cuda: bool) -> list[Any]:
    """Inputs rounded to `dtype`, then as float64 when `exact`, on the device when `cuda`."""
    out: list[Any] = []
    for array in sample.arrays(seed):
        if isinstance(array, np.ndarray) and array.dtype == np.float64:
            array = array.astype(dtype).astype(np.float64 if exact else dtype)
            out.append(Tensor(laid_out(cp, array, seed) if cuda else array, requires_grad=True))
        else:
            out.append(cp.asarray(array) if cuda and isinstance(array, np.ndarray) else array)
    return differentiable(case, out)


def results(
    cp: Any, case: Case, sample: Sample, dtype: Any, exact: bool = False, cuda: bool = False
) -> list[np.ndarray]:
    """The outputs and the gradients of all inputs for a cotangent each: one array of all seeds per output and input."""
    settings = {k: cp.asarray(v) if cuda and isinstance(v, np.ndarray) else v for k, v in sample.settings.items()}
    every = []
    for seed in SEEDS:
        inputs = inputs_of(cp, case, sample, seed, dtype, exact, cuda)
        y = case.fn(*inputs, **settings)
        cotangent = np.random.default_rng(100 + seed).standard_normal(y.shape).astype(dtype).astype(y.dtype)
        y.backward(cp.asarray(cotangent) if cuda else cotangent)
        leaves = [x for x in inputs if isinstance(x, Tensor)]
        assert y.device == ("cuda" if cuda else "cpu")
        assert all(x.grad.device == y.device for x in leaves if x.grad is not None)
        every.append([to_numpy(a) for a in (y.data, *(x.grad.data for x in leaves if x.grad is not None))])
    return [np.stack(arrays) for arrays in zip(*every, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize(("case", "sample"), SAMPLES, ids=SAMPLE_IDS)
def test_equals_the_reference(cp: Any, case: Case, sample: Sample, dtype: Any) -> None:
    """The naive rule (docs/accuracy.md) over several seeds at once: the error that naive code makes in a single number
    may be 0 by luck.
    """
    with use_kernels("reference"):
        exact = results(cp, case, sample, dtype, exact=True)
        naive = results(cp, case, sample, dtype)
    found = results(cp, case, sample, dtype, cuda=True)
    assert [a.dtype for a in found] == [a.dtype for a in naive]
    agree(found, naive, exact, case.name)


EMPTY = {
    "relu": lambda x: ops.relu(x),
    "softmax": lambda x: ops.softmax(x),
    "dropout": lambda x: ops.dropout(x, 0.5),
    "gate": lambda x: ops.gate(x, x),
    "blend": lambda x: ops.blend(x, x, x),
    "concat": lambda x: ops.concat([x, x]),
    "split": lambda x: ops.split(x, (1, 3))[1],
    "max_pool2d": lambda x: ops.max_pool2d(x, 2),
    "avg_pool2d": lambda x: ops.avg_pool2d(x, 2),
    "resize_bilinear": lambda x: ops.resize_bilinear(x, (8, 12)),
    "layer_norm": lambda x: ops.layer_norm(x, *(Tensor(array_module(x.data).ones(4, np.float32)) for _ in range(2))),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch(cp: Any, served: list, name: str) -> None:
    """No image in, none out, forward and backward; nothing is launched."""
    x = Tensor(cp.zeros((0, 4, 6, 4), np.float32), requires_grad=True)
    y = EMPTY[name](x)
    y.backward(cp.zeros(y.shape, np.float32))
    assert y.shape == EMPTY[name](Tensor(np.zeros(x.shape, np.float32))).shape
    assert y.device == x.grad.device == "cuda"
    assert x.grad.shape == x.shape
    assert not served
