"""Recorded training steps: the same bits as ordinary ones, for as long as nothing is another than it was."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, no_grad, observe, ops
from autograd import random as tape_random
from engine.graphs.cpu_step import CapturedPasses
from engine.training.optimizer import AdamW
from engine.training.step import Passes
from kernels.core.cpu import thread_pool
from kernels.core.dispatch import use_kernels
from layers import CombinedLoss, Module, Parameter, UNet

WEIGHTS = (0.0, 0.3, 0.4, 0.4, 2.9)


pytestmark = pytest.mark.usefixtures("same_threads")


class Training:
    """A small network with its optimiser; every parameter away from its start, for gains of 0 would hide what stands
    behind them.
    """

    def __init__(self, recorded: bool, net: Module | None = None, **settings: Any) -> None:
        rng = np.random.default_rng(3)
        self.net = net or UNet(width=8, seed=0, size=(16, 24), **{"dropout": 0.3, **settings})
        with no_grad():
            for p in self.net.parameters():
                p.add_(np.abs(rng.normal(0, 0.1, p.shape)).astype(np.float32))
        tape_random.seed(5)
        self.optimizer = AdamW(self.net, clip=1.0, average=0.999)
        plain = Passes(self.net, CombinedLoss(WEIGHTS, background="mask"), self.optimizer, "cpu")
        self.passes = CapturedPasses(plain) if recorded else plain

    def step(self, x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        terms = {name: float(value) for name, value in self.passes(x, labels).items()}
        self.optimizer.step(1e-2, gathered=True)
        return terms

    def state(self) -> list[np.ndarray]:
        return [
            self.optimizer.flat.vector.copy(),
            self.optimizer.gradient.copy(),
            *(t.data.copy() for _, t in self.net.named_tensors()),
        ]


def batches(count: int, n: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((n, 16, 24, 1), np.float32), rng.integers(0, 5, (n, 16, 24))) for _ in range(count)]


def run(
    training: Training, some: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    """The losses of all steps, and all that the training has become."""
    return [training.step(*batch) for batch in some], training.state()


def same(some: Any, other: Any) -> None:
    assert some[0] == other[0]
    for a, b in zip(some[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.0},
        {"gate": "attnC"},
        {"gate": "gau"},
        {"bottleneck": "mhsa"},
        {"preactivation": True},
        {"encoder": "plain", "skips": "plain"},
        {"five": "3x3+3x3", "fppm": True},
    ],
)
def test_same_bits_as_ordinary_steps(settings: dict[str, Any]) -> None:
    """Losses, parameters, gradients, running statistics and the places of dropout's masks in the random stream."""
    some, recorded = batches(6), Training(True, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run(recorded, some)
    stream = tape_random.state()
    assert recorded.passes.step is not None
    same(got, run(Training(False, **settings), some))
    assert tape_random.state() == stream


def test_same_bits_for_1_2_and_4_threads() -> None:
    results = []
    for count in (1, 2, 4):
        thread_pool.set_threads(count)
        results.append(run(Training(True), batches(4)))
    same(results[0], results[1])
    same(results[0], results[2])


def test_the_number_of_threads_may_change() -> None:
    some, training = batches(6), Training(True)
    for count, batch in zip((2, 2, 2, 1, 4, 2), some, strict=True):
        thread_pool.set_threads(count)
        training.step(*batch)
    same(([], training.state()), ([], run(Training(False), some)[1]))


def test_other_shapes_run_as_always_in_between() -> None:
    """The last, smaller batches of epochs: they leave the recording as it is."""
    some, training = (batches(4) + batches(1, 2)) * 3, Training(True)
    got = run(training, some[:3])
    step = training.passes.step
    rest = run(training, some[3:])
    training.net.zero_grad()
    assert training.passes.step is step
    assert step.serves(some[0][0]), "its memory is free again"
    same((got[0] + rest[0], rest[1]), run(Training(False), some))


def test_evaluation_in_between() -> None:
    """Other work of the network does not disturb a recording, nor is its own result overwritten by one."""
    results = []
    for recorded in (True, False):
        training, kept = Training(recorded), []
        for batch in batches(5):
            training.step(*batch)
            training.net.eval()
            with no_grad():
                kept.append(training.net(Tensor(batch[0])).data)
            training.net.train()
        results.append((kept, training.state()))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    same(([], results[0][1]), ([], results[1][1]))


def test_a_gradient_that_somebody_keeps_is_not_overwritten() -> None:
    training, some = Training(True), batches(6)
    for batch in some[:4]:
        training.step(*batch)
    kept = training.net.parameters()[0].grad
    before = kept.data.copy()
    training.step(*some[4])
    assert not np.array_equal(training.net.parameters()[0].grad.data, before), "another batch, another gradient"
    same(([], training.state()), ([], run(Training(False), some[:5])[1]))


def test_changed_modes_and_arrays_are_noticed() -> None:
    """A frozen part, a parameter in other memory, or another one in the same: the step is not the recorded one any
    more.
    """
    for change in (
        lambda net: net.middle.eval(),
        lambda net: setattr(net.head.weight, "data", net.head.weight.data.copy()),
        lambda net: setattr(net.head, "weight", Parameter(net.head.weight.data)),
    ):
        states = []
        for recorded in (True, False):
            training = Training(recorded, dropout=0.0)
            for batch in batches(4):
                training.step(*batch)
            change(training.net)
            step = training.passes.step if recorded else None
            training.passes(*batches(5)[4])
            assert not recorded or training.passes.step is not step
            states.append(training.optimizer.gradient.copy())
        np.testing.assert_array_equal(*states)


def test_attributes_that_do_not_matter_leave_a_recording_alone() -> None:
    some, training = batches(6), Training(True)
    got = run(training, some[:4])
    step = training.passes.step
    training.net.note = "between two steps"
    rest = run(training, some[4:])
    assert step is not None
    assert training.passes.step is step
    same((got[0] + rest[0], rest[1]), run(Training(False), some))


def test_a_parameter_in_memory_that_was_given_back_is_noticed() -> None:
    """Arrays are compared while the old ones are held: one that is made where another was freed is another."""
    training = Training(True, dropout=0.0)
    for batch in batches(3):
        training.step(*batch)
    step, weight = training.passes.step, training.net.head.weight
    shape, number = weight.shape, id(weight.data)
    weight._data = None
    others = [np.zeros(shape, np.float32) for _ in range(1000)]
    weight.data = next((a for a in others if id(a) == number), others[0])
    assert not step.current


def test_the_reference_and_observers_see_ordinary_steps() -> None:
    training, some, seen = Training(True), batches(5), []
    for batch in some[:3]:
        training.step(*batch)
    with observe(lambda function, inputs, outputs: seen.append(function.name)):
        training.step(*some[3])
    assert "ConvBatchNorm" in seen
    with use_kernels("reference"):
        training.step(*some[4])


class Outside(Module):
    """A network that computes with NumPy between its operators: a recording of it would be stale."""

    def __init__(self) -> None:
        self.inner = UNet(width=8, seed=0, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(Tensor(x.data * np.float32(x.data.max())))


def test_what_computes_outside_of_operators_is_not_recorded() -> None:
    some, training = batches(5), Training(True, Outside())
    with pytest.warns(UserWarning, match="a captured step gives different numbers"):
        got = run(training, some)
    assert training.passes.step is None
    same(got, run(Training(False, Outside()), some))


class Sums(Module):
    """Arithmetic between maps, by operators that are no kernels."""

    def __init__(self) -> None:
        self.inner = UNet(width=8, seed=0, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y * x - y / (ops.exp(x * 0.1) + 2.0) + y


def test_arithmetic_is_called_again() -> None:
    some = batches(5)
    training = Training(True, Sums())
    with warnings.catch_warnings():
        # operators without a kernel may make a recording impossible; they may not make it wrong
        warnings.simplefilter("ignore")
        got = run(training, some)
    same(got, run(Training(False, Sums()), some))


@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_that_the_optimizer_cannot_do_moves_no_statistic(recorded: bool) -> None:
    """Found by a program of tests/support/stateful.py: an ordinary step's forward pass had run by the time the
    optimizer refused its parameters.
    """
    training = Training(recorded)
    x, labels = batches(1)[0]
    training.step(x, labels)
    first = training.net.parameters()[0]
    first.data = first.data.astype(np.float64)
    before = {name: t.data.copy() for name, t in training.net.named_tensors()}
    for _ in range(3):
        with pytest.raises(ValueError, match="expected one dtype"):
            training.step(x, labels)
    assert all(np.array_equal(t.data, before[name]) for name, t in training.net.named_tensors())
