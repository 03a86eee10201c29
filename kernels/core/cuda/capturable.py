"""Work that a CUDA graph captures: CuPy refuses to capture calls of cuBLAS, so our own kernels serve within the block.

The steps before a capture run in such a block, too: the graph then computes the bits that they did.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _State(threading.local):
    active = False


_state = _State()


@contextmanager
def capturable() -> Iterator[None]:
    """No operator of this thread calls cuBLAS in this block."""
    before = _state.active
    _state.active = True
    try:
        yield
    finally:
        _state.active = before


def is_capturable() -> bool:
    """Whether this thread is in such a block."""
    return _state.active
