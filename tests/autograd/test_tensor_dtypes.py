"""The dtypes of results, their values and gradients, against PyTorch,
for every pair of operands that a user may write.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, ops
from autograd.promotion import promote_types

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
FLOATING = ("float16", "float32", "float64")
SIGNS: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def values(dtype: str, shape: tuple[int, ...] = (3,), start: int = 1) -> np.ndarray:
    """1, 2, 3, ... (or True) of a dtype."""
    return np.asarray(np.arange(start, start + int(np.prod(shape))).reshape(shape), dtype)


def compare(ours: Any, theirs: Any) -> None:
    """Equal dtype, shape and values, these to the rounding of one operation."""
    assert isinstance(ours, Tensor)
    expected = theirs.numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape
    eps = float(np.finfo(expected.dtype).eps) if expected.dtype.kind == "f" else 0
    np.testing.assert_allclose(ours.data.astype(np.float64), expected.astype(np.float64), rtol=2 * eps)


def outcome(fn: Callable[..., Any], *operands: Any) -> Any:
    """fn's result, or None for an error."""
    try:
        return fn(*operands)
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError, NotImplementedError):
        return None


def both(sign: str, a: Any, b: Any, ta: Any, tb: Any) -> None:
    """The same sign between our operands and PyTorch's: the same result, or an error of both."""
    theirs = outcome(SIGNS[sign], ta, tb)
    ours = outcome(SIGNS[sign], a, b)
    if theirs is None:
        assert ours is None, f"PyTorch refuses, we gave {ours}"
    else:
        compare(ours, theirs)


@pytest.mark.parametrize("sign", SIGNS)
def test_tensors_with_tensors(sign: str) -> None:
    for (a, b), (one, other) in itertools.product(
        itertools.product(DTYPES, DTYPES), (((3,), (3,)), ((), (3,)), ((3,), ()), ((), ()))
    ):
        x, y = values(a, one), values(b, other, 2)
        both(sign, Tensor(x), Tensor(y), torch.from_numpy(x), torch.from_numpy(y))


NUMBERS = [
    2,
    True,
    0.5,
    2.0,
    np.float64(0.5),
    np.float32(3),
    np.float16(2),
    np.int64(3),
    np.int32(2),
    np.uint8(2),
    np.bool_(True),
    np.sqrt(2.0),
]


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_with_numbers_of_python_and_numpy(sign: str, dtype: str) -> None:
    for number, shape in itertools.product(NUMBERS, ((3,), ())):
        x, plain = values(dtype, shape), number.item() if isinstance(number, np.generic) else number
        if sign == "**" and dtype == "bool" and plain is True:
            # PyTorch takes a mask to the power True, but no mask to the power of a mask; here neither is an operator
            continue
        ours = Tensor(x)
        both(sign, ours, number, torch.from_numpy(x), plain)
        both(sign, number, ours, plain, torch.from_numpy(x))
        if sign == "-" and plain is True:
            continue  # an array is a constant: what PyTorch would say to it is no guide
        both(sign, ours, np.asarray(number), torch.from_numpy(x), plain)
        both(sign, np.asarray(number), ours, plain, torch.from_numpy(x))


@pytest.mark.parametrize("sign", ["+", "-", "*", "/", "**"])
@pytest.mark.parametrize("dtype", FLOATING)
def test_arrays_are_constants_in_the_dtype_of_a_floating_tensor(sign: str, dtype: str) -> None:
    for other, shape in itertools.product(DTYPES, ((3,), ())):
        x, y = values(dtype, shape), values(other, (3,), 2)
        constant = torch.from_numpy(y.astype(dtype))
        for order in (1, -1):
            ours, theirs = Tensor(x, requires_grad=True), torch.from_numpy(x.copy()).requires_grad_()
            z, expected = SIGNS[sign](*(ours, y)[::order]), SIGNS[sign](*(theirs, constant)[::order])
            compare(z.detach(), expected.detach())
            z.sum().backward()
            expected.sum().backward()
            assert ours.grad is not None
            assert ours.grad.dtype == dtype
            np.testing.assert_allclose(ours.grad.data, theirs.grad.numpy(), rtol=8 * float(np.finfo(dtype).eps))


def test_arrays_with_integer_tensors_keep_their_dtype() -> None:
    assert (Tensor(values("int64")) * values("float64")).dtype == np.float64
    assert (Tensor(values("int64")) * values("float32")).dtype == np.float32
    assert (Tensor(values("uint8")) + values("int16")).dtype == np.int16
    assert (Tensor(values("int64", ())) + values("uint8")).dtype == np.uint8
    with pytest.raises(TypeError, match="no integer dtype holds both uint64 and int64"):
        Tensor(values("uint64")) + Tensor(values("int64"))


