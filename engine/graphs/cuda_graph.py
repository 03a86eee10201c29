"""The forward and backward pass of a training step, captured as a CUDA graph and replayed.

A graph is captured once per batch shape and then launched whole: the hundreds of kernels of a step cost the host one
call. Capture asks of a step: the same launches with the same arguments every time, no copy to the host, no memory from
outside the graph's own pool, and no cuBLAS, which CuPy refuses to capture: our own kernels serve every operator that
multiplies matrices (kernels/core/cuda/capturable.py). `CaptureError` names what does not fit in one line. Before every
launch the network is compared with what was captured (network_state.py); where it has changed, steps run as they are
and are captured anew. The optimizer stays outside the graph, because its learning rate changes; so does dropout, whose
random offset would be frozen.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from engine.errors import reason
from engine.graphs import CaptureError
from engine.graphs.network_state import State
from engine.training.step import Passes, Terms
from kernels.core import tracing
from kernels.core.cuda.capturable import capturable
from kernels.core.device import Array
from kernels.core.precision import precision


class CudaGraphPasses:
    """Passes as CUDA graphs, one per batch shape. The first `warm` steps of a shape run as they are and fill the memory
    pool.
    """

    def __init__(self, passes: Passes, warm: int = 2) -> None:
        self.passes, self.warm = passes, warm
        self.recorded: dict[tuple, _Recorded] = {}

    def __call__(self, x: Array, labels: Array, scale: float | None = None) -> Terms:
        if tracing.current.tracer is not None:
            return self.passes(x, labels, scale)
        key = x.shape, labels.shape, x.dtype, labels.dtype, precision()
        if any(not step.current for step in self.recorded.values()):
            self.recorded.clear()
        if key not in self.recorded:
            self.recorded[key] = _Recorded(self.passes, x, labels)
        return self.recorded[key](x, labels, 1.0 if scale is None else scale, self.warm)


class _Recorded:
    """One batch shape: where its inputs lie, the stream and the pool that it runs in, and in the end the graph."""

    def __init__(self, passes: Passes, x: Array, labels: Array) -> None:
        self.passes = passes
        self.cupy = importlib.import_module("cupy")
        # A blocking stream: what is launched on the default stream before and after keeps its place in the order.
        self.stream, self.pool = self.cupy.cuda.Stream(), self.cupy.cuda.MemoryPool()
        self.calls = 0
        self.graph = None
        self.terms = {}
        self.state: State | None = None
        with self._place():
            self.x, self.labels = self.cupy.empty(x.shape, x.dtype), self.cupy.empty(labels.shape, labels.dtype)
            self.seed = self.cupy.empty((), x.dtype)

    @property
    def current(self) -> bool:
        """Whether the network is unchanged since capture (or nothing was captured)."""
        passes = self.passes
        return self.state is None or (
            passes.net is self.net and passes.optimizer.gradient is self.gradient and self.state.unchanged()
        )

    @contextmanager
    def _place(self) -> Iterator[None]:
        with self.stream, self.cupy.cuda.using_allocator(self.pool.malloc), capturable():
            yield

    def __call__(self, x: Array, labels: Array, scale: float, warm: int) -> Terms:
        with self._place():
            for target, source in ((self.x, x), (self.labels, labels)):
                if isinstance(source, np.ndarray):
                    target.set(source)
                else:
                    target[...] = source
            self.seed.fill(scale)
            if self.calls < warm:
                self.terms = self.passes.compute(self.x, self.labels, self.seed)
            else:
                if self.graph is None:
                    self._record()
                self.graph.launch(self.stream)
                self.passes.optimizer.present = self.present
        self.calls += 1
        return self.terms

    def _reserve(self) -> None:
        """Put the pool in one free piece, a quarter larger than what the steps so far needed: nothing may be asked of
        the driver from now on.
        """
        self.terms = {}
        self.passes.net.zero_grad()
        gc.collect()  # frees arrays that only reference cycles hold
        self.stream.synchronize()
        size = self.pool.total_bytes()
        self.pool.free_all_blocks()
        self.pool.malloc(size + size // 4)

    def _record(self) -> None:
        self._reserve()
        self.stream.begin_capture()
        try:
            self.terms = self.passes.compute(self.x, self.labels, self.seed)
        except Exception as error:
            with _quiet():
                self.stream.end_capture()
            raise CaptureError(
                f"cuda_graph: the step cannot be captured ({reason(error)}); run without --cuda-graph"
            ) from error
        self.graph = self.stream.end_capture()
        self.net, self.state = self.passes.net, State(self.passes.net, versions=False)
        self.gradient = self.passes.optimizer.gradient
        self.present = self.passes.optimizer.present


@contextmanager
def _quiet() -> Iterator[None]:
    """An invalidated capture complains once more when it is ended; the first error is the one to show."""
    try:
        yield
    except Exception:
        return
