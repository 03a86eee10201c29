"""Training steps without the interpreter: on the CPU, the launches of a network's forward and backward pass recorded once and replayed.

A sixth of a step is Python between its seven hundred kernel launches. After some steps with batches of one shape a step is recorded
(kernels/core/recording.py); from then on the images are copied in, the launches of the forward pass are replayed, the loss is computed as
always, its gradient is copied in, and the launches of the backward pass are replayed.

What keeps it right: a recording is made with noise in place of the images, and is used only if it then repeats the ordinary step that came before
it to the bit: logits, gradients and running statistics. Whatever computes outside of operators would be stale and show up there. Dropout
draws its masks from the same places of the random stream as ever. Where something in the network is not what it was, the step runs as always.
"""

from __future__ import annotations

import hashlib
import warnings
from operator import is_
from typing import Any

import numpy as np

from autograd import Tensor, random
from autograd.modes import modes
from engine.passes import Passes, Terms
from engine.state import State
from kernels.core import memory
from kernels.core.device import Array
from kernels.core.dispatch import is_plain
from layers import Buffer, Module


class RecordedPasses:
    """passes(x, labels) as Passes', on the CPU: recorded when `warm` batches of one shape have come. Batches of other shapes run as always, in
    the recording's memory, which nobody needs between two replays.
    """

    def __init__(self, passes: Passes, warm: int = 1) -> None:
        self.passes, self.warm = passes, warm
        self.seen: dict[tuple[int, ...], int] = {}
        self.step: _Step | None = None

    def __call__(self, x: Array, labels: Array, scale: float | None = None) -> Terms:
        if scale is not None or modes.observers or modes.anomaly or not is_plain():
            return self.passes(x, labels, scale)
        if self.step is not None and not self.step.current:
            self.step = None
            self.seen.clear()
        if self.step is None:
            self.seen[x.shape] = self.seen.get(x.shape, 0) + 1
            if self.seen[x.shape] != self.warm + 1:
                return self.passes(x, labels)
            terms, self.step = _recorded(self.passes, x, labels)
            return terms
        for tensor, _ in self.step.gradients:
            tensor.grad = None
        if self.step.serves(x):
            return self.step(x, labels)
        with memory.use_pool(self.step.recording.pool):
            return self.passes(x, labels)


def _recorded(passes: Passes, x: Array, labels: Array) -> tuple[Terms, _Step | None]:
    """An ordinary step, and a recording that repeats it (None, with a warning, where none does)."""
    passes.net.zero_grad()
    memory.pool.release()
    buffers = [t for _, t in passes.net.named_tensors(Buffer)]
    before, place = [t.data.copy() for t in buffers], random.state()
    terms = passes(x, labels)
    largest = memory.pool.largest
    after, gradient, drawn = [t.data.copy() for t in buffers], _digest(passes), random.state()
    passes.net.zero_grad()
    memory.pool.release()
    try:
        step = _Step(passes, x, largest)
        passes.net.zero_grad()
        _restore(buffers, before)
        random.set_state(place)
        again = step(x, labels)
        same = all(np.array_equal(a, b) for a, b in zip(again.values(), terms.values(), strict=True))
        same &= _digest(passes) == gradient and random.state() == drawn
        same &= all(np.array_equal(t.data, a) for t, a in zip(buffers, after, strict=True))
    finally:  # whatever happened, the network is where the ordinary step left it
        _restore(buffers, after)
        random.set_state(drawn)
    if same:
        return terms, step
    warnings.warn("training: a recorded step gives other numbers than the step itself, so steps are not recorded", stacklevel=4)
    _restore(buffers, before)
    random.set_state(place)
    return passes(x, labels), None


def _digest(passes: Passes) -> bytes:
    """What tells one gradient from another, in a few bytes: a copy would be as large as the parameters."""
    return hashlib.blake2b(passes.optimizer.gradient.data).digest()


def _restore(buffers: list[Tensor], values: list[np.ndarray]) -> None:
    for tensor, value in zip(buffers, values, strict=True):
        tensor.data[...] = value
        tensor.touch()


class _Step:
    """The recorded passes for batches of x's shape. largest: bytes of the largest block of memory that they need."""

    def __init__(self, passes: Passes, x: Array, largest: int) -> None:
        from kernels.core.recording import Recording  # compiles: not before it is needed

        self.passes, self.recording = passes, Recording()
        noise = np.random.default_rng(0)
        self.x, start = noise.standard_normal(x.shape, np.float32), random.state()
        with self.recording.operators():
            logits = passes.net(Tensor(self.x))
            self.logits, self.middle = logits.data, self.recording.place
            # The first gradients of maps take this block. Made when it is needed, it would come on top of smaller ones that are free by then.
            memory.empty((largest,), np.uint8)
            self.dlogits = noise.standard_normal(logits.shape, np.float32)
            logits.backward(Tensor(self.dlogits))
            passes.optimizer.gather()
        del logits
        self.seed, self.first = start
        self.draws = random.state()[1] - self.first
        self.gradients = [(t, t.grad) for t in passes.net.parameters()]
        self.buffers = [t for _, t in passes.net.named_tensors(Buffer)]
        self.was, self.state = _identity(passes.net), State(passes.net, versions=False)
        self.references = self.recording.pool.references

    @property
    def current(self) -> bool:
        """Whether the network is what was recorded, compared object by object: what was recorded is held, so no other can take its place."""
        if random.state()[0] != self.seed:
            return False
        if self.state.unchanged():
            return True
        now, self.state = _identity(self.passes.net), State(self.passes.net, versions=False)  # some attribute is another: does it matter?
        return len(now) == len(self.was) and all(map(is_, now, self.was))

    def serves(self, x: Array) -> bool:
        """Whether x has the recorded shape, and nobody else uses the memory that a replay writes to."""
        return x.shape == self.x.shape and self.recording.pool.references == self.references

    def __call__(self, x: Array, labels: Array) -> Terms:
        recording, passes = self.recording, self.passes
        offset = random.state()[1]
        recording.redraw(offset - self.first)
        np.copyto(self.x, x)
        recording.run(recording.start, self.middle)
        logits = Tensor(self.logits, requires_grad=True)
        loss = passes.loss(logits, labels)
        loss.backward()
        np.copyto(self.dlogits, logits.grad.data)
        recording.run(self.middle, recording.place)
        random.set_state((self.seed, offset + self.draws))
        for tensor in self.buffers:
            tensor.touch()
        for tensor, gradient in self.gradients:
            tensor.grad = gradient
        return {"loss": loss.data, **passes.loss.terms}


def _identity(net: Module) -> list[Any]:
    """What a recording depends on, apart from values: the Tensors, their memory and the modules' modes."""
    return [*(a for _, t in net.named_tensors() for a in (t, t.data)), *(m.training for m in net.modules())]
