"""Shapes and indices at the edges, and what the tape does with them, against PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autograd import Function, Tensor, anomaly_mode, no_grad, ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

A = np.arange(12.0).reshape(3, 4)

EDGES: list[tuple[Any, ...]] = [
    ("neg step", lambda x: x[::-1] * 2, lambda x: x.flip(0) * 2, A),
    ("empty slice", lambda x: x[3:], lambda x: x[3:], A),
    ("empty mask", lambda x: x[x < -1], lambda x: x[x < -1], A),
    ("mask", lambda x: x[x > 5] * 2, lambda x: x[x > 5] * 2, A),
    ("mask2", lambda x: x[Tensor(np.array([True, False, True]))], lambda x: x[torch.tensor([True, False, True])], A),
    ("int tensor", lambda x: x[Tensor(np.array([0, 0, 2]))], lambda x: x[torch.tensor([0, 0, 2])], A),
    ("int tensor 0d", lambda x: x[Tensor(np.array(1))], lambda x: x[torch.tensor(1)], A),
    ("list", lambda x: x[[0, 2]], lambda x: x[[0, 2]], A),
    ("mixed", lambda x: x[1, [0, 2]], lambda x: x[1, [0, 2]], A),
    ("ellipsis none", lambda x: x[..., None, 1:3], lambda x: x[..., None, 1:3], A),
    ("np.int", lambda x: x[np.int64(1), np.int64(2)], lambda x: x[1, 2], A),
    ("elem", lambda x: x[1, 2] * x[1, 2] + x[1, 2], lambda x: x[1, 2] * x[1, 2] + x[1, 2], A),
    ("bool scalar", lambda x: x[True], lambda x: x[True], A),
    ("0d index", lambda x: x[()], lambda x: x[()], np.array(2.0)),
    ("0d ellipsis", lambda x: x[...], lambda x: x[...], np.array(2.0)),
    ("0d none", lambda x: x[None], lambda x: x[None], np.array(2.0)),
    ("zero size sum", lambda x: x.sum(), lambda x: x.sum(), np.zeros((0, 3))),
    ("zero size mean", lambda x: x.mean(), lambda x: x.mean(), np.zeros((0, 3))),
    ("zero size max axis", lambda x: x.max(axis=1), lambda x: x.amax(1), np.zeros((0, 3))),
    ("zero matmul", lambda x, y: x @ y, lambda x, y: x @ y, np.zeros((0, 3)), np.ones((3, 2))),
    ("zero matmul inner", lambda x, y: x @ y, lambda x, y: x @ y, np.zeros((2, 0)), np.ones((0, 2))),
    ("zero softmax", lambda x: ops.softmax(x), lambda x: x.softmax(-1), np.zeros((0, 3))),
    ("zero softmax axis0", lambda x: ops.softmax(x, 0), lambda x: x.softmax(0), np.zeros((0, 3))),
    ("zero broadcast", lambda x, y: x * y, lambda x, y: x * y, np.zeros((0, 3)), np.ones((1, 3))),
    ("vec@vec", lambda x, y: x @ y, lambda x, y: x @ y, np.ones(3), np.ones(3) * 2),
    ("mat@vec", lambda x, y: x @ y, lambda x, y: x @ y, A, np.ones(4) * 2),
    ("vec@batch", lambda x, y: x @ y, lambda x, y: x @ y, np.ones(3), np.ones((2, 3, 4)) * 2),
    ("batch@vec", lambda x, y: x @ y, lambda x, y: x @ y, np.ones((2, 3, 4)), np.ones(4) * 2),
    ("softmax 0d", lambda x: ops.softmax(x), lambda x: x.softmax(-1), np.array(2.0)),
    ("logsoftmax 0d", lambda x: ops.log_softmax(x), lambda x: x.log_softmax(-1), np.array(2.0)),
    ("sum neg axes", lambda x: x.sum(axis=(-1, -2)), lambda x: x.sum((-1, -2)), A),
    ("sum axis list", lambda x: x.sum(axis=[0, 1]), lambda x: x.sum([0, 1]), A),
    ("sum axis list1", lambda x: x.sum(axis=[0]), lambda x: x.sum([0]), A),
    ("mean 0d", lambda x: x.mean(), lambda x: x.mean(), np.array(2.0)),
    ("max0d", lambda x: x.max(), lambda x: x.max(), np.array(2.0)),
    ("max nan", lambda x: x.max(), lambda x: x.amax(), np.array([1.0, np.nan])),
    ("max inf", lambda x: x.max(axis=0), lambda x: x.amax(0), np.array([[np.inf, 1.0], [np.inf, -np.inf]])),
    ("T", lambda x: x.T @ x, lambda x: x.T @ x, A),
    ("self mul", lambda x: x * x * x, lambda x: x * x * x, A),
    ("self add", lambda x: x + x, lambda x: x + x, A),
    ("self sub", lambda x: x - x, lambda x: x - x, A),
    ("self div", lambda x: x / (x + 1), lambda x: x / (x + 1), A),
    ("self where", lambda x: ops.where(x > 5, x, x * 2), lambda x: torch.where(x > 5, x, x * 2), A),
    ("self concat", lambda x: ops.concat([x, x, x], 0), lambda x: torch.cat([x, x, x], 0), A),
    ("self matmul", lambda x: x @ x.T, lambda x: x @ x.T, A),
    ("broadcast_to", lambda x: ops.broadcast_to(x, (2, 3, 4)) * 2, lambda x: x.expand(2, 3, 4) * 2, A),
    ("pad", lambda x: ops.pad(x, ((0, 1), (2, 0))), lambda x: torch.nn.functional.pad(x, (2, 0, 0, 1)), A),
    ("iter", lambda x: sum(r * k for k, r in enumerate(x)), lambda x: sum(r * k for k, r in enumerate(x)), A),
    ("reshape -1", lambda x: x.T.reshape(-1), lambda x: x.T.reshape(-1), A),
    ("reshape 0", lambda x: x.reshape(0, 5), lambda x: x.reshape(0, 5), np.zeros((0, 3))),
    ("add_relu self", lambda x: ops.add_relu(x, x), lambda x: (x + x).relu(), A - 5),
    ("sqrt0", lambda x: ops.sqrt(x), lambda x: x.sqrt(), np.array([0.0, 4.0])),
    ("log0", lambda x: ops.log(x), lambda x: x.log(), np.array([0.0, -1.0, 4.0])),
    ("div0", lambda x, y: x / y, lambda x, y: x / y, np.array([0.0, 1.0, np.inf]), np.array([0.0, 0.0, np.inf])),
    ("rem", lambda x, y: x % y, lambda x, y: x % y, np.array([5.0, -5.0, 5.5]), np.array([3.0, 3.0, -2.0])),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("ours", "theirs", "arrays"), [(e[1], e[2], e[3:]) for e in EDGES], ids=[e[0] for e in EDGES])
def test_values_and_gradients_are_pytorchs(
    ours: Callable[..., Any], theirs: Callable[..., Any], arrays: tuple[np.ndarray, ...]
) -> None:
    mine, other = (
        [Tensor(a.copy(), requires_grad=True) for a in arrays],
        [torch.tensor(a, requires_grad=True) for a in arrays],
    )
    y, z = ours(*mine), theirs(*other)
    assert y.shape == tuple(z.shape)
    np.testing.assert_allclose(y.data, z.detach().numpy())
    weights = np.random.default_rng(0).standard_normal(y.shape)
    y.backward(weights)
    z.backward(torch.from_numpy(np.asarray(weights)))
    for a, b in zip(mine, other, strict=True):
        assert a.grad is not None
        np.testing.assert_allclose(a.grad.data, b.grad.numpy())


def test_gradients_given_to_backward_take_the_dtype_of_the_result() -> None:
    for given in (
        [1, 2, 3],
        np.array([1, 2, 3]),
        Tensor(np.array([1.0, 2.0, 3.0])),
        Tensor(np.array([1, 2, 3])),
        np.array([1, 2, 3], ">f8"),
    ):
        x = Tensor(np.ones(3, np.float32), requires_grad=True)
        (x * 2).backward(given)
        assert x.grad.dtype == np.float32
        assert x.grad.data.tolist() == [2, 4, 6]


def test_modes_are_entered_again_decorate_and_belong_to_their_thread() -> None:
    x = Tensor(np.ones(2), requires_grad=True)
    mode = no_grad()
    for _ in range(2):
        with mode:
            assert not (x * 2).requires_grad
            with mode:
                assert not (x * 2).requires_grad
            assert not (x * 2).requires_grad
        assert (x * 2).requires_grad

    @no_grad()
    def countdown(n: int) -> bool:
        return (x * 2).requires_grad or (n > 0 and countdown(n - 1))

    assert not countdown(3)
    assert (x * 2).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert (x * 2).requires_grad
    seen: list[bool] = []
    with no_grad():
        other = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        other.start()
        other.join()
    assert seen == [True]


def test_a_function_serves_one_call() -> None:
    class Swish(Function):  # without an __init__, and with one that does not call Function's
        def forward(self, x):
            self.save(x)
            return x / (1 + np.exp(-x))

        def backward(self, dy):
            (x,) = self.saved
            s = 1 / (1 + np.exp(-x))
            return dy * s * (1 + x * (1 - s))

    class Scaled(Swish):
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def forward(self, x):
            return super().forward(x) * self.factor

        def backward(self, dy):
            return super().backward(dy) * self.factor

    x = Tensor(np.array([0.5, -1.0]), requires_grad=True)
    for make, factor in ((Swish, 1.0), (lambda: Scaled(3.0), 3.0)):
        x.zero_grad()
        act = make()
        act(x).sum().backward()
        t = torch.tensor(x.data, requires_grad=True)
        (torch.nn.functional.silu(t) * factor).sum().backward()
        np.testing.assert_allclose(x.grad.data, t.grad.numpy())
        with pytest.raises(
            RuntimeError, match=r"(Swish|Scaled): this instance was called before.*create one for each call"
        ):
            act(x)
    with no_grad():
        act = Swish()
        act(x)
        with pytest.raises(RuntimeError, match="create one for each call"):
            act(x)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "forward gave a NoneType, expected an array or a tuple of arrays"),
        ([np.ones(2)], "forward gave a list, expected an array"),
        (2.0, "forward gave a float, expected an array"),
        (Tensor([1.0]), "forward gave a Tensor, expected an array"),
        (np.array(["a"]), "Tensor: got numpy.ndarray"),
    ],
)
def test_forward_must_give_arrays(result: Any, message: str) -> None:
    class Odd(Function):
        def forward(self, x):
            return result

    with pytest.raises(TypeError, match=message):
        Odd()(Tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "backward gave no gradient for input 0, which needs one"),
        (Tensor([1.0, 1.0]), "backward gave a Tensor for input 0, expected an array"),
        (1.0, "backward gave a float for input 0, expected an array"),
        ((np.ones(2), np.ones(2)), "backward gave 2 gradients for 1 inputs"),
    ],
)
def test_backward_must_give_arrays(result: Any, message: str) -> None:
    class Odd(Function):
        def forward(self, x):
            return x * 2

        def backward(self, dy):
            return result

    with pytest.raises(RuntimeError, match=f"Odd: {message}"):
        Odd()(Tensor([1.0, 2.0], requires_grad=True)).sum().backward()


def test_an_array_that_a_function_keeps_is_not_added_to() -> None:
    """A gradient may be a constant of the operator, which it gives again and again."""
    ones = np.ones(3)

    class Total(Function):
        def forward(self, x):
            self.slope = ones
            return x.sum()

        def backward(self, dy):
            return self.slope

    x = Tensor(np.zeros(3), requires_grad=True)
    y = x * 1.0
    (Total()(y) + Total()(y) + Total()(x) + Total()(x)).backward()
    assert ones.tolist() == [1, 1, 1]
    assert x.grad.data.tolist() == [4, 4, 4]
    assert not np.shares_memory(x.grad.data, ones)


def test_anomalies_of_single_numbers_are_named() -> None:
    x = Tensor(np.asarray(-1.0), requires_grad=True)
    with anomaly_mode(), np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=r"Log: output \(\) is nan"):
        ops.log(x)
