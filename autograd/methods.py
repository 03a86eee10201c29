"""The operators of `autograd.ops` as methods and signs of a Tensor. Every line here is only a name; `ops` documents its
operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autograd.binding import bound

if TYPE_CHECKING:
    from autograd.tensor import Tensor


class Methods:
    """Arithmetic, comparisons, reductions and changes of shape of a Tensor."""

    __slots__ = ()

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return bound.ops.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return bound.ops.add(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return bound.ops.mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return bound.ops.mul(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return bound.ops.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return bound.ops.sub(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return bound.ops.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return bound.ops.div(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return bound.ops.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return bound.ops.floor_divide(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return bound.ops.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return bound.ops.remainder(other, self)

    def __pow__(self, exponent: Any) -> Tensor:
        return bound.ops.power(self, exponent)

    def __rpow__(self, base: Any) -> Tensor:
        return bound.ops.power(base, self)

    def __neg__(self) -> Tensor:
        return bound.ops.neg(self)

    def __pos__(self) -> Any:
        return self

    def __matmul__(self, other: Any) -> Tensor:
        return bound.ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return bound.ops.matmul(other, self)

    # -- comparisons: boolean Tensors without a gradient --------------------------------------------------------------

    __hash__ = object.__hash__  # by identity: Tensors are keys and members of sets, although == compares values

    def __eq__(self, other: Any) -> Any:
        return NotImplemented if _is_no_number(other) else bound.ops.equal(self, other)

    def __ne__(self, other: Any) -> Any:
        return NotImplemented if _is_no_number(other) else bound.ops.not_equal(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return bound.ops.less(self, other)

    def __le__(self, other: Any) -> Tensor:
        return bound.ops.less_equal(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return bound.ops.greater(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return bound.ops.greater_equal(self, other)

    def __contains__(self, value: Any) -> bool:
        return bool(bound.ops.equal(self, value).data.any())

    def __and__(self, other: Any) -> Tensor:
        return bound.ops.bitwise_and(self, other)

    def __rand__(self, other: Any) -> Tensor:
        return bound.ops.bitwise_and(other, self)

    def __or__(self, other: Any) -> Tensor:
        return bound.ops.bitwise_or(self, other)

    def __ror__(self, other: Any) -> Tensor:
        return bound.ops.bitwise_or(other, self)

    def __xor__(self, other: Any) -> Tensor:
        return bound.ops.bitwise_xor(self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return bound.ops.bitwise_xor(other, self)

    def __invert__(self) -> Tensor:
        return bound.ops.bitwise_not(self)

    # -- parts and shapes ---------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Tensor:
        return bound.ops.getitem(self, index)

    def __iter__(self) -> Iterator[Tensor]:
        """Along the first axis."""
        return (self[k] for k in range(len(self)))  # type: ignore[arg-type]

    @property
    def T(self) -> Tensor:
        """The axes in reverse order."""
        return bound.ops.transpose(self)

    def reshape(self, *shape: Any) -> Tensor:
        """The same values in another shape, given as integers, a tuple or a list."""
        return bound.ops.reshape(self, _sequence(shape))

    def transpose(self, *axes: Any) -> Tensor:
        """Axes in another order, given as integers, a tuple or a list (none given, or None: reversed)."""
        return bound.ops.transpose(self, None if axes in ((), (None,)) else _sequence(axes))

    def swapaxes(self, axis0: int, axis1: int) -> Tensor:
        """Two axes exchanged."""
        return bound.ops.swapaxes(self, axis0, axis1)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """The axes start_dim .. end_dim as one."""
        return bound.ops.flatten(self, start_dim, end_dim)

    def squeeze(self, axis: Any = None) -> Tensor:
        """Without the axes of length 1 (`axis`: without these alone, as far as they have length 1)."""
        return bound.ops.squeeze(self, axis)

    def unsqueeze(self, axis: int) -> Tensor:
        """With a new axis of length 1 at `axis`."""
        return bound.ops.unsqueeze(self, axis)

    def astype(self, dtype: Any) -> Tensor:
        """In another dtype; the gradient comes back in this one."""
        return bound.ops.cast(self, dtype)

    # -- functions and reductions -------------------------------------------------------------------------------------

    def exp(self) -> Tensor:
        """e ** self."""
        return bound.ops.exp(self)

    def log(self) -> Tensor:
        """The natural logarithm."""
        return bound.ops.log(self)

    def sqrt(self) -> Tensor:
        """The square root."""
        return bound.ops.sqrt(self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Sum over `axis` (None: all)."""
        return bound.ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Mean over `axis` (None: all)."""
        return bound.ops.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Maximum over `axis` (None: all)."""
        return bound.ops.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Minimum over `axis` (None: all)."""
        return bound.ops.min(self, axis, keepdims)

    def prod(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Product over `axis` (None: all)."""
        return bound.ops.prod(self, axis, keepdims)

    def var(self, axis: Any = None, keepdims: bool = False, correction: float = 1) -> Tensor:
        """Variance over `axis` (None: all), with n - correction in the denominator: 1, as in PyTorch (NumPy's ddof is
        0).
        """
        return bound.ops.var(self, axis, keepdims, correction)

    def std(self, axis: Any = None, keepdims: bool = False, correction: float = 1) -> Tensor:
        """Standard deviation over `axis` (None: all): the square root of `var`."""
        return bound.ops.std(self, axis, keepdims, correction)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """The index of the first largest value along `axis` (None: of all), without gradient."""
        return bound.ops.argmax(self, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """The index of the first smallest value along `axis` (None: of all), without gradient."""
        return bound.ops.argmin(self, axis, keepdims)

    def cumsum(self, axis: int) -> Tensor:
        """Sums along `axis` up to each value."""
        return bound.ops.cumsum(self, axis)

    def abs(self) -> Tensor:
        """|x|, value by value."""
        return bound.ops.abs(self)

    def __abs__(self) -> Tensor:
        return bound.ops.abs(self)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """The values limited to [min, max], numbers or Tensors."""
        return bound.ops.clip(self, min, max)


def _is_no_number(other: Any) -> bool:
    """Whether == has nothing to compare values with, so that Python's rule, identity, holds."""
    return other is None or isinstance(other, (str, bytes, dict, set, type))


def _sequence(given: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
