"""A derivative and its own error estimate: Ridders' extrapolation of central differences at shrinking steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_STEP = 2.0**-5
SHRINK = 0.25  # from 3e-2 to 7e-9 in 12 steps: wide enough to get between the kinks of a whole network
STEPS = 12


@dataclass
class Tableau:
    """steps h_k, the plain central differences `central` at them, their round-off `noise`, and the result.

    value: the extrapolated derivative.   error: its estimated error.   chosen: the smallest step that went into it
        (0.0: none could).
    """

    steps: list[float] = field(default_factory=list)
    central: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    value: float = 0.0
    error: float = math.inf
    chosen: float = 0.0


def ridders(
    difference: Callable[[float], tuple[float, float]], first: float = FIRST_STEP, steps: int = STEPS
) -> Tableau:
    """Extrapolate difference(h) -> (central difference at step h, its round-off) to h = 0.

    The tableau removes the h^2, h^4, ... terms: A[k][j] = A[k][j-1] + (A[k][j-1] - A[k-1][j-1]) / (s^-2j - 1), s the
    ratio of steps. The entry whose neighbours agree best is taken; its error is the larger of the two disagreements,
    plus the round-off of the smallest step used. A step outside the domain (nan, inf) starts the tableau anew below it.
    Source: Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", Adv. Eng. Software 4(2), 1982.
    """
    table = Tableau()
    previous: list[float] = []
    for k in range(steps):
        h = first * SHRINK**k
        value, noise = difference(h)
        table.steps.append(h)
        table.central.append(value)
        table.noise.append(noise)
        if not math.isfinite(value):
            previous = []
            continue
        row = [value]
        for j in range(1, len(previous) + 1):
            row.append(row[j - 1] + (row[j - 1] - previous[j - 1]) / (SHRINK ** (-2 * j) - 1))
            error = max(abs(row[j] - row[j - 1]), abs(row[j] - previous[j - 1])) + noise
            if error < table.error:
                table.value = row[j]
                table.error = error
                table.chosen = h
        previous = row
    return table
