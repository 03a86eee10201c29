"""Winograd convolution on CUDA: within its stated bound of the float64 reference; chosen by a pure cost model or by the
environment.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
import pytest

from kernels.conv import reference
from kernels.conv.cpu import algorithm
from kernels.conv.cuda import winograd
from kernels.core.geometry import Window
from tests.cuda.conv_layers import F4, F8, LAYERS, Layer, assert_caught, compare, device, exact, three

WIDE = Layer(2, 9, 13, (24, 8), 36, padding=1)
SHAPES = {
    "one map": Layer(2, 8, 12, (8,), 12, padding=1),
    "ragged tiles": Layer(1, 7, 10, (5,), 3, padding=1),
    "no padding": Layer(2, 9, 6, (4,), 4),
    "one-sided padding": Layer(1, 5, 6, (4,), 8, padding=((2, 0), (1, 3))),
    "padding beyond the filter": Layer(1, 4, 3, (4,), 8, padding=((4, 3), (3, 5))),
    "one pixel": Layer(1, 1, 1, (1,), 4, padding=1),
    "two maps": WIDE,
}
KERNELS = ["transform_filter", "transform_input", "transform_output"]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """AREOGRAD_CONV=winograd4."""
    monkeypatch.setattr(algorithm, "mode", lambda: "winograd4")


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("accumulate_into", [False, True], ids=["", "accumulate_into"])
@pytest.mark.parametrize("name", SHAPES)
def test_within_the_stated_bound(name: str, accumulate_into: bool, served: list) -> None:
    compare(SHAPES[name], accumulate_into=accumulate_into, least=winograd.BOUND)
    forward = [] if name == "one pixel" else KERNELS  # one channel in: the stem's kernel
    assert [launch.kernel for launch in served][-9 if forward else -6 :] == [
        *forward,
        *KERNELS,
        "transform_cotangent",
        KERNELS[1],
        "transform_filter_gradient",
    ]


@pytest.mark.usefixtures("forced")
def test_bound_at_many_channels(served: list) -> None:
    compare(Layer(1, 12, 12, (160,), 32, padding=1), least=winograd.BOUND)
    assert len(served) == 9


@pytest.mark.usefixtures("forced")
def test_transposed_convolution_of_stride_one(served: list) -> None:
    from kernels.conv import cuda

    rng, window = np.random.default_rng(0), Window.of("t", 3, 1, 1)
    x, w, b = (rng.standard_normal(s).astype(F4) for s in ((2, 6, 7, 4), (3, 3, 4, 8), (8,)))
    fast = cuda.conv_transpose2d_forward(device(x), device(w), device(b), (6, 7), window).get()
    truth = reference.conv_transpose2d_forward(exact(x), exact(w), exact(b), (6, 7), window)
    assert [launch.kernel for launch in served] == KERNELS
    assert np.abs(fast - truth).max() <= winograd.BOUND * np.abs(truth).max()


@pytest.mark.parametrize(
    ("mode", "name"),
    [("direct", "one map"), ("exact", "one map"), ("winograd2", "one map"), ("auto", "one map"), ("winograd4", "")],
)
def test_modes_and_what_they_cannot_serve(mode: str, name: str, monkeypatch: pytest.MonkeyPatch, served: list) -> None:
    monkeypatch.setattr(algorithm, "mode", lambda: mode)
    compare(SHAPES[name] if name else LAYERS["strided"])
    assert not any("transform" in launch.kernel for launch in served)


def test_other_types_are_not_served(forced: Any, served: list) -> None:
    compare(SHAPES["one map"], F8)
    assert not any("transform" in launch.kernel for launch in served)


def test_products() -> None:
    rng = np.random.default_rng(0)
    for m, s, n in ((5, 7, 3), (1, 4, 1), (8, 1, 9)):
        a, b = rng.standard_normal((36, m, s)).astype(F4), rng.standard_normal((36, s, n)).astype(F4)
        want = a.astype(F8) @ b.astype(F8)
        got = [
            winograd.multiply(cupy.asarray(a), cupy.asarray(b)),
            winograd.multiply(cupy.asarray(a.swapaxes(1, 2).copy()), cupy.asarray(b), across=True),
        ]
        for product in got:
            np.testing.assert_allclose(product.get(), want, rtol=0, atol=1e-5)


def test_cost_model_is_pure_and_prefers_winograd_where_channels_are_many() -> None:
    def pays(n: int, out: tuple[int, int], c: int) -> bool:
        direct_cycles, winograd_cycles = winograd.cycles(n, out, c, c, 108)
        return winograd_cycles < direct_cycles

    assert [pays(16, out, c) for out, c in (((64, 128), 16), ((64, 128), 32), ((16, 32), 128), ((8, 16), 256))] == [
        False,
        False,
        True,
        True,
    ]
    assert not pays(1, (4, 4), 16), "four launches for nothing"


def test_ceilings_of_memory_access(forced: Any, counted: Any) -> None:
    layer = Layer(1, 16, 16, (32,), 32, padding=1)
    from kernels.conv import cuda

    with counted() as report:
        three(layer, cuda, *map(device, layer.arrays()))
    report.assert_clean()
    for name in winograd.NAMES:
        kernel = report.kernel(name)
        # of the flipped filter: sectors are shared by the eight rows of a block, not within a request
        if name != "transform_filter":
            assert kernel.sectors_per_request <= 4
            assert kernel.global_efficiency == 1
        assert kernel.sectors_per_request_of("store") <= 4


def all_three() -> None:
    compare(SHAPES["ragged tiles"], least=winograd.BOUND)


MUTANTS = [  # name, old, new
    ("output edge not predicated", "if (row + a < g.p && column + b < g.q) {", "if (row + a < g.p) {"),
    ("cotangent edge not predicated", "row + a < g.p && column + b < g.q ? dy", "row + a < g.p ? dy"),
    ("input padding on one side", "column = tile % g.columns * 4 - g.left", "column = tile % g.columns * 4"),
    ("tile index swapped", "row[j] = half[j][i];", "row[j] = half[i % F::IN][j % F::OUT];"),
    ("coefficient", "t[5] = 4 * d[1] - 5 * d[3] + d[5];", "t[5] = 4 * d[1] - 5 * d[3] - d[5];"),
    ("filter not flipped", "(flipped ? 8 - a : a) * size", "a * size"),
]


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize(("old", "new"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_planted_mistakes_are_caught(old: str, new: str) -> None:
    assert_caught(winograd.MODULE, old, new, "check trace", all_three)
