"""Inference without the interpreter: a network's kernel launches for one shape of images, recorded once and replayed.

At small batches half of the time of inference is Python between some hundred and fifty kernel launches. A `Plan` runs the network once,
writes down the launches (kernels/core/recording.py), and from then on copies images in, replays, and copies logits out.

What keeps it right. Every operator is one of three kinds. Those of LAUNCHES do all that depends on the image in kernels (when their
inputs are contiguous and no reference served them); those of VIEWS do nothing; all of CALLS are functions of their input arrays alone and are
called again, as is an operator of LAUNCHES that did more than launch. Another operator is refused, and so is an array that is neither made
from the images nor the network's. The recorded run sees noise; then the plan must give the ordinary path's logits of real images to the
bit. A plan notices when anything in the network is another than it was (weights, statistics, settings, modules) and does not run then.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from autograd import Tensor, inference, observe
from autograd.function import Function, root
from autograd.modes import modes
from autograd.ops.arithmetic import Add, Div, Mul, Sub
from autograd.ops.attention import Attention, PolarizedChannel, PolarizedSpatial
from autograd.ops.conv import Conv2d, Conv2dReLU, ConvTranspose2d
from autograd.ops.gate import Blend, Gate
from autograd.ops.norm import LayerNorm
from autograd.ops.pointwise import GELU, AddReLU, ReLU, Sigmoid, SiLU
from autograd.ops.pool import MaxPool2d
from autograd.ops.resample import Resample2d
from autograd.ops.shape import BroadcastTo, Concat, GetItem, Reshape, Split, Transpose
from kernels.core import memory
from kernels.core.device import CPU, Array, device_of
from kernels.core.dispatch import is_plain, kernel_log
from layers import Module

LAUNCHES = {Conv2d, Conv2dReLU, ConvTranspose2d, MaxPool2d, Resample2d, Gate, Concat, Split, ReLU, AddReLU}
VIEWS = {Reshape, Transpose, BroadcastTo, GetItem, Split}
CALLS = {*LAUNCHES, Reshape, Add, Sub, Mul, Div, Sigmoid, SiLU, GELU, Blend, PolarizedChannel, PolarizedSpatial, Attention, LayerNorm}


class PlanError(RuntimeError):
    """A network that cannot be planned, or is not the one that was."""


class _State:
    """All that a network is: its modules' attributes, and its Tensors' arrays and versions."""

    def __init__(self, net: Module) -> None:
        modules = list(net.modules())
        self._dicts = [vars(m) for m in modules]
        self._lists = [v for d in self._dicts for v in d.values() if isinstance(v, list)]
        self.tensors = [t for _, t in net.named_tensors()]
        self._was = list(self._all())

    def _all(self) -> Iterator[Any]:
        attributes = map(dict.values, self._dicts)
        return chain(*attributes, *self._lists, map(attrgetter("data"), self.tensors), map(attrgetter("version"), self.tensors), [_State])

    def unchanged(self) -> bool:
        """Whether everything is what it was, by identity."""
        return all(map(is_, self._all(), self._was))


class _Call(NamedTuple):
    """An operator that is called again, before launch number `before`."""

    before: int
    function: Function
    inputs: tuple[Array | None, ...]
    outputs: tuple[Array, ...]

    def run(self) -> None:
        results = self.function.forward(*self.inputs)
        self.function.release()
        for output, result in zip(self.outputs, results if isinstance(results, tuple) else (results,), strict=True):
            output[...] = result


class Plan:
    """Logits of images of one shape by the network that was planned: a function of float32 (N, H, W, C) giving float32 (N, H, W, classes).

    net: in evaluation mode, on the CPU.   images: an example, float32 (N, H, W, C): the plan is checked with it.
    Raises PlanError when the network cannot be planned, naming the operator. May be called by several threads: one waits for the other.
    """

    def __init__(self, net: Module, images: np.ndarray) -> None:
        from kernels.core.recording import Recording  # compiles: not before it is needed

        if net.training:
            raise PlanError("plan: the network is in training mode, expected evaluation mode: net.eval()")
        if device_of(images) != CPU or any(t.device != CPU for _, t in net.named_tensors()):
            raise PlanError("plan: the network or its images are not on the CPU")
        if images.dtype != np.float32:
            raise PlanError(f"plan: images are {images.dtype}, expected float32")
        with inference():
            expected = net(Tensor(images)).data  # compiles, chooses algorithms and folds, too
        self._lock, self._recording, self._calls = threading.Lock(), Recording(), list[_Call]()
        self._state, self._x = _State(net), np.random.default_rng(0).standard_normal(images.shape, np.float32)
        self._y = self._record(net)
        if self(images).tobytes() != expected.tobytes():
            raise PlanError("plan: replayed, the network gives other logits than before: it computes outside of operators")

    def _record(self, net: Module) -> Array:
        """Run the network on self._x; for every operator keep its launches, or the operator itself, or nothing."""
        made = {id(root(self._x))}  # memory of what depends on the images
        own = {id(root(t.data)) for t in self._state.tensors}
        recording, launches, served = self._recording, 0, 0

        def saw(function: Function, inputs: tuple[Any, ...], outputs: tuple[Array, ...]) -> None:
            nonlocal launches, served
            arrays = [a for a in inputs if a is not None]
            for a in arrays:
                if id(root(a)) not in made | own and getattr(root(a), "flags", a.flags).writeable:
                    raise PlanError(f"plan: {function.name} reads an array {a.shape} that is neither made from the images nor the network's")
            made.update(id(root(y)) for y in outputs)
            kind, first, by = type(function), launches, {entry.by for entry in log[served:]}
            launches, served = len(recording), len(log)
            shared = [any(np.may_share_memory(y, a) for a in arrays) for y in outputs]
            if kind in VIEWS and all(shared) and launches == first:
                return
            if kind in LAUNCHES and launches > first and by == {"fast"} and all(a.flags.c_contiguous for a in arrays):
                return
            if kind not in CALLS or any(shared):
                raise PlanError(f"plan: the operator {function.name} is not known to be a function of its input arrays alone")
            recording.drop(first)
            launches = first
            self._calls.append(_Call(first, function, inputs, outputs))

        with inference(), kernel_log() as log, observe(saw), recording.active():
            y = net(Tensor(self._x)).data
        if launches != len(recording) or id(root(y)) not in made:
            raise PlanError("plan: the network computes outside of operators")
        return y

    @property
    def current(self) -> bool:
        """Whether nothing in the network has changed since it was planned."""
        return self._state.unchanged()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, H, W, classes), an array of the caller's own. ValueError for another shape or dtype; PlanError when the network has changed."""
        if images.shape != self._x.shape or images.dtype != np.float32:
            raise ValueError(f"plan: images are {images.dtype} {images.shape}, the plan is for float32 {self._x.shape}")
        with self._lock:
            if not self.current:
                raise PlanError("plan: the network has changed since it was planned")
            np.copyto(self._x, images)
            done = 0
            for call in self._calls:
                self._recording.replay(done, call.before)
                call.run()
                done = call.before
            self._recording.replay(done, len(self._recording))
            logits = memory.empty(self._y.shape, self._y.dtype)
            np.copyto(logits, self._y)
            return logits


