"""Training steps without the interpreter: the CPU captures the launches of a network's forward and backward pass once
and replays them.

A sixth of a step is Python between its seven hundred kernel launches. After some steps with batches of one shape, a
step is captured (kernels/core/cpu/capture.py). From then on a step copies the images in, replays the launches of the
forward pass, computes the loss as always, copies its gradient in, and replays the launches of the backward pass.

A step is captured with noise in place of the images and with other weights. It is replayed only if it then repeats the
ordinary step that came before it to the bit: logits, gradients and running statistics. A computation outside of
operators would be stale and show up there. Dropout draws its masks from the same places of the random stream as ever.
Before every replay the network is compared with what was captured (engine/graphs/network_state.py): if an attribute
that the forward pass read has changed, the step runs as always and is captured anew.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from autograd import Tensor, random
from autograd.modes import modes
from engine.graphs.network_state import State, reads
from engine.training.step import Passes, Terms
from kernels.core.cpu import buffer_pool
from kernels.core.device import Array
from kernels.core.dispatch import is_plain
from layers import Buffer, Module

_MOST = 256  # ordinary steps between two captures of a network that keeps changing


class CapturedPasses:
    """passes(x, labels) as Passes', on the CPU: captured when `warm` batches of one shape have come. Batches of other
    shapes run as always, in the captured graph's memory, which nobody needs between two replays.
    """

    def __init__(self, passes: Passes, warm: int = 1) -> None:
        self.passes, self.warm = passes, warm
        self.seen: dict[tuple[int, ...], int] = {}
        self.step: _Step | None = None
        # ordinary steps before the next capture: more for a network that changes soon after it was captured
        self.wait = warm

    def __call__(self, x: Array, labels: Array, scale: float | None = None) -> Terms:
        if (
            scale is not None
            or modes.observers
            or modes.anomaly
            or not modes.recording
            or not is_plain()
            or x.dtype != np.float32
        ):
            return self.passes(x, labels, scale)
        if self.step is not None and not self.step.current:
            self.wait = min(2 * self.wait, _MOST) if self.step.replays <= 2 * self.wait else self.warm
            self.step = None
            self.seen.clear()
        if self.step is None:
            self.seen[x.shape] = self.seen.get(x.shape, 0) + 1
            if self.seen[x.shape] != self.wait + 1:
                return self.passes(x, labels)
            terms, self.step = _captured(self.passes, x, labels)
            return terms
        for tensor, _ in self.step.gradients:
            tensor.grad = None
        if self.step.serves(x):
            return self.step(x, labels)
        with buffer_pool.use_pool(self.step.graph.pool):
            return self.passes(x, labels)


def _captured(passes: Passes, x: Array, labels: Array) -> tuple[Terms, _Step | None]:
    """An ordinary step, and a captured one that repeats it (None, with a warning, if none does)."""
    passes.optimizer.follow()
    passes.net.zero_grad()
    buffer_pool.pool.release()
    buffers = [t for _, t in passes.net.named_tensors(Buffer)]
    before = [t.data.copy() for t in buffers]
    place = random.state()
    was = State(passes.net, versions=False)
    terms = passes(x, labels)
    if not was.unchanged():
        warnings.warn(
            (
                "training: a step changes attributes of the network, which a replay would not do, so steps are not "
                "captured"
            ),
            stacklevel=4,
        )
        return terms, None
    largest = buffer_pool.pool.largest
    after = [t.data.copy() for t in buffers]
    gradient = _digest(passes)
    drawn = random.state()
    passes.net.zero_grad()
    buffer_pool.pool.release()
    try:
        step = _Step(passes, x, largest)
        passes.net.zero_grad()
        _restore(buffers, before)
        random.set_state(place)
        again = step(x, labels)
        same = all(np.array_equal(a, b) for a, b in zip(again.values(), terms.values(), strict=True))
        same &= _digest(passes) == gradient and random.state() == drawn
        same &= all(np.array_equal(t.data, a) for t, a in zip(buffers, after, strict=True))
        same &= step.knows_all
    finally:  # whatever happened, the network is where the ordinary step left it
        _restore(buffers, after)
        random.set_state(drawn)
    if same:
        return terms, step
    warnings.warn(
        "training: a captured step gives different numbers than the step itself, so steps are not captured",
        stacklevel=4,
    )
    _restore(buffers, before)
    random.set_state(place)
    return passes(x, labels), None


def _digest(passes: Passes) -> bytes:
    """A fingerprint of a gradient, in a few bytes: a copy would be as large as the parameters."""
    return hashlib.blake2b(passes.optimizer.gradient.data).digest()


def _restore(buffers: list[Tensor], values: list[np.ndarray]) -> None:
    for tensor, value in zip(buffers, values, strict=True):
        tensor.data[...] = value
        tensor.touch()


class _Step:
    """The captured passes for batches of x's shape. largest: bytes of the largest block of memory that they need."""

    def __init__(self, passes: Passes, x: Array, largest: int) -> None:
        from kernels.core.cpu.capture import CapturedGraph  # compiles: not before it is needed

        self.passes = passes
        self.graph = CapturedGraph()
        noise = np.random.default_rng(0)
        self.x = noise.standard_normal(x.shape, np.float32)
        start = random.state()
        with _other_values(passes.net), self.graph.operators():
            with reads() as read:
                logits = passes.net(Tensor(self.x))
            self.logits = logits.data
            self.middle = self.graph.place
            # The first gradients of maps take this block. Made when it is needed, it would come on top of smaller ones
            # that are free by then.
            buffer_pool.empty((largest,), np.uint8)
            self.dlogits = noise.standard_normal(logits.shape, np.float32)
            logits.backward(Tensor(self.dlogits))
            passes.optimizer.gather()
        del logits
        self.seed, self.first = start
        self.draws = random.state()[1] - self.first
        self.gradients = [(t, t.grad) for t in passes.net.parameters()]
        self.buffers = [t for _, t in passes.net.named_tensors(Buffer)]
        self.net = passes.net
        self.state = State(passes.net, versions=False, read=read)
        self.gradient = passes.optimizer.gradient
        self.present = passes.optimizer.present
        self.replays = 0
        self.references = self.graph.pool.references

    @property
    def knows_all(self) -> bool:
        """Whether every Tensor that may receive a gradient is a parameter of the network."""
        known = {id(t) for t, _ in self.gradients}
        return all(id(t) in known for t in self.state.tensors if t.requires_grad)

    @property
    def current(self) -> bool:
        """Whether the network is unchanged since capture. Captured objects are held, so no other object can take their
        place.
        """
        passes = self.passes
        if (
            random.state()[0] != self.seed
            or passes.net is not self.net
            or passes.optimizer.gradient is not self.gradient
        ):
            return False
        return self.state.unchanged()

    def serves(self, x: Array) -> bool:
        """Whether x has the captured shape, and nobody else uses the memory that a replay writes to."""
        return x.shape == self.x.shape and self.graph.pool.references == self.references

    def __call__(self, x: Array, labels: Array) -> Terms:
        graph = self.graph
        passes = self.passes
        offset = random.state()[1]
        graph.redraw(offset - self.first)
        np.copyto(self.x, x)
        graph.run(graph.start, self.middle)
        logits = Tensor(self.logits, requires_grad=True)
        loss = passes.loss(logits, labels)
        loss.backward()
        np.copyto(self.dlogits, logits.grad.data)
        graph.run(self.middle, graph.place)
        random.set_state((self.seed, offset + self.draws))
        for tensor in self.buffers:
            tensor.touch()
        for tensor, gradient in self.gradients:
            tensor.grad = gradient
        passes.optimizer.present = self.present
        self.replays = self.replays + 1
        return {"loss": loss.data, **passes.loss.terms}


@contextmanager
def _other_values(net: Module) -> Iterator[None]:
    """Within the block all parameters and statistics differ a little from what they are: numbers that Python computes
    from them will not fit afterwards.
    """
    tensors = [t for t in {id(t): t for _, t in net.named_tensors()}.values() if t.dtype.kind == "f"]
    values = [t.data.copy() for t in tensors]
    try:
        for t in tensors:
            t.data[...] = t.data * 1.0625 + 2.0**-10
        with np.errstate(all="ignore"):
            yield
    finally:
        _restore(tensors, values)
