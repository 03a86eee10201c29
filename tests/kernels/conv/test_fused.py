"""Convolutions that do more on the way: sums for the batch norm behind, bias and ReLU, a folded norm. Each against the
plain composition.
"""

from __future__ import annotations

import numpy as np
import pytest

from autograd import Tensor, no_grad, ops
from kernels import conv, pool
from kernels.conv import reference
from kernels.conv.cpu import algorithm, filters
from kernels.core.dispatch import kernel_log
from kernels.core.geometry import Window
from kernels.norm.records import BatchNorm
from kernels.pool.reference import max_pool2d_forward as reference_of_pool
from layers import Conv2d, ConvNorm, ConvTranspose2d, UNet
from tests.support.fast_rule import ROUNDING, plain

# name, maps, filter, settings of the window, groups, algorithms
LAYERS = [
    ("3x3", [(2, 9, 13, 5)], (3, 3, 5, 7), {"padding": 1}, 1),
    ("3x3 wide", [(2, 16, 16, 16)], (3, 3, 16, 48), {"padding": 1}, 1),
    ("3x3 few outputs", [(2, 8, 16, 4)], (3, 3, 4, 8), {"padding": 1}, 1),
    ("5x5", [(1, 11, 9, 8)], (5, 5, 8, 8), {"padding": 2}, 1),
    ("dilated", [(2, 12, 10, 6)], (3, 3, 6, 20), {"padding": 2, "dilation": 2}, 1),
    ("1x1", [(2, 31, 17, 12)], (1, 1, 12, 33), {}, 1),
    ("two maps", [(2, 9, 8, 5), (2, 9, 8, 3)], (3, 3, 8, 17), {"padding": 1}, 1),
    ("two maps 1x1", [(2, 9, 8, 6), (2, 9, 8, 6)], (1, 1, 12, 5), {}, 1),
    ("stride", [(2, 9, 13, 5)], (3, 3, 5, 7), {"padding": 1, "stride": 2}, 1),
    ("stem", [(2, 19, 22, 1)], (3, 3, 1, 37), {"padding": 1}, 1),
    ("stem of long rows", [(1, 3, 1100, 1)], (2, 3, 1, 16), {"padding": 1}, 1),
    ("groups", [(2, 9, 8, 6)], (3, 3, 2, 9), {"padding": 1}, 3),
]


def layer(maps, filters, settings, offset=0.0):
    rng = np.random.default_rng(0)
    xs = tuple(rng.standard_normal(shape).astype(np.float32) + np.float32(offset) for shape in maps)
    w = (rng.standard_normal(filters) / np.sqrt(np.prod(filters[:3]))).astype(np.float32)
    return xs, w, Window.of("conv2d", filters[:2], **settings)


def double(maps):
    return tuple(m.astype(np.float64) for m in maps)


