"""Algorithm selection for convolutions: a small cost model decides, or, on request, a timing of the candidates that it
finds close.

AREOGRAD_CONV = auto (default) | direct | winograd4 | winograd2 | exact.  `exact` never uses Winograd; a forced
algorithm that cannot serve a
layer gives way to `direct`.  The algorithms round differently, so a choice by timing would make the bits of a trained
network vary from run to run. Therefore the model, a pure function of the layer, decides alone.  AREOGRAD_TUNE=1 times
the candidates once; timings are kept on disk, so that later runs make the same choices, and a run folder keeps the ones
that its run used (`chosen`, `use`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from kernels.conv.cpu.winograd.transforms import AT as FORMS
from kernels.core.cpu.jit import is_dry_run, store
from kernels.core.cpu.target import target
from kernels.core.geometry import Pair, Window

ALGORITHMS = ("direct", "winograd4", "winograd2")
MODES = ("auto", *ALGORITHMS, "exact")
_CLOSE = 1.4  # candidates whose modelled costs differ by more are not timed
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


def timed() -> bool:
    """Whether timing is on; ValueError for an AREOGRAD_TUNE other than 0 and 1."""
    asked = os.environ.get("AREOGRAD_TUNE", "").strip() or "0"
    if asked not in ("0", "1"):
        raise ValueError(
            f"AREOGRAD_TUNE: got {asked!r}, expected 0 (the cost model decides) or 1 (close candidates are timed)"
        )
    return asked == "1"


_chosen: dict[str, str] = {}  # by layer as text, as on disk: the choices of timing
_known: dict[tuple[Any, ...], str] = {}  # by layer: the results of `choose`


def chosen() -> dict[str, str]:
    """The choices that timing has made so far, by layer: empty unless timing is on."""
    return dict(_chosen)


def use(choices: Mapping[str, str]) -> None:
    """Use the choices of another run; ValueError for the name of an algorithm that there is not."""
    for layer, name in choices.items():
        if name not in ALGORITHMS:
            raise ValueError(f"algorithm of {layer!r}: got {name!r}, expected one of {', '.join(ALGORITHMS)}")
    _chosen.update(choices)
    _known.clear()


def choose(
    kind: str,
    images: int,
    size: Pair,
    c: int,
    k: int,
    window: Window,
    groups: int,
    run: Callable[[str], Any] | None = None,
) -> str:
    """The algorithm for a layer; `run(name)` computes it with one (used for the timing). kind: forward, data, filter,
    or norm: all gradients of a convolution and its norm. Without `run` the model alone decides.
    """
    layer = mode(), kind, images, size, c, k, window, groups
    if layer in _known:
        return _known[layer]
    chosen = _choose(*layer, run)
    if not is_dry_run():
        _known[layer] = chosen
    return chosen


def _choose(
    asked: str,
    kind: str,
    images: int,
    size: Pair,
    c: int,
    k: int,
    window: Window,
    groups: int,
    run: Callable[[str], Any] | None,
) -> str:
    cost = costs(images, size, c, k, window, groups)
    if asked == "exact" or len(cost) == 1:
        return "direct"
    if asked != "auto":
        return asked if asked in cost else "direct"
    order = sorted(cost, key=cost.__getitem__)
    close = [name for name in order if cost[name] < _CLOSE * cost[order[0]]]
    key = f"{kind} {images} {size} {c} {k} {window} {target().name}"
    if len(close) == 1 or run is None or not (timed() or key in _chosen):
        return order[0]
    if key not in _chosen:
        _chosen.update({**_remembered(), **_chosen})
    if key not in _chosen:
        if is_dry_run():  # any of them may be chosen
            for name in close:
                run(name)
            return close[0]
        _chosen[key] = _fastest(close, run)
        _remember(key)
    return _chosen[key]


def _fastest(names: list[str], run: Callable[[str], Any], rounds: int = 6) -> str:
    """Time the candidates in turn; the model's favourite (the first) must be beaten by a tenth."""
    best = dict.fromkeys(names, float("inf"))
    for k in range(rounds + 1):
        for name in names:
            start = time.perf_counter()
            run(name)
            if k:  # the first round compiles and warms up
                best[name] = min(best[name], time.perf_counter() - start)
    fastest = min(best, key=best.__getitem__)
    return fastest if best[fastest] < 0.9 * best[names[0]] else names[0]


def _remembered() -> dict[str, str]:
    """The choices on disk. Missing or damaged ones are timed again."""
    content = store().read("choices", "")
    try:
        known = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        known = {}
    return {key: name for key, name in known.items() if name in ALGORITHMS} if isinstance(known, dict) else {}


def _remember(key: str) -> None:
    """Add a choice to the file; a choice that another process wrote first stands."""
    known = _remembered()
    _chosen[key] = known.setdefault(key, _chosen[key])
    store().write("choices", "", json.dumps(known, indent=0).encode())
