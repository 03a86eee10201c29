"""Matrix products."""

from __future__ import annotations

import math
import operator

from autograd.function import Function, unbroadcast
from autograd.operands import Operand
from autograd.promotion import promoted
from autograd.tensor import Tensor, as_array
from kernels.core.device import Array
from kernels.shape import evaluate

__all__ = ["linear", "matmul"]


class MatMul(Function):
    """Z = X Y over the last two axes, the others broadcast;  dX = dZ Y^T, dY = X^T dZ.  A vector is a row (left) or
    column (right).
    """

    def forward(self, x: Array, y: Array) -> Array:
        self.save(x, y)
        return evaluate(operator.matmul, x, y)

    def explain(self, error: Exception, x: Array, y: Array) -> None:
        if isinstance(error, ValueError):
            raise ValueError(
                f"matmul: shapes {x.shape} and {y.shape} do not fit ({x.shape[:-2]} against {y.shape[:-2]})"
            ) from None

    def backward(self, dz: Array) -> tuple[Array | None, ...]:
        x, y = self.saved
        x2 = x[None, :] if x.ndim == 1 else x
        y2 = y[:, None] if y.ndim == 1 else y
        if x.ndim == 1:
            dz = dz[..., None, :] if y.ndim > 1 else dz.reshape(1, 1)
        if y.ndim == 1 and x.ndim > 1:
            dz = dz[..., None]
        dx = (
            unbroadcast(evaluate(operator.matmul, dz, y2.swapaxes(-1, -2)), x2.shape).reshape(x.shape)
            if self.needs[0]
            else None
        )
        dy = (
            unbroadcast(evaluate(operator.matmul, x2.swapaxes(-1, -2), dz), y2.shape).reshape(y.shape)
            if self.needs[1]
            else None
        )
        return dx, dy

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 2 * outputs[0].size * inputs[0].shape[-1]

    def backward_flops(self, forward: int) -> int:
        return forward * (self.needs[0] + self.needs[1])


def matmul(x: Operand, y: Operand) -> Tensor:
    """x @ y, as torch.matmul: the product over x's last axis and y's last but one; the axes before them broadcast, and
    a vector is a row (left) or a column (right).

    Raises ValueError, which names both shapes, where they do not fit.
    """
    x, y = promoted(x, y)
    a, b = as_array(x), as_array(y)
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2] if b.ndim else None
    if not a.ndim or not b.ndim or a.shape[-1] != inner:
        raise ValueError(
            f"matmul: shapes {a.shape} and {b.shape} do not fit ({a.shape[-1] if a.ndim else 'a number'} against "
            f"{inner})"
        )
    return MatMul()(x, y)


class Linear(Function):
    """y = x W^T + b over the last axis;  dx = dy W, dW = sum of dy^T x over all other axes, db = sum of dy."""

    def forward(self, x: Array, w: Array, b: Array | None) -> Array:
        self.save(x, w)
        y = evaluate(_product, x, w) if b is None else evaluate(_sum_of_product, x, w, b)
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, w = self.saved
        dx = evaluate(operator.matmul, dy, w) if self.needs[0] else None
        dw = evaluate(_weight_gradient, dy, x) if self.needs[1] else None
        return dx, dw, unbroadcast(dy, dy.shape[-1:]) if self.needs[2] else None

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return 2 * outputs[0].size * inputs[0].shape[-1]

    def backward_flops(self, forward: int) -> int:
        return forward * (self.needs[0] + self.needs[1])


def _product(x: Array, w: Array) -> Array:
    return x @ w.T


def _sum_of_product(x: Array, w: Array, b: Array) -> Array:
    y = x @ w.T
    y += b
    return y


def _weight_gradient(dy: Array, x: Array) -> Array:
    rows = math.prod(x.shape[:-1])  # not -1, which an empty array cannot tell
    return dy.reshape(rows, dy.shape[-1]).T @ x.reshape(rows, x.shape[-1])


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input (..., in_features) times the transpose of weight (out_features, in_features), plus bias (out_features,) ->
    (..., out_features).

    As PyTorch's linear, the weight's layout included: PyTorch's weights can be used unchanged.
    Raises ValueError when the sizes do not fit, TypeError for unlike dtypes.
    """
    if weight.ndim != 2 or not input.ndim or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: input has shape {input.shape}, weight {weight.shape}; expected (..., in_features) and "
            "(out_features, in_features)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias has shape {bias.shape}, expected {weight.shape[:1]}")
    dtypes = {t.dtype for t in (input, weight, bias) if t is not None}
    if len(dtypes) > 1:
        raise TypeError(
            f"linear: input is {input.dtype}, weight {weight.dtype}"
            + ("" if bias is None else f", bias {bias.dtype}")
            + "; expected one dtype"
        )
    return Linear()(input, weight, bias)
