"""The tracer of a profile: it writes down a span for every layer, Function, operator and kernel, and samples memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

from autograd import Function
from engine.profile.clocks import Clock, Resident
from engine.profile.counting import algorithm_of, arrays_in, backward_cost, forward_cost, operator_bytes
from engine.profile.spans import RECORDING, Sample, Span
from kernels.core.dispatch import Operator, Served, kernel_log
from kernels.core.tracing import BACKWARD, FORWARD, KERNEL, LAYER, OPERATOR, trace
from layers import Module

_SAMPLED = (FORWARD, BACKWARD, OPERATOR)  # when they end, memory is looked at
_RAISED = object()  # in place of a result


class Recorder:
    """A tracer (kernels/core/tracing.py). It holds no array, so memory is used as it is without one.

    Layers have the dotted names that they have in the module which is called first; those of another module that is
    called from none, such as a loss, begin with its class.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.spans: list[Span] = []
        self.samples: list[Sample] = []
        self._stamps: list[Any] = []  # until the recording ends, times are places in this list
        self._path: list[int] = []  # the numbers of the spans that are open
        self._names: dict[int, tuple[ref[Module], str]] = {}
        self._forward: WeakKeyDictionary[Function, tuple[str, int | None]] = WeakKeyDictionary()  # layer, FLOPs
        self._served: list[Served] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block this thread is recorded; RuntimeError where it is recorded already."""
        self._resident = Resident()
        try:
            with trace(self), kernel_log() as self._served, self.within(RECORDING, "recording"):
                yield
        finally:
            self._resident.close()
            self._settle()

    def _settle(self) -> None:
        """Times as nanoseconds."""
        times = self.clock.nanoseconds(self._stamps) if self._stamps else []
        for span in self.spans:
            span.start, span.end = times[span.start], times[span.end]
        self.samples = [sample._replace(time=times[sample.time]) for sample in self.samples]
        self._stamps = []

    def _stamp(self) -> int:
        self._stamps.append(self.clock.now())
        return len(self._stamps) - 1

    # -- the tracer ---------------------------------------------------------------------------------------------------

    def run(self, kind: str, subject: Any, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See kernels/core/tracing.py."""
        number = self._open(kind, subject)
        result: Any = _RAISED
        try:
            result = call(*args, **kwargs)
            return result
        finally:
            self._close(number, subject, args, kwargs, result)

    @contextmanager
    def within(self, kind: str, name: str) -> Iterator[None]:
        """See kernels/core/tracing.py."""
        number = self._open(kind, name)
        try:
            yield
        finally:
            self._close(number, name, (), {}, _RAISED)

    def _open(self, kind: str, subject: Any) -> int:
        start = self._stamp()
        number = len(self.spans)
        parent = self._path[-1] if self._path else -1
        layer = self._layer(kind, subject, self.spans[parent].layer if self._path else "")
        self.spans.append(Span(kind, _name(subject), parent, layer, start, start))
        self._path.append(number)
        self.clock.resume(self._stamps[start])
        return number

    def _close(self, number: int, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        end = self._stamp()
        span = self.spans[number]
        span.end = end
        self._path.pop()
        if result is not _RAISED:
            self._count(number, subject, args, kwargs, result)
        if span.kind in _SAMPLED:
            self.samples.append(Sample(end, self.clock.in_use(), self._resident.bytes(), number))
        self.clock.resume(self._stamps[end])

    # -- what a span says ---------------------------------------------------------------------------------------------

    def _layer(self, kind: str, subject: Any, around: str) -> str:
        if kind == BACKWARD:
            return self._forward.get(subject, (around, None))[0]
        if kind != LAYER:
            return around
        known = self._names.get(id(subject))
        if known is not None and known[0]() is subject:
            return known[1]
        name = type(subject).__name__
        if around:  # a module that the first one does not hold
            return f"{around}.{name}"
        for dotted, module in subject.named_modules(prefix=name if self._names else ""):
            self._names[id(module)] = ref(module), dotted or name
        return name

    def _count(self, number: int, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        span = self.spans[number]
        inner = self.spans[number + 1 :]
        if span.kind == FORWARD:
            span.flops, span.bytes = forward_cost(subject, args, result, _worked(inner))
            self._forward[subject] = span.layer, span.flops
        elif span.kind == BACKWARD:
            flops = self._forward.get(subject, ("", None))[1]
            span.flops, span.bytes = backward_cost(subject, args, result, _worked(inner), flops)
        elif span.kind == OPERATOR:
            span.bytes = operator_bytes(subject, args, kwargs, result)
            own = [s for s in inner if s.parent == number]
            launched = [s.name for s in own if s.kind == KERNEL]
            by = self._served[-1].by
            self._served.clear()
            span.algorithm = algorithm_of(subject, by, launched, [s for s in own if s.kind == OPERATOR])
        else:
            return
        span.shape = next((array.shape for array in arrays_in(result)), ())


def _worked(spans: list[Span]) -> bool:
    return any(span.kind == KERNEL for span in spans)


def _name(subject: Any) -> str:
    if isinstance(subject, str):
        return subject
    return subject.name if isinstance(subject, (Function, Operator)) else type(subject).__name__
