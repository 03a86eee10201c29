"""The parameters of the direct kernels: the geometry of a layer, the strips that it is cut into, and the padded copy of
a strip.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from kernels.conv.cpu import filters
from kernels.core.cpu.jit import inline
from kernels.core.cpu.target import target
from kernels.core.cpu.vector_ops import clear, copy
from kernels.core.geometry import Pair, Window

_STRIP = 32_768  # floats of a padded strip: 128 KB, well inside an L2 cache
CHUNKS = filters.CHUNKS


class DirectParams(NamedTuple):
    """A convolution as the kernels see it: image (h, w, c), output (p, q), window, groups, and where output pixels are
    stored.
    """

    h: int
    w: int
    c: int
    p: int
    q: int
    r: int
    s: int
    sh: int
    sw: int
    dh: int
    dw: int
    top: int
    left: int
    padded_width: int  # of a strip; 0: read x in place
    # parts of the output channels, of k each; each reads cg input channels, group_in floats after the part before
    groups: int
    cg: int
    group_in: int
    group_out: int  # floats between the groups' first outputs
    k: int
    out_pixel: int  # floats between output pixels, rows and images
    out_row: int
    out_image: int
    rows: int  # output rows per chunk
    blocks: int  # chunks per image


@lru_cache(maxsize=4096)
def params_of(
    shape: tuple[int, ...],
    window: Window,
    groups: int,
    k: int,
    out: tuple[int, int, int] | None = None,
    size: Pair | None = None,
) -> DirectParams:
    """The parameters of a layer over x of `shape` (N, H, W, C), cut into chunks of output rows whose padded strip stays
    in the L2 cache.

    k: output channels of a group. out: floats between output pixels, rows and images; by default y is (N, P, Q, K).
    size: (P, Q) where it does not follow from the window.
    """
    _, h, w, c = shape
    cg = c // groups
    p, q = size or window.output_size((h, w))
    r, s = window.kernel
    sh, sw = window.stride
    dh, dw = window.dilation
    (top, _), (left, _) = window.padding
    reach = (q - 1) * sw + (s - 1) * dw + 1  # columns of a strip that are read
    inside = top <= 0 and left <= 0 and (p - 1) * sh + (r - 1) * dh + 1 - top <= h and reach - left <= w
    padded = 0 if inside else reach
    row = (padded or w) * c * sh
    rows = max(1, min(p, (_STRIP - (r - 1) * dh * (padded or w) * c) // row))
    rows = min(rows, -(-shape[0] * p // CHUNKS))  # few images: chunks for all threads
    rows = min(p, max(rows, -(-64 // q)))  # a strip of few pixels is not worth its overhead
    blocks = -(-p // rows)
    rows = -(-p // blocks)  # at most as many: no block is empty
    pixel, out_row, image = out or (groups * k, q * groups * k, p * q * groups * k)
    return DirectParams(h, w, c, p, q, r, s, sh, sw, dh, dw, top, left, padded, groups, cg, cg, k, k, pixel, out_row,
                        image, rows, blocks)  # fmt: skip


@inline()
def padded_rows(x, image, h, w, c, first, lines, left, width, out):
    """out (lines, width, C) = rows first .. first + lines of an image of x (N, H, W, C), from column -left on: zeros
    where it has none.
    """
    before = min(max(0, left), width)
    # columns of x that the strip holds: none where it lies outside the image
    inside = max(0, min(w + min(0, left), width - before))
    for line in range(lines):
        y = first + line
        o = line * width * c
        if y < 0 or y >= h:
            clear(out, o, width * c)
            continue
        clear(out, o, before * c)
        copy(x, ((image * h + y) * w + max(0, -left)) * c, out, o + before * c, inside * c)
        clear(out, o + (before + inside) * c, (width - before - inside) * c)


@inline()
def strip_of(x, scratch, layer, image, first, count):
    """The input of the output rows first .. first + count of an image: (array, first float, floats of a row): a padded
    copy at the start of scratch, or x itself where there is no padding.
    """
    top_row = first * layer.sh - layer.top
    width = layer.padded_width
    if width:
        lines = (count - 1) * layer.sh + (layer.r - 1) * layer.dh + 1
        padded_rows(x, image, layer.h, layer.w, layer.c, top_row, lines, layer.left, width, scratch)
        return scratch, 0, width * layer.c
    return x, ((image * layer.h + top_row) * layer.w - layer.left) * layer.c, layer.w * layer.c


def is_patchify(window: Window, size: Pair, small: tuple[int, ...]) -> bool:
    """Whether a map of `size` consists of windows without gaps or overlaps, one for each pixel of a map of shape
    `small`.
    """
    r, s = window.kernel
    _, p, q, _ = small
    return window == Window((r, s), (r, s)) and size == (r * p, s * q)


# A vector of 16 lanes is half empty for 8 output channels. But two neighbouring pixels of 8 channels are one run of 16
# floats, and computing both at once is a convolution, too: its stride is 2, and its filter, one tap wider, holds the
# filter twice, the second time shifted (pixel fusion).
def pixel_fusion(window: Window, groups: int, k: int, q: int) -> int:
    """How many neighbouring output pixels are fused into one: layers with fewer output channels than lanes fill them
    so. Worth 8 % of a step of width 16 (bench/RESULTS.md, "What each mechanism is worth").
    """
    f = max(1, target().lanes // k)
    _, s = window.kernel
    stride = window.stride[1]
    dilation = window.dilation[1]
    worth = f * s > 1.2 * (s + f - 1)
    return f if groups == stride == dilation == 1 and target().lanes % k == 0 and q % f == 0 and worth else 1


def fused_window(window: Window, f: int) -> Window:
    """The window that computes f neighbouring output pixels as one of f times as many channels."""
    r, s = window.kernel
    sh, _ = window.stride
    return Window((r, s + f - 1), (sh, f), window.padding, window.dilation)
