"""The profile: what it counts is counted by hand, what it names is what ran, and nothing that it looks at changes."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layers
from autograd import Function, Tensor, checkpoint, no_grad, ops, random
from engine.graphs.cpu_step import CapturedPasses
from engine.profile import Profile, record
from engine.profile.clocks import HostClock
from engine.profile.recorder import Recorder
from engine.profile.rows import Row, rows
from engine.profile.spans import RECORDING, Span
from engine.profile.table import of_peak
from engine.profile.trace import events
from engine.training.optimizer import AdamW
from engine.training.step import Passes
from kernels import conv, shape
from kernels.conv.cpu import algorithm
from kernels.core import tracing
from kernels.core.cpu import buffer_pool, peaks
from kernels.core.dispatch import is_plain
from kernels.core.geometry import Window
from kernels.core.tracing import BACKWARD, FORWARD, KERNEL, LAYER, OPERATOR, PHASE, STEP
from tests.support.peaks import Peaks, not_measured


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """No peaks are measured."""
    with not_measured():
        yield


def noise(*size: int, dtype: type = np.float32, grad: bool = False) -> Tensor:
    return Tensor(np.random.default_rng(sum(size)).standard_normal(size).astype(dtype), requires_grad=grad)


def row(profile: Profile, name: str) -> Row:
    return next(found for found in profile.rows() if found.name == name)


# -- FLOPs and bytes, by hand -----------------------------------------------------------------------------------------


def test_a_convolution_by_hand() -> None:
    """x (2, 6, 5, 3) with 4 filters of 3x3: y (2, 6, 5, 4). x needs no gradient, so that backward is one product."""
    x, w, b = noise(2, 6, 5, 3), noise(3, 3, 3, 4, grad=True), noise(4, grad=True)
    with record() as profile:
        ops.conv2d(x, w, b, padding=1).backward(np.ones((2, 6, 5, 4), np.float32))
    forward, backward = row(profile, "Conv2d forward"), row(profile, "Conv2d backward")
    product = 2 * (2 * 6 * 5 * 4) * (3 * 3 * 3)
    numbers = {"x": 180, "w": 108, "b": 4, "y": 240}
    assert (forward.calls, forward.flops) == (1, product)
    assert forward.bytes == 4 * sum(numbers.values())
    assert (backward.calls, backward.flops) == (1, product)
    assert backward.bytes == 4 * (240 + 180 + 108 + 108 + 4)  # dy, x, w; dw, db


@pytest.mark.parametrize(
    ("call", "sizes", "wanted", "forward", "backward"),
    [
        (lambda x, w: ops.conv2d(x, w), [(1, 5, 5, 2), (2, 2, 2, 3)], (1, 1), 2 * 48 * 8, 4 * 48 * 8),
        (lambda x, w: ops.conv2d(x, w), [(1, 5, 5, 2), (2, 2, 2, 3)], (1, 0), 2 * 48 * 8, 2 * 48 * 8),
        (lambda x, w: ops.conv2d(x, w, groups=2), [(1, 4, 4, 4), (1, 1, 2, 6)], (1, 1), 2 * 96 * 2, 4 * 96 * 2),
        (lambda x, w: ops.conv_transpose2d(x, w, None, 2), [(1, 3, 3, 4), (2, 2, 4, 5)], (1, 1), 2 * 720, 4 * 720),
        (ops.matmul, [(5, 3), (3, 7)], (1, 1), 2 * 105, 4 * 105),
        (ops.matmul, [(5, 3), (3, 7)], (0, 1), 2 * 105, 2 * 105),
        (ops.linear, [(5, 3), (7, 3)], (1, 1), 2 * 105, 4 * 105),
        (lambda a, b: ops.einsum("ij,jk->ik", a, b), [(5, 3), (3, 7)], (1, 1), 2 * 105, 4 * 105),
        (
            ops.scaled_dot_product_attention,
            [(1, 2, 6, 4), (1, 2, 5, 4), (1, 2, 5, 8)],
            (1, 1, 1),
            2 * (2 * 6 * 5) * (4 + 8),
            2 * (2 * 6 * 5) * (3 * 4 + 2 * 8),
        ),
        (lambda a, b: a + b, [(5, 3), (3,)], (1, 1), 15, None),
        (ops.relu, [(5, 3)], (1,), 15, None),
        (lambda a: ops.transpose(a), [(5, 3)], (1,), None, None),
    ],
)
def test_flops_by_hand(call: Any, sizes: list[Any], wanted: tuple[int, ...], forward: Any, backward: Any) -> None:
    given = [noise(*size, grad=bool(need)) for size, need in zip(sizes, wanted, strict=True)]
    with record() as profile:
        y = call(*given)
        y.backward(np.ones(y.shape, np.float32))
    functions = {span.kind: span for span in profile.spans if span.kind in (FORWARD, BACKWARD)}
    assert functions[FORWARD].flops == forward
    assert functions[BACKWARD].flops == backward


def test_bytes_by_hand() -> None:
    x = noise(64, 3, grad=True)
    repeated = Tensor(np.broadcast_to(np.float32(2), (64, 3)))
    with record() as profile:
        ops.reshape(x, (3, 64)).backward(np.ones((3, 64), np.float32))  # a view, and backward another
        (x * repeated).sum().backward()  # both are saved, and read once by forward; the second has one number
    assert row(profile, "Reshape forward").bytes == row(profile, "Reshape backward").bytes == 0
    assert row(profile, "Mul forward").bytes == 4 * (192 + 1 + 192)
    # dy is one number, repeated; x and `repeated` are saved; dx, and none for `repeated`
    assert row(profile, "Mul backward").bytes == 4 * (1 + 192 + 1 + 192)


def test_what_is_kept_for_backward_counts() -> None:
    """Attention gives o and keeps the logarithms of its sums, too: q, o (1, 2, 6, 4), k, v (1, 2, 5, 4), lse (2, 6)."""
    q, k, v = noise(1, 2, 6, 4, grad=True), noise(1, 2, 5, 4, grad=True), noise(1, 2, 5, 4, grad=True)
    with record() as profile:
        ops.scaled_dot_product_attention(q, k, v).backward(np.ones((1, 2, 6, 4), np.float32))
    with record() as forgotten, no_grad():
        ops.scaled_dot_product_attention(q, k, v)
    arrays = 48 + 40 + 40 + 48
    assert row(forgotten, "Attention forward").bytes == 4 * arrays
    assert row(profile, "Attention forward").bytes == 4 * (arrays + 12)
    assert row(profile, "Attention backward").bytes == 4 * (arrays + 12 + 48 + 48 + 40 + 40)  # do; dq, dk, dv


def test_arrays_that_change_in_place_count_twice() -> None:
    total, more = np.zeros((8, 4), np.float32), np.ones((8, 4), np.float32)
    with record() as profile:
        shape.accumulate(total, more)
    assert row(profile, "accumulate").bytes == 4 * (2 * 32 + 32)
    assert row(profile, "accumulate").flops is None


def test_a_residual_adds_into_the_gradient_that_is_there() -> None:
    """x feeds two convolutions; the gradient of the one visited last is added to the other's, which is in and out."""
    x, w, v = noise(1, 4, 4, 8, grad=True), noise(1, 1, 8, 8), noise(1, 1, 8, 8)
    with record() as profile:
        (ops.conv2d(x * 1, w) + ops.conv2d(x * 1, v)).sum().backward()
    y = x * 1
    with record() as shared:
        (ops.conv2d(y, w) + ops.conv2d(y, v)).sum().backward()
    assert row(shared, "Conv2d backward").bytes - row(profile, "Conv2d backward").bytes == 4 * y.size


