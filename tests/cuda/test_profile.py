"""The profile on CUDA: the same operators and counts as on the CPU, our launches by name, and times only from a GPU."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

import layers
from autograd import Tensor
from engine.graphs.cuda_graph import CudaGraphPasses
from engine.profile import Profile, record
from engine.training.optimizer import AdamW
from engine.training.step import Passes
from kernels.core import device
from kernels.core.cuda import peaks
from kernels.core.cuda.module import launch_log
from kernels.core.tracing import BACKWARD, FORWARD, KERNEL
from tests.cuda.device import WHERE


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default device is put back."""
    monkeypatch.setattr(device, "_chosen", device._chosen)


def profiled(name: str) -> tuple[Profile, list[str]]:
    """A step of a small network on a device, and the kernels that were launched."""
    device.choose(name)
    rng = np.random.default_rng(0)
    net = layers.Sequential(layers.ConvNorm(1, 8, 3), layers.Conv2d(8, 5, 1))
    x = Tensor(device.to_device(rng.standard_normal((2, 8, 8, 1)).astype(np.float32), name))
    labels = device.to_device(rng.integers(0, 5, (2, 8, 8)), name)
    with launch_log() as log, record() as profile, profile.step():
        layers.CrossEntropyLoss()(net(x), labels).backward()
    return profile, [launch.kernel for launch in log]


def test_the_operators_and_their_cost_are_the_cpus() -> None:
    (cuda, launched), (cpu, _) = profiled("cuda"), profiled("cpu")

    def functions(profile: Profile) -> list[tuple]:
        return [(s.name, s.kind, s.layer, s.shape, s.flops) for s in profile.spans if s.kind in (FORWARD, BACKWARD)]

    assert functions(cuda) == functions(cpu)
    assert launched
    names = Counter(span.name.split(".", 3)[-1] for span in cuda.spans if span.kind == KERNEL)
    assert names == Counter(launched)
    algorithms = sum((row.algorithms for row in cuda.rows()), Counter())
    assert algorithms["implicit gemm"]
    assert "unfused: single channel" in algorithms


def test_times_are_a_gpus_or_none() -> None:
    profile, _ = profiled("cuda")
    assert profile.timed == (not WHERE.emulated)
    if WHERE.emulated:
        assert "no times: the device is emulated" in profile.summary()[0]
        assert profile.to_dict()["step_seconds"] is None
        assert {row["seconds"] for row in profile.to_dict()["operators"]} == {None}
        assert profile.table().splitlines()[1].split()[-1] != "c"
    starts = [span.start for span in profile.spans]
    assert starts == sorted(starts)
    assert all(span.end >= span.start for span in profile.spans)
    assert profile.memory is not None
    assert json.dumps(profile.to_dict())


def test_a_cuda_graph_is_not_replayed_while_it_is_recorded() -> None:
    device.choose("cuda")
    net = layers.Sequential(layers.Conv2d(1, 3, 1))
    passes = CudaGraphPasses(Passes(net, layers.CrossEntropyLoss(), AdamW(net), "cuda"))
    with record() as profile:
        passes(np.zeros((1, 4, 4, 1), np.float32), np.zeros((1, 4, 4), np.int64))
    assert passes.recorded == {}
    assert "Conv2d backward" in {row.name for row in profile.rows()}


def test_the_peaks_of_a_device_are_measured() -> None:
    found = peaks.measure(side=32, floats=1 << 10, rounds=2)
    assert found.gflops > 0
    assert found.gbytes > 0
    assert found.name in str(found)


def test_a_peak_is_that_of_the_precision() -> None:
    gpu = peaks.Gpu("a GPU", gflops=10, gbytes=1, tensor_gflops=80)
    assert [gpu.peak(name) for name in ("float32", "tf32", "bf16", "float16")] == [10, 40, 80, 80]
