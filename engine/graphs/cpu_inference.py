"""Inference without the interpreter: a network's kernel launches for one shape of images, recorded once and replayed.

At small batches half of the time of inference is Python between some hundred and fifty kernel launches. A
`InferenceGraph` runs the network once, writes down the launches (kernels/core/cpu/capture.py), and from then on copies
images in, replays, and copies logits out.

What keeps it right. The recorded run sees noise; then the plan must give the ordinary path's logits of real images to
the bit: whatever computes outside of operators would be stale and show up there. A plan notices when anything in the
network is another than it was (weights, statistics, settings, modules) and does not run then. Writes by NumPy cannot be
observed: within an `inference()` block arrays are read-only, and a plan's first run in a block compares all weights
with what they were (kernels/core/held.py). Outside of a block every run does (2 ms for 13 MB, where one image takes
12): who runs a plan often does so within one block.
"""

from __future__ import annotations

import threading
import warnings
from weakref import WeakKeyDictionary

import numpy as np

from autograd import Tensor, inference
from autograd.modes import modes
from engine.graphs.network_state import State
from kernels.core.cpu import buffer_pool
from kernels.core.device import CPU, Array, device_of
from kernels.core.dispatch import is_plain
from kernels.core.held import Block, Snapshot, current
from layers import Module


class CaptureError(RuntimeError):
    """A network that cannot be planned, or is not the one that was."""


class InferenceGraph:
    """Logits of images of one shape by the network that was planned: a function of float32 (N, H, W, C) giving float32
    (N, H, W, classes).

    net: in evaluation mode, on the CPU.   images: an example, float32 (N, H, W, C): the plan is checked with it.
    Raises CaptureError when the network cannot be planned. May be called by several threads: one waits for the other.
    """

    def __init__(self, net: Module, images: np.ndarray) -> None:
        from kernels.core.cpu.capture import CapturedGraph  # compiles: not before it is needed

        if net.training:
            raise CaptureError("plan: the network is in training mode, expected evaluation mode: net.eval()")
        if device_of(images) != CPU or any(t.device != CPU for _, t in net.named_tensors()):
            raise CaptureError("plan: the network or its images are not on the CPU")
        if images.dtype != np.float32:
            raise CaptureError(f"plan: images are {images.dtype}, expected float32")
        with inference():
            expected = net(Tensor(images)).data  # compiles, chooses algorithms and folds, too
            self._lock, self._recording, self._state = threading.Lock(), CapturedGraph(), State(net)
            self._numbers = self._held(current())
            self._snapshot = Snapshot([t.data for t in self._state.tensors])
        self._x = np.random.default_rng(0).standard_normal(images.shape, np.float32)
        with inference(), self._recording.operators():
            self._y = net(Tensor(self._x)).data
        if self(images).tobytes() != expected.tobytes():
            raise CaptureError(
                "plan: replayed, the network gives other logits than before: it computes outside of operators"
            )

    @property
    def current(self) -> bool:
        """Whether nothing in the network has changed since it was planned."""
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
        """Logits (N, H, W, classes), an array of the caller's own. ValueError for another shape or dtype; CaptureError
        when the network has changed.
        """
        if images.shape != self._x.shape or images.dtype != np.float32:
            raise ValueError(f"plan: images are {images.dtype} {images.shape}, the plan is for float32 {self._x.shape}")
        with self._lock:
            if not self.current:
                raise CaptureError("plan: the network has changed since it was planned")
            np.copyto(self._x, images)
            with inference():
                self._recording.run(self._recording.start, self._recording.place)
            logits = buffer_pool.empty(self._y.shape, self._y.dtype)
            np.copyto(logits, self._y)
            return logits


# -- plans where they pay ----------------------------------------------------------------------------------------------

# a plan costs two runs, and saves per run about what one image costs: it pays after so many runs per image of the batch
_PAYS = 3
_MOST = 4  # plans of one network
_lock = threading.Lock()
# by shape: the plan, or the runs so far
_graphs: WeakKeyDictionary[Module, dict[tuple[int, ...], InferenceGraph | int]] = WeakKeyDictionary()


def run(net: Module, x: Array) -> Array:
    """net(x) in evaluation mode, without gradients: x (N, H, W, C) -> logits (N, H, W, classes), arrays of one device.

    On the CPU by a plan, as soon as images of one shape have come often enough; with the same bits. A network that
    cannot be planned runs as always.
    """
    plan = _graph_for(net, x)
    if plan:
        try:
            return plan(x)
        except CaptureError:  # the network has changed
            with _lock:
                if _graphs[net].get(x.shape) is plan:
                    _graphs[net][x.shape] = 1
    with inference():
        return net(Tensor(x)).data


def _graph_for(net: Module, x: Array) -> InferenceGraph | None:
    """The plan, made now if this is the time to; None if there is none yet,
    or something wants to see every operator.
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
        plan = known.get(x.shape, 0)
        if isinstance(plan, InferenceGraph):
            return plan
        known[x.shape] = plan + 1
        if plan + 1 <= _PAYS * len(x):
            return None
        known[x.shape] = -(1 << 60)  # not again, if it cannot be
        if sum(isinstance(p, InferenceGraph) for p in known.values()) == _MOST:
            del known[next(shape for shape, p in known.items() if isinstance(p, InferenceGraph))]
        try:
            known[x.shape] = InferenceGraph(net, x)
        except CaptureError as error:
            warnings.warn(f"{error}; inference goes on without", stacklevel=3)
            return None
        return known[x.shape]  # type: ignore[return-value]