# -- who served a call ------------------------------------------------------------------------------------------------

THICK = (2, 16, 16, 32)  # a map for which Winograd pays


def served(profile: Profile) -> Counter[str]:
    return sum((found.algorithms for found in profile.rows()), Counter())


@pytest.mark.parametrize(
    ("size", "filter", "settings", "algorithm_name"),
    [
        (THICK, (3, 3, 32, 32), {"padding": 1}, "winograd F(4, 3)"),
        (THICK, (5, 5, 32, 32), {"padding": 2}, "winograd F(2, 5)"),
        (THICK, (3, 3, 32, 32), {"stride": 2}, "direct"),
        (THICK, (1, 1, 32, 32), {}, "direct"),
        (THICK, (3, 3, 1, 32), {"padding": 1, "groups": 32}, "depthwise"),
        ((2, 16, 16, 1), (3, 3, 1, 8), {"padding": 1}, "direct"),
    ],
)
def test_the_algorithm_of_a_convolution(size: Any, filter: Any, settings: Any, algorithm_name: str) -> None:
    x, w = noise(*size), noise(*filter)
    with record() as profile:
        ops.conv2d(x, w, **settings)
    assert served(profile) == {algorithm_name: 1}


@pytest.mark.parametrize(
    ("size", "algorithm_name"), [(1, "fused norm backward pointwise"), (3, "fused norm backward winograd F(4, 3)")]
)
def test_the_algorithm_is_the_convolutions_where_norms_run_before_it(size: int, algorithm_name: str) -> None:
    net = layers.Sequential(layers.ConvNorm(32, 32, 1), layers.ConvNorm(32, 32, size))
    with record() as profile:
        net(noise(*THICK)).sum().backward()
    last = next(call for call in profile.rows("call") if call.name == "ConvBatchNorm backward")
    assert last.algorithms == {algorithm_name: 1}


