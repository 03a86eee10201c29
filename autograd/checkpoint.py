"""Trade time for memory: run a part and forget its tape, and run it again when its gradient is needed.

The second run must see what the first one saw, and change nothing that the first one has changed. Random numbers are
replayed. States that the part updates (running statistics, counters: every Tensor that it changes in place) are
recorded in the first run with their old values. The second run starts from these, and afterwards each state gets back
what it held.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from autograd import random
from autograd.function import Function
from autograd.modes import enable_grad, modes
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module
from kernels.shape import duplicate, overwrite


def checkpoint(fn: Callable[..., Any], *inputs: Any) -> Any:
    """fn(*inputs), a Tensor or a tuple of Tensors, keeping only the inputs; backward calls fn again, with the same
    random stream and the same states.

    fn must give the same result both times. Parameters that it uses from outside get their gradients in the second run.
    Tensors that it changes in place, such as the running statistics of a batch norm, change once. States that are no
    Tensors, and arrays that are written to without the Tensor's methods, are not seen: they change twice.
    Raises RuntimeError where fn changes an input in place, TypeError where it gives anything but Tensors.
    Source: Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """
    return Checkpoint(fn)(*inputs)


class _States:
    """The Tensors that a run has changed in place, and their values before."""

    def __init__(self) -> None:
        self.recorded: list[
            tuple[weakref.ref[Tensor], Array]
        ] = []  # a Tensor of the run's own is gone by the end of it

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block, changes of this thread are recorded."""
        known: set[int] = set()
        alive: list[Tensor] = []  # so that no id is used twice

        def record(tensor: Tensor) -> None:
            if id(tensor) not in known:
                known.add(id(tensor))
                alive.append(tensor)
                self.recorded.append((weakref.ref(tensor), duplicate(tensor.data)))

        modes.writers.append(record)
        try:
            yield
        finally:
            modes.writers[:] = [other for other in modes.writers if other is not record]
            alive.clear()
            self.recorded = [(ref, values) for ref, values in self.recorded if ref() is not None]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Within the block the states have the values from before the run; afterwards, those that they have now."""
        states = [
            (state, before)
            for ref, before in self.recorded
            if (state := ref()) is not None and state.shape == before.shape
        ]
        now = [(state, duplicate(state.data), state.version) for state, _ in states]
        for state, before in reversed(states):  # of two that share memory the first was recorded with the oldest values
            overwrite(state.data, before)
        try:
            yield
        finally:
            for state, values, version in now:
                overwrite(state.data, values)
                state._version[0] = version


class Checkpoint(Function):
    """The operator behind `checkpoint`. The random stream's state is saved before the first run and replayed in the
    second.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def __call__(self, *inputs: Any) -> Any:
        # A part with parameters of its own must be recorded even when none of its inputs needs a gradient.
        return super().__call__(*inputs, Tensor(np.zeros(0, np.float32), requires_grad=True))

    def forward(self, *arrays: Array) -> Any:
        self.state = random.state()
        self.states = _States()
        self.save(*arrays)
        leaves = self._leaves(arrays[:-1])
        with self.states.recording():
            # in the mode of the second run, so that it takes the same branches; its tape goes with the result
            result = self.fn(*leaves)
        for k, x in enumerate(leaves):
            if x is not None and x.version:
                raise RuntimeError(
                    f"checkpoint: the function changes its input {k} {x.shape} in place, so that it cannot run again"
                )
        results = result if isinstance(result, tuple) else (result,)
        for output in results:
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"checkpoint: the function gave a {type(output).__name__}, expected a Tensor or a tuple of Tensors"
                )
        return tuple(output.data for output in results) if isinstance(result, tuple) else result.data

    def backward(self, *dys: Array) -> tuple[Array | None, ...]:
        *arrays, anchor = self.saved
        leaves = self._leaves(arrays)
        with self.states.as_before():
            with enable_grad(), random.replay(self.state):
                result = self.fn(*leaves)
            results = result if isinstance(result, tuple) else (result,)
            # while states hold what the run left in them: operators may have saved their arrays
            if any(r.requires_grad for r in results):
                _Seeds(dys)(*results).backward()
        return (*(_gradient(x) for x in leaves), anchor)

    def _leaves(self, arrays: Sequence[Array | None]) -> list[Tensor | None]:
        return [
            None if a is None else Tensor(a, requires_grad=need) for a, need in zip(arrays, self.needs, strict=False)
        ]


class _Seeds(Function):
    """0, whose gradients with respect to its inputs are given: a backward pass from several results at once."""

    def __init__(self, dys: tuple[Array, ...]) -> None:
        super().__init__()
        self.dys = dys

    def forward(self, *results: Array) -> Array:
        return array_module(*results).zeros((), np.float32)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        return tuple(g if need else None for g, need in zip(self.dys, self.needs, strict=True))


def _gradient(leaf: Tensor | None) -> Array | None:
    if leaf is None or not leaf.requires_grad:
        return None
    return array_module(leaf.data).zeros_like(leaf.data) if leaf.grad is None else leaf.grad.data