def test_the_lines_that_users_write() -> None:
    x = Tensor(values("float32"), requires_grad=True)
    for y in (
        x / np.sqrt(2.0),
        x * np.float64(2),
        x + np.zeros(3),
        x * np.int64(3),
        np.float64(2) * x,
        x ** np.float64(2),
        2**x,
        x - [1, 2, 3],
    ):
        assert y.dtype == np.float32
        x.zero_grad()
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == np.float32
    whole = Tensor(np.array([1, 2]))
    assert (whole * 0.5).data.tolist() == [0.5, 1]
    assert (whole / 0.5).data.tolist() == [2, 4]
    assert (Tensor(np.array([128], np.uint8)) / 256).data.tolist() == [0.5]
    assert (Tensor(np.array([True, False])) + 1).data.tolist() == [2, 1]
    with pytest.raises(TypeError, match="complex"):
        x * 1j
    with pytest.raises(TypeError, match=r"mul: y: got str .*expected an array of booleans, integers or floating-point"):
        x * "2"


@pytest.mark.parametrize("a", FLOATING)
@pytest.mark.parametrize("b", FLOATING)
def test_gradients_come_back_in_the_dtype_of_each_operand(a: str, b: str) -> None:
    forms: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
        (fn, fn) for fn in (operator.add, operator.sub, operator.mul, operator.truediv)
    ]
    forms += [
        (operator.pow, operator.pow),
        (
            lambda x, y: ops.where(np.array([[True], [False]]), x, y),
            lambda x, y: torch.where(torch.tensor([[True], [False]]), x, y),
        ),
        (lambda x, y: ops.concat([x, y]), lambda x, y: torch.cat([x, y])),
    ]
    for ours, theirs in forms:
        arrays = values(a), values(b, start=2)
        x, y = (Tensor(v, requires_grad=True) for v in arrays)
        tx, ty = (torch.from_numpy(v.copy()).requires_grad_() for v in arrays)
        z, expected = ours(x, y), theirs(tx, ty)
        compare(z.detach(), expected.detach())
        z.sum().backward()
        expected.sum().backward()
        for mine, other in ((x, tx), (y, ty)):
            assert mine.grad is not None
            compare_gradient(mine.grad, other.grad, max(float(np.finfo(d).eps) for d in (a, b)))


def compare_gradient(ours: Tensor, theirs: Any, eps: float) -> None:
    assert ours.dtype == theirs.numpy().dtype
    np.testing.assert_allclose(ours.data, theirs.numpy(), rtol=8 * eps)


