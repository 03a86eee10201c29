"""The packed-weight cache: panels, transforms and arranged biases of filters that cannot change.

Training packs its filters in every step. Inference uses the same filters again and again: copies made by `read_only`,
which nobody else holds. Worth 13 % of one image (bench/RESULTS.md, "What each mechanism is worth").
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

_made: dict[int, dict[Hashable, Any]] = {}  # by the array that `read_only` gave


def read_only(array: np.ndarray) -> np.ndarray:
    """A copy that cannot change, so its packed forms are kept."""
    array = array.copy()
    array.setflags(write=False)
    _made[id(array)] = {}
    weakref.finalize(array, _made.pop, id(array), None)
    return array


def packed_once(w: np.ndarray, key: Hashable, make: Callable[[], Any], filter: bool = False) -> Any:
    """make(), kept under `key` as long as w's memory lives, if `read_only` made w. Any other memory may change, so it
    is packed at every call.

    filter: the result is itself a filter, whose panels are kept.
    """
    known = _made.get(id(w if w.base is None else w.base))
    if known is None:
        return make()
    whole = key, w.__array_interface__["data"][0], w.shape, w.strides
    if whole not in known:
        known[whole] = read_only(make()) if filter else make()
    return known[whole]
