"""Changes in place: all augmented assignments act alike, and where the tape would have to record one there is an error,
never a silent rebinding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, no_grad

SIGNS: dict[str, Callable[..., Any]] = {
    "+=": operator.iadd,
    "-=": operator.isub,
    "*=": operator.imul,
    "/=": operator.itruediv,
    "//=": operator.ifloordiv,
    "%=": operator.imod,
    "**=": operator.ipow,
    "@=": operator.imatmul,
}
X, Y = np.array([[1.0, 2.0], [3.5, 4.0]], np.float32), np.array([[2.0, 1.0], [0.5, 3.0]], np.float32)


@pytest.mark.parametrize("sign", SIGNS)
def test_augmented_assignments_write_to_the_same_memory_under_no_grad(sign: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    expected = torch.from_numpy(X.copy())
    expected = expected @ torch.from_numpy(Y) if sign == "@=" else SIGNS[sign](expected, torch.from_numpy(Y))
    for values in (Y, Tensor(Y), Y.astype(np.float64), Tensor(Y, requires_grad=True)):
        x = Tensor(X.copy(), requires_grad=True)
        same, memory = x, x.data
        with no_grad():
            x = SIGNS[sign](x, values)
        assert x is same
        assert x.data is memory
        assert x.version == 1
        assert x.requires_grad
        assert x.is_leaf
        np.testing.assert_allclose(memory, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("sign", SIGNS)
def test_where_a_change_would_have_to_be_recorded_there_is_an_error(sign: str) -> None:
    leaf = Tensor(X.copy(), requires_grad=True)
    made, free = leaf * 1.0, Tensor(X.copy())
    for target in (leaf, made):
        before = target.data.copy()
        with pytest.raises(
            RuntimeError, match=r"requires gradients and would be changed in place.*make a new Tensor .*no_grad"
        ):
            SIGNS[sign](target, Y)
        np.testing.assert_array_equal(target.data, before)
        assert target.version == 0
    with pytest.raises(
        RuntimeError, match=r"the values \(2, 2\) require gradients, and a change in place is not recorded; .*detach"
    ):
        SIGNS[sign](free, leaf)
    assert free.version == 0
    assert SIGNS[sign](free, Y) is free  # needs no gradient: nothing to record


@pytest.mark.parametrize("sign", [s for s in SIGNS if s != "@="])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float16", "float32", "bool"])
def test_dtypes_of_changes_in_place_are_pytorchs(sign: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    start = np.array([1, 2, 3], dtype)
    for value in (2, 0.5, np.array([1, 2, 3], np.int32), np.array([2.0, 1.0, 3.0], np.float32)):
        other = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if isinstance(value, np.ndarray) and dtype == "float16":
            other = other.to(torch.float16)  # an array is a constant in the Tensor's dtype
        try:
            expected = SIGNS[sign](torch.from_numpy(start.copy()), other)
        except RuntimeError:
            expected = None
        x = Tensor(start.copy())
        if expected is None:
            with pytest.raises(TypeError, match=r"cannot hold|boolean"):
                SIGNS[sign](x, value)
            np.testing.assert_array_equal(x.data, start)
        else:
            SIGNS[sign](x, value)
            assert x.dtype == dtype
            np.testing.assert_allclose(x.data, expected.numpy(), rtol=1e-3 if dtype == "float16" else 1e-6)


def test_a_learner_who_writes_gradient_descent_by_hand_learns() -> None:
    p = Tensor(np.array([4.0]), requires_grad=True)
    for _ in range(50):
        loss = (p * p).sum()
        p.zero_grad()
        loss.backward()
        with no_grad():
            p -= 0.1 * p.grad
    assert abs(p.item()) < 1e-3
    q = Tensor(np.array([4.0]), requires_grad=True)
    for _ in range(50):
        q.zero_grad()
        (q * q).sum().backward()
        q.data -= 0.1 * q.grad
    assert abs(q.item()) < 1e-3
    with pytest.raises(RuntimeError, match=r"-=: this Tensor \(1,\) requires gradients"):
        p -= 0.1 * p.grad


def test_masks_change_in_place_too() -> None:
    mask = Tensor(np.array([True, True, False]))
    same = mask
    mask &= np.array([True, False, False])
    mask |= Tensor(np.array([False, False, True]))
    mask ^= True
    assert mask is same
    assert mask.data.tolist() == [False, True, False]


def test_values_that_do_not_fit_are_named() -> None:
    x = Tensor(np.zeros(3))
    with pytest.raises(ValueError, match=r"\+=: values of shape \(2, 3\) do not fit into this Tensor of shape \(3,\)"):
        x += np.ones((2, 3))
    x += np.ones((1,))
    assert x.data.tolist() == [1, 1, 1]
    overlapping = Tensor(np.arange(5.0))
    overlapping[1:] += overlapping[:-1]
    assert overlapping.data.tolist() == [0, 1, 3, 5, 7]


def test_assignment_to_parts() -> None:
    x = Tensor(np.zeros(4, np.float32))
    x[1:3] = Tensor(np.array([1.0, 2.0]))
    x[Tensor(np.array([True, False, False, False]))] = 5
    x[Tensor(np.array(3))] = np.float64(7)
    assert x.data.tolist() == [5, 1, 2, 7]
    with pytest.raises(RuntimeError, match="__setitem__: the values"):
        x[0] = Tensor(1.0, requires_grad=True)
    with pytest.raises(RuntimeError, match="copy_: the values"):
        x.copy_(Tensor(np.ones(4), requires_grad=True))


def test_data_takes_arrays_and_tensors_and_nothing_else() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    p = Tensor(np.ones(3, np.float32), requires_grad=True)
    new = np.full(3, 2.0, np.float32)
    p.data = new
    assert p.data is new
    p.data = Tensor(np.zeros((2, 2)))  # another shape and float dtype, as in PyTorch
    assert isinstance(p.data, np.ndarray)
    assert (p.shape, p.dtype) == ((2, 2), np.float64)
    (p * 2).sum().backward()
    p.data = p.data * 2
    for wrong in ([1.0, 2.0], 3.0, None, "x", torch.ones(2)):
        with pytest.raises(TypeError, match=r"Tensor.data: got .*expected a NumPy array or a Tensor on cpu"):
            p.data = wrong
    with pytest.raises(TypeError, match=r"Tensor.data: only floating point can require gradients, got int64"):
        p.data = np.arange(3)
    p.data = np.ones(2)
    with pytest.raises(
        RuntimeError, match=r"gradient of a leaf is float64 \(2,\), but its .grad still holds float64 \(2, 2\)"
    ):
        p.sum().backward()
    scalar = Tensor(np.asarray(2.0), requires_grad=True)
    scalar.data = scalar.data * 2  # NumPy makes a number of it
    assert isinstance(scalar.data, np.ndarray)


def test_grad_takes_what_fits() -> None:
    p = Tensor(np.ones(3, np.float32), requires_grad=True)
    p.grad = np.full(3, 2, np.float32)
    assert isinstance(p.grad, Tensor)
    p.grad = Tensor(np.zeros(3, np.float32))
    p.grad = None
    assert p.grad is None
    for wrong, error, message in (
        (np.ones(2, np.float32), ValueError, r"got shape \(2,\), the Tensor has \(3,\)"),
        (np.ones(3), TypeError, "got float64, the Tensor is float32"),
        ([1.0, 2.0, 3.0], TypeError, "got list, expected a Tensor, an array or None"),
        (0.0, TypeError, "got float, expected"),
    ):
        with pytest.raises(error, match=message):
            p.grad = wrong


def test_requires_grad_is_for_leaves_of_floating_point() -> None:
    x = Tensor(np.ones(2), requires_grad=True)
    y = x * 2
    with pytest.raises(RuntimeError, match="made by Mul, and only leaves can change; use detach"):
        y.requires_grad = False
    y.requires_grad = True
    x.requires_grad = False
    assert not (x * 2).requires_grad
    with pytest.raises(TypeError, match="requires_grad: only floating point can require gradients, got int64"):
        Tensor(np.arange(2)).requires_grad = True


def test_a_detached_tensor_shares_memory_and_version() -> None:
    x, w = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2), requires_grad=True)
    y = x * w
    shared = w.detach()
    assert shared.data is w.data
    shared += 1  # needs no gradient, so that it may change; but y needs w as it was
    with pytest.raises(RuntimeError, match=r"Mul: input 1 \(2,\) is needed by backward but was changed in place"):
        y.sum().backward()
