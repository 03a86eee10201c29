"""`Tensor`: an array, and the operator that it came from."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd.binding import bound
from autograd.convert import array_from, is_array, same_kind
from autograd.methods import Methods
from autograd.modes import modes
from autograd.tensor_html import tensor_html
from kernels.core.device import Array, array_module, device_of, to_numpy
from kernels.core.labels import check_places
from kernels.shape import evaluate, overwrite

if TYPE_CHECKING:
    from autograd.function import Function

FLOATS = ("float16", "float32", "float64")
_SHORT = 200  # elements that repr shows in full


class Tensor(Methods):
    """A NumPy or CuPy array with a gradient.

    array: an array (kept, not copied), an array of another library (shared through DLPack where that can be), or
    numbers that NumPy can make an array of; Python floats become float32. Big-endian arrays are copied into the
    machine's byte order. Raises TypeError for anything else.

    `.data` is the array, `.grad` a Tensor or None. Operators live in `autograd.ops`; the usual signs and methods work
    on Tensors, and `autograd.promotion` states the dtype of their results. `==` and the like compare values and give
    boolean Tensors; Tensors are hashed by identity.

    NumPy's functions take a Tensor that requires no gradient for an array (`np.asarray`, `np.mean`, `plt.plot`). For
    one that does they raise RuntimeError, as with PyTorch, since the gradient would be lost: write `tensor.detach()`.
    NumPy's ufuncs that have an operator here (`array * tensor`, `np.exp`) give Tensors, with gradients.
    """

    __slots__ = ("__weakref__", "_data", "_grad", "_requires_grad", "_version", "creator", "index", "inference")
    __array_priority__ = 1000  # so that `array * tensor` asks the Tensor

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        self._data: Array = array._data if isinstance(array, Tensor) else array_from(array)
        if requires_grad:
            _check_float(self._data, "Tensor")
        self._requires_grad = requires_grad
        self._grad: Tensor | None = None
        self.creator: Function | None = None  # the operator that made it, when it is on the tape
        self.index = 0  # which of the creator's outputs it is
        self.inference = modes.inference
        self._version = [0]  # one counter per storage, shared by views

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Array:
        """The array. An array of this device, or a Tensor, may be assigned. As in PyTorch it may have another shape and
        dtype (a floating one where gradients are required); it takes the old array's place, and `.grad` stays as it is.
        """
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        if isinstance(value, Tensor):
            value = value._data
        if isinstance(value, np.generic):
            value = np.asarray(value)
        if not is_array(value) or not same_kind(value, self.device):
            kind = "CuPy" if self.device == "cuda" else "NumPy"
            raise TypeError(
                f"Tensor.data: got {_described(value)}, expected a {kind} array or a Tensor on {self.device}"
            )
        value = array_from(value, "Tensor.data")
        if self._requires_grad:
            _check_float(value, "Tensor.data")
        self._data = value

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward has left here, or None. A Tensor or array may be assigned that fits this Tensor's
        shape, dtype and device.
        """
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is None:
            self._grad = None
            return
        gradient = value if isinstance(value, Tensor) else Tensor(value) if is_array(value) else None
        if gradient is None:
            raise TypeError(f"Tensor.grad: got {_described(value)}, expected a Tensor, an array or None")
        if gradient.shape != self.shape:
            raise ValueError(f"Tensor.grad: got shape {gradient.shape}, the Tensor has {self.shape}")
        if gradient.dtype != self.dtype:
            raise TypeError(f"Tensor.grad: got {gradient.dtype}, the Tensor is {self.dtype}")
        if gradient.device != self.device:
            raise ValueError(f"Tensor.grad: got an array on {gradient.device}, the Tensor is on {self.device}")
        self._grad = gradient

    @property
    def requires_grad(self) -> bool:
        """Whether operators on this Tensor are recorded. It may be set for leaves of a floating dtype."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.creator is not None and not value:
            raise RuntimeError(
                f"requires_grad: this Tensor was made by {type(self.creator).__name__}, and only leaves can change; "
                "use detach()"
            )
        if value:
            _check_float(self._data, "requires_grad")
        self._requires_grad = bool(value)

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        """NumPy's dtype of the values."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of values."""
        return self._data.size

    @property
    def device(self) -> str:
        """'cpu' or 'cuda'."""
        return device_of(self._data)

    @property
    def is_leaf(self) -> bool:
        """True for Tensors the user made: backward leaves its gradient in their `.grad`."""
        return self.creator is None

    @property
    def version(self) -> int:
        """How often the storage was changed in place."""
        return self._version[0]

    # -- ways out -----------------------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the array itself on the CPU, a copy from CUDA. Every Tensor may be copied so,
        with or without a gradient.
        """
        return to_numpy(self._data)

    def item(self) -> float:
        """The single value as a Python number. Raises ValueError unless there is exactly one."""
        return self._single("item")

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self._data.tolist()

    def detach(self) -> Tensor:
        """The same storage, off the tape: no gradient flows back through it."""
        view = Tensor(self)
        view._version = self._version
        return view

    def to(self, device: str | None = None, dtype: Any = None) -> Tensor:
        """The values on 'cpu' or 'cuda' and in a dtype; itself, if nothing changes. The gradient flows back. Raises
        ValueError for another device.
        """
        there = self if device is None else bound.moved(self, device)
        return there if dtype is None else bound.cast(there, dtype)

    def _plain(self, name: str) -> Array:
        """The array for a function that knows no gradients."""
        if self._requires_grad:
            raise RuntimeError(
                f"{name}: this Tensor {self.shape} requires gradients, which {name} would lose; use tensor.detach()"
            )
        return self._data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._plain("NumPy")
        if device_of(array) == "cuda":
            raise TypeError("NumPy: this Tensor is on cuda; use tensor.numpy()")
        return np.array(array, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        return bound.apply_ufunc(ufunc, method, inputs, settings)

    def __array_function__(self, function: Any, types: Any, args: Any, settings: Any) -> Any:
        return bound.apply_function(function, args, settings)

    def __dlpack__(self, **settings: Any) -> Any:
        return self._plain("DLPack").__dlpack__(**settings)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a Tensor without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        made = (
            f", made by {type(self.creator).__name__}"
            if self.creator
            else ", requires_grad"
            if self.requires_grad
            else ""
        )
        flat = self.ndim > 4 and self.size > _SHORT  # many short axes: each would be shown in full
        with np.printoptions(threshold=_SHORT, edgeitems=3 if flat or self.ndim < 3 else 1):
            values = f"{self._data.reshape(-1)!r}.reshape{self.shape}" if flat else repr(self._data)
        return f"Tensor({values}{made})"

    def _repr_html_(self) -> str:
        return tensor_html(self)

    def __format__(self, spec: str) -> str:
        if spec and self.ndim:
            raise TypeError(
                f"format: a Tensor of shape {self.shape} has no format {spec!r}; only one without axes is formatted "
                "as a number"
            )
        return format(self.item(), spec) if not self.ndim else str(self)

    def __bool__(self) -> bool:
        return bool(self._single("bool"))

    def __float__(self) -> float:
        return float(self._single("float"))

    def __int__(self) -> int:
        return int(self._single("int"))

    def __index__(self) -> int:
        if self.dtype.kind not in "biu":
            raise TypeError(f"index: only an integer Tensor can be an index, got {self.dtype}")
        return int(self._single("index"))

    def _single(self, name: str) -> Any:
        if self.size != 1:
            hint = "; use (...).data.any() or .all()" if name == "bool" else ""
            raise ValueError(f"{name}: a Tensor of shape {self.shape} is no single number{hint}")
        return self._data.item()

    # -- copies: storage is shared by copy.copy, and doubled by copy.deepcopy and pickle ------------------------------

    def __getstate__(self) -> dict[str, Any]:
        if self.creator is not None:
            raise RuntimeError(
                f"copy or pickle: this Tensor was made by {type(self.creator).__name__}, whose tape cannot be copied; "
                "use detach()"
            )
        names = {name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ())} - {
            "__weakref__",
            "creator",
        }
        state = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {**state, **getattr(self, "__dict__", {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.creator = None
        for name, value in state.items():
            setattr(self, name, value)

    # -- gradients ----------------------------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to the `.grad` of every leaf that requires it. `gradient`, of this shape, defaults to 1
        for a single number.

        Saved arrays are released on the way, so a second call raises, unless retain_graph. Raises RuntimeError where
        nothing requires gradients or saved arrays were released or changed in place, ValueError for a gradient of
        another shape, or none for a Tensor of several values.
        """
        bound.backward(self, gradient, retain_graph)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self._grad = None

    def touch(self) -> None:
        """Record that `.data` was written to from outside, so that a backward pass that needs the old values raises."""
        self._version[0] += 1

    def will_change(self) -> None:
        """Announce that `.data` is about to be written to: `touch`, and `checkpoint` keeps the old values for its
        second run.

        An operator that updates a state, such as running statistics, calls this first; the methods and signs that
        change a Tensor in place do so themselves.
        """
        for tell in modes.writers:
            tell(self)
        self.touch()

    # -- changes in place: under no_grad, or where no gradient is required --------------------------------------------

    def _check_change(self, name: str, values: Any = None) -> None:
        """Raise RuntimeError where the tape would have to record a change."""
        if not modes.recording:
            return
        if self._requires_grad:
            raise RuntimeError(
                f"{name}: this Tensor {self.shape} requires gradients and would be changed in place, which is not "
                "recorded; "
                f"make a new Tensor (x = x + y), or do it within no_grad()"
            )
        if isinstance(values, Tensor) and values._requires_grad:
            raise RuntimeError(
                f"{name}: the values {values.shape} require gradients, and a change in place is not recorded; "
                f"make a new Tensor (x = x + y), or use values.detach()"
            )

    def _written(self, name: str, values: Any = None) -> Array:
        """The array, to be written to: its version moves on."""
        self._check_change(name, values)
        self.will_change()
        return self._data

    def _changed(self, name: str, rule: Callable[..., Any], values: Any) -> Tensor:
        """self = rule(self, values) in place, in the dtype of autograd.promotion; TypeError where this Tensor's dtype
        cannot hold it.
        """
        self._check_change(name, values)
        mine, other = bound.promoted(self, values, floating=rule is operator.itruediv)
        other = as_array(other)
        if _RANK.get(mine.dtype.kind, 2) > _RANK.get(self.dtype.kind, 2):
            raise TypeError(
                f"{name}: the result is {mine.dtype}, which this Tensor of {self.dtype} cannot hold; make a new Tensor"
            )
        if mine.dtype == bool and rule in _OF_NUMBERS:
            raise TypeError(f"{name}: not for booleans; a mask is changed by &=, |= and ^=")
        if rule is operator.ipow and mine.dtype.kind in "iu" and bool((other < 0).any()):
            raise ValueError(
                f"{name}: negative powers of integers are fractions, which this Tensor of {self.dtype} cannot hold"
            )
        if rule is not operator.imatmul:
            _check_fits(name, other.shape, self.shape)
        self.will_change()
        if mine is self and rule is not operator.imatmul:
            evaluate(rule, self._data, other)
        else:
            made = evaluate(_PLAIN.get(rule, rule), mine.data, other)
            _check_fits(name, made.shape, self.shape)
            overwrite(self._data, made)
        return self

    def copy_(self, values: Any) -> Tensor:
        """Overwrite the values (broadcast to this shape). Raises ValueError for a shape, or a number, that does not
        fit, RuntimeError where the tape would have to record it.
        """
        self._check_change("copy_", values)
        try:
            array = as_array(values, self._data)
        except (OverflowError, ValueError):
            raise ValueError(f"copy_: {values!r} does not fit into a Tensor of {self.dtype}") from None
        _check_fits("copy_", array.shape, self.shape)
        overwrite(self._written("copy_", values), array)
        return self

    def fill_(self, value: float) -> Tensor:
        """Overwrite all values with one number. Raises as `copy_`."""
        return self.copy_(value)

    def __setitem__(self, index: Any, values: Any) -> None:
        places = plain_index(index)
        check_places("setitem", places, self.shape)
        array = as_array(values, self._data)
        try:
            evaluate(partial(_assigned, index=places), self._written("__setitem__", values), array)
        except IndexError as error:
            raise IndexError(f"setitem: the index does not fit this Tensor of shape {self.shape}: {error}") from None
        except ValueError as error:
            raise ValueError(
                f"setitem: values of shape {array.shape} do not fit into this Tensor of shape {self.shape}: {error}"
            ) from None

    def add_(self, values: Any) -> Tensor:
        """self += values, in place. Raises RuntimeError where the tape would have to record it, ValueError for a shape
        and TypeError for a dtype that does not fit.
        """
        return self._changed("add_", operator.iadd, values)

    def mul_(self, values: Any) -> Tensor:
        """self *= values, in place. Raises as `add_`."""
        return self._changed("mul_", operator.imul, values)

    def __iadd__(self, values: Any) -> Tensor:
        return self._changed("+=", operator.iadd, values)

    def __isub__(self, values: Any) -> Tensor:
        return self._changed("-=", operator.isub, values)

    def __imul__(self, values: Any) -> Tensor:
        return self._changed("*=", operator.imul, values)

    def __itruediv__(self, values: Any) -> Tensor:
        return self._changed("/=", operator.itruediv, values)

    def __ifloordiv__(self, values: Any) -> Tensor:
        return self._changed("//=", operator.ifloordiv, values)

    def __imod__(self, values: Any) -> Tensor:
        return self._changed("%=", operator.imod, values)

    def __ipow__(self, values: Any) -> Tensor:
        return self._changed("**=", operator.ipow, values)

    def __imatmul__(self, values: Any) -> Tensor:
        return self._changed("@=", operator.imatmul, values)

    def __iand__(self, values: Any) -> Tensor:
        return self._changed("&=", operator.iand, values)

    def __ior__(self, values: Any) -> Tensor:
        return self._changed("|=", operator.ior, values)

    def __ixor__(self, values: Any) -> Tensor:
        return self._changed("^=", operator.ixor, values)