def normed(x, w, window, groups=1, eps=1e-5):
    """conv2d_norm_forward with gain 1 and offset 0: z, mean and inverse."""
    k = w.shape[3]
    running = np.zeros(k, np.float32), np.ones(k, np.float32)
    norm = BatchNorm(np.ones(k, np.float32), np.zeros(k, np.float32), *running, 0.1, eps)
    with kernel_log() as log:
        y, z, _, mean, inverse = conv.conv2d_norm_forward(x, w, norm, None, None, window, groups)
    assert {entry.by for entry in log} == {"fast"}
    rows = z.reshape(-1, k).astype(np.float64)
    np.testing.assert_allclose(y.reshape(-1, k), (rows - mean.astype(np.float32)) * inverse, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(running[0], 0.1 * mean, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(running[1], 0.9 + 0.1 * rows.var(0) * len(rows) / (len(rows) - 1), rtol=1e-4)
    return z, rows, mean, 1 / inverse**2 - eps


@pytest.mark.parametrize("mode", ["direct", "winograd4", "winograd2"])
@pytest.mark.parametrize(("name", "maps", "filters", "settings", "groups"), LAYERS, ids=[row[0] for row in LAYERS])
def test_statistics_are_those_of_the_result(name, maps, filters, settings, groups, mode, monkeypatch) -> None:
    """Mean and variance of the very z that is returned, to the accuracy of float32 sums."""
    monkeypatch.setattr(algorithm, "mode", lambda: mode)
    x, w, window = layer(maps, filters, settings)
    z, rows, mean, variance = normed(x, w, window, groups)
    exact = reference.conv2d_forward(double(x), w.astype(np.float64), None, window, groups)
    assert np.abs(z - exact).max() <= 3e-5 * np.abs(exact).max()
    scale = np.sqrt((rows**2).mean(0))
    assert (np.abs(mean - rows.mean(0)) <= 1e-6 * scale).all()
    assert (np.abs(variance - rows.var(0)) <= 1e-5 * scale**2).all()


def test_statistics_far_from_zero_keep_their_digits() -> None:
    """E[z^2] - E[z]^2 would lose four digits here: the sums are taken again, about the mean."""
    x, w, window = layer([(2, 9, 13, 5)], (1, 1, 5, 7), {}, offset=300.0)
    _, rows, mean, variance = normed(x, w, window, eps=1e-9)
    assert (rows.mean(0) ** 2 > 1e4 * rows.var(0)).any(), "the case must be the hard one"
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, rows.var(0), rtol=1e-4)


def test_narrow_filters_made_wide_and_back() -> None:
    """Several pixels as one: the wide filter's convolution is the narrow one's, and its gradient becomes the narrow
    one's.
    """
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 5, 2, 4)).astype(np.float32)
    wide = filters.widened(w, 3)
    expected = np.zeros((3, 7, 2, 3, 4), np.float32)
    for i in range(3):
        expected[:, i : i + 5, :, i] = w
    np.testing.assert_array_equal(wide, expected.reshape(3, 7, 2, 12))
    dwide = rng.integers(-9, 9, wide.shape).astype(np.float32)
    parts = dwide.reshape(3, 7, 2, 3, 4)
    np.testing.assert_array_equal(filters.narrowed(dwide, 3), sum(parts[:, i : i + 5, :, i] for i in range(3)))


@pytest.mark.parametrize("mode", ["direct", "winograd4"])
@pytest.mark.parametrize(("name", "maps", "filters", "settings", "groups"), LAYERS, ids=[row[0] for row in LAYERS])
def test_bias_and_relu_in_the_same_pass(name, maps, filters, settings, groups, mode, monkeypatch) -> None:
    monkeypatch.setattr(algorithm, "mode", lambda: mode)
    x, w, window = layer(maps, filters, settings)
    b = np.random.default_rng(1).standard_normal(filters[3]).astype(np.float32)
    y = conv.conv2d_forward(x, w, b, window, groups, relu=True)
    exact = reference.conv2d_forward(double(x), w.astype(np.float64), b.astype(np.float64), window, groups, relu=True)
    assert np.abs(y - exact).max() <= 3e-5 * np.abs(exact).max()
    assert (y == 0).any()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("mode", ["direct", "winograd4", "winograd2"])
@pytest.mark.parametrize(("name", "maps", "filters", "settings", "groups"), LAYERS, ids=[row[0] for row in LAYERS])
def test_residual_in_the_same_pass(name, maps, filters, settings, groups, mode, relu, monkeypatch) -> None:
    monkeypatch.setattr(algorithm, "mode", lambda: mode)
    x, w, window = layer(maps, filters, settings)
    rng = np.random.default_rng(1)
    b, size = rng.standard_normal(filters[3]).astype(np.float32), window.output_size(maps[0][1:3])
    residual = rng.standard_normal((maps[0][0], *size, filters[3])).astype(np.float32)
    before = residual.copy()
    with kernel_log() as log:
        y = conv.conv2d_forward(x, w, b, window, groups, relu, residual)
    assert [entry.by for entry in log] == ["fast"]
    exact = reference.conv2d_forward(
        double(x), w.astype(np.float64), b.astype(np.float64), window, groups, relu, residual.astype(np.float64)
    )
    assert np.abs(y - exact).max() <= 3e-5 * np.abs(exact).max()
    assert (residual == before).all(), "the caller's array is only read"
    assert (y < 0).any() != relu
    without = conv.conv2d_forward(x, w, None, window, groups, relu, residual)  # a bias of zeros
    np.testing.assert_array_equal(without, conv.conv2d_forward(x, w, 0 * b, window, groups, relu, residual))