# -- plans where they pay ------------------------------------------------------------------------------------------------------------

_PAYS = 3  # a plan costs two runs, and saves per run about what one image costs: it pays after so many runs per image of the batch
_MOST = 4  # plans of one network
_lock = threading.Lock()
_plans: WeakKeyDictionary[Module, dict[tuple[int, ...], Plan | int]] = WeakKeyDictionary()  # by shape: the plan, or the runs so far


def run(net: Module, x: Array) -> Array:
    """net(x) in evaluation mode, without gradients: x (N, H, W, C) -> logits (N, H, W, classes), arrays of one device.

    On the CPU by a plan, as soon as images of one shape have come often enough; with the same bits. A network that cannot be planned runs as always.
    """
    plan = _plan_for(net, x)
    if plan:
        try:
            return plan(x)
        except PlanError:  # changed by another thread just now
            pass
    with inference():
        return net(Tensor(x)).data


def _plan_for(net: Module, x: Array) -> Plan | None:
    """The plan, made now if this is the time to; None if there is none yet, or something wants to see every operator."""
    if net.training or not isinstance(x, np.ndarray) or x.dtype != np.float32 or modes.observers or modes.anomaly or not is_plain():
        return None
    with _lock:
        known = _plans.setdefault(net, {})
        plan = known.get(x.shape, 0)
        if isinstance(plan, Plan):
            if plan.current:
                return plan
            plan = 0
        known[x.shape] = plan + 1
        if plan + 1 <= _PAYS * len(x):
            return None
        known[x.shape] = -(1 << 60)  # not again, if it cannot be
        if sum(isinstance(p, Plan) for p in known.values()) == _MOST:
            del known[next(shape for shape, p in known.items() if isinstance(p, Plan))]
        try:
            known[x.shape] = Plan(net, x)
        except PlanError as error:
            warnings.warn(f"{error}; inference goes on without", stacklevel=3)
            return None
        return known[x.shape]  # type: ignore[return-value]
