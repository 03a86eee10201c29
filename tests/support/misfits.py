"""Calls that must be refused: every array of a sound call changed in shape, or replaced by something that is no array
of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from autograd import Tensor
from kernels.core.device import array_module
from tests.support.calls import Call


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy or CuPy."""
    return hasattr(value, "strides") and not isinstance(value, type)


def changed(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The array with one axis longer or shorter, with an axis more or less."""
    for axis in range(array.ndim):
        yield (
            f"axis {axis} longer",
            array_module(array).concatenate([array, array[(slice(None),) * axis + (slice(1),)]], axis),
        )
        if array.shape[axis] > 1:
            yield f"axis {axis} shorter", array[(slice(None),) * axis + (slice(-1),)].copy()
            yield f"axis {axis} of one", array[(slice(None),) * axis + (slice(1),)].copy()
    yield "an axis more", array[None]
    if array.ndim:
        yield "an axis less", array[0]


def misfits(call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every array of a call changed on its own."""
    for name, value in call.arguments.items():
        several = isinstance(value, (tuple, list))
        for k, array in enumerate(value if several else (value,)):
            if not is_array(array):
                continue
            for what, other in changed(array):
                yield f"{name}: {what}", {name: type(value)([*value[:k], other, *value[k + 1 :]]) if several else other}


def no_arrays(call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every array of a call replaced by something that is none, or by one of other things than numbers."""
    optional = {item.name for item in call.operator.shapes.items if item.optional or item.holes}
    for name, value in call.arguments.items():
        several = isinstance(value, (tuple, list))
        for k, array in enumerate(value if several else (value,)):
            if not is_array(array) or name in call.own:
                continue
            others = {
                "a list": array.tolist(),
                "a Tensor": Tensor(array),
                "complex": array.astype(complex),
                "objects": np.full(array.shape, None),
            }
            others |= {"strings": np.full(array.shape, "1"), "None": None}
            for what, other in others.items():
                if what != "None" or name not in optional:
                    yield (
                        f"{name}: {what}",
                        {name: type(value)([*value[:k], other, *value[k + 1 :]]) if several else other},
                    )
