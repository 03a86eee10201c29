"""Comparison of sets of tiles."""

from __future__ import annotations

import numpy as np

from engine.data import Tiles


def assert_same(got: Tiles | None, expected: Tiles | None) -> None:
    assert (got is None) == (expected is None)
    for name in ("images", "masks", "groups") if got is not None else ():
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype.kind == b.dtype.kind
            np.testing.assert_array_equal(a, b, err_msg=name)
