"""The gradients of a convolution and of the batch norm after it, in one pass: the gradient dz between them is never
written to memory.

One after the other, batch norm reads its input z and the cotangent g and writes dz, the data gradient reads dz and
writes dx, the filter gradient reads dz and x: five maps read, two written. Here the kernel computes a strip of dz in
the cache from g and z, and both gradients from it: three maps read, one written. A pass of its own comes first for the
sums over all pixels that dz needs.

    dz = scale g + slope (z - mean) + constant           per channel; kernels/norm/cpu/batch_norm.py gives these `rows`

Two kernels. 1x1: a strip is some pixels, both gradients are matrix products. Winograd: a strip is the rows under a row
of tiles. The tiles' transforms B^T dz B serve both gradients:

    dx = A^T [ (G w' G^T) * (B^T dz B) ] A      w' the filter of the data gradient: taps reversed, channels swapped
    dw' = G^T [ sum over tiles of (A x A^T) * (B^T dz B) ] G

The second is the usual filter gradient with x and dz in each other's place, so its taps come out reversed.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from kernels.conv.cpu.winograd.plan import CHUNKS
from kernels.core.cpu.jit import inline
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.vector_ops import vector_loop
from kernels.norm.cpu.batch_norm import masked_gradient

_LEAST_CHUNKS = 2
_MOST_SUMS = 2_600_000  # floats; chunks have sums of their own: fewer chunks for large filters
WORKSPACE_LIMIT = 1_500_000  # workspace limit in floats: layers that need more are unfused


class Gradient(NamedTuple):
    """The factors of dz: the cotangent, the norm's input, the `rows` of constants; relu: the sign of y masks the
    cotangent.
    """

    g: Any
    z: Any
    rows: Any
    relu: Any


class Strip(NamedTuple):
    """Pixels of dz: pixel i lies at array[start + i pitch], its channels padded with zeros to whole vectors."""

    array: Any
    start: Any
    pitch: Any


@cache
def make_gradient_pixels() -> Any:
    """gradient_pixels(gradient: Gradient, first, pixels, channels, out: Strip): dz of that many pixels from number
    `first` on.
    """

    def make(relu: bool) -> Any:
        @program
        def gradient_pixels(
            code: Code, g: Pointer, z: Pointer, rows: Pointer, at: Int, pixels: Int, channels: Int, out: Strip
        ) -> None:
            def body(j: Int, rest: Any) -> None:
                i = at + pixel * channels + j
                masked = masked_gradient(code, g, z, i, j, rest, "computed" if relu else "none", rows, channels, g)
                mean, scale, slope, constant = (code.load(rows, j + channels * k, rest) for k in (0, 1, 3, 4))
                value = code.fma(scale, masked, code.fma(code.load(z, i, rest) - mean, slope, constant))
                code.store(value, out.array, out.start + pixel * out.pitch + j)

            with code.loop(0, pixels) as pixel:
                vector_loop(code, channels, body)

        return gradient_pixels

    with_relu, without = make(True), make(False)

    @inline()
    def gradient_pixels(gradient, first, pixels, channels, out):
        if gradient.relu:
            with_relu(gradient.g, gradient.z, gradient.rows, first * channels, pixels, channels, out)
        else:
            without(gradient.g, gradient.z, gradient.rows, first * channels, pixels, channels, out)

    return gradient_pixels


def equal_chunks(count: int, floats: int, least: int) -> int:
    """The share of each chunk of `count` items, where each chunk sums `floats` floats of its own."""
    chunks = max(_LEAST_CHUNKS, min(CHUNKS, count // least, _MOST_SUMS // floats))
    return -(-count // chunks)