@pytest.mark.parametrize(
    ("maps", "filters", "groups"), [([1], (3, 3, 1, 32), 1), ([24], (3, 3, 1, 24), 24), ([4, 3], (1, 1, 7, 20), 1)]
)
def test_a_convolution_and_its_norm_have_the_gradients_of_the_two(maps, filters, groups) -> None:
    """The first layer, a depthwise one, and one of several maps; what stands before the norm has the bits of the
    convolution alone.
    """
    k, padding = filters[3], filters[0] // 2
    xs, w, window = layer([(2, 19, 22, c) for c in maps], filters, {"padding": padding})
    z = normed(xs, w, window, groups)[0]
    np.testing.assert_array_equal(conv.conv2d_forward(xs, w, None, window, groups), z)
    x, f = [Tensor(m, requires_grad=True) for m in xs], Tensor(w, requires_grad=True)
    vectors = [Tensor(make(k, np.float32)) for make in (np.ones, np.zeros, np.zeros, np.ones)]
    together = ops.conv2d_batch_norm(x, f, *vectors, activation="relu", padding=padding, groups=groups)
    z = ops.conv2d(x if len(maps) > 1 else x[0], f, None, padding=padding, groups=groups)
    found = []
    for y in (together, ops.batch_norm(z, *vectors, training=True, activation="relu")):
        y.backward(np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape))
        found.append([t.grad.data for t in (*x, f)])
        for t in (*x, f):
            t.zero_grad()
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("channels", "k"), [((8, 8, 8, 8), 32), ((3, 1, 20), 5), ((64,) * 8, 48), ((7, 9), 40)])
def test_several_maps_count_as_concatenated(channels, k, residual) -> None:
    rng = np.random.default_rng(0)
    maps = tuple(rng.standard_normal((2, 13, 11, c)).astype(np.float32) for c in channels)
    w = (rng.standard_normal((1, 1, sum(channels), k)) / np.sqrt(sum(channels))).astype(np.float32)
    b, more = (
        rng.standard_normal(k).astype(np.float32),
        rng.standard_normal((2, 13, 11, k)).astype(np.float32) if residual else None,
    )
    with kernel_log() as log:
        y = conv.conv2d_forward(maps, w, b, Window((1, 1)), 1, True, more)
    assert [entry.by for entry in log] == ["fast"]
    exact = reference.conv2d_forward(
        double(maps),
        w.astype(np.float64),
        b.astype(np.float64),
        Window((1, 1)),
        1,
        True,
        None if more is None else more.astype(np.float64),
    )
    naive = reference.conv2d_forward(plain(maps), plain(w), b, Window((1, 1)), 1, True, more)
    assert np.abs(y - exact).max() <= 3 * np.abs(naive - exact).max() + 4 * ROUNDING * np.abs(exact).max()


