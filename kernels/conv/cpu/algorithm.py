"""Algorithm selection for convolutions: a small cost model decides.

AREOGRAD_CONV = auto (default) | direct | winograd4 | winograd2 | exact.  `exact` never uses Winograd; a forced
algorithm that cannot serve a layer gives way to `direct`.  The algorithms round differently, so a choice by timing
would make the bits of a trained network vary from run to run, and on whole steps it gains nothing
(docs/what-did-not-pay.md). The model is a pure function of the layer.
"""

from __future__ import annotations

import os
from functools import lru_cache

from kernels.conv.cpu.winograd.transforms import AT as FORMS
from kernels.core.cpu.target import target
from kernels.core.geometry import Pair, Window

ALGORITHMS = ("direct", "winograd4", "winograd2")
MODES = ("auto", *ALGORITHMS, "exact")
# Cost in vector FMAs. Measured: reading and writing a tile costs about as much as this many, per vector of channels.
_READ = {6: 380.0, 4: 150.0}
_WRITE = {6: 300.0, 4: 110.0}


@lru_cache(maxsize=1)
def mode() -> str:
    """The mode from the environment. Raises ValueError for an unknown one."""
    asked = os.environ.get("AREOGRAD_CONV", "auto").strip().lower() or "auto"
    if asked not in MODES:
        raise ValueError(f"AREOGRAD_CONV: got {asked!r}, expected one of {', '.join(MODES)}")
    return asked


def costs(images: int, size: Pair, c: int, k: int, window: Window, groups: int) -> dict[str, float]:
    """Modelled cost of every algorithm that can serve this layer."""
    lanes = target().lanes
    cv, kv = -(-c // lanes), -(-k // lanes)
    p, q = window.output_size(size)
    r, s = window.kernel
    dh, dw = window.dilation
    out = {"direct": images * p * q * r * s * c / groups * max(1, kv) * 1.1}
    if window.stride != (1, 1) or groups != 1:
        return out
    for m in (4, 2):
        if (m, r) not in FORMS or r != s:
            continue
        points = m + r - 1
        tiles = images * dh * dw * -(-p // (dh * m)) * -(-q // (dw * m))
        out[f"winograd{m}"] = (
            tiles * (points**2 * c * kv * 1.1 + cv * _READ[points] + kv * _WRITE[points]) + c * kv * 120
        )
    return out


def choose(images: int, size: Pair, c: int, k: int, window: Window, groups: int) -> str:
    """The algorithm for a layer, the same in all its directions; `window` has the layer's outputs or, for the data
    gradient, its inputs.
    """
    return _choose(mode(), images, size, c, k, window, groups)


@lru_cache(maxsize=1024)
def _choose(asked: str, images: int, size: Pair, c: int, k: int, window: Window, groups: int) -> str:
    cost = costs(images, size, c, k, window, groups)
    if asked == "exact" or len(cost) == 1:
        return "direct"
    if asked != "auto":
        return asked if asked in cost else "direct"
    return min(cost, key=cost.__getitem__)
