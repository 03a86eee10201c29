"""The dtype in which an operator computes when its operands differ. All operators that mix operands use these rules;
nothing else decides.

1. A number (of Python's or NumPy's types, or a plain array without axes) has a category, no dtype: boolean, integer
   or floating. It takes the dtype of the Tensor that it meets, as long as that is of its category or a higher one.
   Else the result is of the category's default dtype: int64 for a boolean Tensor and an integer, float32 for a
   boolean or integer Tensor and a floating number.
2. A plain array with axes is a constant. It takes the dtype of the floating Tensor that it meets, whatever its own:
   that np.zeros(4) is float64 means nothing. With a boolean or integer Tensor it promotes as a Tensor would. It goes
   to the Tensor's device, too.
3. Tensors promote as torch.promote_types: an integer with a floating dtype gives the floating one, otherwise the
   smallest dtype that holds both. A Tensor without axes counts only where its category is higher than that of the
   Tensors with axes.
4. True division and functions of real numbers (exp, sqrt, sigmoid, softmax, mean, ...) compute in float32 where the
   operands are booleans or integers.

A Tensor is cast by an operator of the tape, so that its gradient comes back in its own dtype; moves between devices
are such operators, too.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from autograd.convert import array_from, is_array
from autograd.function import Function
from autograd.tensor import Tensor
from kernels.core.device import CPU, CUDA, Array, array_module, device_of, to_device
from kernels.shape import evaluate

DEFAULT = np.dtype(np.float32)
# what a number counts as; DEFAULT for all others
_CATEGORIES = {"b": np.dtype(bool), "i": np.dtype(np.int64), "u": np.dtype(np.int64)}


def is_inexact(dtype: np.dtype) -> bool:
    """Whether a dtype holds floating-point numbers (bfloat16, which NumPy does not know, among them)."""
    return dtype.kind in "fc" or "float" in dtype.name


class Cast(Function):
    """y = x in another dtype;  dx = dy in x's dtype."""

    def __init__(self, dtype: np.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Array) -> Array:
        self.before = x.dtype
        return evaluate(functools.partial(_cast, dtype=self.dtype), x)

    def backward(self, dy: Array) -> Array:
        return evaluate(functools.partial(_cast, dtype=self.before), dy)


def _cast(x: Array, dtype: np.dtype) -> Array:
    return x.astype(dtype)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype (x itself, if it has that one already); the gradient comes back in x's own.

    Integers and booleans have no gradient: it ends at a cast to them.
    """
    dtype = np.dtype(dtype)
    return x if x.dtype == dtype else Cast(dtype)(x)


class ToDevice(Function):
    """y = x on another device;  dx = dy on x's."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def forward(self, x: Array) -> Array:
        self.before = device_of(x)
        return to_device(x, self.device)

    def backward(self, dy: Array) -> Array:
        return to_device(dy, self.before)


def moved(x: Tensor, device: str) -> Tensor:
    """x on 'cpu' or 'cuda' (x itself, if it is there already); the gradient comes back to x's own device."""
    if device not in (CPU, CUDA):
        raise ValueError(f"to: the device is {device!r}, expected {CPU!r} or {CUDA!r}")
    return x if x.device == device else ToDevice(device)(x)


def real(x: Any) -> Tensor:
    """x as a Tensor of floating-point numbers: itself, or in float32 where it holds booleans or integers (rule 4)."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    return x if x.dtype.kind == "f" or is_inexact(x.dtype) else Cast(DEFAULT)(x)


def promoted(*operands: Any, floating: bool = False) -> tuple[Any, ...]:
    """The operands in their common dtype: Tensors stay Tensors, everything else becomes constant arrays.

    floating: rule 4 applies. Raises TypeError for what is no number and no array, ValueError for Tensors on two
        devices.
    """
    first = operands[0]
    if isinstance(first, Tensor):
        dtype = first.dtype
        if all(isinstance(x, Tensor) and x.dtype == dtype for x in operands) and not (floating and dtype.kind in "biu"):
            return operands
    values = [x if isinstance(x, Tensor) or type(x) in (int, float, bool) else _value(x) for x in operands]
    dtype = result_type(*values)
    if floating and not is_inexact(dtype):
        dtype = DEFAULT
    like = [x.data for x in values if isinstance(x, Tensor)] or [x for x in values if is_array(x)]
    xp = array_module(*like)
    device = CPU if xp is np else CUDA
    if any(isinstance(x, Tensor) and x.device != device for x in values):
        raise ValueError("an operator has got Tensors on cpu and on cuda; move one of them with .to(device)")
    return tuple(cast(x, dtype) if isinstance(x, Tensor) else _constant(x, dtype, xp, device) for x in values)


def _value(x: Any) -> Array:
    array = array_from(x, "operand")
    if array.dtype.kind == "c":
        raise TypeError("operand: complex numbers are not supported")
    return array


def _constant(x: Any, dtype: np.dtype, xp: Any, device: str) -> Array:
    if is_array(x):
        return to_device(x, device).astype(dtype, copy=False)
    if isinstance(x, int) and dtype.kind in "iu":
        # beyond the dtype's range it wraps, as arithmetic in that dtype does
        return xp.asarray(np.asarray(x).astype(dtype))
    return xp.asarray(x, dtype)


def result_type(*operands: Any) -> np.dtype:
    """The dtype that the rules 1 to 3 give for Tensors, arrays and Python's numbers."""
    arrays = [x for x in operands if not isinstance(x, Tensor) and is_array(x)]
    axes = _common(x.dtype for x in operands if isinstance(x, Tensor) and x.ndim)
    single = _common(x.dtype for x in operands if isinstance(x, Tensor) and not x.ndim)
    strong = _higher(axes, single)
    if strong is None or not is_inexact(strong):
        strong = _higher(_common([*([] if axes is None else [axes]), *(x.dtype for x in arrays if x.ndim)]), single)
    kinds = [x.dtype.kind for x in arrays if not x.ndim] + [
        np.dtype(type(x)).kind for x in operands if type(x) in (bool, int, float)
    ]
    dtype = _higher(strong, _common(_CATEGORIES.get(kind, DEFAULT) for kind in kinds))
    if dtype is None:
        raise TypeError("an operator needs at least one operand")
    return dtype


def _common(dtypes: Any) -> np.dtype | None:
    found = list(dtypes)
    return functools.reduce(promote_types, found) if found else None


def _higher(strong: np.dtype | None, weak: np.dtype | None) -> np.dtype | None:
    """The strong dtype, unless the weak one is of a higher category."""
    if strong is None or weak is None:
        return weak if strong is None else strong
    if is_inexact(strong):
        return promote_types(strong, weak) if weak.kind == "c" else strong
    return promote_types(strong, weak) if strong.kind == "b" or is_inexact(weak) else strong


def promote_types(a: np.dtype, b: np.dtype) -> np.dtype:
    """torch.promote_types; TypeError for uint64 with a signed integer, which no integer dtype holds."""
    if a == b:
        return a
    if is_inexact(a) != is_inexact(b):
        return a if is_inexact(a) else b
    dtype = np.promote_types(a, b)
    if is_inexact(dtype) and not is_inexact(a):
        raise TypeError(f"no integer dtype holds both {a} and {b}; cast one of them")
    return dtype
