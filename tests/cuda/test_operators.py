"""Every operator of tests/cases.py on CuPy arrays, forward and backward, whether or not a CUDA kernel serves it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import DTYPES, agree
from cases import SAMPLE_IDS, SAMPLES, Case, Sample
from test_gradients import differentiable

from autograd import Tensor
from kernels.core.device import to_numpy
from kernels.core.dispatch import use_kernels


def inputs_of(cp: Any, case: Case, sample: Sample, dtype: Any, exact: bool, cuda: bool) -> list[Any]:
    """Inputs rounded to `dtype`, then as float64 when `exact`, on the device when `cuda`."""
    out: list[Any] = []
    for array in sample.arrays():
        if isinstance(array, np.ndarray) and array.dtype == np.float64:
            array = array.astype(dtype).astype(np.float64 if exact else dtype)
            out.append(Tensor(cp.asarray(array) if cuda else array, requires_grad=True))
        else:
            out.append(cp.asarray(array) if cuda and isinstance(array, np.ndarray) else array)
    return differentiable(case, out)


def results(cp: Any, case: Case, sample: Sample, inputs: list[Any], dtype: Any, cuda: bool) -> list[Any]:
    """The output and the gradients of all inputs for one fixed cotangent."""
    settings = {k: cp.asarray(v) if cuda and isinstance(v, np.ndarray) else v for k, v in sample.settings.items()}
    y = case.fn(*inputs, **settings)
    cotangent = np.random.default_rng(1).standard_normal(y.shape).astype(dtype).astype(y.dtype)
    y.backward(cp.asarray(cotangent) if cuda else cotangent)
    leaves = [x for x in inputs if isinstance(x, Tensor)]
    assert y.device == ("cuda" if cuda else "cpu")
    assert all(x.grad.device == y.device for x in leaves if x.grad is not None)
    return [y.data, *(x.grad.data for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize(("case", "sample"), SAMPLES, ids=SAMPLE_IDS)
def test_equals_the_reference(cp: Any, case: Case, sample: Sample, dtype: Any) -> None:
    with use_kernels("reference"):
        exact = results(cp, case, sample, inputs_of(cp, case, sample, dtype, True, False), dtype, False)
        naive = results(cp, case, sample, inputs_of(cp, case, sample, dtype, False, False), dtype, False)
    found = results(cp, case, sample, inputs_of(cp, case, sample, dtype, False, True), dtype, True)
    assert [a.dtype for a in found] == [a.dtype for a in naive]
    agree([to_numpy(a) for a in found], naive, exact, case.name)
