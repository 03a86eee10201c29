"""The operators of cases.py on Tensors: their inputs, results and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd import Tensor
from tests.support.cases import Case, Sample


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
