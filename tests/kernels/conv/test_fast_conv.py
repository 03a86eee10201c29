"""Fast convolutions equal the float64 reference under the naive rule (docs/accuracy.md), over random shapes; Winograd
within its stated bound.

Channels come from classes that decide which compiled kernel serves: below a vector (with the divisors of a vector,
whose pixels are computed together), exactly two vectors, a bit less than four vectors, and three panels with a tail.
More classes would only compile longer.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from kernels import conv
from kernels.conv import cpu
from kernels.conv.cpu import algorithm, depthwise
from kernels.conv.cpu.direct import backward_data
from kernels.core.cpu.target import target
from kernels.core.dispatch import kernel_log
from kernels.core.geometry import Window
from tests.support.conv_checks import WINOGRAD, norm_gradients
from tests.support.fast_rule import agree, array, forced_algorithm

LANES = target().lanes
NARROW = [c for c in (1, 2, 3, 5, 7, 8, 13) if c < max(LANES, 8)]
CLASSES = [*NARROW, 2 * LANES, 4 * LANES - 3, 2 * LANES + 5]
FEW = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


def pair(low: int, high: int) -> st.SearchStrategy:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def layers(
    draw, kernel=None, stride=None, dilation=None, padding: int = 3, sides: tuple[int, int] = (1, 19)
) -> tuple[tuple[int, int, int], Window]:
    """(N, H, W) and a window that fits into the padded image."""
    r, s = kernel or draw(pair(1, 4))
    strides = stride or draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 2)]))
    dilations = dilation or draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]))
    paddings = draw(pair(0, padding)), draw(pair(0, padding))
    window = Window((r, s), strides, paddings, dilations)
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(*sides)), draw(st.integers(*sides))
    assume(min(window.output_size((h, w))) >= 1)
    return (n, h, w), window


def all_three(
    shape,
    c: int,
    k: int,
    window: Window,
    seed: int,
    bias: bool = True,
    view: bool = False,
    groups: int = 1,
    bound=None,
    accumulate_into=True,
) -> None:
    """Forward, data gradient (accumulate_into: also added to what is there) and filter gradient, all served fast."""
    rng = np.random.default_rng(seed)
    n, h, w = shape
    x, filters = array(rng, n, h, w, c, view=view), array(rng, *window.kernel, c // groups, k, view=view)
    b = array(rng, 1, k)[0] if bias else None
    y = agree(conv.conv2d_forward, (x,), filters, b, window, groups, winograd=bound)
    dy = array(rng, *y.shape, view=view)
    (dx,) = agree(conv.conv2d_backward_data, dy, filters, (h, w), window, groups, winograd=bound)
    if accumulate_into:
        agree(
            conv.conv2d_backward_data,
            dy,
            filters,
            (h, w),
            window,
            groups,
            None,
            (array(rng, *dx.shape),),
            inplace=(6,),
            winograd=bound,
        )
    agree(conv.conv2d_backward_filter, (x,), dy, window, groups, winograd=bound)


@settings(max_examples=40, **FEW)
@given(layers(), st.sampled_from(CLASSES), st.sampled_from(CLASSES), st.integers(0, 99), st.booleans(), st.booleans())
@example(((1, 1, 1), Window((3, 3), (1, 1), ((1, 1), (1, 1)))), 1, 1, 0, True, False)
# narrow outputs: pixels computed together
@example(((1, 8, 16), Window((3, 3), (1, 1), ((1, 1), (1, 1)))), 70, 2, 1, False, False)
# the window begins left of all that is read
@example(((2, 5, 1), Window((3, 3), (1, 5), ((0, 0), (4, 0)))), 3, 5, 2, True, False)
# a phase whose window begins right of all of dy
@example(((1, 2, 2), Window((2, 2), (2, 2), ((3, 0), (3, 0)), (3, 3))), 3, 5, 3, True, False)
@example(((2, 40, 41), Window((3, 3), (1, 1), ((1, 1), (1, 1)))), 2 * LANES, 5, 4, True, True)  # several strips
def test_direct(layer, c, k, seed, bias, view) -> None:
    with forced_algorithm("direct"):
        all_three(layer[0], c, k, layer[1], seed, bias, view)


@settings(max_examples=8, **FEW)
@given(layers(), st.integers(2, 4), st.integers(1, 5), st.sampled_from([1, 3, 4 * LANES - 3]), st.integers(0, 99))
def test_groups(layer, groups, c, k, seed) -> None:
    assume(not c == k == 1)
    with forced_algorithm("direct"):
        all_three(layer[0], groups * c, groups * k, layer[1], seed, groups=groups)


@settings(max_examples=10, **FEW)
@given(st.integers(1, 3), pair(1, 19), st.sampled_from(CLASSES), st.sampled_from(CLASSES), st.integers(0, 99))
@example(2, (32, 16), 5, 7, 0)  # 1024 pixels: whole strips of the streaming filter gradient
@example(4, (16, 16), 2 * LANES, 300, 1)  # the other kind of strip
def test_pointwise(n, size, c, k, seed) -> None:
    with forced_algorithm("direct"):
        all_three((n, *size), c, k, Window((1, 1)), seed)


@settings(max_examples=12, **FEW)
@given(
    layers(padding=4, sides=(1, 15)),
    st.sampled_from([2, 3, LANES, LANES + 5, 70]),
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
)
@example(((1, 7, 9), Window((3, 3), (1, 1), ((1, 1), (1, 1)))), 2 * LANES + 3, 0, True, False)
@example(((2, 1, 1), Window((3, 3), (1, 1), ((1, 1), (1, 1)))), 2, 1, True, True)  # nothing but padding around a pixel
# all of it different for rows and columns
@example(((1, 9, 13), Window((2, 3), (2, 3), ((0, 3), (5, 1)), (3, 2))), 5, 2, False, False)
# several strips of one image
@example(((1, 70, 60), Window((3, 3), (1, 1), ((2, 0), (1, 1)), (2, 1))), LANES + 5, 3, True, False)
def test_depthwise(layer, channels, seed, bias, view) -> None:
    """The depthwise kernels serve every size, stride, dilation and padding."""
    all_three(layer[0], max(channels, 2), max(channels, 2), layer[1], seed, bias, view, max(channels, 2))


def test_depthwise_with_a_large_filter() -> None:
    """Filters too large to be unrolled are left to the direct kernel."""
    window = Window((8, 7), (1, 1), ((3, 4), (3, 3)))
    assert not depthwise.serves(window, 5, 5, 5)
    assert depthwise.serves(Window((7, 7)), 5, 5, 5)
    with forced_algorithm("direct"):
        all_three((1, 9, 8), 5, 5, window, 0, groups=5)


def test_depthwise_keeps_what_is_not_finite_where_it_is_read() -> None:
    """An infinite pixel reaches the outputs and gradients that read it, and none else: nothing else is read and masked
    away.
    """
    window, rng = Window((3, 3), (1, 1), ((1, 1), (1, 1))), np.random.default_rng(0)
    x, dy, w = array(rng, 1, 9, 11, LANES + 3), array(rng, 1, 9, 11, LANES + 3), array(rng, 3, 3, 1, LANES + 3)
    x[0, 8, 10, 2] = np.inf
    y = conv.conv2d_forward((x,), w, None, window, LANES + 3)
    dw = conv.conv2d_backward_filter((x,), dy, window, LANES + 3)
    reads = np.zeros(y.shape, bool)
    reads[0, 7:, 9:, 2] = True
    np.testing.assert_array_equal(~np.isfinite(y), reads)
    reads = np.zeros(dw.shape, bool)
    reads[1:, 1:, 0, 2] = True
    np.testing.assert_array_equal(~np.isfinite(dw), reads)


@settings(max_examples=24, **FEW)
@given(
    st.sampled_from([(3, 3), (3, 3), (1, 2), (4, 2)]),
    st.integers(1, 3),
    pair(1, 19),
    st.tuples(pair(0, 2), pair(0, 2)),
    st.one_of(st.integers(1, 70), st.sampled_from([8, 16, 32, 64])),
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
)
@example((3, 3), 1, (1, 1), ((1, 1), (1, 1)), 70, 0, True, False)  # nothing but padding around a pixel
@example((3, 3), 2, (9, 2 * LANES + 3), ((0, 2), (2, 0)), 32, 1, True, True)
# fewer outputs than pixels; no padding to read
@example((3, 3), 2, (5, LANES + 2), ((0, 0), (0, 0)), 4 * LANES - 3, 2, False, False)
@example((3, 3), 3, (70, 40), ((1, 1), (1, 1)), 2 * LANES, 3, True, False)  # several strips of an image
@example((4, 2), 1, (5, 9), ((5, 6), (4, 3)), LANES, 4, True, False)  # outputs that see nothing of the image
def test_stem(kernel, n, size, padding, k, seed, bias, view) -> None:
    """One input channel: every size, padding and number of outputs."""
    window = Window(kernel, (1, 1), padding)
    assume(min(window.output_size(size)) >= 1)
    with forced_algorithm("direct"):
        all_three((n, *size), 1, k, window, seed, bias, view)


def test_stem_keeps_what_is_not_finite_where_it_is_read() -> None:
    """An infinite pixel reaches the outputs and gradients that read it, and none else."""
    window, rng, k = Window((3, 3), (1, 1), SAME), np.random.default_rng(0), LANES + 3
    x, dy, w = array(rng, 1, 9, 11, 1), array(rng, 1, 9, 11, k), array(rng, 3, 3, 1, k)
    x[0, 8, 10], dy[0, 0, 10, k - 1] = np.inf, np.inf
    with forced_algorithm("direct"):
        y, (dx,) = conv.conv2d_forward((x,), w, None, window), conv.conv2d_backward_data(dy, w, (9, 11), window)
    reads = np.zeros(y.shape, bool)
    reads[0, 7:, 9:] = True
    np.testing.assert_array_equal(~np.isfinite(y), reads)
    reads = np.zeros(dx.shape, bool)
    reads[0, :2, 9:] = True
    np.testing.assert_array_equal(~np.isfinite(dx), reads)


@settings(max_examples=10, **FEW)
@given(
    pair(1, 3),
    pair(1, 3),
    pair(0, 1),
    pair(1, 7),
    st.sampled_from(CLASSES),
    st.sampled_from(CLASSES),
    st.integers(0, 99),
)
@example((2, 2), (2, 2), (0, 0), (4, 8), 2 * LANES, 4 * LANES - 3, 0)
def test_transposed(kernel, stride, extra, size, c, k, seed) -> None:
    rng = np.random.default_rng(seed)
    window = Window(kernel, stride, ((0, 0), (kernel[1] - 1, 0)))
    extra = tuple(min(e, s - 1) for e, s in zip(extra, stride, strict=True))
    full = window.input_size(size, extra)
    assume(min(full) >= 1)
    x, w, b = array(rng, 2, *size, c), array(rng, *kernel, c, k), array(rng, 1, k)[0]
    with forced_algorithm("direct"):
        y = agree(conv.conv_transpose2d_forward, x, w, b, full, window)
        dy = array(rng, *y.shape)
        agree(conv.conv_transpose2d_backward_data, dy, w, window)
        agree(conv.conv_transpose2d_backward_filter, x, dy, window)


@settings(max_examples=8, **FEW)
@given(
    st.integers(2, 3),
    pair(1, 3),
    pair(1, 9),
    st.sampled_from(CLASSES),
    st.sampled_from(CLASSES),
    st.integers(0, 99),
    st.booleans(),
)
@example(2, (2, 2), (4, 8), 2 * LANES, 4 * LANES - 3, 0, True)
def test_transposed_side_by_side(side, rows, size, c, k, seed, bias) -> None:
    """Kernel and stride agree along rows, without padding: neighbours with their channels are computed as one pixel."""
    rng = np.random.default_rng(seed)
    window = Window((rows[0], side), (rows[1], side))
    full = window.input_size(size, (0, 0))
    x, w = array(rng, 2, *size, c), array(rng, *window.kernel, c, k)
    with forced_algorithm("direct"):
        agree(conv.conv_transpose2d_forward, x, w, array(rng, 1, k)[0] if bias else None, full, window)
        filters, dy = array(rng, *window.kernel, c, k), array(rng, 2, *size, k)
        agree(conv.conv2d_backward_data, dy, filters, full, window)
        agree(conv.conv2d_backward_data, dy, filters, full, window, 1, None, (array(rng, 2, *full, c),), inplace=(6,))


@pytest.mark.parametrize("mode", ["direct", "winograd4"])
def test_two_maps_equal_their_concatenation(mode) -> None:
    """A pair of maps is read, and its gradients are written, as if it were one map; also added to what is there, for
    one of the two or both.
    """
    rng, window, bound = (
        np.random.default_rng(5),
        Window((3, 3), (1, 1), ((1, 1), (1, 1))),
        None if mode == "direct" else WINOGRAD[4, 3],
    )
    for c, c2, k in ((3, 5, 7), (5, 2, 13), (2 * LANES, 3, 5) if mode == "direct" else (1, 1, 1)):
        maps, w, b = (
            (array(rng, 2, 6, 11, c), array(rng, 2, 6, 11, c2)),
            array(rng, 3, 3, c + c2, k),
            array(rng, 1, k)[0],
        )
        with forced_algorithm(mode):
            y = agree(conv.conv2d_forward, maps, w, b, window, winograd=bound)
            dy = array(rng, *y.shape)
            agree(conv.conv2d_backward_filter, maps, dy, window, winograd=bound)
            agree(conv.conv2d_backward_data, dy, w, (6, 11), window, 1, (c, c2), (None, None), winograd=bound)
            for kept in ((True, True), (False, True)):
                accumulate_into = tuple(
                    array(rng, *m.shape) if keep else None for m, keep in zip(maps, kept, strict=True)
                )
                agree(
                    conv.conv2d_backward_data,
                    dy,
                    w,
                    (6, 11),
                    window,
                    1,
                    (c, c2),
                    accumulate_into,
                    inplace=(6,),
                    winograd=bound,
                )


def test_an_empty_batch_goes_to_the_reference() -> None:
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)))
    x, w, dy = np.zeros((0, 5, 7, 3), np.float32), np.ones((3, 3, 3, 4), np.float32), np.zeros((0, 5, 7, 4), np.float32)
    assert agree(conv.conv2d_forward, (x,), w, None, window, served="reference").shape == (0, 5, 7, 4)
    assert agree(conv.conv2d_backward_data, dy, w, (5, 7), window, served="reference")[0].shape == x.shape
    assert not agree(conv.conv2d_backward_filter, (x,), dy, window, served="reference").any()


def test_float64_goes_to_the_reference() -> None:
    window, x, w = Window((1, 1)), np.ones((1, 2, 2, 3)), np.ones((1, 1, 3, 4))
    for arguments in (((x,), w, None, window), ((x.astype(np.float32),), w, None, window)):
        with kernel_log() as log:
            assert conv.conv2d_forward(*arguments).dtype == np.float64
        assert [entry.by for entry in log] == ["reference"]


# -- Winograd ----------------------------------------------------------------------------------------------------------


@settings(max_examples=12, **FEW)
@given(
    layers(kernel=(3, 3), stride=(1, 1), padding=3, sides=(1, 21)),
    st.sampled_from([*NARROW, 2 * LANES + 5]),
    st.sampled_from(NARROW),
    st.integers(0, 99),
)
@example(
    ((1, 9, 8), Window((3, 3), (1, 1), ((4, 4), (4, 4)), (4, 4))), 70 if LANES == 16 else 13, 5, 0
)  # a border tile of more channels than one patch
@example(((3, 33, 30), Window((3, 3), (1, 1), ((1, 1), (1, 1)))), 5, 3, 1)  # several chunks and blocks
def test_winograd4(layer, c, k, seed) -> None:
    with forced_algorithm("winograd4"):
        all_three(layer[0], c, k, layer[1], seed, bound=WINOGRAD[4, 3])


@settings(max_examples=6, **FEW)
@given(
    layers(kernel=(3, 3), stride=(1, 1), padding=3),
    st.sampled_from(NARROW),
    st.sampled_from(NARROW),
    st.integers(0, 99),
)
def test_winograd2(layer, c, k, seed) -> None:
    with forced_algorithm("winograd2"):
        all_three(layer[0], c, k, layer[1], seed, bound=WINOGRAD[2, 3], accumulate_into=False)


@settings(max_examples=4, **FEW)
@given(
    layers(kernel=(5, 5), stride=(1, 1), dilation=(1, 1), padding=4),
    st.sampled_from(NARROW),
    st.sampled_from(NARROW),
    st.integers(0, 99),
)
def test_winograd2_of_5x5(layer, c, k, seed) -> None:
    with forced_algorithm("winograd2"):
        all_three(layer[0], c, k, layer[1], seed, bound=WINOGRAD[2, 5], accumulate_into=False)


def test_winograd_of_two_vectors() -> None:
    with forced_algorithm("winograd4"):
        rng, window = np.random.default_rng(0), Window((3, 3), (1, 1), ((1, 1), (1, 1)))
        x, w = array(rng, 2, 9, 10, 3), array(rng, 3, 3, 3, 2 * LANES)
        agree(conv.conv2d_forward, (x,), w, None, window, winograd=WINOGRAD[4, 3])


def used(monkeypatch, mode: str, window: Window, groups: int = 1) -> set[str]:
    """Which kernels serve the three convolutions of a layer large enough for Winograd to pay, in this mode."""
    seen: set[str] = set()

    def watch(module, name: str) -> None:
        real = getattr(module, name)

        def spy(*args, **kwargs):
            seen.add(name.split("_")[0])
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    for module, name in (
        (cpu, "direct_forward"),
        (backward_data, "direct_forward"),
        (cpu, "direct_backward_filter"),
        (cpu, "winograd_forward"),
        (cpu, "winograd_backward_filter"),
    ):
        watch(module, name)
    monkeypatch.setattr(algorithm, "mode", lambda: mode)
    x, w = np.ones((1, 16, 16, 2 * groups), np.float32), np.ones((*window.kernel, 2, 3 * groups), np.float32)
    y = conv.conv2d_forward((x,), w, None, window, groups)
    conv.conv2d_backward_data(y, w, (16, 16), window, groups)
    conv.conv2d_backward_filter((x,), y, window, groups)
    return seen


SAME = ((1, 1), (1, 1))


@pytest.mark.parametrize(
    ("mode", "window", "groups", "winograd_used"),
    [
        ("exact", Window((3, 3), (1, 1), SAME), 1, False),
        ("exact", Window((5, 5), (1, 1), ((2, 2), (2, 2))), 1, False),
        ("direct", Window((3, 3), (1, 1), SAME), 1, False),
        ("winograd4", Window((3, 3), (1, 1), SAME), 1, True),
        ("winograd4", Window((3, 3), (2, 2), SAME), 1, False),
        ("winograd4", Window((3, 3), (1, 2), SAME), 1, False),
        ("winograd4", Window((3, 3), (1, 1), SAME), 2, False),
        ("winograd4", Window((3, 1), (1, 1), ((1, 1), (0, 0))), 1, False),
        ("winograd4", Window((5, 5), (1, 1), ((2, 2), (2, 2))), 1, False),
        ("winograd2", Window((3, 3), (1, 1), SAME, (2, 2)), 1, True),
    ],
)
def test_winograd_is_used_only_where_stated(monkeypatch, mode, window, groups, winograd_used) -> None:
    """3x3 (and 5x5 for two outputs), stride 1, one group, and never with AREOGRAD_CONV=exact or direct."""
    seen = used(monkeypatch, mode, window, groups)
    assert seen == {"winograd" if winograd_used else "direct"}


def test_auto_uses_winograd_only_where_the_model_finds_it_cheaper(monkeypatch) -> None:
    """The cheapest algorithm; direct where nothing else can serve."""
    monkeypatch.setattr(algorithm, "mode", lambda: "auto")
    for window in (
        Window((3, 3), (1, 1), SAME),
        Window((3, 3), (2, 2), SAME),
        Window((5, 5), (1, 1), ((2, 2), (2, 2))),
        Window((1, 1)),
    ):
        for c, k in ((1, 32), (64, 64), (256, 256)):
            cost = algorithm.costs(4, (32, 64), c, k, window, 1)
            served = algorithm.choose(4, (32, 64), c, k, window, 1)
            assert served == min(cost, key=cost.__getitem__)
            assert ("winograd4" in cost) == (window.kernel == (3, 3) and window.stride == (1, 1))
    layer = 16, (64, 128), 64, 64, Window((3, 3), (1, 1), SAME), 1
    assert algorithm.choose(*layer).startswith("winograd")


def test_an_unknown_mode_is_named() -> None:
    code = "from kernels.conv.cpu import algorithm; algorithm.mode()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "AREOGRAD_CONV": "fft"},
        check=False,
    )
    assert (
        "ValueError: AREOGRAD_CONV: got 'fft', expected one of auto, direct, winograd4, winograd2, exact"
        in result.stderr
    )


ONE_OR_TWO = st.lists(st.sampled_from(CLASSES), min_size=1, max_size=2)
NORMS = st.tuples(st.sampled_from(["relu", None]), st.booleans())


@settings(max_examples=16, **FEW)
@given(
    st.integers(1, 3),
    pair(1, 19),
    st.lists(st.sampled_from(CLASSES), min_size=1, max_size=8),
    st.sampled_from(CLASSES),
    NORMS,
    st.booleans(),
)
def test_gradients_of_a_pointwise_convolution_and_its_norm(n, size, channels, k, norm, accumulate_into) -> None:
    assume(n * size[0] * size[1] > 1)
    norm_gradients(np.random.default_rng(k), (n, *size), tuple(channels), k, Window((1, 1)), norm, accumulate_into)


@settings(max_examples=16, **FEW)
@given(
    st.integers(1, 3), pair(3, 19), pair(0, 2), pair(0, 2), ONE_OR_TWO, st.sampled_from(CLASSES), NORMS, st.booleans()
)
@example(2, (19, 7), (2, 2), (0, 2), [5, 2 * LANES], 4 * LANES - 3, ("relu", True), True)
@example(2, (9, 7), (1, 2), (0, 1), [1, max(LANES - 1, 1)], 8, ("relu", False), False)
@example(2, (5, 5), (1, 1), (1, 1), [max(LANES // 2, 1)] * 2, LANES, (None, False), True)
def test_gradients_of_a_dense_convolution_and_its_norm(
    n, size, rows, columns, channels, k, norm, accumulate_into
) -> None:
    window = Window((3, 3), (1, 1), (rows, columns))
    # of few values a norm leaves a gradient of nearly 0, to which no bound can be relative
    assume(n * np.prod(window.output_size(size)) >= 16)
    with forced_algorithm("winograd4"):
        norm_gradients(
            np.random.default_rng(k),
            (n, *size),
            tuple(channels),
            k,
            window,
            norm,
            accumulate_into,
            winograd=WINOGRAD[4, 3],
        )


@pytest.mark.parametrize(
    ("window", "groups"),
    [
        (Window((3, 3), (2, 2), ((1, 1), (1, 1))), 1),
        (Window((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)), 1),
        (Window((1, 1), (2, 2)), 1),
    ],
)
def test_gradients_of_layers_without_a_fused_kernel(window, groups) -> None:
    """Strides and dilations have no fused kernel: the public operators serve them one after the other."""
    with forced_algorithm("direct"):
        norm_gradients(np.random.default_rng(0), (2, 9, 11), (6,), 7, window, ("relu", False), True)
