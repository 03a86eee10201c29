"""What is made of weights is never stale: outside of `inference()` nothing is kept, within it arrays are read-only."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, enable_grad, inference, no_grad
from engine.graphs import cpu_inference
from engine.graphs.cpu_inference import InferenceGraph
from engine.inference import Normalisation, predict_logits
from engine.training.optimizer import SGD
from kernels.core import held
from layers import Conv2d, ConvNorm, ConvTranspose2d, Module, Sequential

pytestmark = pytest.mark.usefixtures("same_threads")
MAKES: dict[str, Any] = {
    "conv": lambda: Conv2d(3, 4, 3, padding=1),
    "conv without bias": lambda: Conv2d(3, 4, 1, bias=False),
    "transposed": lambda: ConvTranspose2d(3, 4, 2, 2),
    "folded": lambda: ConvNorm(3, 4, 3),
    "folded without relu": lambda: ConvNorm(3, 4, 1, activation=None),
    "network": lambda: Sequential(ConvNorm(3, 8, 3), Conv2d(8, 4, 1)),
}
X = np.random.default_rng(0).standard_normal((1, 8, 8, 3)).astype(np.float32)


def lively(net: Module) -> Module:
    rng = np.random.default_rng(1)
    for _, t in net.named_tensors():
        t.data[...] = np.abs(rng.standard_normal(t.shape)) + 0.1
    return net.eval()


def fresh(net: Module, make: Any) -> np.ndarray:
    """What a network that nobody has run yet gives with the same values."""
    other = make().eval()
    for (_, t), (_, s) in zip(other.named_tensors(), net.named_tensors(), strict=True):
        t.data = s.data.copy()
    with no_grad():
        return other(Tensor(X)).data


def by_no_grad(net: Module) -> np.ndarray:
    with no_grad():
        return net(Tensor(X)).data


def by_inference(net: Module) -> np.ndarray:
    with inference():
        net(Tensor(X))
        return net(Tensor(X)).data


def by_run(net: Module) -> np.ndarray:
    for _ in range(cpu_inference._PAYS + 2):
        y = cpu_inference.run(net, X)
    return y


@pytest.mark.parametrize("how", [by_no_grad, by_inference, by_run])
@pytest.mark.parametrize("name", MAKES)
def test_every_write_by_numpy_between_calls_is_seen(name: str, how: Any) -> None:
    make = MAKES[name]
    net = lively(make())
    np.testing.assert_array_equal(how(net), fresh(net, make))
    for _, t in net.named_tensors():
        for write in (
            lambda a: np.subtract(a, 0.03, out=a),
            lambda a: a.__setitem__((-1,) * a.ndim, 2.0),
            lambda a: a.sort(),
            lambda a: a.fill(0.5),
        ):
            write(t.data)
            np.testing.assert_array_equal(how(net), fresh(net, make))


def test_a_plan_sees_writes_by_numpy() -> None:
    net = lively(MAKES["network"]())
    planned = InferenceGraph(net, X)
    assert planned.current
    net.steps[1].bias.data[0] += 1  # type: ignore[attr-defined]
    assert not planned.current
    with pytest.raises(cpu_inference.CaptureError, match="changed"):
        planned(X)
    net.steps[1].bias.data[0] -= 1  # type: ignore[attr-defined]


def test_settings_of_the_norm_are_seen_within_a_block() -> None:
    net = lively(ConvNorm(3, 4, 3))
    with inference():
        first = net(Tensor(X)).data
        net.norm.eps = 0.5
        assert not np.array_equal(net(Tensor(X)).data, first)
        net.conv.weight.data = net.conv.weight.data * 2
        second = net(Tensor(X)).data
        net.norm.eps = 1e-5
        assert not np.array_equal(net(Tensor(X)).data, second)
    np.testing.assert_array_equal(by_no_grad(net), by_inference(net))


def flags(net: Module) -> list[bool]:
    return [t.data.flags.writeable for _, t in net.named_tensors()]


@pytest.mark.parametrize("name", MAKES)
def test_arrays_are_read_only_to_the_end_of_the_outermost_block(name: str) -> None:
    net = lively(MAKES[name]())
    before = flags(net)
    with inference():
        with inference():
            net(Tensor(X))
        assert not any(flags(net))
        with pytest.raises(ValueError, match="read-only"):
            net.parameters()[0].data[...] -= 0.5
        with enable_grad():
            assert not any(flags(net))
        with no_grad():
            net(Tensor(X))
    assert flags(net) == before
    net.parameters()[0].data[...] -= 0.5
    for raised in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(raised):
            fail(net, raised)
        assert flags(net) == before
    assert held.current() is None


def fail(net: Module, raised: type[BaseException]) -> None:
    with inference():
        net(Tensor(X))
        raise raised


def test_what_was_read_only_stays_so_and_views_are_freed_with_their_owners() -> None:
    fixed, whole = np.ones(3, np.float32), np.zeros((4, 3), np.float32)
    fixed.setflags(write=False)
    view = whole[1:]
    for order in ([whole, view, fixed], [view, fixed, whole]):
        with held.holding():
            for a in order:
                held.current().number(a)
            assert not any(a.flags.writeable for a in order)
        assert whole.flags.writeable
        assert view.flags.writeable
        assert not fixed.flags.writeable


def test_threads_hold_the_same_arrays_until_the_last_lets_go() -> None:
    """Two threads with blocks that overlap: neither frees what the other holds; a view whose owner is held waits."""
    whole = np.zeros((4, 3), np.float32)
    view, steps = whole[1:], [threading.Event() for _ in range(2)]

    def other() -> None:
        with held.holding():
            held.current().number(whole)
            steps[0].set()
            steps[1].wait(60)

    thread = threading.Thread(target=other)
    with held.holding():
        held.current().number(whole)
        held.current().number(view)
        thread.start()
        assert steps[0].wait(60)
    assert not whole.flags.writeable
    assert not view.flags.writeable
    steps[1].set()
    thread.join()
    assert whole.flags.writeable
    assert view.flags.writeable


def test_numbers_tell_contents() -> None:
    a, numbers = np.arange(6, dtype=np.float32), []
    for change in (None, (0, 0.0), (1, 7.0), (1, np.nan), (1, np.nan), (0, -0.0)):
        if change:
            a[change[0]] = change[1]
        with held.holding():
            numbers.append(held.current().number(a))
            assert held.current().number(a) == numbers[-1]
    assert [a == b for a, b in zip(numbers[1:], numbers, strict=False)] == [True, False, False, True, False]


def test_a_write_that_the_tensor_counts_is_seen_within_a_block() -> None:
    """Optimizers write to the memory behind the arrays and say so."""
    net = lively(MAKES["network"]())
    optimizer = SGD(net, lr=0.1)
    for p in net.parameters():
        p.grad = Tensor(np.ones(p.shape, np.float32))
    with inference():
        first = net(Tensor(X)).data
        optimizer.step()
        second = net(Tensor(X)).data
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, fresh(net, MAKES["network"]))


def test_what_is_kept_serves_later_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded once for equal weights, again for others; outside of blocks at every call."""
    net, folds = lively(ConvNorm(3, 4, 3)), []
    fold = net._fold
    monkeypatch.setattr(net, "_fold", lambda *a: (folds.append(1), fold(*a))[1])
    for _ in range(3):
        by_inference(net)
    assert len(folds) == 1
    net.conv.weight.data[0] = 3
    by_inference(net)
    assert len(folds) == 2
    by_no_grad(net)
    by_no_grad(net)
    assert len(folds) == 4


def test_predictions_leave_the_weights_writeable() -> None:
    net = lively(Sequential(ConvNorm(1, 8, 3), Conv2d(8, 4, 1)))
    tiles = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    first = predict_logits(net, tiles, Normalisation(0.5, 0.25), batch=1)
    assert all(flags(net))
    net.steps[1].weight.data *= 2  # type: ignore[attr-defined]
    net.steps[1].bias.data *= 2  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        predict_logits(net, tiles, Normalisation(0.5, 0.25), batch=1), 2 * first, rtol=1e-5, atol=1e-6
    )
