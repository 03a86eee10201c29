"""A profile in Chrome's Trace Event Format (https://chromium.googlesource.com/catapult, "Trace Event Format").

Complete events ("X"), which nest by their times: step, phase, layer, Function, operator, kernel; and counters ("C") of
the memory. Backward walks the tape and not the layers; there an event stands around neighbouring Functions of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.profile.spans import RECORDING, Sample, Span
from kernels.core.tracing import BACKWARD, FORWARD, KERNEL, LAYER, OPERATOR, PHASE, STEP

_ONE = {"pid": 1, "tid": 1}
_ORDER = (RECORDING, STEP, PHASE, LAYER, FORWARD, BACKWARD, OPERATOR, KERNEL)  # from the outside in


def events(spans: Sequence[Span], samples: Sequence[Sample]) -> dict[str, Any]:
    """The trace as a value for JSON."""
    out: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", **_ONE, "args": {"name": "areograd"}},
        {"name": "thread_name", "ph": "M", **_ONE, "args": {"name": "step"}},
    ]
    complete = [_complete(span.name if span.kind != LAYER else span.layer, span) for span in spans]
    complete += _layers_backward(spans)
    # Of events that begin together the outer one stands first.
    out += sorted(complete, key=lambda event: (event["ts"], -event["dur"], _ORDER.index(event["cat"])))
    for sample in samples:
        out.append(_counter("buffer pool in use", sample.time, sample.in_use))
        if sample.resident:
            out.append(_counter("resident", sample.time, sample.resident))
    return {"traceEvents": out, "displayTimeUnit": "ms"}


def _complete(name: str, span: Span) -> dict[str, Any]:
    named = f"{name} {span.kind}" if span.kind in (FORWARD, BACKWARD) else name
    facts = {
        "layer": span.layer,
        "shape": list(span.shape),
        "flops": span.flops,
        "bytes": span.bytes,
        "algorithm": span.algorithm,
    }
    return {
        "name": named,
        "cat": span.kind,
        "ph": "X",
        "ts": span.start / 1e3,
        "dur": span.duration / 1e3,
        **_ONE,
        "args": {key: value for key, value in facts.items() if value},
    }


def _layers_backward(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """An event around each run of neighbouring backward calls of one layer."""
    groups: list[Span] = []
    for span in spans:
        if span.kind != BACKWARD or not span.layer:
            continue
        last = groups[-1] if groups else None
        if last is not None and (last.layer, last.parent) == (span.layer, span.parent):
            last.end = span.end
        else:
            groups.append(Span(LAYER, span.layer, span.parent, span.layer, span.start, span.end))
    return [_complete(group.name, group) for group in groups]


def _counter(name: str, time: int, value: int) -> dict[str, Any]:
    return {"name": name, "ph": "C", "ts": time / 1e3, "pid": 1, "args": {"MiB": value / 2**20}}
