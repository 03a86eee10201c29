"""The data gradient of convolutions with one input channel: many channels are summed to one, so no vector of results is
contiguous in memory.

Lanes run along the channels of dy. A tile is as many neighbouring pixels of dx as a vector has lanes, with a vector of
partial sums each: a vector of dy is loaded once for the S pixels that it reaches. At the end a transposing sum over the
lanes gives one vector of pixels. dy is far larger than dx and read in place: pixels beyond it are read from zeros.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.conv.cpu.single_channel.params import SingleChannelParams, meetings, plan
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.cpu.vector_ops import clear, vector_loop
from kernels.core.geometry import Pair, Window


@lru_cache(maxsize=64)
def _data_kernel(kernel: Pair, add: bool) -> Kernel:
    """add: the result is added to dx."""
    r, s = kernel
    pixels = target().lanes

    @program
    def strip(
        code: Code,
        dy: Pointer,
        w: Pointer,
        zeros: Pointer,
        dx: Pointer,
        image: Int,
        first: Int,
        count: Int,
        layer: SingleChannelParams,
    ) -> None:
        """Rows first .. first + count of an image: dx[y, x] = sum over taps (i, j) and channels of dy[y + top - i, x +
        left - j] w[i, j].
        """
        k = layer.k

        def tile(y: Int, x: Int, inside: bool) -> None:
            """`pixels` pixels of a row; inside: those of dy that they need lie in one row and all exist. One that does
            not is read from zeros.
            """
            given: list[list[Pointer]] = []  # by filter row: pixels of dy from the first pixel's last tap on
            column = x + layer.left - (s - 1)
            for i in range(r):
                p = y + layer.top - i
                row = dy + (image * layer.p + p) * (layer.q * k)
                valid = code.both(p >= 0, p < layer.p)
                if inside:
                    start = code.choose(valid, row + column * k, zeros)
                    given.append([start + k * u for u in range(pixels + s - 1)])
                else:
                    within = [
                        code.both(valid, code.both(column + u >= 0, column + u < layer.q))
                        for u in range(pixels + s - 1)
                    ]
                    given.append(
                        [code.choose(exists, row + (column + u) * k, zeros) for u, exists in enumerate(within)]
                    )
            sums = [code.variable() for _ in range(pixels)]

            def channels(c: Int, rest: Any) -> None:
                for i in range(r):
                    # the last tap meets the first pixel
                    factors = [code.load(w, k * (i * s + s - 1 - j) + c, rest) for j in range(s)]
                    for place, pairs in zip(given[i], meetings(pixels, s), strict=True):
                        value = code.load(place, c, rest)
                        for t, j in pairs:
                            sums[t].set(code.fma(value, factors[j], sums[t].get()))

            vector_loop(code, k, channels)
            total = code.totals([v.get() for v in sums])
            to = (image * layer.h + y) * layer.w + x
            rest = None if inside else layer.w - x
            code.store(total + code.load(dx, to, rest) if add else total, dx, to, rest)

        with code.loop(first, first + count) as y, code.loop(0, layer.w, pixels) as x:
            # the first pixel of a tile inside lies before
            ends = code.lesser(layer.q - layer.left, layer.w) - (pixels - 1)
            inside = code.both(x >= (s - 1) - layer.left, x < ends)
            with code.when(inside):
                tile(y, x, True)
            with code.when(code.not_(inside)):
                tile(y, x, False)

    @cpu_kernel(f"{kernel}{' add' * add}")
    def backward_data(start, stop, scratch, dy: F32, w: F32, dx: F32, layer: SingleChannelParams):
        for chunk in range(start, stop):
            image = chunk // layer.blocks
            first = chunk % layer.blocks * layer.rows
            clear(scratch, 0, (pixels + s - 1) * layer.k)
            strip(dy, w, scratch, dx, image, first, min(layer.rows, layer.h - first), layer)

    return backward_data


def single_channel_backward_data(
    dy: np.ndarray, w: np.ndarray, size: Pair, window: Window, accumulate_into: np.ndarray | None = None
) -> np.ndarray:
    """dx (N, H, W, 1) of contiguous float32 dy (N, P, Q, K) and w (R, S, 1, K), or `accumulate_into` with it added."""
    n, p, q, k = dy.shape
    layer, chunks = plan(n, size, (p, q), k, window, False)
    dx = buffer_pool.empty((n, *size, 1), np.float32) if accumulate_into is None else accumulate_into
    kernel = _data_kernel(window.kernel, accumulate_into is not None)
    scratch = (target().lanes + window.kernel[1] - 1) * k
    parallel(kernel, chunks, dy.reshape(-1), contiguous(w).reshape(-1), dx.reshape(-1), layer, scratch=scratch)
    return dx