@pytest.mark.parametrize(("mode", "algorithm_name"), [("direct", "direct"), ("winograd2", "winograd F(2, 3)")])
def test_an_algorithm_that_was_forced(mode: str, algorithm_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "mode", lambda: mode)
    with record() as profile:
        ops.conv2d(noise(*THICK), noise(3, 3, 32, 32), padding=1)
    assert served(profile) == {algorithm_name: 1}
    assert any(span.kind == KERNEL and span.name.split(".")[2] == mode[:8] for span in profile.spans)


def test_what_no_kernel_serves() -> None:
    with record() as profile:
        ops.conv2d(noise(2, 6, 6, 2, dtype=np.float64), noise(3, 3, 2, 2, dtype=np.float64))
    assert served(profile) == {"array code": 1}
    assert KERNEL not in {span.kind for span in profile.spans}


def test_an_unfused_operator_names_what_it_is_made_of() -> None:
    """A strided convolution with its norm: backward is not fused."""
    net = layers.Sequential(layers.Conv2d(32, 16, 1), layers.ConvNorm(16, 16, 3, groups=2))
    with record() as profile:
        net(noise(*THICK)).sum().backward()
    assert row(profile, "ConvBatchNorm backward").algorithms == {"unfused: direct": 1}
    assert [span.name for span in profile.spans if span.kind == OPERATOR].count("conv2d_backward_filter") == 2


def test_kernels_are_those_that_ran() -> None:
    """Each launch within its operator, under the name that the thread pool knows."""
    with record() as profile:
        conv.conv2d_forward((noise(2, 8, 8, 16).data,), noise(1, 1, 16, 16).data, None, Window((1, 1)))
    inside = [profile.spans[span.parent].name for span in profile.spans if span.kind == KERNEL]
    assert inside
    assert set(inside) == {"conv2d_forward"}
    names = [found.name for found in profile.rows("kernel")]
    assert any(name.startswith("conv.cpu.direct.forward.direct_forward[") for name in names)


# -- layers -----------------------------------------------------------------------------------------------------------


class Block(layers.Module):
    """Two convolutions, one in a list, and an operator of its own."""

    def __init__(self) -> None:
        self.parts = [layers.Conv2d(2, 4, 1), layers.Conv2d(4, 4, 1)]

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return layers.ReLU()(ops.max_pool2d(x, 2))


