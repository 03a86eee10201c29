"""Winograd convolution of few tiles, forward: a deep layer of one or two small images.

There a filter is used a few times only, and its transform, four times as large for F(4x4, 3x3), would come from memory:
9.4 MB for 256 -> 256 channels, of which eight tiles make 38 MFLOP. So the filter itself is read, and transformed piece
by piece into the cache, as its products need it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.winograd import transforms as programs
from kernels.conv.cpu.winograd.plan import PAD, ZEROS, plan_of
from kernels.conv.cpu.winograd.tiles import PATCH, make_tile_writer, make_tiles_reader, row_of_tiles
from kernels.conv.cpu.winograd.transforms import Form
from kernels.core.cpu.gemm_microkernel import make_column
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.prefetch import touch
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.geometry import Window

_MOST_TILES = 16
_LEAST = 8192  # floats of one tap of the filter: smaller transforms stay in the cache
_PARTS = 4  # of the output channels; each transforms all input tiles
_TOGETHER = 64  # input channels whose filters are transformed at a time: 147 KB
_AHEAD = 16  # such channels that are asked for in advance


@lru_cache(maxsize=16)
def forward_kernel(form: Form, vectors: int) -> Kernel:
    """The kernel of F(m x m, r x r) for panels of `vectors` vectors: y = conv + bias.   added: `more` is added;   relu:
    max(y, 0).

    A chunk is `per` panels (filters.packed_channels) of output channels and all tiles.
    """
    m, n, points, taps = form[0], programs.points(form), programs.points(form) ** 2, form[1] ** 2
    read_tiles, write_tile = make_tiles_reader(programs.input_matrix(form), n, m), make_tile_writer(form, False)
    filter_, column_of_tiles, width = (
        programs.make_filter(form),
        make_column(vectors, blocks=True),
        vectors * target().lanes,
    )

    @cpu_kernel("ppppppg10iiiiiiiii", f"F{form} x{vectors}")
    def winograd_few(
        start, stop, scratch, x, panels, y, more, zeros, bias, t, c, cp, k, kp, tiles, per, together, added, relu
    ):  # type: ignore[no-untyped-def]
        h, w, p, q, columns, dh, dw, above, before = t[0], t[1], t[2], t[3], t[5], t[6], t[7], t[8], t[9]
        v_step, u_step, product_step = tiles * cp + PAD, together * width + PAD, tiles * width + PAD
        u = points * v_step
        product = u + points * u_step
        patch = product + points * product_step
        for chunk in range(start, stop):
            read_tiles(x, 0, tiles, t, above, before, h, w, c, scratch, 0, cp, v_step, patch)
            for panel in range(chunk * per, min((chunk + 1) * per, kp // width)):
                for first in range(0, c, together):
                    some = min(together, c - first)
                    for i in range(some):
                        touch(panels, (panel * c + first + i + _AHEAD) * taps * width, taps * width)
                        filter_(
                            panels, (panel * c + first + i) * taps * width, width, width, scratch, u + i * width, u_step
                        )
                    for point in range(points):
                        column_of_tiles(scratch, point * v_step + first, cp, 1, scratch, u + point * u_step, width,
                                        some, 1, 0, 0, 1, 0, 0, scratch, product + point * product_step, width,
                                        tiles, width, zeros, first)  # fmt: skip
                channel = panel * width
                for s in range(tiles):
                    image, oy, ox = row_of_tiles(s // columns, m, t)
                    write_tile(scratch, product + s * width - channel, product_step, y, image, oy,
                               ox + s % columns * m * dw, p, q, k, channel, min(k, channel + width), dh, dw, bias, 0,
                               more, scratch, 0, kp, added, False, relu)  # fmt: skip

    return winograd_few


def serves(x: np.ndarray, w: np.ndarray, window: Window, form: Form) -> bool:
    """Whether a dense layer of stride 1 of one map x (N, H, W, C) has that few tiles, and that large a filter w (r, r,
    C, K).
    """
    n, h, wd, c = x.shape
    plan = plan_of(form, n, (h, wd), c, w.shape[3], window)
    return w.shape[2] == c and c * w.shape[3] >= _LEAST and plan.units * plan.tiling.columns <= _MOST_TILES


def forward(
    x: np.ndarray,
    w: np.ndarray,
    window: Window,
    form: Form,
    y: np.ndarray,
    b: np.ndarray | None = None,
    relu: bool = False,
    residual: np.ndarray | None = None,
) -> None:
    """y = conv(x, w) + b + residual by F(m x m, r x r), then ReLU: as winograd.forward of one map and one result."""
    n, h, wd, c = x.shape
    k = w.shape[3]
    plan = plan_of(form, n, (h, wd), c, k, window)
    tiles, width, panels = plan.units * plan.tiling.columns, plan.width, plan.kp // plan.width
    per, together = -(-panels // _PARTS), min(c, _TOGETHER)
    scratch = plan.points * (tiles * (plan.cp + width) + together * width + 3 * PAD + PATCH)
    bias = filters.zeros(k) if b is None else b
    more = y if residual is None else residual
    arrays = (
        x.reshape(-1),
        filters.packed_channels(w, width),
        y.reshape(-1),
        more.reshape(-1),
        ZEROS,
        bias,
        plan.geometry,
    )
    numbers = c, plan.cp, k, plan.kp, tiles, per, together, residual is not None, relu
    parallel(forward_kernel(form, plan.vectors), -(-panels // per), *arrays, *numbers, scratch=scratch)
