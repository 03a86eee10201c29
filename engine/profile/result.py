"""A recorded profile: its tables, its figures as JSON, its trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from engine.files import write_json, write_text
from engine.profile.clocks import clock_of
from engine.profile.recorder import Recorder
from engine.profile.rows import Row, rows, steps_of
from engine.profile.spans import Sample, Span
from engine.profile.table import lines, summary
from engine.profile.trace import events
from kernels.core.device import CUDA, default
from kernels.core.tracing import BACKWARD, FORWARD, STEP


class Peaks(Protocol):
    """What a machine was measured to do at most."""

    @property
    def gflops(self) -> float:
        """Billions of float32 multiplications and additions a second."""

    @property
    def gbytes(self) -> float:
        """Billions of bytes a second, read and written."""


class Memory(NamedTuple):
    """The most memory that arrays of the pool used: bytes, and the operator and the layer at whose end that was.
    resident: the largest resident size of the process.
    """

    in_use: int
    operator: str
    layer: str
    resident: int


class Profile:
    """What was recorded within `record`. Everything but `step` is there when the block has ended.

    spans, samples: the record (engine/profile/spans.py).  device: 'cpu' or 'cuda'.  timed: whether times mean anything
    (an emulated device has none).  unprofiled: seconds of the same step without the profile, by name, where they were
    measured.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.unprofiled: dict[str, float] = {}
        clock = clock_of(device)
        self.timed = clock.timed
        self._recorder = Recorder(clock)

    def step(self) -> AbstractContextManager[None]:
        """Within this block, itself within `record`, is one step: figures are means over steps. Without any, all that
        was recorded is one step.
        """
        return self._recorder.within(STEP, "step")

    @property
    def spans(self) -> list[Span]:
        """What ran, in the order of its beginning; times in nanoseconds since the recording began."""
        return self._recorder.spans

    @property
    def samples(self) -> list[Sample]:
        """The memory at the end of each operator."""
        return self._recorder.samples

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return len(steps_of(self.spans))

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, the mean."""
        return sum(self.spans[k].duration for k in steps_of(self.spans)) / self.steps / 1e9

    @cached_property
    def peaks(self) -> Peaks | None:
        """The machine's peaks, measured at the first look (a second or two); None without times."""
        if not self.timed:
            return None
        if self.device == CUDA:
            from kernels.core.cuda import peaks as cuda

            return cuda.measure()
        from kernels.core.cpu import peaks as cpu

        return cpu.measure()

    @property
    def memory(self) -> Memory | None:
        """The most memory that was used; None where no operator ran."""
        if not self.samples:
            return None
        most = max(self.samples, key=lambda sample: sample.in_use)
        span = self._function(most.span)
        name = f"{span.name} {span.kind}" if span.kind in (FORWARD, BACKWARD) else span.name
        return Memory(most.in_use, name, span.layer, max(sample.resident for sample in self.samples))

    def _function(self, number: int) -> Span:
        """The Function around a span, else the span itself."""
        at = number
        while at >= 0:
            if self.spans[at].kind in (FORWARD, BACKWARD):
                return self.spans[at]
            at = self.spans[at].parent
        return self.spans[number]

    def rows(self, by: str = "operator") -> list[Row]:
        """Where the time of a step goes; by: 'operator', 'layer', 'kernel' or 'call' (engine/profile/rows.py)."""
        return rows(self.spans, by)

    def summary(self) -> list[str]:
        """Lines about the whole step: its time with and without the profile, the most memory, the machine's peaks."""
        return summary(self)

    def table(self, by: str = "operator", top: int = 30) -> str:
        """The rows as text, the first `top` of them and the sum of the others (0: all)."""
        return "\n".join(lines(self, by, top))

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON: `operators`, `layers` and `kernels`, each a list of {"name", "calls", "seconds",
        "flops", "bytes"} of one step; `step_seconds`; `steps`; `unprofiled_seconds`; `memory`; `machine`.

        seconds are null on an emulated device, flops and bytes where nothing is stated.
        """
        memory = self.memory
        peaks = self.peaks
        return {
            "operators": [self._figures(row) for row in self.rows("operator")],
            "layers": [self._figures(row) for row in self.rows("layer")],
            "kernels": [self._figures(row) for row in self.rows("kernel")],
            "step_seconds": self.step_seconds if self.timed else None,
            "steps": self.steps,
            "unprofiled_seconds": self.unprofiled,
            "memory": None if memory is None else memory._asdict(),
            "machine": None if peaks is None else {"name": str(peaks), "gflops": peaks.gflops, "gbytes": peaks.gbytes},
        }

    def _figures(self, row: Row) -> dict[str, Any]:
        figures = {
            "name": row.name,
            "calls": row.calls,
            "seconds": row.seconds if self.timed else None,
            "flops": row.flops,
            "bytes": row.bytes,
        }
        return figures | ({"algorithms": dict(row.algorithms)} if row.algorithms else {})

    def write(self, path: Path | str) -> None:
        """Write `to_dict` to a JSON file."""
        write_json(Path(path), self.to_dict())

    def write_trace(self, path: Path | str) -> None:
        """Write the trace, which chrome://tracing and https://ui.perfetto.dev show: the JSON of Chrome's Trace Event
        Format.
        """
        write_text(Path(path), json.dumps(events(self.spans, self.samples), separators=(",", ":")) + "\n")


@contextmanager
def record(device: str | None = None) -> Iterator[Profile]:
    """Within the block everything that this thread computes is recorded, operator by operator:

        with record() as profile:
            loss = criterion(net(x), labels)
            loss.backward()
        print(profile.table())

    Results are the same bits as without. Steps and networks that are captured run uncaptured within the block.
    device: 'cpu' or 'cuda', whose time counts; None: the default device. RuntimeError within another such block.
    """
    profile = Profile(default() if device is None else device)
    with profile._recorder.recording():
        yield profile
