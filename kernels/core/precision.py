"""How products are computed on CUDA: the precision policy.

It decides the type to which both operands of a product of float32 arrays are rounded on their way into the multipliers;
arrays stay float32, sums are float32 always. Arrays of 16-bit numbers are multiplied as they are under every policy
(kernels/conv/cuda/tensor_core.py).

    name      bits of the fraction   largest number   unit
    float32   23                     3.4e38           ordinary cores, nothing is rounded
    tf32      10 (cut off)           3.4e38           tensor cores; operands need no conversion, the low 13 bits are not
    looked at
    bf16       7                     3.4e38           tensor cores
    float16   10                     65504            tensor cores; gradients need loss scaling
    (engine/training/loss_scaling.py)

The CPU ignores the policy: it computes in float32. AREOGRAD_PRECISION is the policy that a thread starts with;
`use_precision` changes it for a block.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PRECISIONS = ("float32", "tf32", "bf16", "float16")


def _checked(name: str, source: str) -> str:
    if name not in PRECISIONS:
        raise ValueError(f"{source}: got {name!r}, expected one of {', '.join(PRECISIONS)}")
    return name


class _State(threading.local):
    """Per thread: the policy."""

    def __init__(self) -> None:
        name = os.environ.get("AREOGRAD_PRECISION", "").strip().lower() or "float32"
        self.name = _checked(name, "AREOGRAD_PRECISION")


_state: _State | None = None


def _current() -> _State:
    """Made on first use, so that a bad environment variable is an error of the first call and not of an import."""
    global _state
    if _state is None:
        _state = _State()
    return _state


def precision() -> str:
    """The policy of this thread: 'float32', 'tf32', 'bf16' or 'float16'. Raises ValueError when AREOGRAD_PRECISION is
    none of them.
    """
    return _current().name


def set_precision(name: str) -> str:
    """Make `name` this thread's policy; returns the one before. Raises ValueError for an unknown name."""
    state = _current()
    before = state.name
    state.name = _checked(name, "precision")
    return before


@contextmanager
def use_precision(name: str) -> Iterator[None]:
    """Within the block `name` is the policy. Raises ValueError for an unknown name."""
    before = set_precision(name)
    try:
        yield
    finally:
        set_precision(before)
