"""What is made of a filter or bias before it is used (panels, transforms), kept for those that cannot change.

Training makes it anew in every step. Inference uses the same filters again and again: arrays that own their memory and are read-only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

_made: dict[int, dict[Hashable, Any]] = {}  # by the array that owns the memory


def read_only(array: np.ndarray) -> np.ndarray:
    """A copy that cannot change: what is made of it is kept."""
    array = array.copy()
    array.setflags(write=False)
    return array


def prepared(w: np.ndarray, key: Hashable, make: Callable[[], Any], filter: bool = False) -> Any:
    """make(), remembered under `key` as long as the read-only memory of w lives; where w may change it is made at every call.

    filter: what is made is a filter too, whose panels are to be kept.
    """
    owner = w if w.base is None else w.base
    if not isinstance(owner, np.ndarray) or owner.flags.writeable or not owner.flags.owndata:
        return make()
    if id(owner) not in _made:
        _made[id(owner)] = {}
        weakref.finalize(owner, _made.pop, id(owner), None)
    known, whole = _made[id(owner)], (key, w.__array_interface__["data"][0], w.shape, w.strides)
    if whole not in known:
        known[whole] = read_only(make()) if filter else make()
    return known[whole]