def test_layers_have_their_dotted_names_forward_and_backward() -> None:
    net, loss = layers.Sequential(Block(), layers.Conv2d(4, 3, 1)), layers.CrossEntropyLoss()
    labels = np.zeros((1, 2, 2), np.int64)
    with record() as profile:
        loss(net(noise(1, 4, 4, 2)), labels).backward()
    expected = {
        "Conv2d": ["steps.0.parts.0", "steps.0.parts.1", "steps.1"],
        "MaxPool2d": ["steps.0"],
        "ReLU": ["steps.0.ReLU"],  # not held by the network
        "Loss": ["CrossEntropyLoss"],
    }
    for kind, order in ((FORWARD, 1), (BACKWARD, -1)):
        found = [(span.name, span.layer) for span in profile.spans if span.kind == kind]
        for name, layer_names in expected.items():
            assert [layer for of, layer in found if of == name] == layer_names[::order]
    table = {found.name: found.calls for found in profile.rows("layer")}
    assert table["steps.1"] == 2
    assert table["steps.0"] == 2


def test_layers_of_a_second_network_begin_with_its_class() -> None:
    first, second = layers.Sequential(layers.Linear(3, 3)), Block()
    with record() as profile, no_grad():
        first(noise(2, 3))
        second(noise(1, 4, 4, 2))
    assert {span.layer for span in profile.spans if span.kind == FORWARD} == {
        "steps.0",
        "Block.parts.0",
        "Block.parts.1",
        "Block",
        "Block.ReLU",
    }


# -- where the time belongs -------------------------------------------------------------------------------------------


def test_every_nanosecond_belongs_to_one_row() -> None:
    """Two steps of 100 and 120 ns, hand-made, with a nested Function and an operator outside of Functions."""
    spans = [Span(RECORDING, "recording", -1, "", 0, 1000)]
    for start, more in ((0, 0), (500, 20)):
        step = len(spans)
        spans += [
            Span(STEP, "step", 0, "", start, start + 100 + more),
            Span(PHASE, "forward", step, "", start + 10, start + 70 + more),
            Span(LAYER, "Net", step + 1, "Net", start + 12, start + 70 + more),
            Span(FORWARD, "Checkpoint", step + 2, "Net", start + 20, start + 60 + more, flops=5),
            Span(LAYER, "Inner", step + 3, "Net.Inner", start + 22, start + 50),
            Span(FORWARD, "Conv2d", step + 4, "Net.Inner", start + 25, start + 45, flops=8, bytes=6),
            Span(OPERATOR, "conv2d_forward", step + 5, "Net.Inner", start + 30, start + 45, algorithm="direct"),
            Span(KERNEL, "conv.k", step + 6, "Net.Inner", start + 31, start + 44),
            Span(OPERATOR, "adamw_step", step, "", start + 80 + more, start + 95 + more, bytes=3, algorithm="k"),
            Span(OPERATOR, "inner", step + 8, "", start + 85 + more, start + 90 + more, algorithm="x"),
        ]
    table = {found.name: found for found in rows(spans, "operator")}
    assert {name: found.nanoseconds for name, found in table.items()} == {
        "Checkpoint forward": 40 - 20 + 10,  # 10: half of the second step's 20 more
        "Conv2d forward": 20,
        "adamw_step": 15,
        "other (forward)": (12 - 10) + (20 - 12) + (70 - 60),
        "other": 10 + (80 - 70) + (100 - 95),
    }
    assert sum(found.nanoseconds for found in table.values()) == 110
    assert (table["Conv2d forward"].calls, table["Conv2d forward"].flops, table["Conv2d forward"].bytes) == (1, 8, 6)
    assert (table["Checkpoint forward"].flops, table["Checkpoint forward"].bytes) == (5, None)
    assert table["Conv2d forward"].algorithms == {"direct": 1}
    assert table["adamw_step"].algorithms == {"k": 1}  # not of the operator within
    by_layer = {found.name: found.nanoseconds for found in rows(spans, "layer")}
    assert by_layer == {"Net": 30, "Net.Inner": 20, "outside of layers": 15, "other (forward)": 20, "other": 25}
    by_kernel = {found.name: found.nanoseconds for found in rows(spans, "kernel")}
    assert by_kernel["conv.k"] == 13
    assert sum(by_kernel.values()) == 110
    calls = rows(spans, "call")  # of one step, in order
    assert [found.name for found in calls if found.calls] == ["Checkpoint forward", "Conv2d forward", "adamw_step"]
    assert sum(found.nanoseconds for found in calls) in (100, 120)
    with pytest.raises(ValueError, match="by: got 'colour', expected one of operator, layer, kernel, call"):
        rows(spans, "colour")


