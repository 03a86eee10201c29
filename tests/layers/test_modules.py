"""`Module`: what is found inside it, what its state is called, freezing, loading, and what it looks like; PyTorch's
modules are the judge.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest

import layers
from autograd import Tensor, ops
from engine.training.optimizer import AdamW
from layers import Module, Parameter
from tests.support.paths import ROOT


class Nested(Module):
    """Parameters and modules at every place where they are found."""

    def __init__(self) -> None:
        self.own = Parameter(np.zeros(1, np.float32))
        self.listed = [Parameter(np.zeros(2, np.float32)), layers.Linear(2, 3)]
        self.named = {"left": layers.Linear(1, 1, bias=False), "deep": {"right": [(layers.LayerNorm(4),)]}}
        self.pair = (layers.Linear(2, 2, bias=False), [Parameter(np.zeros(5, np.float32))])
        self.numbers = [1, 2.5, "text", None]

    def forward(self, x: Tensor) -> Tensor:
        return x


NAMES = [
    "own",
    "listed.0",
    "pair.1.0",
    "listed.1.weight",
    "listed.1.bias",
    "named.left.weight",
    "named.deep.right.0.0.weight",
    "named.deep.right.0.0.bias",
    "pair.0.weight",
]


def test_parameters_and_modules_are_found_in_any_nesting() -> None:
    net = Nested()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert list(net.state_dict()) == NAMES
    assert net.parameter_count() == 1 + 2 + 5 + 9 + 1 + 8 + 4
    assert [name for name, _ in net.named_modules()] == ["", "listed.1", "named.left", "named.deep.right.0.0", "pair.0"]
    net.eval()
    assert not any(m.training for m in net.modules())
    net.to(dtype=np.float64)
    assert {p.dtype for p in net.parameters()} == {np.dtype(np.float64)}


def test_an_optimizer_trains_what_is_nested() -> None:
    net = Nested()
    optimizer = AdamW(net)
    for p in net.parameters():
        p.grad = Tensor(np.ones(p.shape, np.float32))
    before = net.state_dict()
    optimizer.step(0.1)
    assert all((before[name] != value).all() for name, value in net.state_dict().items())


class Tied(Module):
    """A parameter and a module at two places each."""

    def __init__(self) -> None:
        self.first = layers.Linear(3, 3)
        self.second = [self.first, layers.Linear(3, 3)]
        self.second[1].weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second[1](self.second[0](self.first(x)))


def test_what_is_shared_counts_once_and_is_saved_under_every_name_as_in_pytorch() -> None:
    torch = pytest.importorskip("torch")

    class Theirs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(3, 3)
            self.second = torch.nn.ModuleList([self.first, torch.nn.Linear(3, 3)])
            self.second[1].weight = self.first.weight

    net, theirs = Tied(), Theirs()
    assert (
        [n for n, _ in net.named_parameters()]
        == [n for n, _ in theirs.named_parameters()]
        == ["first.weight", "first.bias", "second.1.bias"]
    )
    assert sorted(net.state_dict()) == sorted(theirs.state_dict())
    assert [n for n, _ in net.named_modules()] == [n for n, _ in theirs.named_modules() if n != "second"]
    assert net.parameter_count() == sum(p.numel() for p in theirs.parameters()) == 15
    state = {name: np.full(value.shape, k, np.float32) for k, (name, value) in enumerate(net.state_dict().items())}
    net.load_state_dict(state)
    theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    assert all((value == theirs.state_dict()[name].numpy()).all() for name, value in net.state_dict().items())


def test_cycles_do_not_loop() -> None:
    class Child(Module):
        def __init__(self, parent: Module) -> None:
            self.weight = Parameter(np.zeros(2, np.float32))
            self.parent = parent

    class Parent(Module):
        def __init__(self) -> None:
            self.child = Child(self)
            self.ring: list[Any] = [self]
            self.ring.append(self.ring)

    net = Parent()
    assert [name for name, _ in net.named_parameters()] == ["child.weight"]
    assert list(net.state_dict()) == ["child.weight"]
    assert len(list(net.modules())) == 2
    assert "which is around" in repr(net)
    assert net.load_state_dict({"child.weight": np.ones(2)}).loaded == ["child.weight"]


def test_two_parameters_of_one_name_are_refused() -> None:
    net = Module()
    net.table = {1: Parameter(np.zeros(1)), "1": Parameter(np.ones(1))}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"two parameters or buffers have the name table\.1"):
        net.state_dict()


def test_names_of_networks_that_exist_are_what_they_were() -> None:
    """Checkpoints of before load: the names and their order, by the rule of before."""

    def named(module: Module, prefix: str = "") -> list[str]:
        own = [prefix + n for n, v in vars(module).items() if isinstance(v, (Parameter, layers.Buffer))]
        for n, v in vars(module).items():
            for path, child in (
                [(n, v)]
                if isinstance(v, Module)
                else [(f"{n}.{k}", c) for k, c in enumerate(v)]
                if isinstance(v, list)
                else []
            ):
                own += named(child, f"{prefix}{path}.") if isinstance(child, Module) else []
        return own

    for settings in ({}, {"bottleneck": "mhsa", "size": (16, 24)}, {"fppm": True, "gate": "gau"}):
        net = layers.UNet(width=4, **settings)  # type: ignore[arg-type]
        assert list(net.state_dict()) == named(net)


def test_freezing_by_pattern() -> None:
    net = layers.UNet(width=4, seed=0)
    net.head.weight.grad = Tensor(np.ones(net.head.weight.shape, np.float32))
    names = net.freeze("encoders.*", "head.weight")
    assert names == [n for n, _ in net.named_parameters() if n.startswith("encoders.") or n == "head.weight"]
    assert all(p.requires_grad == (n not in names) for n, p in net.named_parameters())
    assert net.head.weight.grad is None
    x = Tensor(np.ones((1, 16, 16, 1), np.float32))
    net(x).sum().backward()
    assert all((p.grad is None) == (n in names) for n, p in net.named_parameters())
    assert net.unfreeze("*.bias") == [n for n, _ in net.named_parameters() if n.endswith(".bias")]
    with pytest.raises(
        ValueError,
        match=r"freeze: no parameter matches 'encoder\.\*'; the names begin with encoders, middle, bottleneck",
    ):
        net.freeze("encoder.*")
    assert net.head.bias.requires_grad


def test_loading_what_fits() -> None:
    net = layers.Sequential(layers.Linear(3, 4), layers.ReLU(), layers.Linear(4, 2))
    state = {
        "steps.0.weight": np.ones((4, 3)),
        "steps.2.weight": np.ones((5, 4)),
        "head.weight": np.ones(2),
        "steps.0.bias": Tensor(np.ones(4)),
    }
    before = net.state_dict()
    with pytest.raises(ValueError, match=r"2 names do not fit: missing steps\.2\.bias; unknown head\.weight"):
        net.load_state_dict(state)
    assert all((before[n] == v).all() for n, v in net.state_dict().items())
    report = net.load_state_dict(state, strict=False)
    assert report.loaded == ["steps.0.weight", "steps.0.bias"]
    assert report.missing == ["steps.2.bias"]
    assert report.unexpected == ["head.weight"]
    assert report.misfits == {"steps.2.weight": ((5, 4), (2, 4))}
    assert str(report) == (
        "2 loaded; 1 missing: steps.2.bias; 1 unknown: head.weight; 1 of another shape: steps.2.weight (5, 4) for "
        "(2, 4)"
    )
    assert (net[0].weight.data == 1).all()
    assert (net[2].weight.data == before["steps.2.weight"]).all()


def test_a_module_looks_like_a_tree_with_sizes() -> None:
    net = layers.Sequential(layers.Linear(3, 4), layers.ReLU(), layers.Sequential(layers.Linear(4, 1, bias=False)))
    assert repr(net).splitlines() == [
        "Sequential()  20 parameters",
        "  steps.0: Linear(3, 4)  16 parameters",
        "  steps.1: ReLU()",
        "  steps.2: Sequential()  4 parameters",
        "    steps.0: Linear(4, 1, bias=False)  4 parameters",
    ]
    made = {type(m).__name__: repr(m) for m in (Nested(), layers.UNet(width=4))}
    assert "own (1,), listed.0 (2,), pair.1.0 (5,)" in made["Nested"]
    assert len(made["UNet"].splitlines()) == len(list(layers.UNet(width=4).modules()))


def test_sequential_is_a_list_of_modules() -> None:
    net = layers.Sequential(layers.Linear(3, 4), layers.ReLU())
    assert len(net) == 2
    assert isinstance(net[-1], layers.ReLU)
    assert isinstance(net[:1], layers.Sequential)
    assert net[:1][0] is net[0]
    assert len(net.append(layers.Linear(4, 2))) == 3
    assert [type(m).__name__ for m in net] == ["Linear", "ReLU", "Linear"]
    net[1] = layers.Tanh()
    assert isinstance(net[1], layers.Tanh)
    assert net(Tensor(np.ones((5, 3), np.float32))).shape == (5, 2)


def test_module_list_and_module_dict_name_their_modules_as_pytorch_does() -> None:
    torch = pytest.importorskip("torch")

    def build(space: Any, base: Any) -> Any:
        class Net(base):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.blocks = space.ModuleList([space.Linear(2, 2), space.Linear(2, 3)])
                self.heads = space.ModuleDict({"a": space.Linear(3, 1), "b": space.Linear(3, 2)})
                self.blocks.append(space.Linear(3, 3))

        return Net()

    net, theirs = build(layers, Module), build(torch.nn, torch.nn.Module)
    assert {n: v.shape for n, v in net.state_dict().items()} == {
        n: tuple(v.shape) for n, v in theirs.state_dict().items()
    }
    assert len(net.blocks) == 3
    assert len(net.heads) == 2
    assert net.blocks[-1] is list(net.blocks)[2]
    assert len(net.blocks[1:]) == 2
    net.blocks[-1] = layers.Identity()
    assert isinstance(net.blocks[2], layers.Identity)
    assert list(net.heads) == net.heads.keys() == ["a", "b"]
    assert "a" in net.heads
    del net.heads["a"]
    assert [name for name, _ in net.heads.items()] == ["b"]
    assert net.heads.values() == [net.heads["b"]]
    net.eval()
    assert len(net.blocks) == 3
    for name in ("forward", "training", 3):
        with pytest.raises(KeyError, match="ModuleDict: got the name"):
            net.heads[name] = layers.Identity()
    with pytest.raises(TypeError, match="ModuleList: got a int, expected a Module"):
        net.blocks.append(3)


def test_apply_reaches_every_module_once() -> None:
    net, met = Tied(), []
    assert net.apply(met.append) is net
    assert met[-1] is net
    assert len(met) == len({id(m) for m in met}) == 3


def test_a_module_can_be_copied() -> None:
    net = Nested()
    other = copy.deepcopy(net)
    other.listed[0].data[...] = 5
    assert not net.listed[0].data.any()


def test_the_losses_learn_class_0_unless_told_otherwise() -> None:
    """As PyTorch's: the rule for unlabelled pixels is the training system's."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((2, 4, 5, 5)), rng.integers(0, 5, (2, 4, 5))
    mine = layers.CrossEntropyLoss()(Tensor(logits), labels).item()
    theirs = torch.nn.CrossEntropyLoss()(torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(labels)).item()
    assert mine == pytest.approx(theirs, rel=1e-12)
    for cls in (
        layers.CombinedLoss,
        layers.FocalLoss,
        layers.DiceLoss,
        layers.IoULoss,
        layers.LovaszLoss,
        layers.MarginLoss,
    ):
        z = Tensor(logits, requires_grad=True)
        cls()(z, labels).backward()
        assert np.abs(z.grad.data[labels == 0]).max() > 0, cls.__name__
    assert ops.cross_entropy(Tensor(logits), labels).item() == mine


