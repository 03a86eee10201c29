"""The two checkers on each other's functions. torch is imported by the calls, never by importing this module.

torch_gradcheck(torch.nn.functional.silu, torch.randn(3, 5, dtype=torch.float64, requires_grad=True)).verdict
torch.autograd.gradcheck(to_torch(ops.silu), ...)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autograd.function import Function
from autograd.gradcheck.check import gradcheck
from autograd.gradcheck.report import GradReport
from autograd.tensor import Tensor


class TorchFunction(Function):
    """A PyTorch function as one of our operators: forward runs it, backward is PyTorch's own backward pass."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *arrays: Any) -> Any:
        import torch

        # A copy: PyTorch cannot read arrays with negative strides, and must not write to ours.
        self.leaves = [
            torch.from_numpy(np.array(a, order="C")).requires_grad_(need)
            for a, need in zip(arrays, self.needs, strict=True)
        ]
        with torch.set_grad_enabled(any(self.needs)):
            out = self.fn(*self.leaves)
        self.results = tuple(out) if isinstance(out, (tuple, list)) else (out,)
        values = tuple(r.detach().numpy() for r in self.results)
        return values if isinstance(out, (tuple, list)) else values[0]

    def backward(self, *dys: Any) -> Any:
        import torch

        wanted = [x for x in self.leaves if x.requires_grad]
        used = [(r, torch.from_numpy(np.array(dy))) for r, dy in zip(self.results, dys, strict=True) if r.requires_grad]
        found = torch.autograd.grad(
            [r for r, _ in used], wanted, [dy for _, dy in used], retain_graph=True, allow_unused=True
        )
        grads = iter(
            g.numpy() if g is not None else np.zeros(tuple(x.shape)) for g, x in zip(found, wanted, strict=True)
        )
        return tuple(next(grads) if x.requires_grad else None for x in self.leaves)


def torch_gradcheck(fn: Callable[..., Any], *inputs: Any, **settings: Any) -> GradReport:
    """`autograd.gradcheck` on a PyTorch function (a custom torch.autograd.Function's `apply` too).

    inputs: torch tensors, those that require gradients are checked (float64, on the CPU); the others are passed as they
        are.
    settings: gradcheck's.   Returns its GradReport.
    """
    import torch

    tensors = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    places = [k for k, x in enumerate(inputs) if isinstance(x, torch.Tensor) and x.requires_grad]

    def ours(*leaves: Tensor) -> Any:
        def call(*values: Any) -> Any:
            arguments = list(inputs)
            for k, value in zip(places, values, strict=True):
                arguments[k] = value
            return fn(*arguments)

        return TorchFunction(call)(*leaves)

    leaves = [Tensor(x.detach().numpy().copy(), requires_grad=True) for x in tensors]
    settings.setdefault("name", str(getattr(fn, "__name__", type(fn).__name__)))
    return gradcheck(ours, *leaves, **settings)


def to_torch(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of our Tensors (one output) as a function of torch tensors, its backward ours, through a custom
    torch.autograd.Function.
    """
    import torch

    class Ours(torch.autograd.Function):
        """fn forward and backward on NumPy arrays."""

        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            ctx.leaves = [Tensor(t.detach().numpy(), requires_grad=True) for t in tensors]
            ctx.out = fn(*ctx.leaves)
            return torch.from_numpy(np.array(ctx.out.data))

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            for leaf in ctx.leaves:
                leaf.zero_grad()
            ctx.out.backward(np.array(dy.numpy()), retain_graph=True)
            return tuple(
                torch.zeros(leaf.shape, dtype=dy.dtype) if leaf.grad is None else torch.from_numpy(leaf.grad.data)
                for leaf in ctx.leaves
            )

    return Ours.apply
