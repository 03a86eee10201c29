"""What a module is given instead of Tensors: it is refused in a line that names the module or the operator."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import layers
from autograd import Tensor
from engine.gradcheck.catalogue import catalogue

BLOCKS = {name: entry for name, entry in catalogue().items() if entry.kind in ("block", "network")}


def others(array: np.ndarray) -> dict[str, Any]:
    """What is no Tensor of this shape."""
    x = Tensor(array)
    return {
        "a str": "words",
        "an object": object(),
        "a number": 3,
        "None": None,
        "nothing": (),
        "two maps": (x, x),
        "three maps": [x, x, x],
        "its halves": tuple(map(Tensor, np.split(array, 2, -1))) if array.shape[-1] % 2 == 0 else "words",
    }


def refused(block: Callable[..., Tensor], inputs: list[Any]) -> str:
    """What the block says to these inputs; nothing where it takes them."""
    try:
        block(*inputs)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_takes_its_input_or_says_what_is_wrong(name: str) -> None:
    built = BLOCKS[name].make()
    for k, array in enumerate(built.arrays):
        for what, other in others(array).items():
            inputs: list[Any] = [Tensor(a) for a in built.arrays]
            inputs[k] = other
            said = refused(built.fn, inputs)
            assert re.match(r"\w+: ", said) or (not said and what in ("None", "its halves")), (
                f"input {k}, {what}: {said}"
            )


def test_two_maps_for_a_residual_block() -> None:
    x = Tensor(np.ones((1, 4, 4, 2), np.float32))
    assert layers.ResidualBlock(4, 6)((x, x)).shape == (1, 4, 4, 6)
    with pytest.raises(TypeError, match=r"^ResidualBlock: x: got a tuple that holds Tensors, expected one Tensor$"):
        layers.ResidualBlock(4, 4)((x, x))
