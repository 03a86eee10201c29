"""Fast kernels other than convolutions equal the float64 reference under the naive rule (docs/accuracy.md), over random
shapes.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kernels import augment, loss, norm, optimizer, pointwise, pool, resample, shape
from kernels.core.dispatch import kernel_log, registry, use_kernels
from kernels.core.geometry import Window
from kernels.loss.cpu import segmentation_loss as cpu_loss
from kernels.pointwise.cpu.activations import BODIES
from tests.support.fast_checks import CHECKS, gating, losses, normalisation, softmax_of, standardisation
from tests.support.fast_rule import agree, array, judge
from tests.support.random_shapes import CHANNELS, FEW, SEEDS, pair, served_by

SIDES = st.integers(1, 19)


@pytest.mark.parametrize("name", CHECKS)
def test_compact_check(name: str) -> None:
    """The checks that widths, threads and planted mistakes are tested with."""
    CHECKS[name]()


# -- pooling -----------------------------------------------------------------------------------------------------------


# The windows that are compiled for; strides, paddings and dilations are free.
@settings(max_examples=40, **FEW)
@given(
    st.sampled_from([(2, 2), (3, 3), (1, 2), (4, 3)]),
    st.sampled_from([(1, 1), (2, 2), (3, 2), (1, 2)]),
    st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]),
    st.tuples(pair(0, 1), pair(0, 1)),
    st.integers(1, 3),
    st.tuples(SIDES, SIDES),
    CHANNELS,
    SEEDS,
    st.booleans(),
)
@example((2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 2, (6, 10), 70, 0, True)  # windows that lie side by side
@example((2, 2), (2, 2), (1, 1), ((0, 0), (0, 0)), 2, (7, 11), 5, 0, False)  # ... with pixels that none covers
@example((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1, (1, 1), 1, 0, False)
def test_max_pool(kernel, stride, dilation, padding, n, size, channels, seed, view) -> None:
    window = Window(
        kernel,
        stride,
        tuple(tuple(min(p, e - 1) for p in side) for side, e in zip(padding, kernel, strict=True)),
        dilation,
    )
    assume(min(window.output_size(size)) >= 1)
    bordered = window.padding != ((0, 0), (0, 0))
    assume(not (bordered and dilation != (1, 1)))  # that is the reference's
    rng = np.random.default_rng(seed)
    x = array(rng, n, *size, channels, view=view)
    x[rng.random(x.shape) < 0.3] = 0.5  # ties: the first maximum counts
    y, offset = agree(pool.max_pool2d_forward, x, window)
    np.testing.assert_array_equal(offset, pool.max_pool2d_forward.reference(x, window)[1])
    dy, total = array(rng, *y.shape, view=view), array(rng, *x.shape)
    agree(pool.max_pool2d_backward, dy, offset, size, window)
    agree(pool.max_pool2d_backward, dy, offset, size, window, total, inplace=(4,))


def test_max_pool_of_infinities_and_what_is_left_to_the_reference() -> None:
    x = np.full((1, 4, 4, 3), -np.inf, np.float32)
    x[0, 1, 1, 1] = np.nan
    window = Window((2, 2), (2, 2))
    y, offset = pool.max_pool2d_forward(x, window)
    assert (y[..., [0, 2]] == -np.inf).all()
    assert not offset[..., [0, 2]].any()
    assert np.isnan(y[0, 0, 0, 1])
    assert offset[0, 0, 0, 1] == 3  # not-a-number is the maximum
    for left in (
        Window((2, 2), (2, 2), ((2, 0), (0, 0))),
        Window((2, 2), (1, 1), ((1, 1), (1, 1)), (2, 2)),
        Window((17, 16), (1, 1)),
    ):
        assert served_by(pool.max_pool2d_forward, np.zeros((1, 20, 20, 1), np.float32), left) == "reference"
    assert served_by(pool.max_pool2d_forward, np.zeros((0, 4, 4, 3), np.float32), window) == "reference"


# -- normalisation -----------------------------------------------------------------------------------------------------


@settings(max_examples=24, **FEW)
@given(
    CHANNELS,
    st.tuples(st.integers(1, 3), SIDES, SIDES),
    st.booleans(),
    st.sampled_from([None, "relu"]),
    st.booleans(),
    SEEDS,
    st.booleans(),
)
@example(1, (1, 1, 2), False, None, True, 0, False)
@example(61, (2, 37, 41), True, "relu", True, 1, True)
@example(24, (2, 64, 64), False, "relu", False, 2, False)
def test_batch_norm(channels, size, residual, activation, training, seed, view) -> None:
    assume(np.prod(size) > 1)
    with kernel_log() as log:
        normalisation(np.random.default_rng(seed), channels, size, residual, activation, training, view)
    assert {entry.by for entry in log} == {"fast"}


@settings(max_examples=8, **FEW)
@given(CHANNELS, st.integers(16_384, 60_000), SEEDS)
def test_sum_pixels(channels, floats, seed) -> None:
    """Large maps; the small ones are the reference's."""
    x = array(np.random.default_rng(seed), 1, -(-floats // channels), channels) + np.float32(1)
    agree(norm.sum_pixels, x)
    assert served_by(norm.sum_pixels, x[:, : 16_000 // channels]) == "reference"


def test_statistics_of_a_map_far_from_zero() -> None:
    """Mean 1000, deviation 1: E[x^2] - E[x]^2 in float32 would be off by a tenth."""
    x = array(np.random.default_rng(0), 4, 31, 33, 7) + np.float32(1000)
    agree(norm.batch_norm_statistics, x)


@settings(max_examples=60, **FEW)
@given(
    st.one_of(st.integers(1, 70), st.sampled_from([256, 511, 1031])),
    st.one_of(st.tuples(st.integers(1, 3), SIDES, SIDES), st.tuples(st.just(1), st.integers(1, 9))),
    SEEDS,
    st.booleans(),
    st.sampled_from([0.0, 1000.0]),
)
@example(1, (1, 1), 0, False, 0.0)  # dx is 0
@example(2, (1, 1), 0, False, 0.0)  # ... and nearly so
@example(256, (1, 1), 0, False, 0.0)
@example(16, (3, 37, 61), 1, True, 0.0)
@example(5, (3, 61, 67), 2, True, 1000.0)
def test_layer_norm(channels, size, seed, view, mean) -> None:
    """Any number of rows, one and odd ones too, near zero and far from it."""
    standardisation(np.random.default_rng(seed), channels, size, view, mean)


def test_layer_norm_of_equal_numbers_and_what_is_left_to_the_reference() -> None:
    """A row without a variance gives the bias; not-a-number stays in its row."""
    x, weight, bias = (
        np.full((5, 48), 1e6 + 0.25, np.float32),
        np.full(48, 2, np.float32),
        np.arange(48, dtype=np.float32),
    )
    x[3, 7] = np.nan
    y = norm.layer_norm_forward(x, weight, bias, 1e-5)
    np.testing.assert_array_equal(y[[0, 1, 2, 4]], np.tile(bias, (4, 1)))
    assert np.isnan(y[3]).all()
    dx = norm.layer_norm_backward(x, x, weight, 1e-5)[0]
    np.testing.assert_array_equal(np.isnan(dx).any(-1), [False, False, False, True, False])
    for wrong in (x[:0], x.astype(np.float64)):
        assert served_by(norm.layer_norm_forward, wrong, weight, bias, 1e-5) == "reference"
        assert served_by(norm.layer_norm_backward, wrong, wrong, weight, 1e-5) == "reference"
    assert served_by(norm.layer_norm_forward, x, weight.astype(np.float64), bias, 1e-5) == "reference"
    assert served_by(norm.layer_norm_backward, x.astype(np.float64), x, weight, 1e-5) == "reference"


def test_layer_norm_sums_many_rows_exactly_enough() -> None:
    """A million equal numbers of float32, added one by one in float32, would be off by a percent."""
    dy, x = np.full((2**20, 16), 0.1, np.float32), array(np.random.default_rng(0), 2**20, 16)
    dbias = norm.layer_norm_backward(dy, x, np.ones(16, np.float32), 1e-5)[2]
    np.testing.assert_allclose(dbias, np.float64(np.float32(0.1)) * 2**20, rtol=4 * 2.0**-24)


# -- losses ------------------------------------------------------------------------------------------------------------


SPECS = [
    loss.LossSpec(
        (("margin", 0.7), ("dice", 1.0), ("focal", 0.4), ("iou", 0.3), ("cross_entropy", 0.9)),
        background="mask",
        ignore_index=2,
    ),
    loss.LossSpec((("cross_entropy", 1.0),), (0.5, 1.0, 2.0, 1.5, 1.0), label_smoothing=0.2),
    loss.LossSpec((("focal", 1.0), ("margin", 0.5)), gamma=1.5, margin_reduction="weighted", power=3),
    loss.LossSpec((("dice", 1.0), ("iou", 0.5)), absent="all", smooth=0.1, ignore_index=0),
    loss.LossSpec(
        (("jaccard_metric", 1.0), ("dice_semimetric", 0.5), ("cross_entropy", 1.0)),
        (0.5, 1.0, 2.0, 1.5, 1.0),
        1,
        label_smoothing=0.2,
    ),
    loss.LossSpec(
        (("jaccard_metric", 1.0), ("iou", 1.0), ("lovasz", 0.5), ("top_k", 0.5)), background="mask", label_smoothing=0.5
    ),
    loss.LossSpec(
        (("tversky", 1.0), ("focal_tversky", 0.5), ("generalized_dice", 0.7), ("mcc", 0.4)),
        (0.5, 1.0, 2.0, 1.5, 1.0),
        ignore_index=1,
    ),
]


@settings(max_examples=16, **FEW)
@given(st.sampled_from(SPECS), st.tuples(st.integers(1, 3), SIDES, SIDES), st.sampled_from([0.1, 1.0, 6.0]), SEEDS)
@example(SPECS[0], (2, 64, 65), 1.0, 0)
@example(SPECS[2], (1, 1, 1), 1.0, 0)
@example(SPECS[3], (3, 19, 17), 6.0, 0)
def test_losses(spec, size, scale, seed) -> None:
    """Sure predictions only with many pixels: there dz is a small difference of large numbers, and how well float32
    does is luck with a few.
    """
    assume(scale <= 1 or np.prod(size) >= 200)
    losses(np.random.default_rng(seed), size, 5, spec, scale)


@pytest.mark.parametrize("classes", [17, 21])
def test_losses_of_more_classes_than_lanes(classes: int) -> None:
    spec = loss.LossSpec(
        (("margin", 0.4), ("dice", 0.2), ("focal", 0.2), ("iou", 0.2)), (0.5, 1.5, 1.0) * 5 + (1.0,) * (classes - 15), 3
    )
    losses(np.random.default_rng(classes), (2, 24, 33), classes, spec)


@pytest.mark.parametrize(("classes", "server"), [(21, "fast"), (64, "fast"), (65, "reference"), (256, "reference")])
def test_who_serves_many_classes(classes: int, server: str) -> None:
    z, labels = np.zeros((8, classes), np.float32), np.arange(8) % classes
    spec = loss.LossSpec((("cross_entropy", 1.0),))
    assert cpu_loss._Plan(z, labels, spec).served == (server == "fast")
    if server == "reference":
        assert served_by(loss.loss_forward, z, labels, spec) == server


def test_losses_that_are_left_to_the_reference() -> None:
    z, labels = np.zeros((1, 3, 3, 5), np.float32), np.zeros((1, 3, 3), np.int64)
    mixed = loss.LossSpec((("dice", 1.0), ("focal", 1.0)), background=(("dice", "mask"),))
    for spec in (loss.LossSpec((("lovasz", 1.0),)), mixed):
        assert served_by(loss.loss_forward, z, labels, spec) == "reference"
    assert served_by(loss.loss_forward, z[:0], labels[:0], SPECS[1]) == "reference"
    assert served_by(loss.loss_forward, z.astype(np.float64), labels, SPECS[1]) == "reference"


def test_no_pixel_counts() -> None:
    """All pixels ignored: every term and every gradient is 0, not not-a-number."""
    z, labels = array(np.random.default_rng(0), 1, 3, 5, 5), np.full((1, 3, 5), 2)
    value, parts, state = loss.loss_forward(z, labels, SPECS[0])
    assert served_by(loss.loss_forward, z, labels, SPECS[0]) == "fast"
    judge(
        "no pixel",
        (value, parts),
        *(loss.loss_forward.reference(v, labels, SPECS[0])[:2] for v in (z, z.astype(np.float64))),
    )
    assert not loss.loss_backward(np.float32(1), z, labels, SPECS[0], state).any()


# -- element-wise ------------------------------------------------------------------------------------------------------


@settings(max_examples=16, **FEW)
@given(CHANNELS, st.tuples(st.integers(1, 3), SIDES, SIDES), SEEDS, st.booleans(), st.booleans())
@example(1, (2, 16, 33), 0, False, False)
@example(3, (2, 16, 33), 0, False, True)
def test_gate(channels, size, seed, view, per_channel) -> None:
    gating(np.random.default_rng(seed), (*size, channels), channels if per_channel else 1, view)


@settings(max_examples=16, **FEW)
@given(CHANNELS, st.tuples(st.integers(1, 3), SIDES, SIDES), SEEDS, st.booleans())
def test_softmax(length, size, seed, view) -> None:
    softmax_of(np.random.default_rng(seed), *size, length, view=view)


def test_softmax_of_large_numbers_nan_and_what_is_left_to_the_reference() -> None:
    x = np.array([[1e30, -1e30, 0], [0, np.nan, 0], [-np.inf, 0, 0]], np.float32)
    y = pointwise.softmax_forward(x, 1)
    np.testing.assert_array_equal(y[[0, 2]], np.array([[1, 0, 0], [0, 0.5, 0.5]], np.float32))
    assert np.isnan(y[1]).all()
    for scores, axis in ((x, 0), (x.astype(np.float64), 1), (x[:0], 1)):
        assert served_by(pointwise.softmax_forward, scores, axis) == "reference"


@pytest.mark.parametrize("name", [name.removesuffix("_backward") for name in BODIES if name.endswith("_backward")])
def test_activations(name: str) -> None:
    """Values over the whole range, an odd size, views."""
    rng, forward, backward = np.random.default_rng(1), registry[f"{name}_forward"], registry[f"{name}_backward"]
    for size, view in (((1, 1, 1, 1), False), ((2, 5, 7, 13), True), ((1, 33, 67, 61), False)):
        x = 4 * array(rng, *size, view=view)
        y = agree(forward, x)
        of_result = "y" in backward.shapes.signature.parameters
        agree(backward, array(rng, *size, view=view), y if of_result else x)
    assert served_by(forward, np.zeros((0, 3), np.float32)) == served_by(forward, np.zeros(3)) == "reference"


@settings(max_examples=10, **FEW)
@given(
    st.integers(1, 5000), st.sampled_from([0.0, 0.1, 0.5, 0.937]), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)
)
@example(4 * 8192 * 2 + 3, 0.25, 5, 7)
def test_dropout_has_the_reference_s_bits(n, p, seed, offset) -> None:
    x = array(np.random.default_rng(n), 1, n)
    got = agree(pointwise.dropout_forward, x, p, seed, offset)
    np.testing.assert_array_equal(got, pointwise.dropout_forward.reference(x, p, seed, offset))


@settings(max_examples=12, **FEW)
@given(
    st.integers(1, 3), st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), CHANNELS, SEEDS, st.booleans(), st.booleans()
)
def test_resampling(n, size, out, channels, seed, corners, view) -> None:
    rng = np.random.default_rng(seed)
    x = array(rng, n, *size, channels, view=view)
    for make in (lambda a, b: resample.bilinear_matrix(a, b, corners), resample.adaptive_matrix):
        a, b = (make(i, o) for i, o in zip(size, out, strict=True))
        y = agree(resample.resample2d_forward, x, a, b)
        agree(resample.resample2d_backward, array(rng, *y.shape), a, b)


@settings(max_examples=10, **FEW)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 3), SEEDS)
def test_concatenation(parts, n, seed) -> None:
    """Up to eight large maps are ours; sums in place too."""
    rng, pixels = np.random.default_rng(seed), -(-20_000 // sum(parts))
    maps = [array(rng, n, pixels, c) for c in parts]
    served = "fast" if len(parts) <= 8 else "reference"
    wide = agree(shape.concat_channels, maps, served=served)
    np.testing.assert_array_equal(wide, np.concatenate(maps, -1))
    for got, want in zip(agree(shape.split_channels, wide, parts, served=served), maps, strict=True):
        np.testing.assert_array_equal(got, want)
    agree(shape.accumulate, wide, array(rng, *wide.shape), inplace=(0,))
    small = np.zeros((1, 3, 2), np.float32)
    assert served_by(shape.accumulate, small, small) == served_by(shape.concat_channels, [small]) == "reference"


@settings(max_examples=10, **FEW)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sets(st.integers(0, 2))), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 50),
    SEEDS,
)
@example([(21, {1, 2}), (8, {0, 1, 2}), (3, set())], 2, 40, 0)
def test_concatenation_of_maps_that_repeat_themselves(parts, n, w, seed) -> None:
    """Broadcast along any of images, lines and pixels."""
    rng, h = np.random.default_rng(seed), -(-20_000 // (n * w * sum(c for c, _ in parts)))
    maps = [
        np.broadcast_to(array(rng, *(1 if k in axes else v for k, v in enumerate((n, h, w))), c), (n, h, w, c))
        for c, axes in parts
    ]
    np.testing.assert_array_equal(agree(shape.concat_channels, maps), np.concatenate(maps, -1))
    sizes, axes = [c for c, _ in parts], parts[0][1]
    dy = np.broadcast_to(
        array(rng, *(1 if k in axes else v for k, v in enumerate((n, h, w))), sum(sizes)), (n, h, w, sum(sizes))
    )
    for got, want in zip(
        agree(shape.split_channels, dy, sizes), shape.split_channels.reference(dy, sizes), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_maps_that_are_left_to_the_reference() -> None:
    """With gaps, reversed, or one number for all channels."""
    x = array(np.random.default_rng(0), 2, 60, 30, 12)
    for other in (
        x[:, ::-1],
        x[..., ::2],
        x[:, :, ::-1],
        np.broadcast_to(x[..., :1], x.shape),
        x.transpose(0, 2, 1, 3).reshape(2, 30, 60, 12)[:, :, ::2],
    ):
        same = x[:, : other.shape[1], : other.shape[2]].copy()
        assert served_by(shape.concat_channels, [same, other]) == "reference"
        np.testing.assert_array_equal(shape.concat_channels([same, other]), np.concatenate([same, other], -1))


# -- optimiser and augmentation ----------------------------------------------------------------------------------------


@settings(max_examples=10, **FEW)
@given(st.integers(1, 5000), st.integers(1, 50), st.booleans(), SEEDS)
@example(65_536 + 1, 1, True, 0)
def test_adamw(n, step, averaged, seed) -> None:
    rng = np.random.default_rng(seed)
    p, g, m, v, decay, average = (array(rng, 1, n)[0] for _ in range(6))
    v, decay = np.abs(v), np.abs(decay[: -(-n // optimizer.LINE)]) * np.float32(0.1)
    options = {
        "step": step,
        "learning_rate": 1e-2,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "clip": 0.7,
        "average_decay": 0.95,
    }
    agree(
        optimizer.adamw_step,
        p,
        g,
        m,
        v,
        decay,
        average if averaged else None,
        inplace=(0, 2, 3, 5) if averaged else (0, 2, 3),
        **options,
    )
    agree(optimizer.squared_norm, g)


@settings(max_examples=10, **FEW)
@given(st.integers(1, 5000), st.booleans(), st.booleans(), st.booleans(), SEEDS)
@example(65_536 + 1, True, True, True, 0)
def test_sgd(n, momentum, nesterov, averaged, seed) -> None:
    rng = np.random.default_rng(seed)
    p, g, buffer, decay, average = (array(rng, 1, n)[0] for _ in range(5))
    options = {
        "learning_rate": 0.1,
        "momentum": 0.9,
        "dampening": 0.2,
        "nesterov": nesterov,
        "clip": 0.7,
        "average_decay": 0.95,
    }
    vectors = (
        p,
        g,
        buffer if momentum else None,
        np.abs(decay[: -(-n // optimizer.LINE)]),
        average if averaged else None,
    )
    agree(optimizer.sgd_step, *vectors, inplace=[k for k in (0, 2, 4) if vectors[k] is not None], **options)


@settings(max_examples=20, **FEW)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 40), min_size=0, max_size=4), st.sampled_from([None, "C", "F", "swap"])),
        max_size=80,
    ),
    SEEDS,
)
@example([([3, 3, 128, 40], "C"), ([40, 300], "F"), ([2, 2, 130, 150], "swap"), ([50_001], None), ([], "C")], 0)
def test_gather(parts, seed) -> None:
    """Tensors of any size, their axes in any order; none; numbers between them stay."""
    rng, given, offsets, sizes, at = np.random.default_rng(seed), [], [], [], 0
    for shape_, order in parts:
        values = rng.standard_normal(shape_).astype(np.float32)
        swapped = values.swapaxes(-1, -2) if values.ndim > 1 else values
        given.append({None: None, "C": values, "F": np.asfortranarray(values), "swap": swapped}[order])
        offsets.append(at)
        sizes.append(values.size)
        at += values.size + int(rng.integers(0, 5))
    out = array(rng, 1, at + 1)[0]
    want = out.copy()
    optimizer.gather.reference(given, want, offsets, sizes)
    with kernel_log() as log:
        optimizer.gather(given, out, offsets, sizes)
    assert [entry.by for entry in log] == ["fast"]
    np.testing.assert_array_equal(out, want)


def test_gather_leaves_the_rest_to_the_reference() -> None:
    x, out = np.ones(12, np.float32), np.zeros(20, np.float32)
    for part in (x[::2], x[::-1][:6], x[:6].astype(np.float64), np.broadcast_to(x[:1], 6)):
        assert served_by(optimizer.gather, [part], out, [2], [6]) == "reference"
    for sizes, offsets in (([5], [0]), ([6], [15])):
        with pytest.raises(ValueError, match="gather: expected"):
            optimizer.gather([x[:6]], out, offsets, sizes)


def test_optimiser_leaves_views_to_the_reference() -> None:
    g = np.ones(10, np.float32)[::2]
    assert served_by(optimizer.squared_norm, g) == "reference"
    assert optimizer.squared_norm(g) == 5


@settings(max_examples=12, **FEW)
@given(st.integers(1, 3), st.tuples(SIDES, SIDES), st.sampled_from([None, 0, 4]), SEEDS)
@example(2, (1, 1), None, 0)
def test_augmentation(n, size, outside, seed) -> None:
    """Any affine map; source coordinates kept away from .0 and .5, where a last bit decides which pixel is meant."""
    rng = np.random.default_rng(seed)
    images, masks = rng.random((n, *size)).astype(np.float32), rng.integers(0, 5, (n, *size)).astype(np.uint8)
    matrices = rng.uniform(-1.5, 1.5, (n, 2, 3))
    matrices[:, :, 2] *= 10
    options = [rng.uniform(low, high, n).astype(np.float32) for low, high in ((0.7, 1.3), (-0.2, 0.2), (0.7, 1.4))]
    got = agree(augment.augment_batch, images, masks, matrices, *options, outside)
    np.testing.assert_array_equal(
        got[1], augment.augment_batch.reference(images, masks, matrices, *options, outside)[1]
    )


def test_augmentation_reads_nothing_but_the_tile() -> None:
    """Maps that lead far away, or nowhere, read some pixel of the tile; what is beyond it gets the label for that."""
    images, masks = np.full((2, 5, 19), 0.25, np.float32), np.full((2, 5, 19), 3, np.uint8)
    ones = np.ones(2, np.float32)
    for value in (1e6, -1e12, 1e300, -np.inf, np.nan):
        out, labels = augment.augment_batch(images, masks, np.full((2, 2, 3), value), ones, 0 * ones, ones, 7)
        assert (labels == 7).sum() >= labels.size - 2, value
        assert (labels[labels != 7] == 3).all()
        if abs(value) < 1e9:
            np.testing.assert_allclose(out, 0.25, rtol=1e-6)
        assert (
            augment.augment_batch(images, masks, np.full((2, 2, 3), value), ones, 0 * ones, ones, None)[1] == 3
        ).all()
    for h, w in ((1, 19), (19, 1), (2, 2)):  # the neighbours of a pixel alone would lie in the next tile
        images = np.full((2, h, w), 0.25, np.float32)
        images[1] = np.nan
        out, _ = augment.augment_batch(
            images,
            masks[:, :1, :1].repeat(h, 1).repeat(w, 2),
            np.tile(np.eye(2, 3) + 0.3, (2, 1, 1)),
            ones,
            0 * ones,
            ones,
            0,
        )
        np.testing.assert_allclose(out[0], 0.25, rtol=1e-6)


def test_augmentation_that_changes_nothing_changes_no_bit() -> None:
    images, masks = (
        np.random.default_rng(0).random((2, 7, 9)).astype(np.float32),
        np.arange(126, dtype=np.uint8).reshape(2, 7, 9),
    )
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    out, labels = augment.augment_batch(images, masks, np.tile(np.eye(2, 3), (2, 1, 1)), ones, zeros, ones, 0)
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(labels, masks)


def test_the_reference_can_be_asked_for() -> None:
    x = array(np.random.default_rng(0), 2, 3, 4, 5)
    with use_kernels("reference"), kernel_log() as log:
        pointwise.relu_forward(x)
    assert [entry.by for entry in log] == ["reference"]
