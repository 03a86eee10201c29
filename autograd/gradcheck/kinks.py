"""Kinks: where the two one-sided slopes of an output differ, and what the gradient may be there.

The second difference of output i, S(h) = (f_i(x + h u) - 2 f_i(x) + f_i(x - h u)) / h, tends to the jump of the slope.
It shrinks with h where f_i is smooth (S = h f'') and stays where f_i has a kink at x. The tableau's own evaluations
give it for every output and step: no call is added.

At a kink the operators follow documented conventions, and each is "the gradient on one side": of the point x + e w, e
-> 0+, for a displacement w that belongs to the convention. So it is checked by a derivative at displaced points,
without writing the backward a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autograd.gradcheck.probe import EPS, Probe
from autograd.gradcheck.ridders import ridders

FINEST = 2.0**-23  # below this step round-off hides small jumps
CONFIRM = 2.0**-33  # a kink seen at FINEST is at x, and not just near, when it is still seen at this step
JUMP = 1e-3  # a jump of the slope smaller than this part of the slope is not called a kink
STAYS = 3  # over so many quarterings of the step
DISPLACEMENT = 2.0**-8


class KinkTest:
    """Fed with the differences at +h and -h for shrinking h; then `at_point` and `distance`, an array per output.

    at_point: True where the kink is at x itself (nearer than 1e-10 along u), once `confirm` was called.
    distance: the smallest step at which a kink was seen within (-h, h); inf where the output looks smooth throughout.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.size = [np.abs(out) + np.sqrt(np.mean(out**2) if out.size else 0.0) for out in probe.outputs]
        self.stays = [np.zeros(out.shape, int) for out in probe.outputs]
        self.distance = [np.full(out.shape, np.inf) for out in probe.outputs]
        self._before: list[np.ndarray] = []
        self._near = [np.zeros(out.shape, bool) for out in probe.outputs]

    def add(self, h: float, plus: Sequence[np.ndarray], minus: Sequence[np.ndarray]) -> None:
        """The differences f(x + h u) - f(x) and f(x - h u) - f(x), for a step smaller than the last."""
        if h < FINEST:
            return
        second = [np.abs(p + m) / h for p, m in zip(plus, minus, strict=True)]
        for k, s in enumerate(second):
            visible = self._visible(k, h, plus[k], minus[k])
            if self._before:
                # From a step to a quarter of it, a smooth S falls to a quarter; a kink leaves more than a half; noise
                # makes it grow.
                kinked = visible & (s > 0.5 * self._before[k]) & (s < 2 * self._before[k])
                self.stays[k] = np.where(kinked, self.stays[k] + 1, 0)
                self._near[k] = kinked
                self.distance[k] = np.where(kinked, h, self.distance[k])
        self._before = second

    def _visible(self, k: int, h: float, plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
        """Whether the second difference of output k is above a small part of the slope, and above round-off."""
        s = np.abs(plus + minus) / h
        slope = (np.abs(plus) + np.abs(minus)) / h
        return (s > JUMP * slope) & (s > 256 * EPS * self.size[k] / h)

    def confirm(self) -> bool:
        """Whether any output has a kink at x itself: two more evaluations, where one was seen down to the finest step,
        sort out those just near.
        """
        if not any(hit.any() for hit in self.at_point):
            return False
        plus = self.probe.differences(CONFIRM)
        minus = self.probe.differences(-CONFIRM)
        for k in range(len(self.stays)):
            constant = np.abs(plus[k] + minus[k]) / CONFIRM < 2 * self._before[k] + 256 * EPS * self.size[k] / CONFIRM
            self.stays[k] = np.where(self._visible(k, CONFIRM, plus[k], minus[k]) & constant, self.stays[k], 0)
        return any(hit.any() for hit in self.at_point)

    def near_jumps(self) -> float:
        """<|v|, jump of the slope> over outputs with a kink within the finest step: a two-sided difference can be off
        by that much.
        """
        pairs = zip(self.probe.v, self._before, self._near, strict=True)
        return float(sum(float((np.abs(v) * np.where(near, s, 0.0)).sum()) for v, s, near in pairs))

    @property
    def at_point(self) -> list[np.ndarray]:
        """Per output: is the kink at x itself."""
        return [s >= STAYS for s in self.stays]

    def where(self) -> list[tuple[int, tuple[int, ...]]]:
        """(output, index) of the entries with a kink at x."""
        return [(k, tuple(int(i) for i in index)) for k, hit in enumerate(self.at_point) for index in np.argwhere(hit)]


@dataclass(frozen=True)
class Convention:
    """The gradient at a kink: `text` for people, and the displacements w that lead to the side (averaged, if
    several).
    """

    text: str
    displacements: Callable[[tuple[int, ...]], list[np.ndarray]]


def _ramp(shape: tuple[int, ...]) -> np.ndarray:
    """1, 0.99.., falling in scan order: earlier entries are larger."""
    size = int(np.prod(shape))
    return 1 - np.arange(size).reshape(shape) / max(1, size)


CONVENTIONS = {
    "below": Convention(
        "at the kink the argument counts as below it: relu'(0) = 0, leaky_relu'(0) = slope",
        lambda shape: [-np.ones(shape)],
    ),
    "above": Convention("at the kink the argument counts as above it", lambda shape: [np.ones(shape)]),
    "first": Convention("the first maximum in scan order takes the whole gradient", lambda shape: [_ramp(shape)]),
    "last": Convention("the last maximum in scan order takes the whole gradient", lambda shape: [-_ramp(shape)]),
    "share": Convention("equal maxima share the gradient equally", lambda shape: [_ramp(shape), -_ramp(shape)]),
    "any": Convention("any value between the two one-sided slopes", lambda shape: []),
}


def displaced_derivative(probe: Probe, convention: Convention, leaf: int) -> tuple[float, float]:
    """(phi'(0) on the convention's side, its error estimate): derivatives at x + e w and x + e w / 4, extrapolated to e
    = 0.
    """
    sides = convention.displacements(probe.points[leaf].shape)
    by_distance = []
    error = 0.0
    for e in (DISPLACEMENT, DISPLACEMENT / 4):
        total = 0.0
        for w in sides:
            value, estimate = _derivative_at(probe, leaf, e * w, e)
            total += value / len(sides)
            error += estimate / len(sides)
        by_distance.append(total)
    far, near = by_distance
    value = near + (near - far) / 3
    return value, error + abs(value - near)


def _derivative_at(probe: Probe, leaf: int, shift: np.ndarray, e: float) -> tuple[float, float]:
    """The derivative along u at x + shift; steps stay well inside the gap that the shift opens."""
    original = probe.points[leaf]
    size = max(1, original.size) if np.ptp(shift) > 0 else 1
    try:
        probe.points[leaf] = original + shift
        table = ridders(lambda h: ((probe.phi(h) - probe.phi(-h)) / (2 * h), probe.noise() / h), e / (4 * size), 4)
    finally:
        probe.points[leaf] = original
        probe.restore()
    return table.value, table.error


def one_sided_interval(probe: Probe) -> tuple[float, float, float]:
    """(low, high, error): the values that a choice between the one-sided slopes, made for every output by itself, can
    give <v, f'>.
    """
    h = 2.0**-16
    slopes = []
    for sign in (1, -1):
        far, near = ([d / (sign * h * s) for d in probe.differences(sign * h * s)] for s in (1.0, 0.25))
        slopes.append(
            (
                [n + (n - f) / 3 for f, n in zip(far, near, strict=True)],
                [np.abs(n - f) for f, n in zip(far, near, strict=True)],
            )
        )
    low = high = error = 0.0
    for k, v in enumerate(probe.v):
        right, left = v * slopes[0][0][k], v * slopes[1][0][k]
        low += float(np.minimum(right, left).sum())
        high += float(np.maximum(right, left).sum())
        error += float((np.abs(v) * (slopes[0][1][k] + slopes[1][1][k])).sum())
    return low, high, error + 4 * probe.noise() / h