def test_a_recomputed_part_is_counted_in_its_second_run() -> None:
    net = layers.Sequential(layers.Linear(4, 4), layers.Tanh())
    x = noise(3, 4, grad=True)
    with record() as profile:
        checkpoint(net, x).sum().backward()
    assert row(profile, "Linear forward").calls == 2
    assert row(profile, "Linear backward").calls == 1
    total = sum(found.nanoseconds for found in profile.rows())
    assert total == profile.spans[0].duration


def test_shares_of_the_peaks() -> None:
    """Below ten FLOPs per byte the memory bounds, above it the multiply-adds."""
    assert of_peak(gflops=25.0, gbytes=1.0, intensity=25.0, peaks=Peaks()) == "25 % c"
    assert of_peak(gflops=20.0, gbytes=4.0, intensity=5.0, peaks=Peaks()) == "40 % m"
    assert of_peak(gflops=0.0, gbytes=5.0, intensity=0.0, peaks=Peaks()) == "50 % m"
    assert of_peak(gflops=0.0, gbytes=0.0, intensity=0.0, peaks=Peaks()) == ""
    assert of_peak(gflops=20.0, gbytes=4.0, intensity=5.0, peaks=None) == ""


MEASURE = peaks.measure  # before it is replaced


def test_the_peaks_are_measured() -> None:
    machine = MEASURE(1 << 20, rounds=2)
    assert machine.gflops > 0
    assert machine.gbytes > 0
    assert str(machine.threads) in str(machine)


def test_the_text_of_a_table() -> None:
    """A millisecond of 50 MFLOP and 2 MB, one of three that state nothing, and what is left of a step of four."""
    profile = Profile("cpu")
    ms = 1_000_000
    profile.spans[:] = [
        Span(RECORDING, "recording", -1, "", 0, 4 * ms),
        Span(FORWARD, "Conv2d", 0, "a.b", 0, ms, (1, 2), 50_000_000, 2_000_000),
        Span(OPERATOR, "conv2d_forward", 1, "a.b", 0, ms, algorithm="direct"),
        *(Span(FORWARD, f"F{k}", 0, "", k * ms, (k + 1) * ms - 100_000) for k in (1, 2, 3)),
    ]
    head, *body = profile.table(top=2).splitlines()
    assert head.split() == ["operator", "calls", "ms", "share", "GFLOP/s", "MB", "GB/s", "FLOP/B", "of", "peak",
                            "served", "by"]  # fmt: skip
    assert body[0].split() == ["Conv2d", "forward", "1", "1.00", "25.0%", "50.0", "2.0", "2.0", "25.0", "50", "%", "c",
                               "direct"]  # fmt: skip
    assert body[1].split() == ["F1", "forward", "1", "0.90", "22.5%"]
    assert body[2].split() == ["3", "more", "2", "2.10", "52.5%"]
    assert body[3].split()[:4] == ["sum", "4", "4.00", "100.0%"]
    by_call = profile.table("call", top=0).splitlines()
    assert by_call[1].split()[:4] == ["Conv2d", "forward", "a.b", "1x2"]
    assert any("most memory" in line for line in profile.summary()) is False  # no operator was sampled


# -- the trace --------------------------------------------------------------------------------------------------------

ORDER = [RECORDING, STEP, PHASE, LAYER, "function", OPERATOR, KERNEL]


