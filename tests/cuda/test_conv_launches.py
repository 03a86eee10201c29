"""Launch geometry of the CUDA convolutions: pure functions of the shape, checked without a device."""

from __future__ import annotations

import numpy as np

from kernels.conv.cuda import depthwise, implicit_gemm, single_channel
from kernels.conv.cuda.geometry import data_walk, forward_walk
from kernels.core.geometry import Window


def test_launches_cover_the_results_and_depend_on_the_shape_alone() -> None:
    for n, size, c, k in ((16, (64, 128), 32, 32), (32, (8, 16), 256, 256), (1, (8, 16), 512, 8), (1, (1, 1), 4, 4)):
        walk = forward_walk(n, size, c, k, Window.of("c", 3, 1, 1))
        launch, splits = implicit_gemm.plan(walk, 4, 108)
        assert (launch, splits) == implicit_gemm.plan(walk, 4, 108)
        m, columns = (int(v) for v in launch.kernel.split("<")[1].split(",")[:2])
        assert launch.grid[0] * m >= n * size[0] * size[1] > (launch.grid[0] - 1) * m
        assert launch.grid[1] * columns >= k
        assert launch.grid[2] == splits
        assert -(-walk.terms // splits) <= implicit_gemm.LONGEST
    assert (
        implicit_gemm.plan(forward_walk(16, (64, 128), 128, 128, Window.of("c", 3, 1, 1)), 4, 108)[0].kernel
        == "convolve<128, 128, 4, 2, 4>"
    )
    assert implicit_gemm.plan(forward_walk(1, (8, 16), 256, 64, Window.of("c", 3, 1, 1)), 4, 108)[1] > 1, (
        "a small map is split"
    )
    launch, splits = implicit_gemm.filter_plan(16 * 64 * 128, 9 * 32, 32, 4, 108)
    assert 108 <= np.prod(launch.grid) <= 16 * 108
    assert 16 * 64 * 128 / splits <= implicit_gemm.LONGEST


def test_phases_of_the_data_gradient_take_every_tap_and_every_pixel_once() -> None:
    for stride, dilation, taps, before in (
        (1, 1, 3, 1),
        (2, 1, 3, 1),
        (2, 2, 3, 0),
        (3, 2, 5, 4),
        (4, 1, 2, 0),
        (4, 6, 5, 1),
    ):
        window = Window.of("c", taps, stride, before, dilation)
        size = (17, 19)
        walk = data_walk(1, window.output_size(size), size, 4, 4, window)
        for axes, extent in ((walk.rows, size[0]), (walk.columns, size[1])):
            assert sorted(a.tap0 + a.tap_stride * t for a in axes for t in range(a.taps)) == list(range(taps))
            assert sorted(a.out0 + a.out_step * i for a in axes for i in range(a.outs)) == list(range(extent))
            for a in axes:  # p stride - before + r dilation = h
                for i, t in np.ndindex(a.outs, a.taps):
                    p, r, h = a.in0 + a.in_step * i + a.tap_step * t, a.tap0 + a.tap_stride * t, a.out0 + a.out_step * i
                    assert p * stride - before + r * dilation == h


def test_depthwise_and_stem_launches() -> None:
    launch = depthwise.depthwise_filter_launch(16 * 64 * 128, 40, 25, 108)
    assert launch.grid[:2] == (2, 3)
    assert 16 * 64 * 128 / launch.grid[2] <= 4096
    window = Window.of("c", 3, 1, 1)
    assert single_channel.single_channel_launch(16, (64, 128), 32, window).grid == (2, 64, 16)
    assert not single_channel.is_single_channel(16, (64, 128), 2, 32, window)
    assert not single_channel.is_single_channel(16, (64, 128), 1, 260, window)
    assert not single_channel.is_single_channel(16, (64, 128), 1, 256, Window.of("c", 7, 1, 3)), (
        "the filter alone has 50 KB"
    )
