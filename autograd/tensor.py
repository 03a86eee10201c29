"""`Tensor`: one array, and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from autograd.modes import modes
from kernels.core.device import Array, array_module, default, device_of, module_of, to_device, to_numpy

if TYPE_CHECKING:
    from autograd.function import Function

FLOATS = ("float16", "float32", "float64")


class Tensor:
    """A NumPy or CuPy array with a gradient.

    array: an array (kept, not copied), or anything NumPy can make one of; Python floats become float32.
    `.data` is the array, `.grad` a Tensor or None. Operators live in `autograd.ops`; the usual arithmetic works on Tensors.
    """

    __slots__ = ("__weakref__", "_version", "creator", "data", "grad", "index", "inference", "requires_grad")
    __array_priority__ = 1000  # so that `array * tensor` asks the Tensor

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        if isinstance(array, Tensor):
            array = array.data
        if isinstance(array, np.generic):
            array = np.asarray(array)
        elif not hasattr(array, "__array__"):
            array = module_of(default()).asarray(array)
            if array.dtype == np.float64:
                array = array.astype(np.float32)
        if requires_grad and array.dtype.name not in FLOATS:
            raise TypeError(f"Tensor: only floating point can require gradients, got {array.dtype}")
        self.data: Array = array
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self.creator: Function | None = None  # the operator that made it, when it is on the tape
        self.index = 0  # which of the creator's outputs it is
        self.inference = modes.inference
        self._version = [0]  # one counter per storage, shared by views

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def device(self) -> str:
        """'cpu' or 'cuda'."""
        return device_of(self.data)

    @property
    def is_leaf(self) -> bool:
        """True for Tensors the user made: backward leaves its gradient in their `.grad`."""
        return self.creator is None

    @property
    def version(self) -> int:
        """How often the storage was changed in place."""
        return self._version[0]

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made = f", made by {type(self.creator).__name__}" if self.creator else ", requires_grad" if self.requires_grad else ""
        return f"Tensor({self.data!r}{made})"

    def __bool__(self) -> bool:
        return bool(self.data)

    # -- ways out -----------------------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the array itself on the CPU, a copy from CUDA."""
        return to_numpy(self.data)

    def item(self) -> float:
        """The single value as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same storage, off the tape."""
        view = Tensor(self.data)
        view._version = self._version
        return view

    def to(self, device: str) -> Tensor:
        """A leaf with the values on 'cpu' or 'cuda' (this one, if they are there and it is a leaf)."""
        if device == self.device and self.is_leaf:
            return self
        return Tensor(to_device(self.data, device), self.requires_grad)

    # -- gradients ----------------------------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to the `.grad` of every leaf that requires it. `gradient` defaults to 1 for a scalar.

        Saved arrays are released on the way, so a second call raises, unless retain_graph.
        """
        from autograd.tape import backward

        backward(self, gradient, retain_graph)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def touch(self) -> None:
        """Say that `.data` was written to from outside, so that a backward pass that needs the old values raises."""
        self._version[0] += 1

    # -- changes in place ---------------------------------------------------------------------------------------------

    def _written(self, name: str) -> Tensor:
        if modes.recording and self.requires_grad:
            raise RuntimeError(f"{name}: this Tensor {self.shape} requires gradients and would be changed in place; do it within no_grad()")
        self.touch()
        return self

    def copy_(self, values: Any) -> Tensor:
        """Overwrite the values (broadcast to this shape)."""
        self._written("copy_").data[...] = _plain(values, self)
        return self

    def fill_(self, value: float) -> Tensor:
        """Overwrite all values with one number."""
        return self.copy_(value)

    def add_(self, values: Any) -> Tensor:
        """self += values."""
        target = self._written("add_").data
        target += _plain(values, self)
        return self

    def mul_(self, values: Any) -> Tensor:
        """self *= values."""
        target = self._written("mul_").data
        target *= _plain(values, self)
        return self

    def __setitem__(self, index: Any, values: Any) -> None:
        self._written("__setitem__").data[index] = _plain(values, self)

    def __iadd__(self, values: Any) -> Tensor:
        return self.add_(values)

    def __imul__(self, values: Any) -> Tensor:
        return self.mul_(values)

    # -- arithmetic: thin names for autograd.ops ----------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return _ops().add(self, other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Tensor:
        return _ops().mul(self, other)

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> Tensor:
        return _ops().sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _ops().sub(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _ops().div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _ops().div(other, self)

    def __pow__(self, exponent: float) -> Tensor:
        return _ops().power(self, exponent)

    def __neg__(self) -> Tensor:
        return _ops().neg(self)

    def __matmul__(self, other: Any) -> Tensor:
        return _ops().matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _ops().matmul(other, self)

    def __getitem__(self, index: Any) -> Tensor:
        return _ops().getitem(self, index)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Sum over `axis` (None: all)."""
        return _ops().sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Mean over `axis` (None: all)."""
        return _ops().mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Maximum over `axis` (None: all)."""
        return _ops().max(self, axis, keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        """The same values in another shape."""
        return _ops().reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)

    def transpose(self, *axes: int) -> Tensor:
        """Axes in another order (none given: reversed)."""
        return _ops().transpose(self, axes or None)


def _ops() -> Any:
    from autograd import ops

    return ops


def _plain(values: Any, like: Tensor) -> Any:
    if isinstance(values, Tensor):
        values = values.data
    return array_module(like.data).asarray(values) if hasattr(values, "__array__") else values


def as_array(values: Any, like: Array | None = None) -> Array:
    """The array of a Tensor, or `values` as an array (of `like`'s module and, for Python numbers, its dtype)."""
    if isinstance(values, Tensor):
        return values.data
    if hasattr(values, "__array__") and hasattr(values, "strides"):
        return values
    if like is None:
        return Tensor(values).data
    return array_module(like).asarray(values, like.dtype)