def test_matmul_promotes() -> None:
    x, w = Tensor(values("float32", (2, 3)), requires_grad=True), Tensor(values("float64", (3, 2)), requires_grad=True)
    z = x @ w
    assert z.dtype == np.float64
    z.sum().backward()
    assert (x.grad.dtype, w.grad.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(x.grad.data, np.ones((2, 2)) @ w.data.T)
    assert (x @ np.eye(3)).dtype == np.float32
    assert (np.eye(2) @ x).dtype == np.float32


REAL = [ops.exp, ops.log, ops.sqrt, ops.sigmoid, ops.tanh]
REAL_TORCH = [torch.exp, torch.log, torch.sqrt, torch.sigmoid, torch.tanh]


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_of_real_numbers_compute_integers_in_float32(dtype: str) -> None:
    x = values(dtype)
    for ours, theirs in zip(REAL, REAL_TORCH, strict=True):
        y, expected = ours(Tensor(x)), theirs(torch.from_numpy(x))
        assert y.dtype == expected.numpy().dtype
        np.testing.assert_allclose(y.data, expected.numpy(), rtol=20 * float(np.finfo(y.dtype).eps))
    # PyTorch has none of these for integers
    widened = torch.from_numpy(x) if x.dtype.kind == "f" else torch.from_numpy(x).to(torch.float32)
    functional = torch.nn.functional
    for ours, theirs in (
        (ops.silu, functional.silu),
        (ops.gelu, functional.gelu),
        (ops.leaky_relu, functional.leaky_relu),
        (ops.softmax, lambda t: t.softmax(-1)),
        (ops.log_softmax, lambda t: t.log_softmax(-1)),
        (ops.mean, torch.mean),
    ):
        y, expected = ours(Tensor(x)), theirs(widened)
        assert y.dtype == expected.numpy().dtype
        np.testing.assert_allclose(
            y.data, expected.numpy(), rtol=20 * float(np.finfo(y.dtype).eps), atol=2 * float(np.finfo(y.dtype).eps)
        )
    assert ops.dropout(Tensor(x)).dtype.kind == "f"
    compare(Tensor(x).sum(), torch.from_numpy(x).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_and_concat_with_numbers_and_tensors(dtype: str) -> None:
    x, condition = values(dtype), np.array([True, False, True])
    for number in (2, 0.5, True):
        compare(
            ops.where(condition, Tensor(x), number),
            torch.where(torch.from_numpy(condition), torch.from_numpy(x), number),
        )
        compare(
            ops.where(condition, number, Tensor(x)),
            torch.where(torch.from_numpy(condition), number, torch.from_numpy(x)),
        )
    for other in DTYPES:
        y = values(other)
        compare(ops.concat([Tensor(x), Tensor(y)]), torch.cat([torch.from_numpy(x), torch.from_numpy(y)]))
    with pytest.raises(TypeError, match="condition is float64, expected booleans"):
        ops.where(np.ones(3), Tensor(x), 0)


def test_promotion_is_pytorchs() -> None:
    for a, b in itertools.product(DTYPES, DTYPES):
        expected = torch.promote_types(getattr(torch, a), getattr(torch, b))
        assert promote_types(np.dtype(a), np.dtype(b)) == str(expected).removeprefix("torch.")


def test_powers_and_their_gradients_at_zero_and_below() -> None:
    base = np.array([0.0, 0.0, 2.0, -1.0, 0.0, -2.0, 0.5, np.inf], np.float64)
    exponent = np.array([0.0, 2.0, 3.0, 2.0, -1.0, 0.5, 0.0, 2.0])
    x, y = Tensor(base, requires_grad=True), Tensor(exponent, requires_grad=True)
    tx, ty = torch.from_numpy(base.copy()).requires_grad_(), torch.from_numpy(exponent.copy()).requires_grad_()
    with np.errstate(all="ignore"):
        z = x**y
        z.sum().backward()
    expected = tx**ty
    expected.sum().backward()
    for mine, other in ((z.data, expected.detach()), (x.grad.data, tx.grad), (y.grad.data, ty.grad)):
        np.testing.assert_allclose(mine, other.numpy())
    for number in (0, 1, 2, 3, 0.0, 0.5, -1):
        x, tx = Tensor(base, requires_grad=True), torch.from_numpy(base.copy()).requires_grad_()
        with np.errstate(all="ignore"):
            (x**number).sum().backward()
        (tx**number).sum().backward()
        np.testing.assert_allclose(x.grad.data, tx.grad.numpy())
    for number in (0, 2, 0.5, -2):
        y, ty = Tensor(exponent, requires_grad=True), torch.from_numpy(exponent.copy()).requires_grad_()
        with np.errstate(all="ignore"):
            (number**y).sum().backward()
        (number**ty).sum().backward()
        np.testing.assert_allclose(y.grad.data, ty.grad.numpy())
    with pytest.raises(ValueError, match="negative integer powers"):
        Tensor(np.array([2])) ** -1


def test_cast_takes_the_gradient_back() -> None:
    x = Tensor(values("float32"), requires_grad=True)
    for y in (x.astype(np.float64), x.to(dtype="float64"), ops.cast(x, np.float64)):
        assert y.dtype == np.float64
        x.zero_grad()
        (y * y).sum().backward()
        assert x.grad.dtype == np.float32
        np.testing.assert_array_equal(x.grad.data, 2 * x.data)
    assert x.to("cpu") is x
    assert x.astype(np.float32) is x
    assert not x.astype(np.int64).requires_grad
    with pytest.raises(ValueError, match=r"device is 'gpu', expected 'cpu' or 'cuda'"):
        x.to("gpu")


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">i8", ">u2"])
def test_big_endian_arrays_come_in_native_order(dtype: str) -> None:
    array = values("int64").astype(dtype)
    x = Tensor(array)
    assert x.dtype.isnative
    np.testing.assert_array_equal(x.data, array)
    y = Tensor(values("float32"), requires_grad=True)
    for z in (
        y * array,
        ops.where(np.array([True, False, True]), y, array),
        array + y,
        ops.concat([y, array]),
        y**array,
    ):
        assert z.dtype == np.float32
        y.zero_grad()
        z.sum().backward()
        assert y.grad.dtype == np.float32
    leaf = Tensor(values("float64"))
    leaf.data = array
    assert leaf.dtype.isnative
    leaf[:] = array
    leaf += array
    if dtype.startswith(">f"):
        x = Tensor(array, requires_grad=True)
        (ops.relu(x) * x).sum().backward()
        np.testing.assert_array_equal(x.grad.data, 2 * x.data)
        assert ops.exp(array).dtype.isnative
        assert ops.relu(array).dtype.isnative


def test_a_contribution_to_the_gradient_of_a_single_number_is_never_lost() -> None:
    """NumPy gives scalars, not arrays, where an expression has no axes; those cannot be added to in place."""
    for shape in ((), (1,)):
        x = Tensor(np.full(shape, 2.0), requires_grad=True)
        y = x * 1.0
        (y**2 + y**3 + y**4 + x**2 + x**3).reshape(()).backward()
        np.testing.assert_array_equal(x.grad.data, np.full(shape, 4 + 12 + 32 + 4 + 12.0))


def test_gradients_that_were_broadcast_are_never_added_to() -> None:
    """The gradient of a mean is one number with many views of it: neither a leaf may keep it, nor may the tape add to
    it.
    """
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    (x.mean() + x.mean() + (x * 2.0).mean() + x.mean(axis=0).mean()).backward()
    x.mean().backward()
    np.testing.assert_allclose(x.grad.data, np.full((2, 3), 1.0))
    x.zero_grad()
    x.mean().backward()
    x.grad.data += 1
    np.testing.assert_allclose(x.grad.data, np.full((2, 3), 1 + 1 / 6))
