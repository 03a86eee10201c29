"""The tape: accumulation, release, in-place detection, modes, checkpoint, drawing."""

from __future__ import annotations

import gc
import shutil
import weakref

import numpy as np
import pytest

import autograd
from autograd import (
    Function,
    Tensor,
    anomaly_mode,
    checkpoint,
    enable_grad,
    graph,
    inference,
    no_grad,
    observe,
    ops,
    random,
)
from tests.support.misprints import Mutant, assert_caught, planted


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def test_gradients_accumulate_over_uses_and_calls() -> None:
    x = leaf(3)
    y = x * x + x * 3 + x
    y.sum().backward()
    expected = 2 * x.data + 4
    np.testing.assert_allclose(x.grad.data, expected)
    (x * 2).sum().backward()
    np.testing.assert_allclose(x.grad.data, expected + 2)


def test_a_shared_gradient_array_is_never_written_to() -> None:
    """Add hands the same array to both inputs; one of them gets a second contribution. The other must not feel it."""
    x, y = leaf(4), leaf(4, seed=1)
    a, b = x * 2.0, y * 3.0
    c = a * 7.0  # recorded first, so walked last: a holds the shared array when c's contribution arrives
    z = (a + b) * np.full(4, 5.0)
    (z + c).sum().backward()
    np.testing.assert_allclose(x.grad.data, 2 * (5 + 7))
    np.testing.assert_allclose(y.grad.data, 3 * 5)


def test_a_cotangent_given_by_the_user_stays_untouched() -> None:
    x = leaf(4)
    seed = np.ones(4)
    y = x + 0.0
    y.backward(seed)
    x.grad.data += 1
    assert (seed == 1).all()
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\) but the result has shape \(4,\)"):
        (x + 0.0).backward(np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(4,\); pass a gradient"):
        (x + 0.0).backward()


def test_saved_arrays_are_released_as_backward_goes() -> None:
    x = leaf(5)
    y = ops.exp(x)
    kept = weakref.ref(y.creator)
    z = (y * y).sum()
    del y
    z.backward(retain_graph=True)
    z.backward()
    with pytest.raises(RuntimeError, match="released by an earlier backward; pass retain_graph"):
        z.backward()
    gc.collect()
    assert kept() is None, "the tape behind a released operator must be freed"


def test_results_that_no_gradient_needs_are_freed_at_once() -> None:
    """The tape leads gradients through them, but does not keep their arrays; those of inputs that are saved live on."""
    x = leaf(1000)
    y = ops.exp(x)  # saves its result
    z = y * 2.0  # saves y
    kept, freed = weakref.ref(y.data), weakref.ref(z.data)
    total = (z + y).sum()
    del y, z
    assert kept() is not None
    assert freed() is None
    total.backward()
    np.testing.assert_allclose(x.grad.data, 3 * np.exp(x.data), rtol=1e-6)


def test_in_place_change_of_a_saved_array_is_caught_and_named() -> None:
    x, w = leaf(3), leaf(3, seed=1)
    y = x * w
    with no_grad():
        w.add_(1.0)
    with pytest.raises(
        RuntimeError,
        match=r"Mul: input 1 \(3,\) is needed by backward but was changed in place \(version 1, saved at 0\)",
    ):
        y.sum().backward()
    h = ops.exp(x)
    view = ops.reshape(h, (3, 1))
    with no_grad():
        view.copy_(0.0)
    with pytest.raises(RuntimeError, match="Exp: output 0"):
        h.sum().backward()
    with pytest.raises(RuntimeError, match="within no_grad"):
        x[0] = 1.0
    z = x + w  # saves nothing: a change does no harm
    with no_grad():
        w *= 2.0
    z.sum().backward()


def test_modes() -> None:
    x = leaf(2)
    with no_grad():
        y = x * 2
        with enable_grad():
            assert (x * 2).requires_grad
    assert not y.requires_grad
    assert (x * 2).requires_grad
    with pytest.raises(RuntimeError, match="does not require gradients"):
        y.sum().backward()
    with inference():
        z = x * 2
    with pytest.raises(RuntimeError, match=r"Mul: input 1 .* was made within inference"):
        _ = x * z
    assert x.detach().creator is None
    assert x.detach().data is x.data


def test_anomaly_mode_names_operator_shape_and_index() -> None:
    x = Tensor(np.array([[1.0, 2.0], [3.0, -1.0]]), requires_grad=True)
    with (
        anomaly_mode(),
        np.errstate(invalid="ignore"),
        pytest.raises(FloatingPointError, match=r"Log: output \(2, 2\) is nan at \(1, 1\)"),
    ):
        ops.log(x)
    zero = Tensor(np.array([4.0, 0.0]), requires_grad=True)
    with (
        anomaly_mode(),
        np.errstate(divide="ignore"),
        pytest.raises(
            FloatingPointError, match=r"(?s)Sqrt: gradient of input 0 \(2,\) is inf at \(1,\).*test_autograd"
        ),
    ):
        ops.sqrt(zero).sum().backward()


def test_checkpoint_gives_the_same_values_and_gradients_with_dropout() -> None:
    w = leaf(6, 6, seed=3)

    def part(x: Tensor) -> Tensor:
        return ops.dropout(ops.tanh(x @ w), 0.4) * 2.0

    results = []
    for run in (part, lambda x: checkpoint(part, x)):
        random.seed(11)
        x = leaf(4, 6)
        w.zero_grad()
        y = ops.dropout(run(x), 0.2)
        y.sum().backward()
        results.append((y.data, x.grad.data, w.grad.data, random.state()))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoint_keeps_no_intermediate_arrays() -> None:
    made = []

    def part(x: Tensor) -> Tensor:
        y = ops.exp(x)
        made.append(weakref.ref(y.data))
        return y * y

    y = checkpoint(part, leaf(1000))
    gc.collect()
    assert made[0]() is None
    y.sum().backward()
    assert len(made) == 2


def test_graph_and_drawing(tmp_path) -> None:
    x, w = leaf(2, 3), leaf(3, 4)
    y = ops.relu(x @ w).sum()
    text = graph(y, {id(w): "weight"})
    for part in ("digraph", "MatMul", "ReLU", "Sum", "weight", "(3, 4)"):
        assert part in text
    path = autograd.draw(y, tmp_path / "tape.svg")
    assert path.exists()
    assert path.suffix == (".svg" if shutil.which("dot") else ".dot")


def test_observe_sees_every_operator() -> None:
    seen = []
    with observe(lambda f, i, o: seen.append((f.name, f.flops(i, o)))):
        _ = leaf(2, 3) @ leaf(3, 4)
    assert seen == [("MatMul", 2 * 2 * 3 * 4)]


def test_a_users_function_is_checked_by_the_tape() -> None:
    class Wrong(Function):
        def __init__(self, result) -> None:
            super().__init__()
            self.result = result

        def forward(self, x):
            return x * 2

        def backward(self, dy):
            return self.result(dy)

    for result, message in (
        (lambda dy: None, "gave no gradient for input 0"),
        (lambda dy: dy[:1], r"gradient of input 0 has shape \(1,\), the input \(3,\)"),
        (lambda dy: dy.astype(np.float32), "is float32, the input float64"),
        (lambda dy: (dy, dy), "2 gradients for 1 inputs"),
    ):
        with pytest.raises(RuntimeError, match=message):
            Wrong(result)(leaf(3)).sum().backward()
    with pytest.raises(NotImplementedError, match="Function: forward"):
        Function()(leaf(2))


def test_several_outputs_and_unused_ones() -> None:
    class Halves(Function):
        def forward(self, x):
            return x[: len(x) // 2] * 2, x[len(x) // 2 :] * 3

        def backward(self, a, b):
            return np.concatenate([2 * a, 3 * b])

    x = leaf(4)
    first, _ = Halves()(x)
    first.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [2, 2, 0, 0])


def test_tensor_basics() -> None:
    assert Tensor([1.0, 2.0]).dtype == np.float32
    assert Tensor(np.arange(3)).dtype == np.int64
    with pytest.raises(TypeError, match="floating point"):
        Tensor(np.arange(3), requires_grad=True)
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert (x.shape, x.ndim, x.size, len(x), x.device) == ((2, 3), 2, 6, 2, "cpu")
    assert float((2.0 - x / 2 + 1 / (x + 1) - (-x) ** 2).data[0, 0]) == 3.0
    assert (np.ones(3) * x).shape == (2, 3)
    assert isinstance(np.ones(3) + x, Tensor)
    assert (np.eye(2) @ x).shape == (2, 3)
    assert x.reshape(3, 2).transpose().shape == (2, 3)
    assert x.max(axis=1).data.tolist() == [2, 5]
    assert x.mean().item() == 2.5
    assert "requires_grad" in repr(x)
    assert "made by Mul" in repr(x * 2)
    assert bool(Tensor(1.0))
    assert Tensor(2.0).item() == 2.0


def test_a_long_chain_neither_recurses_nor_leaks() -> None:
    x = leaf(2)
    y = x
    for _ in range(20_000):
        y = y + 1.0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, 1.0)
    del y
    gc.collect()