def test_events_of_the_trace_nest(tmp_path: Path) -> None:
    net, loss = layers.Sequential(layers.ConvNorm(2, 8, 3), Block.__mro__[0]()), layers.CrossEntropyLoss()
    net.steps[1].parts[0] = layers.Conv2d(8, 4, 1)
    optimizer = AdamW(net)
    passes = Passes(net, loss, optimizer, "cpu")
    x, labels = noise(1, 8, 8, 2).data, np.zeros((1, 4, 4), np.int64)
    with record() as profile:
        for _ in range(2):
            with profile.step():
                passes(x, labels)
                with tracing.phase("optimizer"):
                    optimizer.step(1e-3, gathered=True)
    profile.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    complete = [event for event in trace if event["ph"] == "X"]
    assert [event["ts"] for event in complete] == sorted(event["ts"] for event in complete)
    assert sum(event["cat"] == STEP for event in complete) == profile.steps == 2
    phases = Counter(event["name"] for event in complete if event["cat"] == PHASE)
    assert phases == {"forward": 2, "backward": 2, "optimizer": 4}
    path: list[dict[str, Any]] = []
    inside: Counter[int] = Counter()
    chains = set()
    for event in complete:
        start, end = nanoseconds(event)
        while path and nanoseconds(path[-1])[1] <= start and path[-1] is not event:
            path.pop()
        if path:
            assert start >= nanoseconds(path[-1])[0]
            assert end <= nanoseconds(path[-1])[1], (event, path[-1])
            inside[id(path[-1])] += end - start
        path.append(event)
        kinds = ["function" if e["cat"] in (FORWARD, BACKWARD) else e["cat"] for e in path]
        assert [ORDER.index(kind) for kind in kinds] == sorted(ORDER.index(kind) for kind in kinds)
        chains.add(tuple(dict.fromkeys(kinds)))
    for event in complete:
        assert inside[id(event)] <= nanoseconds(event)[1] - nanoseconds(event)[0]
    assert tuple(ORDER) in chains  # down to a kernel, through a layer
    backward = [e for e in complete if e["cat"] == LAYER and any(e["ts"] >= p["ts"] and e["ts"] + e["dur"] <= p["ts"]
                + p["dur"] for p in complete if (p["cat"], p["name"]) == (PHASE, "backward"))]  # fmt: skip
    assert {e["name"] for e in backward} == {"CrossEntropyLoss", "steps.1", "steps.1.ReLU", "steps.1.parts.0",
                                             "steps.1.parts.1", "steps.0"}  # fmt: skip
    counters = {event["name"] for event in trace if event["ph"] == "C"}
    assert "buffer pool in use" in counters


def nanoseconds(event: dict[str, Any]) -> tuple[int, int]:
    return round(1e3 * event["ts"]), round(1e3 * event["ts"]) + round(1e3 * event["dur"])


def test_an_event_around_a_layers_backward_ends_with_its_step() -> None:
    """Two steps, whose last and first calls of the backward pass are of one layer, beside a third one."""
    spans = [Span(RECORDING, "recording", -1, "", 0, 100)]
    for start in (0, 50):
        step = len(spans)
        spans += [
            Span(STEP, "step", 0, "", start, start + 40),
            Span(BACKWARD, "ReLU", step, "one", start + 1, start + 5),
            Span(BACKWARD, "Conv2d", step, "one", start + 6, start + 9),
            Span(BACKWARD, "Conv2d", step, "two", start + 11, start + 15),
            Span(BACKWARD, "Add", step, "one", start + 20, start + 30),
        ]
    around = [event for event in events(spans, [])["traceEvents"] if event.get("cat") == LAYER]
    assert [(event["name"], *nanoseconds(event)) for event in around] == [
        (name, start + first, start + last)
        for start in (0, 50)
        for name, first, last in (("one", 1, 9), ("two", 11, 15), ("one", 20, 30))
    ]


# -- memory -----------------------------------------------------------------------------------------------------------


def test_the_most_memory_and_where() -> None:
    """Two results of 1 MiB are alive at the end of the second operator; the first is gone at the end of the third."""
    x = noise(64, 64, 64)  # 1 MiB, not of the pool
    assert x.data.nbytes == 1 << 20
    buffer_pool.pool.release()
    before = buffer_pool.pool.live
    with record() as profile, no_grad():
        y = ops.relu(x)
        z = ops.relu(y)
        del y
        ops.relu(z[0])  # too small for the pool
    most = profile.memory
    assert most is not None
    assert most.operator == "ReLU forward"
    samples = [s for s in profile.samples if profile.spans[s.span].kind == FORWARD]
    assert [s.in_use - before >= (n << 20) for s, n in zip(samples[:2], (1, 2), strict=True)] == [True, True]
    assert most.in_use == samples[1].in_use
    assert samples[-1].in_use < most.in_use
    assert [s.time for s in profile.samples] == sorted(s.time for s in profile.samples)