def test_the_page_about_python_names_operators_that_exist() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = page[page.index("| what | operators |") : page.index("The bounds of `clip`")]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) > 100
    assert set(named) <= set(ops.__all__)


def test_unified_focal_loss_is_its_two_parts_written_out() -> None:
    """Against NumPy in float64, one class heavier than the others: delta weighs what is missed, gamma turns to hard
    pixels and classes.
    """
    rng = np.random.default_rng(0)
    z, labels, weight = rng.standard_normal((2, 4, 5, 3)), rng.integers(0, 3, (2, 4, 5)), (1.0, 2.0, 0.5)
    balance, delta, gamma, smooth = 0.3, 0.7, 0.4, 1.0
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    t = np.eye(3)[labels]
    py = (p * t).sum(-1)
    focal = (delta * np.array(weight)[labels] * (1 - py) ** (1 - gamma) * -np.log(py)).mean()
    hit, extra, missed = ((a * b).sum((0, 1, 2)) for a, b in ((p, t), (p, 1 - t), (1 - p, t)))
    index = (hit + smooth) / (hit + (1 - delta) * extra + delta * missed + smooth)
    tversky = (np.array(weight) / sum(weight) * (1 - index) ** gamma).sum()
    loss = layers.UnifiedFocalLoss(weight, balance=balance, delta=delta, gamma=gamma)
    assert float(loss(Tensor(z), labels)) == pytest.approx(balance * focal + (1 - balance) * tversky)
    with pytest.raises(ValueError, match=r"UnifiedFocalLoss: gamma is 0, expected 0\.1 to 1"):
        layers.UnifiedFocalLoss(gamma=0)
