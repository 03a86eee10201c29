"""checkpoint: values, gradients, random numbers and states are those of the same part without it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, checkpoint, no_grad, ops, random
from engine.graphs.cpu_step import CapturedPasses
from engine.training.optimizer import AdamW
from engine.training.step import Passes
from layers import BatchNorm2d, Buffer, CombinedLoss, Conv2d, Dropout, Module

Run = Callable[..., Any]


def plain(fn: Run, *inputs: Any) -> Any:
    """What checkpoint stands for."""
    return fn(*inputs)


def nested(fn: Run, *inputs: Any) -> Any:
    """A part within a part within a part."""
    return checkpoint(lambda *x: checkpoint(lambda *y: checkpoint(fn, *y), *x), *inputs)


class Part(Module):
    """All kinds of state: running statistics of a norm alone and of one behind a convolution, dropout, a user's counter
    and average.
    """

    def __init__(self, run: Run) -> None:
        self.conv, self.norm, self.drop = Conv2d(3, 4, 3, padding=1), BatchNorm2d(4), Dropout(0.4)
        self.calls, self.average, self.run = Buffer(np.zeros((), np.float32)), Buffer(np.ones(4, np.float32)), run

    def inner(self, x: Tensor) -> Tensor:
        """The checkpointed part."""
        y = self.drop(self.norm(self.conv(x)))
        fused = Buffer(np.zeros(4, np.float32)), self.average  # conv2d_batch_norm's running statistics
        y = y + ops.conv2d_batch_norm(x, self.conv.weight, self.norm.weight, self.norm.bias, *fused, padding=1)
        self.calls += 1
        self.average *= 0.5
        self.average += y.detach().mean(axis=(0, 1, 2))
        return y * (self.average * self.calls)  # of this moment: the states themselves move on

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.inner, x)


def trained(run: Run, steps: int = 3, retain: bool = False) -> list[np.ndarray]:
    """All that steps with a part leave: results, gradients, states, and the place in the random stream."""
    random.seed(3)
    rng = np.random.default_rng(0)
    part = Part(run)
    for p in part.parameters():
        p.data = rng.standard_normal(p.shape).astype(np.float32)
    left = []
    for _ in range(steps):
        x = Tensor(rng.standard_normal((2, 5, 6, 3)).astype(np.float32), requires_grad=True)
        y = part(x)
        z = part(y[..., :3])  # the same part, and its states, twice in one step
        total = (z * z).sum()
        if retain:
            total.backward(retain_graph=True)
        total.backward()
        left += [y.data, z.data, x.grad.data, *(p.grad.data for p in part.parameters())]
        left += [t.data.copy() for _, t in part.named_tensors(Buffer)]
    return [*left, np.array(random.state())]


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("run", [checkpoint, nested])
def test_states_move_once_and_all_numbers_are_those_without_it(run: Run, retain: bool) -> None:
    for ours, expected in zip(trained(run, retain=retain), trained(plain, retain=retain), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_running_statistics_are_equal_bit_by_bit() -> None:
    found = []
    for run in (plain, checkpoint):
        norm = BatchNorm2d(3)
        x = Tensor(np.random.default_rng(1).standard_normal((2, 4, 5, 3)).astype(np.float32), requires_grad=True)
        before = norm.running_mean.data
        run(norm, x).sum().backward()
        assert norm.running_mean.data is before, "in the memory that they had"
        found.append([norm.running_mean.data.copy(), norm.running_var.data.copy(), np.array(norm.running_mean.version)])
    for ours, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_state_that_moves_on_between_the_runs_keeps_what_it_has() -> None:
    """The second run sees the values of the first; afterwards the state has its newest ones."""
    state = Tensor(np.ones(2))

    def part(x: Tensor) -> Tensor:
        state.mul_(2.0)
        return x * state.data

    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = checkpoint(part, x)
    assert state.data.tolist() == [2, 2]
    view = state.detach()
    view.fill_(100.0)
    y.sum().backward()
    assert x.grad.data.tolist() == [2, 2]
    assert state.data.tolist() == [100, 100]
    assert state.version == 2


def test_two_tensors_of_one_memory() -> None:
    state = Tensor(np.array([1.0]))
    other = state.detach()

    def part(x: Tensor) -> Tensor:
        state.add_(1.0)
        other.mul_(10.0)
        return x * state.data

    x = Tensor(np.array([1.0]), requires_grad=True)
    checkpoint(part, x).backward()
    assert state.data.tolist() == [20]
    assert x.grad.data.tolist() == [20]


def test_what_the_part_makes_and_changes_itself_is_not_kept() -> None:
    def part(x: Tensor) -> Tensor:
        sums = Tensor(np.zeros(3))
        sums += x.detach()
        with no_grad():
            sums[0] = 5.0
        return x * sums

    x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    y = checkpoint(part, x)
    assert y.creator.states.recorded == []
    y.sum().backward()
    assert x.grad.data.tolist() == [5, 2, 3]


def test_several_results_and_inputs_without_a_gradient() -> None:
    mask = np.array([True, False, True])

    def part(x: Tensor, none: Any, chosen: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert none is None
        return x * w, ops.exp(x[chosen]), chosen

    found = []
    for run in (plain, checkpoint):
        x, w = (Tensor(np.array([0.1, 0.2, 0.3]) * k, requires_grad=True) for k in (1, 2))
        a, b, c = run(part, x, None, Tensor(mask), w)
        assert (a.requires_grad, b.requires_grad, c.requires_grad) == (True, True, False)
        ((a * 2).sum() + b.sum()).backward()
        found.append((a.data, b.data, x.grad.data, w.grad.data))
    for ours, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(ours, expected)


def test_what_cannot_run_again_is_named() -> None:
    x = Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"checkpoint: the function changes its input 0 \(3,\) in place"), no_grad():
        checkpoint(lambda x: x.add_(1.0) * 2, x)
    with pytest.raises(RuntimeError, match=r"add_: this Tensor \(3,\) requires gradients"):
        checkpoint(lambda x: x.add_(1.0) * 2, x)
    with pytest.raises(TypeError, match="checkpoint: the function gave a ndarray, expected a Tensor"):
        checkpoint(lambda x: x.data * 2, x)


def test_the_records_of_one_thread_are_its_own() -> None:
    state, done = Tensor(np.ones(1)), []

    def part(x: Tensor) -> Tensor:
        other = threading.Thread(target=lambda: done.append(state.add_(1.0)))
        other.start()
        other.join()
        return x * 2

    y = checkpoint(part, Tensor(np.ones(1), requires_grad=True))
    assert y.creator.states.recorded == []
    assert state.item() == 2


class Network(Module):
    """A network for training steps, half of which is checkpointed."""

    def __init__(self, run: Run) -> None:
        self.first, self.part, self.head, self.run = Conv2d(1, 3, 3, padding=1), Part(run), Conv2d(4, 5, 1), run

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.first(x)))


def steps(run: Run, captured: bool) -> tuple[list[float], list[np.ndarray]]:
    """Losses of six training steps and the state they leave."""
    rng = np.random.default_rng(0)
    net = Network(run)
    for p in net.parameters():
        p.data = np.random.default_rng(p.size).standard_normal(p.shape).astype(np.float32)
    random.seed(5)
    optimizer = AdamW(net)
    passes: Any = Passes(net, CombinedLoss((0.0, 0.3, 0.4, 0.4, 2.9), background="mask"), optimizer, "cpu")
    passes = CapturedPasses(passes) if captured else passes
    losses = []
    for _ in range(6):
        x, labels = rng.standard_normal((3, 16, 24, 1), np.float32), rng.integers(0, 5, (3, 16, 24))
        losses.append(float(passes(x, labels)["loss"]))
        optimizer.step(1e-2, gathered=True)
    if captured:
        assert passes.step is not None
    return losses, [t.data.copy() for _, t in net.named_tensors()]


@pytest.mark.usefixtures("same_threads")
def test_captured_steps_with_checkpointed_parts() -> None:
    """A replayed step does what the step does: the states move once,
    and the second run draws the masks of the first.
    """
    losses, state = steps(checkpoint, captured=True)
    other, expected = steps(checkpoint, captured=False)
    assert losses == other
    for ours, theirs in zip(state, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
