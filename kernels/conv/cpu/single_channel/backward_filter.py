"""Filter gradient of one input channel: a sum per tap for one vector of channels, over a row of pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.conv.cpu import filters
from kernels.conv.cpu.direct.params import padded_rows
from kernels.conv.cpu.single_channel.params import SingleChannelParams, meetings, plan
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import clear, copy, vector_loop
from kernels.core.geometry import Pair, Window

_SPAN = 64  # pixels of a row whose dy stays in the L1 cache for all vectors of channels
_PIXELS_AT_ONCE = 4  # neighbouring pixels


@lru_cache(maxsize=32)
def _filter_kernel(kernel: Pair) -> Kernel:
    r, s = kernel
    taps = [(i, j) for i in range(r) for j in range(s)]

    @program
    def strip(
        code: Code, own: Pointer, dy: Pointer, wide: Int, sums0: Int, dy0: Int, k: Int, count: Int, q: Int
    ) -> None:
        """own[sums0 ...] (R, S, K) += sums of x dy over `count` rows of q pixels, the first at dy[dy0], from the padded
        rows `own`.
        """
        with code.loop(0, count) as row, code.loop(0, q, _SPAN) as begin:
            end = code.lesser(begin + _SPAN, q)
            line = own + row * wide
            given = dy + dy0 + row * q * k

            def channels(c: Int, rest: Any) -> None:
                places = {tap: sums0 + k * n + c for n, tap in enumerate(taps)}
                sums = {tap: code.variable(code.load(own, at, rest)) for tap, at in places.items()}

                def products(at: Int, many: int) -> None:
                    factors = [code.load(given, (at + t) * k + c, rest) for t in range(many)]
                    for i in range(r):
                        for u, pairs in enumerate(meetings(many, s)):
                            value = code.broadcast(line, wide * i + at + u)
                            for t, j in pairs:
                                sums[i, j].set(code.fma(value, factors[t], sums[i, j].get()))

                whole = begin + code.rounded_to(end - begin, code.int(_PIXELS_AT_ONCE))
                for start, stop, many in ((begin, whole, _PIXELS_AT_ONCE), (whole, end, 1)):
                    with code.loop(start, stop, many) as at:
                        products(at, many)
                for tap, total in sums.items():
                    code.store(total.get(), own, places[tap], rest)

            vector_loop(code, k, channels)

    @cpu_kernel(f"{kernel}")
    def backward_filter(start, stop, scratch, x: F32, dy: F32, partial: F32, layer: SingleChannelParams):
        p = layer.p
        q = layer.q
        k = layer.k
        wide = q + s - 1
        floats = r * s * k
        sums = (layer.rows + r - 1) * wide
        for chunk in range(start, stop):
            image = chunk // layer.blocks
            first = chunk % layer.blocks * layer.rows
            count = min(layer.rows, p - first)
            lines = count + r - 1
            padded_rows(x, image, layer.h, layer.w, 1, first - layer.top, lines, layer.left, wide, scratch)
            # the sums accumulate in the thread's own memory: no other thread writes to their cache lines
            clear(scratch, sums, floats)
            strip(scratch, dy, wide, sums, (image * p + first) * q * k, k, count, q)
            copy(scratch, sums, partial, chunk * floats, floats)

    return backward_filter


def single_channel_backward_filter(x: np.ndarray, dy: np.ndarray, window: Window) -> np.ndarray:
    """dw (R, S, 1, K) of contiguous float32 x (N, H, W, 1) and dy (N, P, Q, K)."""
    (n, h, wd, _), (_, p, q, k), (r, s) = x.shape, dy.shape, window.kernel
    layer, chunks = plan(n, (h, wd), (p, q), k, window, True)
    partial = buffer_pool.empty((chunks * r * s * k,), np.float32)
    scratch = (layer.rows + r - 1) * (q + s - 1) + r * s * k
    parallel(_filter_kernel(window.kernel), chunks, x.reshape(-1), dy.reshape(-1), partial, layer, scratch=scratch)
    return filters.added_chunks(partial, chunks, r * s, k, k).reshape(r, s, 1, k)