@pytest.mark.parametrize("shared", [False, True])
def test_a_cotangent_is_overwritten_only_when_nobody_else_needs_it(shared: bool) -> None:
    """Two batch norms behind an addition get one cotangent; one behind a product gets its own, which it may write its
    gradient over.
    """
    from kernels.core.dispatch import use_kernels

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((4, 16, 16, 24)).astype(np.float32) for _ in range(2))
    found = {}
    for backend in ("fast", "reference"):
        x, z = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        with use_kernels(backend):
            one, other = (
                ops.batch_norm(
                    t, *(Tensor(np.full(24, v, np.float32)) for v in (1, 0, 0, 1)), training=True, activation="relu"
                )
                for t in (x, z)
            )
            total = one + other if shared else one * other
            total.backward(b)
        found[backend] = x.grad.data, z.grad.data
    for fast, slow in zip(found["fast"], found["reference"], strict=True):
        np.testing.assert_allclose(fast, slow, atol=2e-5)


# -- planted mistakes --------------------------------------------------------------------------------------------------


MUTANTS = [
    Mutant(
        "tape: adds into a borrowed gradient",
        "autograd.tape:_Sum.add",
        "if self.owned:",
        "if True:",
        test_a_shared_gradient_array_is_never_written_to,
    ),
    Mutant(
        "tape: a cotangent that others need is given away",
        "autograd.tape:_walk",
        "slot is not None and slot.owned for",
        "slot is not None for",
        lambda: test_a_cotangent_is_overwritten_only_when_nobody_else_needs_it(True),
    ),
    Mutant(
        "tape: in-place changes not noticed",
        "autograd.tensor:Tensor.touch",
        "+= 1",
        "+= 0",
        test_in_place_change_of_a_saved_array_is_caught_and_named,
        pytest.fail.Exception,
        "DID NOT RAISE RuntimeError",
    ),
    Mutant(
        "tape: every result kept",
        "autograd.function:_parent",
        "x if x.creator is None else",
        "x if True else",
        test_results_that_no_gradient_needs_are_freed_at_once,
    ),
    Mutant(
        "checkpoint: random state not restored",
        "autograd.random:replay",
        "    set_state(value)\n    try",
        "    try",
        test_checkpoint_gives_the_same_values_and_gradients_with_dropout,
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
