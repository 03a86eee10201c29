"""Comparisons and masks: element by element, without a gradient, as PyTorch's; Tensors stay keys and members by
identity.
"""

from __future__ import annotations

import numpy as np
import pytest

from autograd import Tensor, ops

X = np.array([[0.0, -0.0, 1.0], [np.nan, np.inf, 2.0]], np.float32)
Y = np.array([0.0, 1.0, np.inf], np.float32)


def test_comparisons_give_boolean_tensors_without_gradient() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    x, t = Tensor(X, requires_grad=True), torch.from_numpy(X)
    for ours, theirs in (
        (x == Y, t == torch.from_numpy(Y)),
        (x != Tensor(Y), t != torch.from_numpy(Y)),
        (x < 1, t < 1),
        (x <= 1.0, t <= 1.0),
        (x > np.float64(0), t > 0),
        (x >= Y, t >= torch.from_numpy(Y)),
        (x == Y, torch.from_numpy(Y) == t),
        (x > 1, t > 1),
        (x >= Y, torch.from_numpy(Y) <= t),
        (ops.equal(2, x), torch.eq(t, 2)),
    ):
        assert isinstance(ours, Tensor)
        assert ours.dtype == np.bool_
        assert not ours.requires_grad
        np.testing.assert_array_equal(ours.data, theirs.numpy())
    assert (Tensor(0.1) == 0.1).item() is True, "the number takes the Tensor's float32"


def test_integers_beyond_the_range_of_a_dtype_compare_by_value() -> None:
    x = Tensor(np.array([44, 255], np.uint8))
    assert (x == 300).data.tolist() == [False, False]
    assert (x < 300).data.tolist() == [True, True]
    assert (x < 300).data.tolist() == [True, True]
    assert (x > -1).data.tolist() == [True, True]
    big = Tensor(np.array([2**63 - 1, -5]))
    assert (big < 10**30).data.tolist() == [True, True]
    assert (Tensor(np.array([2**64 - 1], np.uint64)) > -1).data.tolist() == [True]
    assert (Tensor(np.array([3, 4])) == 3).data.tolist() == [True, False]


def test_what_is_no_number_is_never_equal() -> None:
    x = Tensor([1.0, 2.0])
    assert (x == None) is False  # noqa: E711 - the question a user may write
    assert (x != None) is True  # noqa: E711
    assert (x == "a") is False
    with pytest.raises(ValueError, match="shape"):
        _ = x == Tensor([1.0, 2.0, 3.0])


def test_tensors_are_hashed_by_identity() -> None:
    a, b = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    table = {a: "a", b: "b"}
    assert table[a] == "a"
    assert table[b] == "b"
    assert len({a, b, a}) == 2
    assert a in table
    assert Tensor([1.0, 2.0]) not in table
    assert 2.0 in a
    assert 3.0 not in a
    one, other = Tensor(3.0), Tensor(4.0)
    assert other in [one, other]
    assert [one, other].index(other) == 1


def test_masks() -> None:
    a, b = np.array([True, True, False]), np.array([True, False, False])
    x, y = Tensor(a), Tensor(b)
    for ours, expected in (
        (x & y, a & b),
        (x | y, a | b),
        (x ^ y, a ^ b),
        (~x, ~a),
        (x & b, a & b),
        (b | x, a | b),
        (x & True, a),
        (True ^ x, ~a),
    ):
        assert isinstance(ours, Tensor)
        np.testing.assert_array_equal(ours.data, expected)
    assert (~Tensor(np.array([1, 2]))).data.tolist() == [-2, -3]
    for wrong in (lambda: x & Tensor([1.0, 0.0, 1.0]), lambda: ~Tensor([1.0]), lambda: x | 0.5):
        with pytest.raises(TypeError, match="expected booleans or integers"):
            wrong()
    with pytest.raises(TypeError, match="neg: x is boolean"):
        _ = -x
    with pytest.raises(TypeError, match="sub: an operand is boolean"):
        _ = 1 - x
    z = Tensor(np.arange(3.0), requires_grad=True)
    (z[x] * 2).sum().backward()
    assert z.grad.data.tolist() == [2, 2, 0]
    with pytest.raises(
        ValueError, match=r"bool: a Tensor of shape \(3,\) is no single number; use .*any\(\) or .all\(\)"
    ):
        bool(x)
    with pytest.raises(ValueError, match=r"bool: a Tensor of shape \(0,\)"):
        bool(Tensor(np.zeros(0)))


def test_an_accuracy_as_a_newcomer_writes_it() -> None:
    logits, labels = np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), np.array([0, 1, 1])
    predicted = Tensor(logits.argmax(1))
    right = predicted == Tensor(labels)
    assert right.mean().dtype == np.float32
    assert right.mean().item() == pytest.approx(2 / 3)
    assert right.sum().item() == 2
    assert (predicted == labels).astype(np.float32).mean().item() == pytest.approx(2 / 3)
