"""Where the time of a profile goes: every nanosecond belongs to one row.

A span's own time, that is, what no span within it takes, belongs to the innermost Function around it, forward or
backward. Outside of Functions it belongs to the outermost operator or kernel, such as the optimiser's; and where there
is none, to what is left of the phase: Python between the operators ("other").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.profile.spans import Span
from kernels.core.tracing import BACKWARD, FORWARD, KERNEL, OPERATOR, PHASE, STEP

OTHER = "other"
AROUND = "Python and array code around kernels"
OUTSIDE = "outside of layers"
BY = ("operator", "layer", "kernel", "call")
_FUNCTIONS = (FORWARD, BACKWARD)
_OWNERS = (FORWARD, BACKWARD, OPERATOR, KERNEL)


@dataclass
class Row:
    """A line of a table. nanoseconds, calls, flops and bytes: of all steps together until `rows` divides them; flops
    and bytes None where no call states any.  algorithms: what served the operators' calls, and how many of them.
    """

    name: str
    calls: int = 0
    nanoseconds: float = 0
    flops: int | None = None
    bytes: int | None = None
    layer: str = ""
    shape: tuple[int, ...] = ()
    algorithms: Counter[str] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        """Seconds of one step."""
        return self.nanoseconds / 1e9

    def count(self, span: Span) -> None:
        """One more call."""
        self.calls += 1
        if span.flops is not None:
            self.flops = (self.flops or 0) + span.flops
        if span.bytes is not None:
            self.bytes = (self.bytes or 0) + span.bytes


def steps_of(spans: Sequence[Span]) -> list[int]:
    """The numbers of the spans that are steps; without any the recording is one."""
    return [k for k, span in enumerate(spans) if span.kind == STEP] or [0]


def rows(spans: Sequence[Span], by: str) -> list[Row]:
    """The rows of one step, the mean of all that were recorded, the longest first.

    by: 'operator' (forward and backward apart), 'layer', 'kernel' (CPU and CUDA kernels, and the code around them) or
    'call' (every call of a Function or another operator in the step of median time, in their order). Raises ValueError
    for anything else.
    """
    if by not in BY:
        raise ValueError(f"by: got {by!r}, expected one of {', '.join(BY)}")
    steps = steps_of(spans)
    if by == "call":  # one of them, the one of median time
        steps = [sorted(steps, key=lambda k: spans[k].duration)[len(steps) // 2]]
    own = [span.duration for span in spans]
    for span in spans:
        if span.parent >= 0:
            own[span.parent] -= span.duration
    owners = _owners(spans, steps)
    named = _key(spans, by)
    found: dict[str, Row] = {}
    for k, span in enumerate(spans):
        owner = owners[k]
        if owner is None:
            continue
        if by == "kernel" and span.kind == KERNEL:
            owner = k
        key, name = named(owner)
        row = found.setdefault(key, Row(name, layer=spans[owner].layer, shape=spans[owner].shape))
        row.nanoseconds += own[k]
        if owner == k and span.kind in _OWNERS and (by != "kernel" or span.kind == KERNEL):
            row.count(span)
        if span.kind == OPERATOR and span.algorithm and _is_outermost(spans, k, owner):
            row.algorithms[span.algorithm] += 1
    for row in found.values():
        _divide(row, len(steps))
    if by == "call":
        return sorted(found.values(), key=lambda row: not row.calls)  # what is left stands at the end
    return sorted(found.values(), key=lambda row: -row.nanoseconds)


def _owners(spans: Sequence[Span], steps: Sequence[int]) -> list[int | None]:
    """For every span of the steps the span to whose row its own time belongs; None outside of steps."""
    chosen = set(steps)
    owners: list[int | None] = []
    for k, span in enumerate(spans):
        around = owners[span.parent] if span.parent >= 0 else None
        if k in chosen or (span.kind in _FUNCTIONS and around is not None):
            owners.append(k)
        elif around is None or spans[around].kind in _OWNERS:
            owners.append(around)
        else:
            owners.append(k if span.kind in (OPERATOR, KERNEL, PHASE) else around)
    return owners


def _is_outermost(spans: Sequence[Span], k: int, owner: int) -> bool:
    """Whether an operator is its owner, or no other one is between the two."""
    while k != owner:
        k = spans[k].parent
        if spans[k].kind == OPERATOR:
            return False
    return True


def _key(spans: Sequence[Span], by: str) -> Callable[[int], tuple[str, str]]:
    """named(owner) -> (key, name) of its row."""

    def named(owner: int) -> tuple[str, str]:
        span = spans[owner]
        if span.kind not in _OWNERS:
            name = f"{OTHER} ({span.name})" if span.kind == PHASE else OTHER
            return name, name
        if by == "kernel" and span.kind != KERNEL:
            return AROUND, AROUND
        if by == "layer":
            return f"layer {span.layer}", span.layer or OUTSIDE
        name = f"{span.name} {span.kind}" if span.kind in _FUNCTIONS else span.name
        return (f"call {owner}", name) if by == "call" else (f"{span.kind} {name}", name)

    return named


def _divide(row: Row, steps: int) -> None:
    """Make totals of all steps those of one."""
    row.nanoseconds /= steps
    row.calls = round(row.calls / steps)
    row.flops = row.flops if row.flops is None else round(row.flops / steps)
    row.bytes = row.bytes if row.bytes is None else round(row.bytes / steps)
    row.algorithms = Counter({name: max(1, round(n / steps)) for name, n in row.algorithms.items()})
