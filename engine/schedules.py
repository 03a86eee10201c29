"""Learning rates over time."""

from __future__ import annotations

import math


def cosine_schedule(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    """Learning rate at `step` (0-based) of `total`: linear from peak / warmup to peak over `warmup` steps, then half a cosine to floor."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * progress))
