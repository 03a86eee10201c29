"""Data for pictures: gradients entry by entry, and the error of the plain difference at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd.gradcheck.check import checked_leaves
from autograd.gradcheck.locate import EntryMap, entry_maps
from autograd.gradcheck.probe import Probe
from autograd.gradcheck.ridders import ridders
from autograd.tensor import Tensor


@dataclass
class StepCurve:
    """Relative error of (phi(h) - phi(-h)) / 2h at `steps` h, falling: truncation (about h^2) to the right, round-off
    (about 1 / h) to the left.

    numeric: the extrapolated derivative.   estimate: its own relative error estimate.   chosen: the smallest step that
        went into it.
    analytic_error: of the handwritten gradient.   roundoff: the round-off expected at every step.
    """

    steps: np.ndarray
    error: np.ndarray
    roundoff: np.ndarray
    numeric: float
    estimate: float
    chosen: float
    analytic_error: float


def step_curve(
    fn: Callable[..., Any],
    *inputs: Any,
    parameters: Sequence[Tensor] | None = None,
    input_names: Sequence[str] | None = None,
    seed: int = 0,
    first: float = 1.0,
    last: float = 1e-12,
    count: int = 37,
) -> StepCurve:
    """Measure the V: plain central differences at `count` steps from `first` to `last`, against the extrapolated
    derivative.
    """
    probe = _probe(fn, inputs, parameters, input_names, seed)

    def difference(h: float) -> tuple[float, float]:
        return (probe.phi(h) - probe.phi(-h)) / (2 * h), probe.noise() / h

    table = ridders(difference)
    scale = probe.scale()
    steps = np.geomspace(first, last, count)
    error = np.array([abs(difference(float(h))[0] - table.value) for h in steps]) / scale
    return StepCurve(
        steps,
        error,
        probe.noise() / steps / scale,
        table.value,
        table.error / scale,
        table.chosen,
        abs(probe.analytic() - table.value) / scale,
    )


def numeric_gradients(
    fn: Callable[..., Any],
    *inputs: Any,
    parameters: Sequence[Tensor] | None = None,
    input_names: Sequence[str] | None = None,
    seed: int = 0,
) -> list[EntryMap]:
    """Analytic and numeric gradient of <v, fn(*inputs)>, entry by entry, v a random cotangent: four evaluations per
    entry.

    One EntryMap (`.leaf`, `.analytic`, `.numeric`, `.difference`) per checked input and parameter.
    """
    return entry_maps(_probe(fn, inputs, parameters, input_names, seed))


def _probe(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    parameters: Sequence[Tensor] | None,
    input_names: Sequence[str] | None,
    seed: int,
) -> Probe:
    leaves, names, _ = checked_leaves("gradcheck", fn, inputs, parameters, input_names)
    return Probe(fn, inputs, leaves, names, np.random.default_rng((seed, 0)))
