"""The functions that a Tensor calls although they are built on Tensors: operators, the backward pass, promotion,
NumPy's protocols.

`autograd/__init__` binds them once, when all of them are imported, so that imports go one way.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


class Bound:
    """The functions, and the module of the operators."""

    ops: ModuleType
    backward: Callable[..., None]
    cast: Callable[..., Any]
    moved: Callable[..., Any]
    promoted: Callable[..., tuple[Any, Any]]
    apply_ufunc: Callable[..., Any]
    apply_function: Callable[..., Any]


bound = Bound()