# -- what is not changed ----------------------------------------------------------------------------------------------


def gradients(net: layers.Module, x: Tensor, labels: np.ndarray) -> list[bytes]:
    net.zero_grad()
    loss = layers.CrossEntropyLoss()(net(x), labels)
    loss.backward()
    return [loss.data.tobytes(), *(p.grad.data.tobytes() for p in net.parameters())]


def test_a_profiled_step_has_the_same_bits() -> None:
    net = layers.Sequential(layers.ConvNorm(3, 8, 3), layers.Dropout(0.5), layers.Conv2d(8, 5, 1))
    x, labels = noise(2, 16, 16, 3, grad=True), np.random.default_rng(0).integers(0, 5, (2, 16, 16))
    start = random.state()
    plain = gradients(net, x, labels)
    random.set_state(start)
    with record() as profile:
        profiled = gradients(net, x, labels)
    assert profiled == plain
    assert row(profile, "Dropout forward").calls == 1


def test_captured_steps_run_uncaptured_while_they_are_recorded() -> None:
    net = layers.Sequential(layers.ConvNorm(1, 4, 3), layers.Conv2d(4, 3, 1))
    optimizer = AdamW(net)
    passes = CapturedPasses(Passes(net, layers.CrossEntropyLoss(), optimizer, "cpu"))
    x, labels = noise(2, 8, 8, 1).data, np.zeros((2, 8, 8), np.int64)
    for _ in range(4):
        passes(x, labels)
    assert passes.step is not None
    replays = passes.step.replays
    assert replays > 0
    with record() as profile:
        passes(x, labels)
    assert row(profile, "Conv2d forward").calls == 1
    assert passes.step.replays == replays
    passes(x, labels)
    assert passes.step.replays == replays + 1


def test_nothing_is_told_outside_of_the_block() -> None:
    profile = Profile("cpu")

    def failing() -> None:
        ops.relu(noise(3))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), profile._recorder.recording():
        failing()
    assert tracing.current.tracer is None
    assert is_plain()
    count = len(profile.spans)
    ops.relu(noise(3))
    assert len(profile.spans) == count
    assert row(profile, "ReLU forward").calls == 1
    with record(), pytest.raises(RuntimeError, match="two profiles cannot be recorded at once"), record():
        pass


def test_a_tracer_alone_keeps_everything_from_being_captured() -> None:
    with tracing.trace(Recorder(HostClock())):
        assert not is_plain()
    assert is_plain()


def test_an_operator_that_fails_leaves_a_profile() -> None:
    with record() as profile:
        with pytest.raises(ValueError, match="matmul"):
            ops.matmul(noise(2, 3), noise(2, 3))
        with pytest.raises(ValueError, match="conv2d_forward"):
            conv.conv2d_forward((noise(1, 4, 4, 2).data,), noise(1, 1, 3, 3).data, None, Window((1, 1)))
        ops.relu(noise(3))
    assert row(profile, "ReLU forward").calls == 1


def test_other_threads_are_not_recorded() -> None:
    with record() as profile:
        other = threading.Thread(target=lambda: ops.relu(noise(3)))
        other.start()
        other.join()
    assert FORWARD not in {span.kind for span in profile.spans}


class Counted(Function):
    """Its own FLOPs, those of its gradient, and an array of its own."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.factor = np.full(x.shape, 2.0)
        return x * self.factor.astype(x.dtype)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy * 2

    def flops(self, inputs: Any, outputs: Any) -> int:
        return 7

    def backward_flops(self, forward: int) -> int:
        return 3 * forward


def test_functions_of_ones_own_state_their_flops() -> None:
    x = noise(4, grad=True)
    with record() as profile:
        Counted()(x).backward(np.ones(4, np.float32))
    assert (row(profile, "Counted forward").flops, row(profile, "Counted backward").flops) == (7, 21)
    assert row(profile, "Counted forward").bytes == 2 * 16 + 32  # x and y; the factor, in float64
