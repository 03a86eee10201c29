"""Captured steps follow every attribute that a forward pass reads: each change against the same training without
capture.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, ops
from autograd import random as tape_random
from engine.graphs.cpu_step import CapturedPasses
from engine.graphs.network_state import State, reads
from engine.training.optimizer import SGD
from engine.training.step import Passes
from layers import Conv2d, ConvNorm, CrossEntropyLoss, Dropout, Identity, Module, Parameter

pytestmark = pytest.mark.usefixtures("same_threads")


@dataclass
class Scales:
    """An object that holds settings."""

    first: float
    more: dict[str, list[float]]


class Slotted:
    """The same with slots."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


class Net(Module):
    """All kinds of attributes that a forward pass may read."""

    shift = 0.25  # of the class

    def __init__(self) -> None:
        self.body, self.drop, self.act, self.head = ConvNorm(3, 8, 3), Dropout(0.5), Identity(), Conv2d(8, 5, 1)
        self.scales = Scales(1.0, {"inner": [1.0, 2.0]})
        self.slotted, self.form, self.table = Slotted(1.0), "plain", np.array([1.0, 2.0])
        self.pair, self.names = (1.0, [0.5]), {"a"}

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.drop(self.body(x)))
        factor = (
            self.scales.first
            * self.scales.more["inner"][1]
            * self.slotted.value
            * self.pair[1][0]
            * float(self.table[0])
        )
        factor += self.shift + getattr(self, "extra", 0.0) + (0.5 if "b" in self.names else 0.0)
        return self.head(ops.relu(y) if self.form == "relu" else y) * factor


class Training:
    """The net with its optimizer, with or without capture."""

    def __init__(self, recorded: bool, make: Any = Net) -> None:
        rng = np.random.default_rng(3)
        self.net = make()
        for _, t in self.net.named_tensors():
            t.data[...] = np.abs(rng.standard_normal(t.shape)) * 0.3 + 0.1
        tape_random.seed(5)
        self.place = tape_random.state()
        self.optimizer = SGD(self.net, lr=0.05)
        plain = Passes(self.net, CrossEntropyLoss(), self.optimizer, "cpu")
        self.passes = CapturedPasses(plain) if recorded else plain
        self.rng = np.random.default_rng(1)

    def step(self) -> list[Any]:
        x = self.rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
        tape_random.set_state(self.place)  # each training draws from a stream of its own
        terms = self.passes(x, self.rng.integers(0, 5, (2, 8, 8)))
        self.place = tape_random.state()
        self.optimizer.step(gathered=True)
        grads = [None if p.grad is None else p.grad.data.copy() for p in self.net.parameters()]
        return [float(terms["loss"]), *(t.data.copy() for _, t in self.net.named_tensors()), *grads]


