"""Reverse-mode automatic differentiation on NumPy or CuPy arrays, every gradient written by hand.

    from autograd import Tensor, ops
    x = Tensor(array, requires_grad=True)
    ops.relu(x).sum().backward()
    x.grad

`ops` holds the operators, `Function` is the base for your own, `gradcheck` proves a gradient.
"""

from pathlib import Path as _Path

import kernels as _kernels

if _Path(_kernels.__file__ or "").parent.parent != _Path(__file__).parent.parent:
    raise ImportError(
        f"kernels: found {_kernels.__file__}, which is another package of this name; start elsewhere, or rename it"
    )

from autograd import numpy_protocol, ops, promotion, random, tape
from autograd.binding import bound
from autograd.checkpoint import checkpoint
from autograd.function import Function
from autograd.gradcheck import GradReport, assert_gradients, gradcheck, numeric_gradients
from autograd.graph import draw, graph
from autograd.modes import anomaly_mode, enable_grad, inference, is_recording, no_grad, observe
from autograd.tensor import Tensor

bound.ops = ops
bound.backward = tape.backward
bound.cast = promotion.cast
bound.moved = promotion.moved
bound.promoted = promotion.promoted
bound.apply_ufunc = numpy_protocol.apply_ufunc
bound.apply_function = numpy_protocol.apply_function

__all__ = [
    "Function",
    "GradReport",
    "Tensor",
    "anomaly_mode",
    "assert_gradients",
    "checkpoint",
    "draw",
    "enable_grad",
    "gradcheck",
    "graph",
    "inference",
    "is_recording",
    "no_grad",
    "numeric_gradients",
    "observe",
    "ops",
    "random",
]