_NAMES = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")
_RANK = {"b": 0, "i": 1, "u": 1, "f": 2, "c": 3}  # categories of dtypes; bfloat16, of kind V, is a floating one


_OF_NUMBERS = (operator.isub, operator.ifloordiv, operator.imod, operator.ipow)  # NumPy has them not for booleans
_PLAIN: dict[Any, Callable[..., Any]] = {
    getattr(operator, f"i{name.rstrip('_')}"): getattr(operator, name) for name in _NAMES
}


def _assigned(array: Array, values: Array, index: Any) -> Array:
    array[index] = values
    return array


def _fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """Whether an array of `shape` can be broadcast to `into`."""
    return len(shape) <= len(into) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(into), strict=False))


def _check_fits(name: str, shape: tuple[int, ...], into: tuple[int, ...]) -> None:
    if not _fits(shape, into):
        raise ValueError(f"{name}: values of shape {shape} do not fit into this Tensor of shape {into}")


def _check_float(array: Array, name: str) -> None:
    if array.dtype.name not in FLOATS and array.dtype.kind != "c":  # complex: gradcheck's second opinion
        raise TypeError(f"{name}: only floating point can require gradients, got {array.dtype}")


def _described(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__name__}".replace("a builtins.", "")


def as_array(values: Any, like: Array | None = None) -> Array:
    """The array of a Tensor, or `values` as an array (of `like`'s module and, for what is no array yet, its dtype)."""
    if isinstance(values, Tensor):
        return values._data
    if is_array(values):
        return array_from(values)
    if like is None:
        return array_from(values)
    return array_module(like).asarray(
        values if isinstance(values, (bool, int, float)) else array_from(values), like.dtype
    )


def plain_index(index: Any) -> Any:
    """An index with arrays in place of Tensors."""
    if isinstance(index, tuple):
        return tuple(as_array(part) if isinstance(part, Tensor) else part for part in index)
    return as_array(index) if isinstance(index, Tensor) else index