def same(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert (one is None) == (other is None)
        np.testing.assert_array_equal(one, other)


def freeze(net: Net) -> None:
    net.head.weight.requires_grad = not net.head.weight.requires_grad


CHANGES: dict[str, Any] = {
    "dropout": lambda net: setattr(net.drop, "p", 0.1),
    "momentum": lambda net: setattr(net.body.norm, "momentum", 0.7),
    "eps": lambda net: setattr(net.body.norm, "eps", 0.1),
    "activation": lambda net: setattr(net.body.norm, "activation", None),
    "dilation": lambda net: setattr(net.body.conv, "dilation", 2),
    "module to Identity": lambda net: setattr(net, "drop", Identity()),
    "frozen": freeze,
    "frozen norm": lambda net: net.body.norm.eval(),
    "mode": lambda net: net.eval(),
    "string": lambda net: setattr(net, "form", "relu"),
    "dataclass": lambda net: setattr(net.scales, "first", 1.5),
    "list in a dict in a dataclass": lambda net: net.scales.more["inner"].__setitem__(1, 3.0),
    "dict in a dataclass": lambda net: net.scales.more.update(inner=[2.0, 3.0]),
    "list in a tuple": lambda net: net.pair[1].append(net.pair[1].pop() * 2),
    "slots": lambda net: setattr(net.slotted, "value", 2.0),
    "set": lambda net: net.names.add("b"),
    "array in place": lambda net: net.table.__setitem__(0, 3.0),
    "new attribute": lambda net: setattr(net, "extra", 0.5),
    "attribute that hides the class's": lambda net: setattr(net, "shift", 0.75),
    "bias away": lambda net: setattr(net.head, "bias", None),
    "method": lambda net: setattr(net.act, "forward", lambda x: x * 2.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_captured_steps_follow_every_change(change: str) -> None:
    """Four steps, a change, four more, and back where that is possible: the bits of steps without capture; and they are
    captured.
    """
    trainings = [Training(True), Training(False)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for phase in range(2):
            for step in range(5):
                same(*(t.step() for t in trainings))
                assert step < 3 or phase or trainings[0].passes.step is not None, "captured"
            for t in trainings:
                CHANGES[change](t.net)
        for _ in range(4):
            same(*(t.step() for t in trainings))


def test_the_class_attribute_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = [Training(True), Training(False)]
    for step in range(8):
        if step == 4:
            monkeypatch.setattr(Net, "shift", 2.0)
        same(*(t.step() for t in trainings))


def test_a_frozen_filter_trains_again_and_the_reverse() -> None:
    """Frozen from the start for five captured steps, then free, then frozen."""
    trainings = [Training(True), Training(False)]
    for step in range(15):
        if step % 5 == 0:
            for t in trainings:
                freeze(t.net)
        before = trainings[0].net.head.weight.data.copy()
        same(*(t.step() for t in trainings))
        assert np.array_equal(before, trainings[0].net.head.weight.data) == (step // 5 != 1)


class Counting(Net):
    """Writes down how often it ran: a replay does not."""

    def forward(self, x: Tensor) -> Tensor:
        self.runs = getattr(self, "runs", 0) + 1
        return super().forward(x) * (1.0 / self.runs)


class Tempered(Net):
    """Computes with a parameter's value in Python: stale in a replay, though right at first."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = Parameter(np.ones(1, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.temperature * float(self.temperature.data[0])


@pytest.mark.parametrize("make", [Counting, Tempered])
def test_what_a_replay_would_not_do_is_not_captured(make: type[Net]) -> None:
    trainings = [Training(True, make), Training(False, make)]
    same(*(t.step() for t in trainings))
    with pytest.warns(UserWarning, match="so steps are not captured"):
        same(*(t.step() for t in trainings))
    for _ in range(4):
        same(*(t.step() for t in trainings))
    assert trainings[0].passes.step is None


def test_a_network_that_always_changes_is_rarely_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.graphs import cpu_step

    made: list[int] = []
    whole = cpu_step._captured
    monkeypatch.setattr(cpu_step, "_captured", lambda *a: (made.append(1), whole(*a))[1])
    trainings = [Training(True), Training(False)]
    for step in range(40):
        for t in trainings:
            t.net.drop.p = 0.1 + step / 100
        same(*(t.step() for t in trainings))
    assert 2 <= len(made) <= 6


def test_equal_values_are_no_change_and_cycles_end() -> None:
    net = Net()
    net.loop = [1, {}]  # type: ignore[attr-defined]
    net.loop[1]["self"] = net.loop  # type: ignore[attr-defined]
    net.eval()
    with reads() as read:
        net(Tensor(np.zeros((1, 8, 8, 3), np.float32)))
    for state in (State(net), State(net, read=read)):
        net.drop.p = float("0.5")
        net.scales = Scales(1.0, {"inner": [1.0, 2.0]})
        net.form = "".join(["pl", "ain"])
        assert state.unchanged()
        net.scales.more["inner"][0] = 5.0
        assert not state.unchanged()
        net.scales.more["inner"][0] = 1.0
        assert state.unchanged()
        net.scales.first = np.float64(1.0)  # of another type
        assert not state.unchanged()
        net.scales.first = 1.0
        net.head.weight.requires_grad = False
        assert not state.unchanged()
        net.head.weight.requires_grad = True
        net.unread = 3  # type: ignore[attr-defined]
        assert state.unchanged() == (state._read is not None)
        del net.unread
