"""Gradient checks with their own error bar.

The gradient is compared along a random direction u with the numerical derivative of phi(t) = <v, f(x + t u)>, v a random cotangent:

    analytic = <backward(v), u>        numeric = phi'(0) by central differences at shrinking steps, extrapolated (Ridders)

The extrapolation also estimates its own error, so no tolerance is chosen: the bar is ten times that estimate plus round-off. One
backward and about 25 forwards test all entries of all inputs at once, whatever their number.
Source: Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Adv. Eng. Software 4(2), 1982.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autograd.modes import no_grad
from autograd.tensor import Tensor
from kernels.core.device import array_module, to_numpy

STEPS = 12
FIRST_STEP = 2.0**-5
SHRINK = 0.25  # from 3e-2 to 7e-9: wide enough to get between the kinks of a whole network
WIDEST_BAR = 1e-5  # a wider one proves nothing
PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"


@dataclass
class GradReport:
    """What a check found. `error` is |analytic - numeric|, `bar` what it may be; both relative to `scale`."""

    name: str
    verdict: str
    analytic: float
    numeric: float
    error: float
    bar: float
    evaluations: int
    seconds: float
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.verdict == PASS

    def table(self) -> str:
        """One line per fact, aligned."""
        rows = [
            ("operator", self.name),
            ("verdict", self.verdict),
            ("analytic", f"{self.analytic:+.15e}"),
            ("numeric", f"{self.numeric:+.15e}"),
            ("relative error", f"{self.error:.1e}"),
            ("error bar", f"{self.bar:.1e}"),
            ("evaluations", str(self.evaluations)),
            ("seconds", f"{self.seconds:.3f}"),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{key:>15}  {value}" for key, value in rows)


def ridders(difference: Callable[[float], tuple[float, float]], first: float = FIRST_STEP, steps: int = STEPS) -> tuple[float, float]:
    """(derivative, error estimate) from difference(h) -> (central difference at step h, its round-off).

    The tableau removes the h^2, h^4, ... terms: A[k][j] = A[k][j-1] + (A[k][j-1] - A[k-1][j-1]) / (s^-2j - 1), s the ratio of
    steps. The entry whose neighbours agree best is taken; its error is the larger of the two disagreements, plus the round-off of the
    smallest step used.
    """
    best, best_error = 0.0, np.inf
    previous: list[float] = []
    for k in range(steps):
        value, noise = difference(first * SHRINK**k)
        row = [value]
        for j in range(1, k + 1):
            row.append(row[j - 1] + (row[j - 1] - previous[j - 1]) / (SHRINK ** (-2 * j) - 1))
            error = max(abs(row[j] - row[j - 1]), abs(row[j] - previous[j - 1])) + noise
            if error < best_error:
                best, best_error = row[j], error
        previous = row
    return best, best_error


def gradcheck(
    fn: Callable[..., Any],
    *inputs: Any,
    parameters: Sequence[Tensor] = (),
    seed: int = 0,
    directions: int = 1,
    name: str | None = None,
    first_step: float = FIRST_STEP,
) -> GradReport:
    """Check the gradient of fn(*inputs) with respect to every float64 input that requires it and to `parameters`.

    inputs: Tensors (checked when requires_grad) or anything else (passed through). fn returns a Tensor or a tuple of Tensors and must
    be deterministic. The worst of `directions` random directions is reported. TypeError when a checked array is not float64.
    """
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad] + list(parameters)
    name = name or str(getattr(fn, "__name__", type(fn).__name__))
    if not leaves:
        raise ValueError(f"gradcheck of {name}: no input requires gradients and no parameters were given")
    for k, leaf in enumerate(leaves):
        if leaf.dtype != np.float64:
            raise TypeError(f"gradcheck of {name}: checked array {k} is {leaf.dtype}; finite differences need float64")
    start = time.perf_counter()
    reports = [_one_direction(fn, inputs, leaves, np.random.default_rng((seed, k)), name, first_step) for k in range(directions)]
    worst = max(reports, key=lambda r: ((PASS, INCONCLUSIVE, FAIL).index(r.verdict), r.error / max(r.bar, 1e-300)))
    worst.evaluations = sum(r.evaluations for r in reports)
    worst.seconds = time.perf_counter() - start
    return worst


def assert_gradients(fn: Callable[..., Any], *inputs: Any, **settings: Any) -> GradReport:
    """`gradcheck` that raises AssertionError with the table unless the verdict is PASS."""
    report = gradcheck(fn, *inputs, **settings)
    if report.verdict != PASS:
        raise AssertionError("gradient check\n" + report.table())
    return report


def _one_direction(
    fn: Callable[..., Any], inputs: Sequence[Any], leaves: list[Tensor], rng: np.random.Generator, name: str, first_step: float
) -> GradReport:
    for leaf in leaves:
        leaf.zero_grad()
    before = [leaf.data.copy() for leaf in leaves]
    outputs = _tuple(fn(*inputs))
    cotangents = [_random(rng, out) for out in outputs]
    total = sum(((out * Tensor(v)).sum() for out, v in zip(outputs, cotangents, strict=True)), Tensor(np.zeros(())))
    total.backward()
    notes = [f"input {k} was changed by the operator" for k, (leaf, old) in enumerate(zip(leaves, before, strict=True)) if (leaf.data != old).any()]
    directions = [_random(rng, leaf) for leaf in leaves]
    analytic = sum(float((leaf.grad.data * u).sum()) for leaf, u in zip(leaves, directions, strict=True) if leaf.grad is not None)
    originals = [leaf.data for leaf in leaves]
    evaluations = 0

    def phi(t: float) -> float:
        """<v, f(x + t u) - f(x)>."""
        nonlocal evaluations
        evaluations += 1
        for leaf, x, u in zip(leaves, originals, directions, strict=True):
            leaf.data = x + t * u
        with no_grad():
            values = _tuple(fn(*inputs))
        products = [to_numpy(v * (value.data - out.data)) for v, value, out in zip(cotangents, values, outputs, strict=True)]
        return sum(float(p.sum()) for p in products)

    magnitude = sum(float(((v * out.data) ** 2).sum()) for v, out in zip(cotangents, outputs, strict=True)) ** 0.5

    def difference(h: float) -> tuple[float, float]:
        return (phi(h) - phi(-h)) / (2 * h), 4 * np.finfo(np.float64).eps * magnitude / h

    try:
        numeric, estimate = ridders(difference, first_step)
    finally:
        for leaf, x in zip(leaves, originals, strict=True):
            leaf.data = x
    scale = _scale(leaves, directions)
    error, bar = abs(analytic - numeric) / scale, 10 * estimate / scale
    verdict = PASS if error <= bar and not notes else FAIL
    if bar > WIDEST_BAR and not notes:
        verdict = INCONCLUSIVE
        notes.append(f"the error bar {bar:.1e} is too wide to say anything; is there a kink within the steps?")
    return GradReport(name, verdict, analytic, numeric, error, bar, evaluations, 0.0, notes)


def _scale(leaves: list[Tensor], directions: list[Any]) -> float:
    """The size a directional derivative has when nothing cancels: |grad| |u| / sqrt(n), and never 0."""
    grad2 = sum(float((leaf.grad.data**2).sum()) for leaf in leaves if leaf.grad is not None)
    u2 = sum(float((u**2).sum()) / u.size for u in directions if u.size) / max(1, len(directions))
    return float(np.sqrt(grad2 * u2)) or 1.0


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _random(rng: np.random.Generator, like: Tensor) -> Any:
    """Random signs times magnitudes from U(0.5, 1.5): no entry is so small that its error could hide."""
    signs = rng.choice((-1.0, 1.0), like.shape)
    return array_module(like.data).asarray(signs * rng.uniform(0.5, 1.5, like.shape))
