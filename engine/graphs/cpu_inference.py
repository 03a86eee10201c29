"""Inference without the interpreter: a network's kernel launches for one shape of images, captured once and replayed.

At small batches half of the time of inference is Python between some hundred and fifty kernel launches. An
`InferenceGraph` runs the network once, captures the launches (kernels/core/cpu/capture.py), and from then on copies
images in, replays, and copies logits out.

The captured run sees noise; then the graph must give the ordinary path's logits of real images to the bit: a
computation outside of operators would be stale and show up there. A graph notices when anything in the network has
changed (weights, statistics, settings, modules) and does not run then. Nobody can observe writes by NumPy: within an
`inference()` block arrays are read-only, and a graph's first run in a block compares all weights with what they were
(kernels/core/held.py). Outside of a block every run does (2 ms for 13 MB, where one image takes 12), so a program that
runs a graph often should do so within one block.
"""

from __future__ import annotations

import sys
import threading
import warnings
from weakref import WeakKeyDictionary

import numpy as np

from autograd import Tensor, inference
from autograd.modes import modes
from engine.graphs import CaptureError
from engine.graphs.network_state import State
from kernels.core.cpu import buffer_pool
from kernels.core.device import CPU, Array, device_of
from kernels.core.dispatch import is_plain
from kernels.core.held import Block, Snapshot, current
from layers import Module


class InferenceGraph:
    """Logits of images of one shape by the captured network: a function of float32 (N, H, W, C) that gives float32
    (N, H, W, classes).

    net: in evaluation mode, on the CPU.   images: an example, float32 (N, H, W, C), with which the graph is checked.
    Raises CaptureError if the network cannot be captured. Several threads may call it: one waits for the other.
    """

    def __init__(self, net: Module, images: np.ndarray) -> None:
        from kernels.core.cpu.capture import CapturedGraph  # compiles: not before it is needed

        if net.training:
            raise CaptureError("inference: the network is in training mode, expected evaluation mode: net.eval()")
        if device_of(images) != CPU or any(t.device != CPU for _, t in net.named_tensors()):
            raise CaptureError("inference: the network or its images are not on the CPU")
        if images.dtype != np.float32:
            raise CaptureError(f"inference: images are {images.dtype}, expected float32")
        with inference():
            expected = net(Tensor(images)).data  # compiles, chooses algorithms and folds, too
            self._lock = threading.Lock()
            self._graph = CapturedGraph()
            self._state = State(net)
            self._numbers = self._held(current())
            self._snapshot = Snapshot([t.data for t in self._state.tensors])
        self._x = np.random.default_rng(0).standard_normal(images.shape, np.float32)
        with inference(), self._graph.operators():
            self._y = net(Tensor(self._x)).data
        if self(images).tobytes() != expected.tobytes():
            raise CaptureError(
                "inference: a replay gives different logits than the network: it computes outside of operators"
            )

    @property
    def current(self) -> bool:
        """Whether nothing in the network has changed since it was captured."""
        if not self._state.unchanged():
            return False
        block = current()
        if block is None:
            return self._snapshot.holds()
        if id(self) not in block.entries:
            if self._held(block) != self._numbers:
                return False
            block.entries[id(self)] = self
        return True

    def _held(self, block: Block | None) -> list[int]:
        """The numbers of all contents, with everything held until the block ends."""
        return [] if block is None else [block.number(t.data, t.version) for t in self._state.tensors]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, H, W, classes), an array of the caller's own. Raises ValueError for another shape or dtype;
        CaptureError when the network has changed.
        """
        if images.shape != self._x.shape or images.dtype != np.float32:
            got = f"{images.dtype} {images.shape}"
            wanted = f"float32 {self._x.shape}"
            raise ValueError(f"inference: images are {got}, the captured graph is for {wanted}")
        with self._lock:
            if not self.current:
                raise CaptureError("inference: the network has changed since it was captured")
            np.copyto(self._x, images)
            with inference():
                self._graph.run(self._graph.start, self._graph.place)
            logits = buffer_pool.empty(self._y.shape, self._y.dtype)
            np.copyto(logits, self._y)
            return logits


# -- graphs where they pay ---------------------------------------------------------------------------------------------

# capture costs two runs, and saves per run about what one image costs: it pays after so many runs per image of the
# batch
_PAYS = 3
_NEVER = -sys.maxsize  # runs of a shape that is not captured again
_MOST = 4  # graphs of one network
_lock = threading.Lock()
# by shape: the graph, or the runs so far
_graphs: WeakKeyDictionary[Module, dict[tuple[int, ...], InferenceGraph | int]] = WeakKeyDictionary()


def run(net: Module, x: Array) -> Array:
    """net(x) in evaluation mode, without gradients: x (N, H, W, C) -> logits (N, H, W, classes), arrays of one device.

    On the CPU a captured graph serves, as soon as images of one shape have come often enough, with the same bits. A
    network that cannot be captured runs as always.
    """
    graph = _graph_for(net, x)
    if graph:
        try:
            return graph(x)
        except CaptureError:  # the network has changed
            with _lock:
                if _graphs[net].get(x.shape) is graph:
                    _graphs[net][x.shape] = 1
    with inference():
        return net(Tensor(x)).data


def _graph_for(net: Module, x: Array) -> InferenceGraph | None:
    """The graph, captured now if it is due; None if there is none yet, or a profiler or log wants to see every
    operator.
    """
    if (
        net.training
        or not isinstance(x, np.ndarray)
        or x.dtype != np.float32
        or modes.observers
        or modes.anomaly
        or not is_plain()
    ):
        return None
    with _lock:
        known = _graphs.setdefault(net, {})
        graph = known.get(x.shape, 0)
        if isinstance(graph, InferenceGraph):
            return graph
        known[x.shape] = graph + 1
        if graph + 1 <= _PAYS * len(x):
            return None
        known[x.shape] = _NEVER  # in case it cannot be captured
        if sum(isinstance(p, InferenceGraph) for p in known.values()) == _MOST:
            del known[next(shape for shape, p in known.items() if isinstance(p, InferenceGraph))]
        try:
            known[x.shape] = InferenceGraph(net, x)
        except CaptureError as error:
            warnings.warn(f"{error}; inference goes on without", stacklevel=3)
            return None
        return known[x.shape]  # type: ignore[return-value]
