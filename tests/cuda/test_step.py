"""Training steps on CUDA: mixed precision, and forward and backward as a CUDA graph."""

from __future__ import annotations

import numpy as np
import pytest

from engine.graphs import CaptureError
from engine.graphs.cuda_graph import CudaGraphPasses
from engine.training.loss_scaling import LossScale
from engine.training.optimizer import AdamW
from engine.training.step import Passes
from kernels.core import device
from kernels.core.cuda.module import launch_log
from kernels.core.dispatch import registry
from kernels.core.precision import use_precision
from layers import Conv2d, ConvNorm, SegmentationLoss, Sequential

# A sum over fewer than 128 pixels needs no matrix product: CuPy refuses cuBLAS while it records, and the reference of
# `sum_pixels` uses it.
FEW = (2, 7, 8)
CONV = [name for name in registry if name.startswith("conv")]


@pytest.fixture(autouse=True)
def tensor_cores(monkeypatch):
    """Convolutions on CUDA go to tensor cores first (where the family has no CUDA module of its own that does so)."""
    for name in CONV:
        if "cuda" not in registry[name].modules:
            monkeypatch.setitem(registry[name].modules, "cuda", "kernels.conv.cuda.tensor_core")
            monkeypatch.setattr(registry[name], "_loaded", {})


