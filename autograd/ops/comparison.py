"""Comparisons and logic, element by element: boolean Tensors without a gradient. The operands meet as
`autograd.promotion` says.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from autograd.checks import together
from autograd.operands import Operand
from autograd.promotion import cast, promoted
from autograd.tensor import Tensor, as_array
from kernels.shape import evaluate

__all__ = [
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "equal",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "not_equal",
]


def _evaluated(name: str, rule: Callable[..., Any], x: Any, y: Any) -> Tensor:
    a, b = (as_array(operand) for operand in promoted(x, y))
    together(name, x=a.shape, y=b.shape)
    return Tensor(evaluate(rule, a, b))


def _compared(name: str, rule: Callable[..., Any], x: Any, y: Any) -> Tensor:
    return _evaluated(name, rule, _widened(x, y), _widened(y, x))


def _widened(x: Any, y: Any) -> Any:
    """x, in a wider dtype where it holds integers and y is an integer beyond their range: 300 is equal to no uint8, but
    would wrap to 44.
    """
    if type(y) is not int or not isinstance(x, Tensor) or x.dtype.kind not in "iu":
        return x
    info = np.iinfo(x.dtype)
    widest = np.iinfo(np.int64)
    if info.min <= y <= info.max:
        return x
    return cast(x, np.int64 if widest.min <= y <= widest.max and info.max <= widest.max else np.float64)


def equal(x: Operand, y: Operand) -> Tensor:
    """x == y, value by value, as torch.eq: booleans, without a gradient."""
    return _compared("equal", operator.eq, x, y)


def not_equal(x: Operand, y: Operand) -> Tensor:
    """x != y, value by value, as torch.ne: booleans, without a gradient."""
    return _compared("not_equal", operator.ne, x, y)


def less(x: Operand, y: Operand) -> Tensor:
    """x < y, value by value, as torch.lt: booleans, without a gradient."""
    return _compared("less", operator.lt, x, y)


def less_equal(x: Operand, y: Operand) -> Tensor:
    """x <= y, value by value, as torch.le: booleans, without a gradient."""
    return _compared("less_equal", operator.le, x, y)


def greater(x: Operand, y: Operand) -> Tensor:
    """x > y, value by value, as torch.gt: booleans, without a gradient."""
    return _compared("greater", operator.gt, x, y)


def greater_equal(x: Operand, y: Operand) -> Tensor:
    """x >= y, value by value, as torch.ge: booleans, without a gradient."""
    return _compared("greater_equal", operator.ge, x, y)


def bitwise_and(x: Operand, y: Operand) -> Tensor:
    """x & y, value by value, as torch.bitwise_and: logical on booleans, bit by bit on integers; no gradient."""
    return _logical("bitwise_and", operator.and_, x, y)


def bitwise_or(x: Operand, y: Operand) -> Tensor:
    """x | y, value by value, as torch.bitwise_or: logical on booleans, bit by bit on integers; no gradient."""
    return _logical("bitwise_or", operator.or_, x, y)


def bitwise_xor(x: Operand, y: Operand) -> Tensor:
    """x ^ y, value by value, as torch.bitwise_xor: logical on booleans, bit by bit on integers; no gradient."""
    return _logical("bitwise_xor", operator.xor, x, y)


def bitwise_not(x: Tensor) -> Tensor:
    """~x, as torch.bitwise_not: the complement of a mask, or of an integer's bits; no gradient."""
    _check_bits("bitwise_not", x)
    return Tensor(evaluate(operator.invert, x.data))


def _logical(name: str, rule: Callable[..., Any], x: Any, y: Any) -> Tensor:
    for operand in (x, y):
        _check_bits(name, operand)
    return _evaluated(name, rule, x, y)


def _check_bits(name: str, x: Any) -> None:
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if dtype.kind not in "biu":
        raise TypeError(f"{name}: got {dtype}, expected booleans or integers")
