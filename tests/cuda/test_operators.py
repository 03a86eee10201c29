"""Every operator of tests/cases.py on CuPy arrays, forward and backward, whether or not a CUDA kernel serves it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import DTYPES, SEEDS, agree
from cases import SAMPLE_IDS, SAMPLES, Case, Sample
from test_gradients import differentiable

from autograd import Tensor
from kernels.core.device import to_numpy
from kernels.core.dispatch import use_kernels


def inputs_of(cp: Any, case: Case, sample: Sample, seed: int, dtype: Any, exact: bool, cuda: bool) -> list[Any]:
    """Inputs rounded to `dtype`, then as float64 when `exact`, on the device when `cuda`."""
    out: list[Any] = []
    for array in sample.arrays(seed):
        if isinstance(array, np.ndarray) and array.dtype == np.float64:
            array = array.astype(dtype).astype(np.float64 if exact else dtype)
            out.append(Tensor(cp.asarray(array) if cuda else array, requires_grad=True))
        else:
            out.append(cp.asarray(array) if cuda and isinstance(array, np.ndarray) else array)
    return differentiable(case, out)


def results(cp: Any, case: Case, sample: Sample, dtype: Any, exact: bool = False, cuda: bool = False) -> list[np.ndarray]:
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
    """DESIGN 7's rule over several seeds at once: the error that naive code makes in a single number may be 0 by luck."""
    with use_kernels("reference"):
        exact = results(cp, case, sample, dtype, exact=True)
        naive = results(cp, case, sample, dtype)
    found = results(cp, case, sample, dtype, cuda=True)
    assert [a.dtype for a in found] == [a.dtype for a in naive]
    agree(found, naive, exact, case.name)
