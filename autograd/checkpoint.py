"""Trade time for memory: run a part without a tape, and run it again when its gradient is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import random
from autograd.function import Function
from autograd.modes import enable_grad, no_grad
from autograd.tensor import Tensor
from kernels.core.device import Array


def checkpoint(fn: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """fn(*inputs), keeping only the inputs; backward calls fn again with the same random stream.

    fn must give the same result both times; parameters it uses from outside get their gradients in the second run.
    Source: Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """
    return Checkpoint(fn)(*inputs)


class Checkpoint(Function):
    """The operator behind `checkpoint`. The random stream's state is saved before the first run and replayed in the second."""

    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def __call__(self, *inputs: Any) -> Tensor:
        # A part with parameters of its own must be recorded even when none of its inputs needs a gradient.
        return super().__call__(*inputs, Tensor(np.zeros(0, np.float32), requires_grad=True))

    def forward(self, *arrays: Array) -> Array:
        self.state = random.state()
        self.save(*arrays)
        with no_grad():
            return self.fn(*(Tensor(a) for a in arrays[:-1])).data

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        *arrays, anchor = self.saved
        leaves = [Tensor(a, requires_grad=need) for a, need in zip(arrays, self.needs, strict=False)]
        with enable_grad(), random.replay(self.state):
            result = self.fn(*leaves)
        if result.requires_grad:
            result.backward(dy)
        grads = [None if x.grad is None else x.grad.data for x in leaves]
        zeros = [0 * x.data if need and g is None else g for x, g, need in zip(leaves, grads, self.needs, strict=False)]
        return (*zeros, anchor)
