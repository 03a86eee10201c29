"""SGD, Adam and AdamW against torch.optim, step by step; frozen and unused parameters, groups, state, and modules that
change behind them.
"""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, no_grad, ops
from engine.training.optimizer import SGD, Adam, AdamW, Optimizer
from layers import BatchNorm2d, Conv2d, ConvNorm, Module, Parameter, Sequential

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

SHAPES = [(3, 3, 2, 5), (5,), (17,), (2, 33), (1,), ()]
SETTINGS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    (Adam, {"lr": 0.01}),
    (Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    (AdamW, {"lr": 0.01}),
    (AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
]
NAMES = [f"{kind.__name__} {' '.join(settings)}" for kind, settings in SETTINGS]


class Pair:
    """The same parameters here, in PyTorch, and in PyTorch's float64."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.rng, self.dtype = np.random.default_rng(seed), dtype
        start = [self.rng.standard_normal(s).astype(dtype) for s in SHAPES]
        self.ours = [Tensor(a.copy(), requires_grad=True) for a in start]
        self.theirs = [torch.tensor(a, requires_grad=True) for a in start]
        self.exact = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in start]

    def gradients(self, present: list[bool]) -> None:
        for ours, theirs, exact, here in zip(self.ours, self.theirs, self.exact, present, strict=True):
            g = self.rng.standard_normal(ours.shape).astype(self.dtype)
            ours.grad = Tensor(g) if here else None
            theirs.grad, exact.grad = (torch.tensor(g), torch.tensor(g.astype(np.float64))) if here else (None, None)

    def agree(self, step: int) -> None:
        """As close to float64 as PyTorch is, three times at most."""
        for k, (ours, theirs, exact) in enumerate(zip(self.ours, self.theirs, self.exact, strict=True)):
            want, unit = exact.detach().numpy(), np.finfo(self.dtype).eps
            error, bar = np.abs(ours.data - want).max(), np.abs(theirs.detach().numpy() - want).max()
            assert error <= 3 * bar + 8 * unit * max(1, np.abs(want).max()), (step, k, error, bar)


def groups(tensors: list[Any], form: str) -> Any:
    if form == "list":
        return tensors
    return [{"params": tensors[:2], "lr": 0.02, "weight_decay": 0.2}, {"params": tensors[2:3]}, {"params": tensors[3:]}]


PRESENCE = {
    "all": lambda rng, step: [True] * len(SHAPES),
    "frozen": lambda rng, step: [k != 1 for k in range(len(SHAPES))],
    "late": lambda rng, step: [k not in (0, 3) or step >= 4 for k in range(len(SHAPES))],
    "any": lambda rng, step: list(rng.random(len(SHAPES)) < 0.6),
    "none": lambda rng, step: [step % 3 == 0] * len(SHAPES),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("form", ["list", "groups"])
@pytest.mark.parametrize("presence", PRESENCE)
@pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=NAMES)
def test_steps_are_pytorchs(
    kind: type[Optimizer], settings: dict[str, Any], presence: str, form: str, dtype: str
) -> None:
    """Twelve steps with missing gradients, other learning rates and decays on the way, and the state taken to another
    optimizer.
    """
    pair, rng = Pair(dtype), np.random.default_rng(5)
    ours = kind(groups(pair.ours, form), **settings)
    theirs = [getattr(torch.optim, kind.__name__)(groups(t, form), **settings) for t in (pair.theirs, pair.exact)]
    for step in range(12):
        present = PRESENCE[presence](rng, step)
        pair.gradients(present)
        before = [t.data.copy() for t in pair.ours]
        for optimizer in (ours, *theirs):
            optimizer.step()
        pair.agree(step)
        for t, was, here in zip(pair.ours, before, present, strict=True):
            assert here or np.array_equal(t.data, was)
        if step == 4:
            for optimizer in (ours, *theirs):
                optimizer.param_groups[-1]["lr"] *= 0.5
                optimizer.param_groups[-1]["weight_decay"] += 0.03
        if step == 7:
            state = copy.deepcopy(ours.state_dict())
            ours = kind(groups(pair.ours, form), **settings)
            ours.load_state_dict(state)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_clipping_is_pytorchs(kind: type[Optimizer]) -> None:
    pair = Pair("float64")
    ours, theirs = kind(pair.ours, lr=0.01, clip=0.5), getattr(torch.optim, kind.__name__)(pair.exact, lr=0.01)
    for _ in range(5):
        pair.gradients([True, False, True, True, True, True])
        ours.step()
        norm = float(torch.nn.utils.clip_grad_norm_(pair.exact, math.inf))
        for t in pair.exact:
            if t.grad is not None:
                t.grad *= min(1, 0.5 / norm)
        theirs.step()
        assert ours.norm == pytest.approx(norm, rel=1e-12)
        for a, b in zip(pair.ours, pair.exact, strict=True):
            np.testing.assert_allclose(a.data, b.detach().numpy(), rtol=1e-12)


class Net(Module):
    """One layer of two is used."""

    def __init__(self, dtype: str = "float32") -> None:
        self.used, self.unused = Conv2d(2, 3, 1), Conv2d(2, 3, 1)
        self.norm = BatchNorm2d(3)
        self.to(dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.used(x))


def trained(net: Module, optimizer: Optimizer, steps: int = 1, dtype: str = "float32") -> None:
    x = Tensor(np.random.default_rng(1).standard_normal((2, 4, 4, 2)).astype(dtype))
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_what_has_no_gradient_stays_with_its_average(kind: type[Optimizer]) -> None:
    """Unused parameters never move; a frozen one stays where it was frozen, and its average where that was."""
    net = Net()
    optimizer = kind(net, lr=0.1, weight_decay=0.1, average=0.9)
    unused, average = net.unused.weight.data.copy(), optimizer.average
    trained(net, optimizer, 5)
    assert np.array_equal(net.unused.weight.data, unused)
    net.used.weight.requires_grad = False
    weight, mean, bias = net.used.weight.data.copy(), optimizer.flat.views(average)[0].copy(), net.used.bias.data.copy()
    trained(net, optimizer, 5)
    assert np.array_equal(net.used.weight.data, weight)
    assert np.array_equal(optimizer.flat.views(average)[0], mean)
    assert not np.array_equal(net.norm.bias.data, bias)
    assert list(optimizer.counts) == [5, 10, 0, 0, 10, 10]


def test_a_module_decays_filters_only_and_a_list_everything() -> None:
    for params, decays in ((lambda net: net, (True, False)), (lambda net: net.parameters(), (True, True))):
        net = Conv2d(2, 3, 1)
        net.bias.data[...] = 1
        optimizer = AdamW(params(net), lr=0.1, weight_decay=0.5)
        for p in net.parameters():
            p.grad = Tensor(np.zeros(p.shape, np.float32))
        before = [p.data.copy() for p in net.parameters()]
        optimizer.step()
        for p, was, decay in zip(net.parameters(), before, decays, strict=True):
            np.testing.assert_allclose(p.data, was * (0.95 if decay else 1), rtol=1e-6)


def replaced(net: Net) -> None:
    net.used.weight.data = net.used.weight.data * 2


def exchanged(net: Net) -> None:
    net.used.weight.data, net.unused.weight.data = net.unused.weight.data, net.used.weight.data


def converted(net: Net) -> None:
    net.to(dtype="float64")


@pytest.mark.parametrize("change", [replaced, exchanged, converted])
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_arrays_put_in_place_of_others_are_trained(kind: type[Optimizer], change: Any) -> None:
    """As PyTorch, which steps whatever `p.data` is; the momentum is that of before."""
    net = Net()
    momentum = {"momentum": 0.9} if kind is SGD else {}
    optimizer = kind(net.parameters(), lr=0.05, **momentum)
    theirs = [torch.tensor(p.data, requires_grad=True) for p in net.parameters()]
    other = getattr(torch.optim, kind.__name__)(theirs, lr=0.05, **momentum)
    for step in range(6):
        if step == 3:
            change(net)
            for t, p in zip(theirs, net.parameters(), strict=True):
                t.data = torch.tensor(p.data)
                for key, value in other.state[t].items():
                    other.state[t][key] = value.to(t.dtype) if key != "step" else value
        rng = np.random.default_rng(step)
        for p, t in zip(net.parameters(), theirs, strict=True):
            g = rng.standard_normal(p.shape).astype(p.dtype)
            p.grad, t.grad = Tensor(g), torch.tensor(g)
        optimizer.step()
        other.step()
        for p, t in zip(net.parameters(), theirs, strict=True):
            assert p.dtype.name == str(t.dtype).removeprefix("torch.")
            np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_statistics_put_in_place_of_others_are_averaged() -> None:
    net = Net()
    optimizer = AdamW(net, average=0.5)
    trained(net, optimizer, 3)
    net.norm.running_mean.data = np.full(3, 7.0, np.float32)
    for _ in range(60):
        optimizer.step()
    with optimizer.averaged():
        np.testing.assert_allclose(net.norm.running_mean.data, 7, rtol=1e-3)
    net.to(dtype="float64")
    with optimizer.averaged():
        assert net.norm.running_mean.dtype == np.float64
    trained(net, optimizer, 1, "float64")


def test_two_optimizers_of_one_network_take_turns() -> None:
    """Each step by whichever optimizer is the same as by one alone with its own state."""
    nets = [Net(), Net()]
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        q.data[...] = p.data
    one, two = SGD(nets[0], lr=0.1), SGD(nets[0], lr=0.1)
    alone = SGD(nets[1], lr=0.1)
    for k in range(4):
        trained(nets[0], (one, two)[k % 2])
        trained(nets[1], alone)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net: setattr(net.used, "weight", Parameter(net.used.weight.data.copy())),
            r"RuntimeError: AdamW: .* \(used.weight\); make a new",
        ),
        (
            lambda net: setattr(net, "more", Conv2d(2, 3, 1)),
            r"RuntimeError: AdamW: .* \(more.weight, more.bias\); make a new optimizer",
        ),
        (
            lambda net: setattr(net.used.bias, "data", np.zeros(4, np.float32)),
            r"ValueError: AdamW: Tensor 1 has the shape \(4,\) now and had \(3,\)",
        ),
        (
            lambda net: setattr(net.used.bias, "data", np.zeros(3)),
            r"ValueError: AdamW: its Tensors are float32 on cpu and float64 on cpu",
        ),
        (
            lambda net: setattr(net.used.bias, "data", net.unused.bias.data),
            r"ValueError: AdamW: two of its Tensors share one array",
        ),
    ],
)
def test_other_parameters_than_before_are_named(change: Any, message: str) -> None:
    net = Net()
    optimizer = AdamW(net)
    trained(net, optimizer)
    change(net)
    with pytest.raises((RuntimeError, ValueError)) as error:
        optimizer.step()
    assert re.match(message, f"{type(error.value).__name__}: {error.value}")


def test_a_module_that_is_put_back_trains_on() -> None:
    net = Net()
    optimizer, own = SGD(net, lr=0.1), net.used
    trained(net, optimizer)
    net.used = Conv2d(2, 3, 1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"\(used.weight, used.bias\); make a new optimizer"):
            trained(net, optimizer)
    net.used, before = own, own.weight.data.copy()
    trained(net, optimizer)
    assert not np.array_equal(own.weight.data, before)


def test_a_shared_module_is_stepped_once() -> None:
    layer = Conv2d(2, 2, 1)
    net = Sequential(layer, layer)
    optimizer = SGD(net, lr=1.0)
    assert len(optimizer.flat.tensors) == 2
    before = layer.weight.data.copy()
    for p in layer.parameters():
        p.grad = Tensor(np.ones(p.shape, np.float32))
    optimizer.step()
    np.testing.assert_allclose(layer.weight.data, before - 1, rtol=1e-6)
    assert optimizer.norm == pytest.approx(6**0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AdamW(Module()), ValueError, "AdamW: got an empty parameter list"),
        (lambda: SGD([]), ValueError, "SGD: got an empty parameter list"),
        (lambda: SGD(3), TypeError, "params is int, expected a Module"),
        (lambda: SGD(Conv2d(2, 2, 1).weight), TypeError, "params is Parameter, expected a Module"),
        (lambda: SGD([np.ones(3)]), TypeError, r"SGD: params\[0\] is ndarray, expected a Tensor"),
        (lambda: SGD([Tensor(np.arange(3))]), ValueError, r"SGD: params\[0\] \(3,\) is int64, expected a leaf"),
        (lambda: SGD([Tensor(np.ones(3), True) * 2.0]), ValueError, r"SGD: params\[0\] \(3,\) is no leaf"),
        (lambda: SGD(Net(), lr=-1), ValueError, "SGD: lr is -1, expected at least 0"),
        (lambda: SGD(Net(), lr=math.nan), ValueError, "SGD: lr is nan"),
        (lambda: SGD(Net(), momentum=-0.1), ValueError, "SGD: momentum is -0.1"),
        (
            lambda: SGD(Net(), nesterov=True),
            ValueError,
            "SGD: nesterov needs a momentum and no dampening, got 0.0 and 0.0",
        ),
        (lambda: Adam(Net(), betas=(0.9, 1.0)), ValueError, r"Adam: betas\[1\] is 1.0, expected 0 <= beta < 1"),
        (lambda: AdamW(Net(), weight_decay=-1), ValueError, "AdamW: weight_decay is -1"),
        (
            lambda: AdamW([{"params": [Tensor(np.ones(3), True)]}, Tensor(np.ones(3))]),
            TypeError,
            "AdamW: params mixes dicts with others",
        ),
    ],
)
def test_bad_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_parameter_in_two_groups_is_refused() -> None:
    t = Tensor(np.ones(3), True)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        SGD([{"params": [t]}, {"params": [t]}])


def test_the_state_of_another_optimizer_is_refused_and_changes_nothing() -> None:
    small, net = SGD(Conv2d(2, 3, 1)), Net()
    optimizer = AdamW(net, average=0.9)
    trained(net, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"AdamW: load_state_dict: the groups have \[2\] parameters, expected \[6\]"):
        optimizer.load_state_dict(small.state_dict())
    with pytest.raises(ValueError, match=r"AdamW: load_state_dict: average of parameter 0 is missing"):
        optimizer.load_state_dict(AdamW(Net()).state_dict())
    for k, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            np.testing.assert_array_equal(value, before["state"][k][key])


def test_training_goes_on_from_a_state() -> None:
    """Weights, averages and statistics of a run that is taken up again are those of a run that goes on."""
    nets = [Net(), Net()]
    optimizer = AdamW(nets[0], lr=0.1, average=0.9, clip=0.1)
    trained(nets[0], optimizer, 3)
    nets[1].load_state_dict(nets[0].state_dict())
    other = AdamW(nets[1], lr=0.5, average=0.9, clip=0.1)
    other.load_state_dict(optimizer.state_dict())
    for net, o in zip(nets, (optimizer, other), strict=True):
        trained(net, o, 3)
    for a, b in (
        (optimizer.flat.vector, other.flat.vector),
        (optimizer.average, other.average),
        (optimizer.average_buffers, other.average_buffers),
    ):
        np.testing.assert_array_equal(a, b)


def test_frozen_norms_are_the_norms_affair() -> None:
    """A frozen norm in a network that trains uses its running statistics and leaves them; a norm that trains in a
    frozen one does not.
    """
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((2, 4, 5, 3)).astype(np.float32))
    for mode in (True, False):
        for bias in (False, True):
            results = []
            for recording in (True, False):
                block = ConvNorm(3, 4, 1).train(mode)
                block.norm.train(not mode)
                block.conv.weight.data[...] = np.random.default_rng(1).standard_normal(block.conv.weight.shape)
                block.norm.running_mean.data[...] = 0.5
                if bias:
                    block.conv.bias = Parameter(np.arange(4, dtype=np.float32))
                moved = block.norm.running_mean.data.copy()
                if recording:
                    y = block(x).data
                else:
                    with no_grad():
                        y = block(x).data
                want = np.einsum(
                    "nhwc,ck->nhwk", x.data.astype(np.float64), block.conv.weight.data[0, 0].astype(np.float64)
                )
                want += np.arange(4) if bias else 0
                mean, var = (0.5, 1.0) if mode else (want.mean((0, 1, 2)), want.var((0, 1, 2)))
                np.testing.assert_allclose(y, np.maximum((want - mean) / np.sqrt(var + 1e-5), 0), atol=2e-5)
                assert np.array_equal(moved, block.norm.running_mean.data) == mode
                results.append((y, block.norm.running_mean.data))
            np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-5)
            np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_maps_together_pass_a_frozen_norm() -> None:
    rng = np.random.default_rng(0)
    maps = [Tensor(rng.standard_normal((1, 3, 4, 2)).astype(np.float32)) for _ in range(4)]
    block = ConvNorm(8, 5, 1)
    block.norm.eval()
    want = ops.relu(ops.conv2d(ops.concat(maps), block.conv.weight, padding="same") * (1 + 1e-5) ** -0.5).data
    np.testing.assert_allclose(block(maps).data, want, atol=1e-5)
    with no_grad():
        np.testing.assert_allclose(block(maps).data, want, atol=1e-5)
