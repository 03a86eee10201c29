"""Recorded inference: the same bits as the ordinary path, its own memory, and no plan of a network that is another by
now.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, inference, no_grad, ops
from autograd.ops.conv import Conv2d as ConvOperator
from engine.graphs import CaptureError, cpu_inference
from engine.graphs.cpu_inference import InferenceGraph
from engine.inference import Normalisation, predict_logits
from kernels.core.cpu import buffer_pool, thread_pool
from kernels.core.dispatch import use_kernels
from layers import Module, Parameter, UNet
from layers.conv import Conv2d

rng = np.random.default_rng(7)


def lively(net: Module) -> Module:
    """Every parameter away from its start: gains of 0 would hide what stands behind them."""
    with no_grad():
        for _, t in net.named_tensors():
            t.add_(np.abs(rng.normal(0, 0.1, t.shape)).astype(np.float32))
    return net.eval()


def images(n: int = 1, h: int = 16, w: int = 24) -> np.ndarray:
    return rng.standard_normal((n, h, w, 1), np.float32)


def ordinary(net: Module, x: np.ndarray) -> np.ndarray:
    with inference():
        return net(Tensor(x)).data.copy()


@pytest.fixture
def small() -> Module:
    return lively(UNet(width=8, seed=1))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bottleneck": "mhsa"},
        {"gate": "attnC"},
        {"gate": "blend"},
        {"psa_mode": "parallel", "order": "parallel"},
        {"encoder": "plain", "skips": "plain"},
        {"five": "3x3+3x3"},
    ],
)
def test_same_bits_as_the_ordinary_path(settings: dict[str, Any], n: int) -> None:
    net = lively(UNet(width=8, seed=1, size=(16, 24), **settings))
    planned = InferenceGraph(net, images(n))
    for x in (images(n), 100 * images(n)):
        np.testing.assert_array_equal(planned(x), ordinary(net, x))


def test_same_bits_at_the_size_of_the_reports_network() -> None:
    net = lively(UNet(width=32, seed=0))
    planned, x = InferenceGraph(net, images(1, 64, 128)), images(1, 64, 128)
    np.testing.assert_array_equal(planned(x), ordinary(net, x))


def test_results_are_the_callers_own_and_memory_is_the_plans_own(small: Module) -> None:
    planned, x = InferenceGraph(small, images()), images()
    first = planned(x)
    kept = first.copy()
    for _ in range(3):  # whoever takes memory from the pool and spoils it
        for size in (100, 10_000, 100_000, 1_000_000):
            buffer_pool.empty((size,)).fill(np.nan)
        planned(images())
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(planned(x), kept)


def changed_weight(net: Any) -> None:
    with no_grad():
        net.middle.steps[0].conv.weight.mul_(2)


def changed_statistics(net: Any) -> None:
    net.encoders[0].steps[0].first.norm.running_mean.fill_(3)


def changed_array(net: Any) -> None:
    net.head.weight.data = net.head.weight.data * 2


def changed_setting(net: Any) -> None:
    net.head.padding = 1


def changed_module(net: Any) -> None:
    net.head = Conv2d(8, 5, 1)


def changed_list(net: Any) -> None:
    net.decoders[2] = lively(UNet(width=8, seed=2)).decoders[2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change", [changed_weight, changed_statistics, changed_array, changed_setting, changed_module, changed_list]
)
def test_a_changed_network_is_noticed(small: Module, change: Callable[[Any], None]) -> None:
    x = images()
    planned = InferenceGraph(small, x)
    assert planned.current
    change(small)
    assert not planned.current
    with pytest.raises(CaptureError, match="changed"):
        planned(x)
    np.testing.assert_array_equal(InferenceGraph(small, x)(x), ordinary(small, x))


def test_run_follows_a_changing_network(small: Module) -> None:
    x = images()
    for _ in range(3):
        for _ in range(cpu_inference._PAYS + 2):
            np.testing.assert_array_equal(cpu_inference.run(small, x), ordinary(small, x))
        assert isinstance(cpu_inference._graphs[small][x.shape], InferenceGraph)
        with no_grad():
            small.head.weight.mul_(1.5)  # type: ignore[attr-defined]


def test_predictions_use_a_plan_when_a_shape_comes_often(small: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        cpu_inference,
        "InferenceGraph",
        type(
            "Counted",
            (InferenceGraph,),
            {"__init__": lambda s, n, x: (made.append(x.shape), InferenceGraph.__init__(s, n, x))[1]},
        ),
    )  # type: ignore[func-returns-value]
    tiles, grey = rng.integers(0, 256, (2 * cpu_inference._PAYS + 3, 16, 24), dtype=np.uint8), Normalisation(0.5, 0.25)
    small.train()
    many = predict_logits(small, tiles, grey, batch=1)
    assert made == [(1, 16, 24, 1)]
    assert small.training
    small.eval()
    one_by_one = np.concatenate([ordinary(small, grey(tile[None])) for tile in tiles])
    np.testing.assert_array_equal(many, one_by_one)
    with use_kernels("reference"):  # asked for: a plan would give the fast kernels' numbers
        reference = predict_logits(small, tiles[:1], grey, batch=1)
        np.testing.assert_array_equal(reference, ordinary(small, grey(tiles[:1])))


def test_few_plans_are_kept(small: Module) -> None:
    for width in (16, 24, 32, 40, 48, 56):
        for _ in range(cpu_inference._PAYS + 1):
            cpu_inference.run(small, images(1, 8, width))
    assert [shape[2] for shape, p in cpu_inference._graphs[small].items() if isinstance(p, InferenceGraph)] == [
        32,
        40,
        48,
        56,
    ]


def test_any_number_of_threads_and_a_busy_team(small: Module) -> None:
    x, before = images(2), thread_pool.threads()
    planned = InferenceGraph(small, x)
    expected = planned(x)
    try:
        for count in (1, 3, 2):
            thread_pool.set_threads(count)
            np.testing.assert_array_equal(planned(x), expected)
    finally:
        thread_pool.set_threads(before)
    busy = thread_pool.current_pool().block[thread_pool._BUSY :]
    busy[0] = 1  # as from within another thread's job
    try:
        np.testing.assert_array_equal(planned(x), expected)
    finally:
        busy[0] = 0


def test_threads_share_a_plan(small: Module) -> None:
    planned, many = InferenceGraph(small, images()), [images() for _ in range(4)]
    expected, wrong = [ordinary(small, x) for x in many], []

    def work(k: int) -> None:
        wrong.extend(k for _ in range(20) if not np.array_equal(planned(many[k]), expected[k]))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(many))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


class Wrapped(Module):
    """A network and something else."""

    def __init__(self, net: Module, more: Callable[[Tensor], Tensor]) -> None:
        self.net, self.more = net, more

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.net(x))


@pytest.mark.parametrize(
    "more",
    [
        lambda y: ops.add(y, np.arange(5, dtype=np.float32)),
        lambda y: ops.log_softmax(y),
        lambda y: ops.softmax(y, axis=1),
        lambda y: ops.leaky_relu(ops.transpose(y, (0, 3, 1, 2)))[:, 1:4],
        lambda y: y.sum(2) + y.mean() * ops.max(y),
        lambda y: y[np.array([1, 0]), 2:],
    ],
)
def test_any_operator_may_follow(small: Module, more: Callable[[Tensor], Tensor]) -> None:
    """With a kernel, without one, or a view: those without are called again."""
    net = Wrapped(small, more).eval()
    planned = InferenceGraph(net, images(2))
    for _ in range(3):
        x = images(2)
        np.testing.assert_array_equal(planned(x), ordinary(net, x))


@pytest.mark.parametrize(
    "more",
    [
        lambda y: ops.relu(Tensor(y.data * 2)),
        lambda y: Tensor(y.data * 2),
        lambda y: y * float(y.data.max()),
    ],
)
def test_what_computes_outside_of_operators_is_refused(small: Module, more: Callable[[Tensor], Tensor]) -> None:
    net, x = Wrapped(small, more).eval(), images()
    with pytest.raises(CaptureError, match="outside of operators"):
        InferenceGraph(net, x)
    with pytest.warns(UserWarning, match="outside of operators"):
        results = [cpu_inference.run(net, x) for _ in range(cpu_inference._PAYS + 3)]
    for y in results:
        np.testing.assert_array_equal(y, ordinary(net, x))


def numpy_beside_the_kernel(self: Any, w: Any, b: Any, *maps: Any) -> Any:
    return original(self, w, b, *maps) * np.float32(1 + 1e-3 * np.tanh(maps[0].mean()))


def copy_before_the_kernel(self: Any, w: Any, b: Any, *maps: Any) -> Any:
    return original(self, w, b, *(m.copy() for m in maps))


original = ConvOperator.forward


@pytest.mark.parametrize("mutant", [numpy_beside_the_kernel, copy_before_the_kernel])
def test_an_operator_that_does_more_than_launch_is_caught(
    small: Module, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConvOperator, "forward", mutant)
    with pytest.raises(CaptureError, match="different logits"):
        InferenceGraph(small, images())


def test_blocks_of_a_pool_are_apart_and_aligned() -> None:
    pool, shapes = buffer_pool.Pool(smallest=0), [(3,), (5000,), (70_000,), (600_000,), (1,), (900, 900)] * 3
    arrays = [pool.empty(shape) for shape in shapes]
    for k, a in enumerate(arrays):
        a.fill(k)
    assert all((a == k).all() for k, a in enumerate(arrays))
    assert all(
        a.ctypes.data % buffer_pool.ALIGNMENT == 0 and pool.owns(a) and not buffer_pool.pool.owns(a) for a in arrays
    )
    held = pool.live
    del a, arrays
    assert pool.live == 0
    assert held > 0
    again = [pool.empty(shape) for shape in shapes]
    assert pool.peak == held, "the same blocks again"
    del again
    pool.release()
    assert pool.held == 0


def test_bad_input(small: Module) -> None:
    planned = InferenceGraph(small, images())
    with pytest.raises(ValueError, match=r"\(2, 16, 24, 1\).*\(1, 16, 24, 1\)"):
        planned(images(2))
    with pytest.raises(ValueError, match="float64"):
        planned(images().astype(np.float64))
    with pytest.raises(CaptureError, match="float64"):
        InferenceGraph(small, images().astype(np.float64))
    with pytest.raises(CaptureError, match="training mode"):
        InferenceGraph(small.train(), images())


def test_a_plan_sees_every_nesting() -> None:
    """A module, a parameter or a setting in a dict, or in a list within one, makes the network another."""

    class Net(Module):
        def __init__(self) -> None:
            self.parts = {"body": [(Conv2d(1, 4, 3, padding=1),)], "shift": [Parameter(np.zeros(4, np.float32))]}
            self.settings = {"scale": [1.0]}

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["body"][0][0](x) * self.settings["scale"][0] + self.parts["shift"][0]

    net = Net().eval()
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 1), np.float32)
    plan = InferenceGraph(net, x)
    assert plan.current
    for change in (
        lambda: net.settings["scale"].__setitem__(0, 2.0),
        lambda: net.parts["body"].__setitem__(0, (Conv2d(1, 4, 3, padding=1),)),
        lambda: net.parts["shift"][0].fill_(1.0),
        lambda: net.parts["body"][0][0].weight.mul_(0.5),
    ):
        with no_grad():
            change()
        assert not plan.current
        plan = InferenceGraph(net, x)
        with inference():
            assert (plan(x) == net(Tensor(x)).data).all()


def test_a_network_with_plans_is_not_kept_alive() -> None:
    net = lively(UNet(width=8, seed=1))
    for _ in range(cpu_inference._PAYS + 2):
        cpu_inference.run(net, images())
    assert isinstance(cpu_inference._graphs[net][1, 16, 24, 1], InferenceGraph)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None
