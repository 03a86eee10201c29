"""Matrix products."""

from __future__ import annotations

import operator
from typing import Any

from autograd.function import Function, unbroadcast
from autograd.tensor import Tensor, as_array
from kernels.core.device import Array
from kernels.shape import evaluate


class MatMul(Function):
    """Z = X Y over the last two axes, the others broadcast;  dX = dZ Y^T, dY = X^T dZ.  A vector is a row (left) or column (right)."""

    def forward(self, x: Array, y: Array) -> Array:
        self.save(x, y)
        return evaluate(operator.matmul, x, y)

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        x, y = self.saved
        x2 = x[None, :] if x.ndim == 1 else x
        y2 = y[:, None] if y.ndim == 1 else y
        if x.ndim == 1:
            dz = dz[..., None, :] if y.ndim > 1 else dz.reshape(1, 1)
        if y.ndim == 1 and x.ndim > 1:
            dz = dz[..., None]
        dx = unbroadcast(evaluate(operator.matmul, dz, y2.swapaxes(-1, -2)), x2.shape).reshape(x.shape) if self.needs[0] else None
        dy = unbroadcast(evaluate(operator.matmul, x2.swapaxes(-1, -2), dz), y2.shape).reshape(y.shape) if self.needs[1] else None
        return dx, dy

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 2 * outputs[0].size * inputs[0].shape[-1]


def matmul(x: Any, y: Any) -> Tensor:
    """x @ y with NumPy's rules."""
    a, b = as_array(x), as_array(y)
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2] if b.ndim else None
    if not a.ndim or not b.ndim or a.shape[-1] != inner:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit ({a.shape[-1] if a.ndim else 'a number'} against {inner})")
    return MatMul()(x if isinstance(x, Tensor) else a, y if isinstance(y, Tensor) else b)