def data(count: int, shape: tuple[int, ...] = (2, 12, 14)) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches whose labels can be read off the image: 1 + how bright it is."""
    rng = np.random.default_rng(3)
    images = [rng.random((*shape, 1)).astype(np.float32) for _ in range(count)]
    return [(x - 0.5, (1 + np.floor(x[..., 0] * 4)).astype(np.uint8)) for x in images]


class Trained:
    """A small network on a device, with all that a step needs."""

    def __init__(self, where: str, monkeypatch, graph: bool = False) -> None:
        monkeypatch.setattr(device, "_chosen", device.Choice(where, "test"))
        rng = np.random.default_rng(1)
        self.net = Sequential(ConvNorm(1, 8, 3), ConvNorm(8, 12, 3, 2), Conv2d(12, 5, 1))
        for _, t in self.net.named_tensors():
            if t.ndim == 4:
                t.data[...] = device.to_device(
                    (rng.standard_normal(t.shape) * (2 / t.size * t.shape[3]) ** 0.5).astype(np.float32), where
                )
        self.optimizer = AdamW(self.net, clip=1.0, average=0.999)
        self.loss = SegmentationLoss({"cross_entropy": 1.0}, None, background="mask")
        passes = Passes(self.net, self.loss, self.optimizer, where)
        self.passes = CudaGraphPasses(passes) if graph else passes

    def step(self, x: np.ndarray, labels: np.ndarray, scale: LossScale | None = None) -> float:
        value = None if scale is None else scale.value
        terms = self.passes(x, labels, value)
        norm = self.optimizer.step(2e-2, value, gathered=True)
        if scale is not None:
            scale.update(norm)
        return float(terms["loss"])


def convolutions(log: list) -> list:
    """Launches of the passes, not of the optimizer."""
    return [launch for launch in log if launch.kernel.startswith(("forward<", "filter<"))]


@pytest.mark.parametrize("policy", ["tf32", "bf16", "float16"])
def test_training_with_rounded_operands_follows_training_without(cp, monkeypatch, served, policy: str) -> None:
    batches = data(2) * 4
    plain, other = Trained("cpu", monkeypatch), Trained("cuda", monkeypatch)
    scale = LossScale(2.0**10) if policy == "float16" else None
    exact = [plain.step(*batch) for batch in batches]
    with use_precision(policy):
        rounded = [other.step(*batch, scale) for batch in batches]
    assert {launch.kernel.split("<")[0] for launch in convolutions(served)} == {"forward", "filter"}
    assert rounded[-1] < 0.8 * rounded[0]
    unit = 2.0 ** {"tf32": -10, "bf16": -8, "float16": -11}[policy]
    assert abs(rounded[0] - exact[0]) <= 4 * unit * exact[0], "three layers, an operand error of one unit each"
    assert rounded[0] != exact[0]
    assert abs(rounded[-1] - exact[-1]) < 0.1 * exact[-1], "and training goes the same way"
    assert all(p.data.dtype == np.float32 for p in other.net.parameters())


def test_a_scale_that_is_too_large_is_found_and_halved(cp, monkeypatch) -> None:
    (batch,) = data(1)
    run, scale = Trained("cuda", monkeypatch), LossScale(2.0**24, largest=2.0**24)
    before = run.optimizer.flat.vector.get()
    with use_precision("float16"):
        run.step(*batch, scale)
        assert scale.skipped == 1, "gradients of 2^24 times the loss do not fit"
        assert (run.optimizer.flat.vector.get() == before).all()
        while scale.skipped and scale.good == 0:
            run.step(*batch, scale)
    assert scale.value == 2.0 ** (24 - scale.skipped)
    assert np.isfinite(run.optimizer.flat.vector.get()).all()
    assert (run.optimizer.flat.vector.get() != before).any()


@pytest.mark.parametrize("policy", ["tf32", "float16"])
def test_a_graph_replays_what_the_step_does_bit_by_bit(cp, monkeypatch, policy: str) -> None:
    batches = data(3, FEW) + data(1, (3, 5, 8)) + data(2, FEW)
    eager, graph = Trained("cuda", monkeypatch), Trained("cuda", monkeypatch, graph=True)
    scales = [LossScale(2.0**8, interval=2) if policy == "float16" else None for _ in range(2)]
    with use_precision(policy):
        for k, batch in enumerate(batches):
            with launch_log() as log:
                expected = eager.step(*batch, scales[0])
            with launch_log() as replayed:
                assert graph.step(*batch, scales[1]) == expected, f"step {k}"
            # two steps as they are, the recording, the other shape, then two replays that launch nothing one by one
            assert bool(convolutions(replayed)) == (k < 4), f"step {k}"
            assert convolutions(log)
    assert (eager.optimizer.flat.vector.get() == graph.optimizer.flat.vector.get()).all()
    assert (eager.optimizer.buffers.vector.get() == graph.optimizer.buffers.vector.get()).all()


def test_two_steps_launch_the_same_and_allocate_nothing_new(cp, monkeypatch) -> None:
    """What a graph asks for: the same launches with the same grids, and after the first steps no memory from outside
    the pool.
    """
    run, pool, asked = Trained("cuda", monkeypatch), cp.cuda.MemoryPool(), []

    class Hook(cp.cuda.MemoryHook):
        name = "requests to the driver"

        def alloc_preprocess(self, **details):
            asked.append(details["mem_size"])

    logs = []
    batches = data(4)
    with use_precision("tf32"), cp.cuda.using_allocator(pool.malloc), Hook():
        for x, labels in batches:
            asked.clear()
            with launch_log() as log:
                run.passes(x, labels)
            logs.append(list(log))
    assert logs[2] == logs[3]
    assert len(logs[3]) > 6
    assert not asked


def test_a_step_that_looks_at_a_value_cannot_be_recorded(cp, monkeypatch) -> None:
    (batch,) = data(1, FEW)
    run = Trained("cuda", monkeypatch, graph=True)
    compute = run.passes.passes.compute

    def peeking(x, labels, seed):
        terms = compute(x, labels, seed)
        terms["loss"].item()
        return terms

    monkeypatch.setattr(run.passes.passes, "compute", peeking)
    with use_precision("tf32"):
        for _ in range(2):
            run.step(*batch)
        with pytest.raises(
            CaptureError, match=r"^cuda_graph: the step cannot be captured \(.*\); run without --cuda-graph$"
        ):
            run.step(*batch)
        assert cp.arange(3).sum().get() == 3, "the device goes on working"


def test_a_graph_follows_changes_of_the_network(cp, monkeypatch) -> None:
    """An activation taken away, a filter frozen, a norm frozen: the bits of steps without a graph."""
    eager, graph = Trained("cuda", monkeypatch), Trained("cuda", monkeypatch, graph=True)
    changes = {
        4: lambda net: setattr(net.steps[0].norm, "activation", None),
        8: lambda net: setattr(net.steps[2].weight, "requires_grad", False),
    }
    with use_precision("tf32"):
        for k, batch in enumerate(data(12, FEW)):
            for run in (eager, graph):
                changes.get(k, lambda net: None)(run.net)
            assert graph.step(*batch) == eager.step(*batch), f"step {k}"
            assert (eager.optimizer.flat.vector.get() == graph.optimizer.flat.vector.get()).all(), f"step {k}"
    assert graph.passes.recorded
