"""The dtype in which an operator computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from autograd.function import Function
from autograd.tensor import Tensor, as_array
from kernels.core.device import Array
from kernels.shape import evaluate


class Cast(Function):
    """y = x, of integers or booleans, in float32; no gradient."""

    def forward(self, x: Array) -> Array:
        return evaluate(lambda x: x.astype(np.float32), x)


def real(x: Any) -> Tensor:
    """x as a Tensor of floating-point numbers: itself, or in float32 where it holds booleans or integers."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    return x if x.dtype.kind == "f" else Cast()(x)


def promoted(*operands: Any, floating: bool = False) -> tuple[Any, ...]:
    """The operands as Tensors or arrays: numbers take the dtype of the first Tensor or array. floating: integers and booleans as float32."""
    like = as_array(next((x for x in operands if isinstance(x, Tensor) or hasattr(x, "__array__")), operands[0]))
    given = [x if isinstance(x, Tensor) else as_array(x, like) for x in operands]
    return tuple(real(x) for x in given) if floating else tuple(given)
