"""Programs of edits, steps and evaluations, run twice: with captured steps, plans and packed weights, and with none of
them.

    python -m tests.support.stateful --programs 5000   # programs of the seeds 0 to 4999; --first N starts at N

A program edits a small network as a user does in an interactive session: attributes, weights in place, modes, frozen
parameters, modules swapped or shared, dtypes, loaded states, other optimizers. After every training step the loss, the
gradients and all Tensors of both sides have the same bits. An evaluation by `plan.run` has the bits of a network made
anew with the same values and run without anything kept, and is as close to the unfused operators (convolution, then
norm) as float32 allows (see `UNFUSED`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import Tensor, enable_grad, no_grad
from autograd import random as tape_random
from engine.graphs import cpu_inference
from engine.graphs.cpu_step import CapturedPasses
from engine.training.optimizer import SGD, Adam, AdamW
from engine.training.step import Passes
from layers import Conv2d, ConvNorm, CrossEntropyLoss, Dropout, Identity, Module

# of the largest logit: folding a norm rounds its filter once more, and eps of a nearly constant channel magnifies that
UNFUSED = 1e-3
LENGTH = 14  # actions of a program


class Net(Module):
    """Two blocks that may change places, dropout, and a head."""

    def __init__(self) -> None:
        self.first, self.second = ConvNorm(4, 4, 3), ConvNorm(4, 4, 1, activation=None)
        self.stem, self.drop, self.head = Conv2d(2, 4, 3, padding=1), Dropout(0.3), Conv2d(4, 3, 1)
        self.settings = {"scale": [1.0, 0.5], "residual": True}

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.stem(x))
        z = self.second(y)
        z = z + y * self.settings["scale"][1] if self.settings["residual"] else z
        return self.head(self.drop(z)) * self.settings["scale"][0]


class World:
    """One side: a network with its optimizer and its own random stream."""

    def __init__(self, seed: int, fast: bool) -> None:
        rng = np.random.default_rng(seed)
        self.fast, self.net = fast, Net()
        for _, t in self.net.named_tensors():
            t.data[...] = (
                np.abs(rng.standard_normal(t.shape)) * 0.5 + 0.1 if t.ndim == 1 else rng.standard_normal(t.shape) * 0.5
            )
        tape_random.seed(seed)
        self.place, self.saved = tape_random.state(), self.net.state_dict()
        self.train_with(SGD, {"lr": 0.05, "momentum": 0.9})

    def train_with(self, kind: Any, settings: dict[str, Any]) -> None:
        """A new optimizer."""
        self.optimizer = kind(self.net, **settings)
        plain = Passes(self.net, CrossEntropyLoss(), self.optimizer, "cpu")
        self.passes = CapturedPasses(plain) if self.fast else plain

    def step(self, x: np.ndarray, labels: np.ndarray) -> list[Any]:
        """One update: the loss, or the error; the gradients."""
        tape_random.set_state(self.place)
        try:
            loss: Any = float(self.passes(x, labels)["loss"])
            self.optimizer.step(gathered=True)
        except (RuntimeError, ValueError, TypeError) as error:
            return [str(error)]
        finally:
            self.place = tape_random.state()
        return [loss, *(None if p.grad is None else p.grad.data.copy() for p in self.net.parameters())]

    def evaluate(self, x: np.ndarray, runs: int) -> np.ndarray:
        """Logits in evaluation mode, modes as they were afterwards."""
        modes = [(m, m.training) for m in self.net.modules()]
        self.net.eval()
        try:
            if self.fast:
                for _ in range(runs):
                    y = cpu_inference.run(self.net, x)
                return y
            anew = copy.deepcopy(self.net)
            with no_grad():
                return anew(Tensor(x)).data
        finally:
            for module, mode in modes:
                module.training = mode

    def unfused(self, x: np.ndarray) -> np.ndarray:
        """By convolution and norm, one after the other."""
        modes = [(m, m.training) for m in self.net.modules()]
        self.net.eval()
        try:
            with enable_grad():
                return self.net(Tensor(x)).data
        finally:
            for module, mode in modes:
                module.training = mode


Edit = Callable[[World, np.random.Generator], Any]


def _parameter(world: World, rng: np.random.Generator) -> Any:
    parameters = world.net.parameters()
    return parameters[rng.integers(len(parameters))]


def _module(world: World, rng: np.random.Generator, kind: type[Module] = Module) -> Any:
    modules = [m for m in world.net.modules() if isinstance(m, kind)]
    return modules[rng.integers(len(modules))] if modules else Identity()


def _attribute(world: World, rng: np.random.Generator) -> None:
    block = _module(world, rng, ConvNorm)
    choices = [
        (world.net.drop, "p", [0.0, 0.2, 0.6]),
        (getattr(block, "norm", block), "eps", [1e-5, 1e-2, 0.5]),
        (getattr(block, "norm", block), "momentum", [0.0, 0.1, 0.9]),
        (getattr(block, "norm", block), "activation", [None, "relu"]),
        (getattr(block, "conv", block), "dilation", [1, 2, (1, 2)]),
    ]
    owner, name, values = choices[rng.integers(len(choices))]
    setattr(owner, name, values[rng.integers(len(values))])


def _setting(world: World, rng: np.random.Generator) -> None:
    if rng.random() < 0.3:
        world.net.settings["residual"] = not world.net.settings["residual"]
    else:
        world.net.settings["scale"][rng.integers(2)] = float(rng.choice([0.5, 1.0, 2.0]))


def _in_place(world: World, rng: np.random.Generator) -> None:
    tensors = [t for _, t in world.net.named_tensors()]
    array = tensors[rng.integers(len(tensors))].data
    if rng.random() < 0.5:
        array *= array.dtype.type(1.25)
    else:
        array.reshape(-1)[rng.integers(array.size)] = 0.75


def _in_place_by_tensor(world: World, rng: np.random.Generator) -> None:
    with no_grad():
        _parameter(world, rng).mul_(0.9) if rng.random() < 0.5 else _parameter(world, rng).add_(0.01)


def _other_array(world: World, rng: np.random.Generator) -> None:
    p = _parameter(world, rng)
    p.data = p.data * p.dtype.type(0.5)


def _exchange(world: World, rng: np.random.Generator) -> None:
    a, b = world.net.first, world.net.second
    if isinstance(a, ConvNorm) and isinstance(b, ConvNorm) and a is not b:
        a.norm.weight.data, b.norm.weight.data = b.norm.weight.data, a.norm.weight.data


def _freeze(world: World, rng: np.random.Generator) -> None:
    p = _parameter(world, rng)
    p.requires_grad = not p.requires_grad


def _mode(world: World, rng: np.random.Generator) -> None:
    _module(world, rng).train(bool(rng.integers(2)))


def _swap(world: World, rng: np.random.Generator) -> None:
    net = world.net
    net.first, net.second = net.second, net.first


def _share(world: World, rng: np.random.Generator) -> None:
    world.net.second = world.net.first


def _to_identity(world: World, rng: np.random.Generator) -> None:
    setattr(world.net, ("drop", "second")[rng.integers(2)], Identity())


def _new_module(world: World, rng: np.random.Generator) -> None:
    """Another block; the optimizer does not know it:
    half of the time there is a new one, half of the time it says so.
    """
    block = ConvNorm(4, 4, 3)
    block.conv.weight.data[...] = rng.standard_normal(block.conv.weight.shape) * 0.3
    world.net.second = block.to(dtype=world.net.stem.weight.dtype)
    if rng.random() < 0.5:
        world.train_with(AdamW, {"lr": 0.01})


def _dtype(world: World, rng: np.random.Generator) -> None:
    world.net.to(dtype="float64" if world.net.stem.weight.dtype == np.float32 else "float32")


def _save(world: World, rng: np.random.Generator) -> None:
    world.saved = world.net.state_dict()


def _load(world: World, rng: np.random.Generator) -> None:
    with contextlib.suppress(ValueError):  # of a network with other modules
        world.net.load_state_dict(world.saved)


def _optimizer(world: World, rng: np.random.Generator) -> None:
    kind = (SGD, Adam, AdamW)[rng.integers(3)]
    extra = {"momentum": 0.9} if kind is SGD else {}
    world.train_with(
        kind,
        {
            "lr": 0.02,
            "weight_decay": 0.1,
            "average": float(rng.choice([0.0, 0.9])),
            "clip": float(rng.choice([0.1, np.inf])),
            **extra,
        },
    )


def _group(world: World, rng: np.random.Generator) -> None:
    world.optimizer.param_groups[0][("lr", "weight_decay")[rng.integers(2)]] = float(rng.choice([0.01, 0.03]))


EDITS: list[Edit] = [
    _attribute,
    _attribute,
    _attribute,
    _setting,
    _in_place,
    _in_place,
    _in_place_by_tensor,
    _other_array,
    _exchange,
    _freeze,
    _freeze,
    _mode,
    _mode,
    _swap,
    _share,
    _to_identity,
    _new_module,
    _dtype,
    _save,
    _load,
    _optimizer,
    _group,
]


class Program:
    """Both sides of one program, driven action by action. done: how often each kind of action was done."""

    def __init__(self, seed: int) -> None:
        self.worlds, self.done = [World(seed, fast) for fast in (True, False)], Counter[str]()
        self.batch = 2

    def edit(self, number: int, seed: int) -> None:
        """An edit of both networks with the same numbers."""
        edit = EDITS[number % len(EDITS)]
        self.done[edit.__name__] += 1
        for world in self.worlds:
            edit(world, np.random.default_rng(seed))
        self.compare()

    def train(self, steps: int, seed: int) -> None:
        """Steps on the same batches."""
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            x = rng.standard_normal((self.batch, 8, 8, 2)).astype(self.worlds[0].net.stem.weight.dtype)
            labels = rng.integers(0, 3, (self.batch, 8, 8))
            captured = self.worlds[0].passes.step
            results = [world.step(x, labels) for world in self.worlds]
            same(*results)
            self.done["failed step" if isinstance(results[0][0], str) else "step"] += 1
            self.done["captured step"] += captured is not None and captured is self.worlds[0].passes.step
            self.compare()

    def evaluate(self, runs: int, seed: int) -> None:
        """Logits of one image, several times."""
        x = np.random.default_rng(seed).standard_normal((1, 8, 8, 2)).astype(self.worlds[0].net.stem.weight.dtype)
        fast, plain = (world.evaluate(x, runs) for world in self.worlds)
        np.testing.assert_array_equal(fast, plain)
        unfused = self.worlds[1].unfused(x)
        assert np.abs(fast - unfused).max() <= UNFUSED * max(1e-6, np.abs(unfused).max()), "unfused"
        self.done["evaluation"] += 1
        self.done["planned evaluation"] += any(
            isinstance(p, cpu_inference.InferenceGraph)
            for p in cpu_inference._graphs.get(self.worlds[0].net, {}).values()
        )
        self.compare()

    def compare(self) -> None:
        """All Tensors, what the optimizers hold, and the places in the random streams."""
        states = []
        for world in self.worlds:
            held = [getattr(world.optimizer, name) for name in ("average", *world.optimizer.vectors)]
            states.append([*(t.data for _, t in world.net.named_tensors()), *held, np.array(world.place)])
        same(*states)


def same(a: list[Any], b: list[Any]) -> None:
    """Equal to the bit, NaN included."""
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert type(one) is type(other)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other or one != one, (one, other)


def run(seed: int) -> Counter[str]:
    """The program of a seed; AssertionError where the sides differ. What it did, counted."""
    rng = np.random.default_rng(seed)
    program = Program(seed)
    for _ in range(LENGTH):
        kind, detail = rng.random(), int(rng.integers(2**31))
        if kind < 0.45:
            program.edit(int(rng.integers(len(EDITS))), detail)
        elif kind < 0.8:
            program.train(int(rng.integers(1, 5)), detail)
        else:
            program.evaluate(int(rng.integers(1, 6)), detail)
    return program.done


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.stateful",
        description="Random programs with and without captured steps, plans and caches.",
    )
    parser.add_argument("--programs", type=int, default=200, help="how many programs (seeds) to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    args = parser.parse_args()
    done, failed, start = Counter[str](), [], time.monotonic()
    for seed in range(args.first, args.first + args.programs):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # some programs diverge
                warnings.simplefilter("error", UserWarning)  # a step that could not be captured
                done += run(seed)
        except Exception as error:
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {str(error).strip()[:300]}", flush=True)
        if (seed + 1 - args.first) % 50 == 0:
            print(
                f"{seed + 1 - args.first} programs, {len(failed)} failed, {time.monotonic() - start:.0f} s", flush=True
            )
    print(
        f"{args.programs} programs from seed {args.first}: {len(failed)} failed {failed[:20]}; "
        + ", ".join(f"{k} {n}" for k, n in sorted(done.items()))
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
