"""`Probe`: a function at one point, seen along directions u of its inputs and against one cotangent v of its outputs.

    phi(t) = <v, f(x + t u) - f(x)>,      analytic = <backward(v), u>,      numeric = phi'(0)

Signs of u and v are random, magnitudes U(0.5, 1.5): no entry is so small that its error could hide behind the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autograd.modes import no_grad
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module, to_numpy

EPS = float(np.finfo(np.float64).eps)
# of a sum of many products, relative to the sum of their sizes: reductions here have fewer than 10^6 terms
ROUNDING = 1024 * EPS


class Probe:
    """fn(*inputs) around the leaves' present values.

    leaves: the Tensors that are varied; names: their names.   outputs: the base values, as float64 NumPy
        arrays.
    v: a cotangent per output.   gradients: backward(v), an array per leaf (zeros where backward gave none).
    evaluations: forward calls so far.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: Sequence[Any],
        leaves: list[Tensor],
        names: list[str],
        rng: np.random.Generator,
    ) -> None:
        self.fn = fn
        self.inputs = tuple(inputs)
        self.leaves = leaves
        self.names = names
        self.points = [leaf.data for leaf in leaves]
        self.evaluations = 0
        self.cotangent_kept = True  # until a backward pass writes to its cotangent
        self.base = self.forward()
        self.outputs = [to_numpy(out.data).astype(np.float64, copy=False) for out in self.base]
        self.v = [signed(rng, out.shape) for out in self.outputs]
        self.gradients = self.backward(self.base, self.v, keep=True)
        self.u = [signed(rng, x.shape) for x in self.points]

    @property
    def size(self) -> int:
        """Number of checked entries."""
        return sum(x.size for x in self.points)

    def forward(self) -> tuple[Tensor, ...]:
        """The differentiable outputs at the leaves' present values, recorded on the tape."""
        self.evaluations += 1
        return floating(self.fn(*self.inputs))

    def backward(self, outputs: tuple[Tensor, ...], v: Sequence[np.ndarray], keep: bool = False) -> list[np.ndarray]:
        """The gradient of <v, outputs> for every leaf."""
        for leaf in self.leaves:
            leaf.zero_grad()
        cotangents = [array_module(out.data).array(w, out.dtype) for out, w in zip(outputs, v, strict=True)]
        if len(outputs) == 1:
            outputs[0].backward(cotangents[0], retain_graph=keep)
        else:
            total = sum(
                ((out * Tensor(w)).sum() for out, w in zip(outputs, cotangents, strict=True) if out.requires_grad),
                Tensor(np.zeros(())),
            )
            total.backward(retain_graph=keep)
        kept = all(np.array_equal(to_numpy(c), w) for c, w in zip(cotangents, v, strict=True))
        self.cotangent_kept = self.cotangent_kept and kept
        found = [
            np.zeros(leaf.shape) if leaf.grad is None else np.array(to_numpy(leaf.grad.data)) for leaf in self.leaves
        ]
        for leaf in self.leaves:
            leaf.zero_grad()
        return found

    def differences(self, t: float, u: Sequence[np.ndarray | None] | None = None) -> list[np.ndarray]:
        """f(x + t u) - f(x), one array per output; u: an array per leaf, None leaves that leaf alone."""
        try:
            for leaf, x, step in zip(self.leaves, self.points, self.u if u is None else u, strict=True):
                leaf.data = x if step is None else moved(x, t, step)
            self.evaluations += 1
            with no_grad(), np.errstate(all="ignore"):
                values = floating(self.fn(*self.inputs), recorded=False)
        finally:
            self.restore()
        return [to_numpy(value.data) - out for value, out in zip(values, self.outputs, strict=True)]

    def phi(self, t: float, u: Sequence[np.ndarray | None] | None = None) -> float:
        """<v, f(x + t u) - f(x)>."""
        return self.against_v(self.differences(t, u))

    def against_v(self, arrays: Sequence[np.ndarray]) -> float:
        """<v, arrays>."""
        return float(sum(float((w * d).sum()) for w, d in zip(self.v, arrays, strict=True)))

    def analytic(
        self, u: Sequence[np.ndarray | None] | None = None, gradients: Sequence[np.ndarray] | None = None
    ) -> float:
        """<backward(v), u>."""
        gradients = self.gradients if gradients is None else gradients
        return float(
            sum(
                float((g * w).sum())
                for g, w in zip(gradients, self.u if u is None else u, strict=True)
                if w is not None
            )
        )

    def noise(self) -> float:
        """The round-off of one phi: 4 eps |v f|, entries taken as independent."""
        return 4 * EPS * sum(float(((w * out) ** 2).sum()) for w, out in zip(self.v, self.outputs, strict=True)) ** 0.5

    def rounding(self, gradients: Sequence[np.ndarray] | None = None) -> float:
        """The round-off of `analytic`, relative to the sum of the sizes of its terms."""
        pairs = zip(self.gradients if gradients is None else gradients, self.u, strict=True)
        return ROUNDING * float(sum(float(np.abs(g * w).sum()) for g, w in pairs))

    def scale(self) -> float:
        """The size a directional derivative has when nothing cancels: |gradient| |u| / sqrt(n); a size 1e-6 below f
        itself counts as 0.
        """
        gradient = sum(float((g**2).sum()) for g in self.gradients) ** 0.5
        return max(gradient, 1e-6 * self.noise() / (4 * EPS)) or 1.0

    def restore(self) -> None:
        """Put the leaves back to where they were."""
        for leaf, x in zip(self.leaves, self.points, strict=True):
            leaf.data = x


def moved(x: Array, t: float, step: np.ndarray) -> Array:
    """x + t step, in x's module."""
    return x + array_module(x).asarray(t * step)


def signed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random signs times magnitudes from U(0.5, 1.5)."""
    return rng.choice((-1.0, 1.0), shape) * rng.uniform(0.5, 1.5, shape)


def floating(value: Any, recorded: bool = True) -> tuple[Tensor, ...]:
    """The outputs of a function that a cotangent can be given to; ValueError when there is none."""
    outputs = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    kept = tuple(out for out in outputs if isinstance(out, Tensor) and out.dtype.kind in "fc")
    if not kept or (recorded and not any(out.requires_grad for out in kept)):
        kinds = ", ".join(type(out).__name__ for out in outputs)
        raise ValueError(
            f"gradcheck: the function gave {kinds or 'nothing'}, expected at least one Tensor that depends on a "
            "checked input"
        )
    return kept
