"""Sums over pixels that keep their accuracy in float32."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.core.device import Array, array_module

_RUN = 128


def wide_type(dtype: Any) -> np.dtype:
    """The type to compute and add in: float32 for float16, which has 11 bits and ends at 65,504; any other its own."""
    return np.result_type(dtype, np.float32) if np.dtype(dtype).kind == "f" else np.dtype(dtype)


def halves_in_float32(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of a reference, computed in float32 for float16 arrays, with its float32 results rounded to float16."""

    @functools.wraps(rule)
    def widened(*args: Any, **settings: Any) -> Any:
        if not any(_is_half(a) for a in (*args, *settings.values())):
            return rule(*args, **settings)
        made = rule(*(_widened(a) for a in args), **{key: _widened(a) for key, a in settings.items()})
        return tuple(_halved(a) for a in made) if isinstance(made, tuple) else _halved(made)

    return widened


def _is_half(a: Any) -> bool:
    return any(map(_is_half, a)) if isinstance(a, tuple) else getattr(a, "dtype", None) == np.float16


def _widened(a: Any) -> Any:
    if isinstance(a, tuple) and _is_half(a):
        return tuple(map(_widened, a))
    return a.astype(np.float32) if _is_half(a) else a


def _halved(a: Any) -> Any:
    return a.astype(np.float16) if getattr(a, "dtype", None) == np.float32 else a


def sum_pixels(x: Array) -> Array:
    """Sum over all axes but the last, as float64: x (..., C) -> (C,).

    Two levels: runs of 128 rows are summed in x's own dtype (one matrix product), the run sums in float64. The
    error of a float32 sum is that of 128 additions, however many rows there are; the order depends on the shape alone.
    """
    xp = array_module(x)
    rows = math.prod(x.shape[:-1])
    channels = x.shape[-1]
    x = x.reshape(rows, channels).astype(wide_type(x.dtype), copy=False)
    if not rows:
        return xp.zeros(channels, xp.float64)
    whole = rows // _RUN * _RUN
    total = x[whole:].sum(0, dtype=xp.float64)
    if whole:
        runs = xp.ones((1, _RUN), x.dtype) @ x[:whole].reshape(-1, _RUN, channels)
        total = total + runs[:, 0].sum(0, dtype=xp.float64)
    return total