@pytest.mark.parametrize(("c", "k", "side"), [(1, 32, 3), (3, 8, 1), (16, 16, 3), (64, 24, 3), (8, 8, 5)])
def test_relu_keeps_what_is_no_number(c, k, side) -> None:
    """A run that has lost its way must show it, whichever kernel serves the layer:
    the first layer's, products, tiles.
    """
    x, w, window = layer([(2, 33, 40, c)], (side, side, c, k), {"padding": side // 2})
    x[0][0, 5, 7, 0] = x[0][1, 32, 39, c - 1] = np.nan
    want = np.isnan(reference.conv2d_forward(x, w, np.zeros(k, np.float32), window, 1, True))
    assert want.sum() == k * (side**2 + (side // 2 + 1) ** 2)
    with kernel_log() as log:
        y = conv.conv2d_forward(x, w, np.zeros(k, np.float32), window, 1, True)
    assert [entry.by for entry in log] == ["fast"]
    assert np.isnan(y)[want].all()


def test_conv2d_relu_names_how_many_maps_it_takes() -> None:
    x, b = Tensor(np.ones((1, 3, 3, 2), np.float32)), Tensor(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="got 9 maps, expected one or two, or up to 8 of a 1x1 convolution"):
        ops.conv2d_relu([x] * 9, Tensor(np.ones((1, 1, 18, 4), np.float32)), b)
    with pytest.raises(ValueError, match="got 3 maps, expected one or two"):
        ops.conv2d_relu([x] * 3, Tensor(np.ones((3, 3, 6, 4), np.float32)), b, padding=1)
    with pytest.raises(ValueError, match="3 maps need a 1x1 convolution without stride and padding"):
        ops.conv2d_relu([x] * 3, Tensor(np.ones((1, 1, 6, 4), np.float32)), b, stride=2)
    with pytest.raises(ValueError, match=r"two maps \(1, 3, 3, 2\) and \(1, 4, 3, 2\) must agree"):
        ops.conv2d_relu([x, Tensor(np.ones((1, 4, 3, 2), np.float32)), x], Tensor(np.ones((1, 1, 6, 4), np.float32)), b)
    with pytest.raises(ValueError, match="got 3 maps, expected one or two"):
        ops.conv2d([x] * 3, Tensor(np.ones((1, 1, 6, 4), np.float32)), b)


@pytest.mark.parametrize(
    "window",
    [Window((3, 3), padding=((1, 1), (1, 1))), Window((2, 2), (2, 2)), Window((5, 4), (2, 3), ((2, 2), (1, 2)))],
)
def test_maximum_without_its_place_is_the_same(window) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 12, 21)).astype(np.float32)
    x[0, ::4, ::3, 3], x[1, 2:5, :, 7], x[0, :, 5, 1], x[1, 1::3, 1::2, 11] = np.nan, -np.inf, np.inf, np.nan
    with kernel_log() as log:
        y, places = pool.max_pool2d_forward(x, window, False)
    assert [entry.by for entry in log] == ["fast"]
    assert places is None
    assert np.isnan(y).any()
    np.testing.assert_array_equal(y, reference_of_pool(x, window)[0])


def test_residual_that_is_not_contiguous() -> None:
    x, w, window = layer([(2, 9, 13, 5)], (3, 3, 5, 7), {"padding": 1})
    b, wide = np.zeros(7, np.float32), np.random.default_rng(1).standard_normal((2, 9, 13, 14)).astype(np.float32)
    y = conv.conv2d_forward(x, w, b, window, 1, True, wide[..., ::2])
    np.testing.assert_array_equal(y, conv.conv2d_forward(x, w, b, window, 1, True, wide[..., ::2].copy()))


def test_conv2d_relu_names_what_is_wrong_with_a_residual() -> None:
    x, w, b = (
        Tensor(np.ones((1, 3, 3, 2), np.float32)),
        Tensor(np.ones((3, 3, 2, 4), np.float32)),
        Tensor(np.zeros(4, np.float32)),
    )
    with pytest.raises(
        ValueError, match=r"conv2d_relu: the residual has shape \(1, 3, 3, 2\), expected \(1, 3, 3, 4\)"
    ):
        ops.conv2d_relu(x, w, b, padding=1, residual=x)
    with pytest.raises(TypeError, match="conv2d_relu: the residual is float64 but the filter is float32"):
        ops.conv2d_relu(x, w, b, padding=1, residual=Tensor(np.ones((1, 3, 3, 4))))
    with pytest.raises(RuntimeError, match="has no gradient"):
        ops.conv2d_relu(x, w, b, padding=1, residual=Tensor(np.ones((1, 3, 3, 4), np.float32), requires_grad=True))


def test_conv2d_relu_has_no_gradient_and_says_so() -> None:
    x, w, b = (
        Tensor(np.ones((1, 3, 3, 2))),
        Tensor(np.ones((3, 3, 2, 4)), requires_grad=True),
        Tensor(np.full(4, -20.0)),
    )
    with pytest.raises(RuntimeError, match=r"conv2d_relu: has no gradient; use relu\(conv2d"):
        ops.conv2d_relu(x, w, b, padding=1)
    with no_grad():
        y = ops.conv2d_relu(x, w, b, padding=1)
    assert (y.data == ops.relu(ops.conv2d(x, w, b, padding=1)).data).all()


def test_folded_norm_follows_its_sources() -> None:
    """In evaluation a ConvNorm is one convolution; it must notice every change of weights and statistics."""
    rng = np.random.default_rng(0)
    block = ConvNorm(3, 4, 3)
    for tensor in (block.norm.weight, block.norm.bias, block.norm.running_mean, block.norm.running_var):
        with no_grad():
            tensor.copy_(rng.uniform(0.5, 1.5, 4).astype(np.float32))
    x, residual = (
        Tensor(rng.standard_normal((2, 6, 7, 3)).astype(np.float32)),
        Tensor(rng.standard_normal((2, 6, 7, 4)).astype(np.float32)),
    )
    block.eval()
    for change in (
        None,
        block.conv.weight,
        block.norm.weight,
        block.norm.bias,
        block.norm.running_mean,
        block.norm.running_var,
    ):
        if change is not None:
            with no_grad():
                change.mul_(1.5)
        for other in (None, residual):
            plain = block(x, other).data  # recorded: convolution, then norm
            with no_grad():
                folded = block(x, other).data
            np.testing.assert_allclose(folded, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [lambda: Conv2d(3, 5, 3, padding=1), lambda: ConvTranspose2d(3, 5, 2, 2), lambda: Conv2d(3, 5, 1, bias=False)],
)
def test_convolutions_in_evaluation_follow_filter_and_bias(make) -> None:
    """What kernels make of a filter or a bias for inference is made again after every change."""
    block, x = make().eval(), Tensor(np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype(np.float32))
    for change in (None, block.weight, block.bias):
        if change is not None:
            with no_grad():
                change.copy_(change.data + np.float32(0.5))
        expected = block(x).data  # recorded: nothing is kept
        for _ in range(2):
            with no_grad():
                np.testing.assert_allclose(block(x).data, expected, rtol=1e-4, atol=1e-5)


def test_folded_network_gives_the_same_logits() -> None:
    net = UNet(width=8, seed=0)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 16, 32, 1)).astype(np.float32))
    for _ in range(3):
        net(x)  # moves the running statistics
    net.eval()
    plain = net(x).data
    with no_grad():
        folded = net(x).data
    assert np.abs(folded - plain).max() <= 1e-4 * np.abs(plain).max()


