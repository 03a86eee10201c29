"""Dynamic loss scaling, which float16 gradients need: their smallest number is 6e-8, and most gradients of a mean over
pixels lie below it.

backward starts from `scale` instead of 1, so that every gradient is scale times as large; the optimizer divides by it
again. When a gradient does not fit (it becomes infinite or NaN, which the gradient norm shows), the step is skipped and
the scale halved; after
`interval` good steps in a row it is doubled.  (Micikevicius et al., arXiv 1710.03740)
"""

from __future__ import annotations

import math


class LossScale:
    """The scale, a power of two so that scaling rounds nothing. `skipped`: how many steps were skipped so far."""

    def __init__(
        self,
        start: float = 2.0**16,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
        largest: float = 2.0**24,
    ) -> None:
        """Raises ValueError for a start, growth or backoff that is no power of two in its range, or an interval below
        1.
        """
        for name, value, low, high in (
            ("start", start, 1.0, largest),
            ("growth", growth, 2.0, math.inf),
            ("backoff", backoff, 0.0, 0.5),
        ):
            if not low <= value <= high or not math.isfinite(value) or math.frexp(value)[0] != 0.5:
                raise ValueError(f"LossScale: {name} is {value}, expected a power of two from {low:g} to {high:g}")
        if interval < 1:
            raise ValueError(f"LossScale: interval is {interval}, expected at least 1")
        self.value, self.growth, self.backoff, self.interval, self.largest = start, growth, backoff, interval, largest
        self.skipped = self.good = 0

    def update(self, norm: float) -> bool:
        """After a step: adapt the scale to the gradient norm, which is finite if the step was made. Returns whether it
        was.
        """
        if math.isfinite(norm):
            self.good += 1
            if self.good == self.interval:
                self.value = min(self.value * self.growth, self.largest)
                self.good = 0
            return True
        self.value = max(self.value * self.backoff, 1.0)
        self.good = 0
        self.skipped += 1
        return False
