"""CUDA convolutions against the reference in float64, under the naive rule (docs/accuracy.md), and against the plain
kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
import pytest

from kernels import conv as kernels
from kernels.conv import cuda, reference
from kernels.conv.cuda import depthwise, implicit_gemm, naive, single_channel
from kernels.core.cuda.capturable import capturable
from kernels.core.dispatch import kernel_log
from kernels.core.geometry import Window
from tests.cuda.conv_layers import F4, F8, LAYERS, PLAIN, Layer, agree, assert_caught, compare, device, exact, three


@pytest.mark.parametrize("name", LAYERS)
def test_float32(name: str, served: list) -> None:
    layer = LAYERS[name]
    compare(layer)
    kernels_used = [
        launch.kernel for launch in served if launch.kernel not in ("arrange_filter", "reduce_splits", "add_partials")
    ]
    assert len(kernels_used) == 3
    for kernel, word in zip(kernels_used, layer.by, strict=True):
        assert kernel.startswith(word), kernels_used


@pytest.mark.parametrize(
    "name", ["scalars", "two odd maps", "strided", "stride above four", "groups", "depthwise", "random 0"]
)
def test_float64(name: str, served: list) -> None:
    compare(LAYERS[name], F8)
    assert [launch.kernel.split("<")[0] for launch in served] == list(PLAIN)


@pytest.mark.parametrize(
    "name", ["vectors", "two maps", "two odd maps", "strided", "depthwise", "groups", "long sum", "random 1"]
)
def test_added_to_what_is_there(name: str) -> None:
    compare(LAYERS[name], accumulate_into=True)


def test_only_one_of_two_maps_is_added_to() -> None:
    layer = LAYERS["two maps"]
    x, w, _, dy = layer.arrays()
    total = np.ones_like(x[1])
    args = ((layer.h, layer.w), layer.window, 1, layer.maps)
    fast = cuda.conv2d_backward_data(device(dy), device(w), *args, (None, cupy.asarray(total)))
    naive, truth = (reference.conv2d_backward_data(f(dy), f(w), *args, (None, f(total))) for f in (np.copy, exact))
    for i in range(2):
        agree(fast[i], naive[i], truth[i], f"dx {i}")


@pytest.mark.parametrize(
    ("outputs", "padding", "stride", "kernel", "groups", "channels"),
    [
        ((8, 10), 0, 2, 2, 1, (8, 4)),
        ((9, 12), 1, 2, (3, 4), 1, (5, 7)),
        ((5, 7), 1, 1, 3, 1, (4, 4)),
        ((8, 10), 0, 2, 2, 4, (4, 4)),
        ((8, 10), 0, 2, 2, 2, (6, 4)),
    ],
)
def test_transposed(
    outputs: Any, padding: int, stride: int, kernel: Any, groups: int, channels: Any, served: list
) -> None:
    window, (c, k), rng = Window.of("t", kernel, stride, padding), channels, np.random.default_rng(0)
    x = rng.standard_normal((2, *window.output_size(outputs), c)).astype(F4)
    w = rng.standard_normal((*window.kernel, c, k // groups)).astype(F4)
    b, dy = rng.standard_normal(k).astype(F4), rng.standard_normal((2, *outputs, k)).astype(F4)

    def run(module: Any, f: Any) -> list[Any]:
        return [
            module.conv_transpose2d_forward(f(x), f(w), f(b), outputs, window, groups),
            module.conv_transpose2d_backward_data(f(dy), f(w), window, groups),
            module.conv_transpose2d_backward_filter(f(x), f(dy), window, groups),
        ]

    for name, fast, plain, truth in zip(
        ("y", "dx", "dw"), run(cuda, device), run(reference, np.copy), run(reference, exact), strict=True
    ):
        agree(fast, plain, truth, name)
    if (kernel, padding, groups) == (2, 0, 1):  # the filter lies as it is walked: one launch, nothing arranged
        assert served[0].kernel.startswith("convolve")
        assert served[0].grid[2] % 4 == 0


def test_pointwise_is_a_product_of_matrices(served: list) -> None:
    layer = Layer(2, 5, 6, (8,), 4, kernel=1)
    for dtype in (F4, F8):
        served.clear()
        compare(layer, dtype, bias=False)
        assert len([launch for launch in served if launch.kernel not in ("add_partials", "reduce_splits")]) == 1, (
            "only the filter gradient is ours"
        )


def test_a_request_for_tf32_does_not_reach_exact_products(monkeypatch: pytest.MonkeyPatch, served: list) -> None:
    monkeypatch.setattr(cupy._core, "get_compute_type", lambda dtype: 7)  # COMPUTE_TYPE_TF32
    compare(Layer(2, 5, 6, (8,), 4, kernel=1), bias=False)
    assert [launch.kernel.split("<")[0] for launch in served if launch.kernel[:3] not in ("add", "arr")] == [
        "convolve",
        "convolve",
        "filter_gradient",
    ]


def test_what_a_graph_captures_calls_no_cublas(served: list) -> None:
    with capturable():
        compare(Layer(2, 5, 6, (8,), 4, kernel=1), bias=False)
    kernels = {launch.kernel.split("<")[0] for launch in served}
    assert {"convolve", "filter_gradient"} <= kernels


@pytest.mark.parametrize("tile", implicit_gemm.FORWARD_TILES[4], ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_every_forward_tile(tile: Any, splits: int, monkeypatch: pytest.MonkeyPatch, served: list) -> None:
    monkeypatch.setattr(implicit_gemm, "choose", lambda *_: (tile, splits))
    layer = Layer(2, 9, 9, (12,), 132, padding=1)
    x, w, b, dy = layer.arrays()
    y, dx = (
        cuda.conv2d_forward(device(x), device(w), device(b), layer.window),
        cuda.conv2d_backward_data(device(dy), device(w), (9, 9), layer.window)[0],
    )
    assert {launch.kernel for launch in served if "convolve" in launch.kernel} == {tile.kernel("convolve", 4)}
    for fast, name, *args in ((y, "conv2d_forward", x, w, b), (dx, "conv2d_backward_data", dy, w, (9, 9))):
        function = getattr(reference, name)
        naive, truth = (
            function(
                *(f(a) if name == "conv2d_forward" or isinstance(a, np.ndarray) else a for a in args), layer.window
            )
            for f in (lambda a: a, exact)
        )
        agree(fast, *((naive, truth) if name == "conv2d_forward" else (naive[0], truth[0])), name)


@pytest.mark.parametrize(
    ("step", "tile"), [(s, t) for s, tiles in implicit_gemm.FILTER_TILES.items() for t in tiles], ids=str
)
@pytest.mark.parametrize("splits", [1, 3])
def test_every_filter_tile(step: int, tile: Any, splits: int, monkeypatch: pytest.MonkeyPatch, served: list) -> None:
    monkeypatch.setattr(implicit_gemm, "choose", lambda *_: (tile, splits))
    layer = Layer(2, 9, 10, (16,), 132, padding=1) if step == 4 else Layer(2, 9, 10, (9, 6), 131, padding=1)
    x, _, _, dy = layer.arrays()
    fast = cuda.conv2d_backward_filter(device(x), device(dy), layer.window)
    assert served[0].kernel == tile.kernel("filter_gradient", step)
    agree(fast, *(reference.conv2d_backward_filter(f(x), f(dy), layer.window) for f in (lambda a: a, exact)), "dw")


def test_arrays_need_be_neither_contiguous_nor_aligned(served: list) -> None:
    layer = LAYERS["vectors"]
    (x,), w, b, dy = layer.arrays()
    want = three(layer, cuda, device((x,)), device(w), device(b), device(dy))
    served.clear()

    def shifted(a: np.ndarray) -> Any:  # starts 4 bytes behind a multiple of 16
        room = cupy.empty(a.size + 1, a.dtype)[1:].reshape(a.shape)
        room[...] = cupy.asarray(a)
        return room

    found = three(layer, cuda, (shifted(x),), *map(shifted, (w, b, dy)))
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got.get(), expected.get(), rtol=0, atol=1e-5 * float(np.abs(expected.get()).max()))
    assert all(
        launch.kernel.endswith(" 1>") for launch in served if "<" in launch.kernel and "depthwise" not in launch.kernel
    )

    def strided(a: np.ndarray) -> Any:
        return cupy.asarray(np.repeat(a, 2, axis=-1))[..., ::2]

    found = three(layer, cuda, (strided(x),), *map(strided, (w, b, dy)))
    for got, expected in zip(found, want, strict=True):
        assert (got == expected).all()


@pytest.mark.parametrize(
    "layer",
    [
        Layer(0, 4, 6, (4,), 8, 2, 2),
        Layer(0, 4, 6, (4,), 4, groups=4),
        Layer(0, 4, 6, (1,), 4),
        Layer(0, 4, 6, (4,), 4, 1),
    ],
    ids=str,
)
def test_empty_batch(layer: Layer) -> None:
    x, w, _, dy = layer.arrays()
    y, dx, dw = three(layer, cuda, device(x), device(w), None, device(dy))
    assert y.shape == dy.shape
    assert dx.shape == x[0].shape
    assert (dw == 0).all()
    assert dw.shape == w.shape


@pytest.mark.parametrize("name", ["many pixels", "long sum", "depthwise", "strided"])
def test_same_bits_in_every_run(name: str) -> None:
    layer = LAYERS[name]
    arrays = [device(a) for a in layer.arrays()]
    for first, second in zip(three(layer, cuda, *arrays), three(layer, cuda, *arrays), strict=True):
        assert (first == second).all()


def test_dispatch_reaches_the_kernels() -> None:
    layer = LAYERS["two maps"]
    x, w, b, dy = map(device, layer.arrays())
    with kernel_log() as log:
        three(layer, kernels, x, w, b, dy)
        kernels.conv2d_forward((x[0].astype(np.float16),), w[:, :, :4], None, layer.window)  # mixed types
    assert [entry.by for entry in log] == ["fast", "fast", "fast", "reference"]


def test_plain_kernels_are_a_second_oracle() -> None:
    layer = LAYERS["wide"]
    maps, *others = layer.arrays()
    x, w, b, dy = (a.astype(F8) for a in (*maps, *others))
    dx = cupy.empty_like(device(x))
    y = naive.forward([device(x)], device(w), device(b), layer.window, 1)
    naive.backward_data(device(dy), device(w), None, layer.window, 1, [dx], 0)
    dw = naive.backward_filter([device(x)], device(dy), layer.window, 1)
    for got, want in zip((y, dx, dw), three(layer, reference, (x,), w, b, dy), strict=True):
        np.testing.assert_allclose(got.get(), want, rtol=0, atol=1e-13 * np.abs(want).max())


# ------------------------------------------------------------------------------------------------------------ memory ac


@pytest.mark.parametrize(
    "name", ["convolve", "filter_gradient", "single_channel_forward", "depthwise", "depthwise_filter"]
)
def test_ceilings_of_memory_access(name: str, counted: Callable) -> None:
    """On aligned shapes: what the headers of the .cu files promise."""
    layer = {
        "convolve": Layer(2, 16, 16, (32,), 64, padding=1),
        "filter_gradient": Layer(2, 16, 16, (32,), 64, padding=1),
        "single_channel_forward": Layer(1, 4, 64, (1,), 32, padding=1),
    }.get(name, Layer(1, 8, 16, (64,), 64, padding=1, groups=64))
    x, w, b, dy = map(device, layer.arrays())
    with counted() as report:
        three(layer, cuda, x, w, b, dy)
    report.assert_clean()
    found = [k for k in report.kernels if k.name.split("<")[0].split("(")[0].removeprefix("void ") == name]
    assert found
    for kernel in found:
        lines = [line for line in kernel.lines if line["space"] == "global"]
        share = 0.9 if name == "single_channel_forward" else 0.99  # the stem's rows of single floats begin anywhere
        assert sum(line["ideal_sectors"] for line in lines) >= share * sum(line["sectors"] for line in lines), (
            "every sector moved was asked for"
        )
        assert all(line["sectors"] <= 16 * line["requests"] for line in lines), "at most 32 lanes x 16 bytes"
        if name in ("convolve", "filter_gradient"):
            assert kernel.wavefronts_per_request_of("load") == 4, (
                "16-byte reads of shared memory without a bank conflict"
            )
        elif name == "depthwise_filter":
            assert kernel.bank_conflict_factor == 1


# ------------------------------------------------------------------------------------------------------------ planted m


def forward(name: str) -> Callable[[], None]:
    def run() -> None:
        layer = LAYERS[name]
        x, w, b, _ = layer.arrays()
        fast = cuda.conv2d_forward(device(x), device(w), device(b), layer.window, layer.groups)
        agree(
            fast,
            *(reference.conv2d_forward(f(x), f(w), f(b), layer.window, layer.groups) for f in (lambda a: a, exact)),
            name,
        )

    return run


def data(name: str) -> Callable[[], None]:
    def run() -> None:
        layer = LAYERS[name]
        _, w, _, dy = layer.arrays()
        args = ((layer.h, layer.w), layer.window, layer.groups, layer.maps)
        none = (None,) * len(layer.maps)
        fast = cuda.conv2d_backward_data(device(dy), device(w), *args, none)
        for ours, plain, truth in zip(
            fast, *(reference.conv2d_backward_data(f(dy), f(w), *args, none) for f in (np.copy, exact)), strict=True
        ):
            agree(ours, plain, truth, name)

    return run


def filters(name: str) -> Callable[[], None]:
    def run() -> None:
        layer = LAYERS[name]
        x, _, _, dy = layer.arrays()
        fast = cuda.conv2d_backward_filter(device(x), device(dy), layer.window, layer.groups)
        agree(
            fast,
            *(reference.conv2d_backward_filter(f(x), f(dy), layer.window, layer.groups) for f in (lambda a: a, exact)),
            name,
        )

    return run


ANY = "check trace"
MUTANTS = [  # name, module, old, new, modes in which it is caught, test
    (
        "missing barrier",
        implicit_gemm.FORWARD,
        "copies_done();\n      __syncthreads();",
        "copies_done();",
        "trace",
        forward("vectors"),
    ),
    (
        "missing wait",
        implicit_gemm.FORWARD,
        "copies_done();\n      __syncthreads();",
        "__syncthreads();",
        ANY,
        forward("vectors"),
    ),
    (
        "same buffer twice",
        implicit_gemm.FORWARD,
        "patches.copy(a[now ^ 1]",
        "patches.copy(a[now]",
        ANY,
        forward("vectors"),
    ),
    (
        "unpredicated edge",
        implicit_gemm.FORWARD,
        " && unsigned(w0[i] + dw) < unsigned(p.in_w)",
        "",
        ANY,
        forward("vectors"),
    ),
    ("bound off by one", implicit_gemm.FORWARD, "&& n < k;", "&& n <= k;", ANY, forward("vectors")),
    (
        "misaligned vector",
        implicit_gemm.FORWARD,
        "column / 4) + column % 4",
        "column / 4) + 1",
        ANY,
        forward("vectors"),
    ),
    (
        "phases exchanged",
        implicit_gemm.FORWARD,
        "pick(p.rows, phase / p.phase_columns)",
        "pick(p.rows, phase % p.phase_columns)",
        ANY,
        data("strided"),
    ),
    (
        "steps lost between folds",
        implicit_gemm.FORWARD,
        "    }\n    fold(totals, sums);",
        "    }",
        ANY,
        forward("vectors"),
    ),
    (
        "last split lost",
        implicit_gemm.FORWARD,
        "split < p.splits; ++split) sum",
        "split + 1 < p.splits; ++split) sum",
        ANY,
        forward("long sum"),
    ),
    (
        "filter: missing barrier",
        implicit_gemm.FILTER,
        "copies_done();\n    __syncthreads();",
        "copies_done();",
        "trace",
        filters("vectors"),
    ),
    ("filter: carry lost", implicit_gemm.FILTER, "if (p >= v.p) p -= v.p, ++n;", "", ANY, filters("vectors")),
    (
        "filter: last pixel",
        implicit_gemm.FILTER,
        "first + row < end && k < v.k",
        "first + row <= end && k < v.k",
        ANY,
        filters("vectors"),
    ),
    ("stem: missing barrier", single_channel.MODULE, "__syncthreads();", "", "trace", forward("stem")),
    ("depthwise: missing barrier", depthwise.MODULE, "__syncthreads();", "", "trace", filters("depthwise")),
    (
        "depthwise: bound off by one",
        depthwise.MODULE,
        "if (first + j >= columns.outs)",
        "if (first + j > columns.outs)",
        ANY,
        forward("depthwise"),
    ),
    ("plain: stride forgotten", naive.MODULE, "p * v.sh != a ||", "", ANY, data("stride above four")),
]


@pytest.mark.parametrize(
    ("module", "old", "new", "modes", "test"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS]
)
def test_planted_mistakes_are_caught(module: Any, old: str, new: str, modes: str, test: Callable[[], None]) -> None:
    assert_caught(module, old, new, modes, test)