@pytest.mark.parametrize("mode", ["direct", "winograd4"])
def test_what_is_made_of_a_filter_is_kept_only_while_it_cannot_change(mode, monkeypatch) -> None:
    """Copies by `read_only` are prepared once, all others at every call (a flag may be taken back); a new filter is
    never taken for an old one.
    """
    from kernels.core.cpu import weight_cache

    monkeypatch.setattr(algorithm, "mode", lambda: mode)
    rng, window = np.random.default_rng(0), Window((3, 3), padding=((1, 1), (1, 1)))
    x = rng.standard_normal((1, 8, 8, 16)).astype(np.float32)
    x.setflags(write=False)

    def convolve(w: np.ndarray) -> np.ndarray:
        return conv.conv2d_forward((x,), w, None, window)

    def right(w: np.ndarray) -> bool:
        return np.allclose(convolve(w), reference.conv2d_forward((x,), w, None, window), atol=2e-3)

    w = rng.standard_normal((3, 3, 16, 16)).astype(np.float32)
    assert right(w)
    assert not weight_cache._made
    w *= 2
    assert right(w)
    w.setflags(write=False)
    assert right(w)
    w.setflags(write=True)
    w *= 2
    w.setflags(write=False)
    assert right(w)
    for _ in range(5):  # the same memory again, most likely
        fixed = weight_cache.read_only(rng.standard_normal((3, 3, 16, 16)).astype(np.float32))
        assert right(fixed)
        assert np.array_equal(convolve(fixed), convolve(fixed))
        assert len(weight_cache._made) == 1
        del fixed
    assert not weight_cache._made
