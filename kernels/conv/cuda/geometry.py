"""Geometry of the CUDA convolutions: affine walks along the axes (geometry.cuh), the structures the kernels take, and
who may use 16-byte vectors.

Forward, data gradient and transposed convolution are one kernel because along each axis they are one kind of walk:
output out0 + out_step i sums tap t times the input at in0 + in_step i + tap_step t. Forward: in0 = -top, in_step =
stride, tap_step = dilation. The data gradient solves p stride - top + r dilation = h for p: for h = a + stride i (phase
a), the taps r with r dilation = a + top (mod stride) take part, every (stride / gcd)-th one, and each of them reads one
p, moving backwards.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from kernels.core.geometry import Pair, Window

PHASES = 4  # per axis: the strides that the tiled data gradient serves
LARGEST = 2**31 - 4096  # elements of an array: indices are 32-bit, and the last block reaches a little beyond
NULL = np.uintp(0)


@dataclass(frozen=True)
class Axis:
    """The walk along one axis, as in geometry.cuh."""

    out0: int = 0
    out_step: int = 1
    outs: int = 0
    in0: int = 0
    in_step: int = 1
    tap_step: int = 1
    taps: int = 0
    tap0: int = 0
    tap_stride: int = 1
    before: int = 0


def integers(names: str, *first: tuple) -> np.dtype:
    """A structure of 32-bit integers, as the kernels take it by value; `first`: members before them."""
    return np.dtype([*first, *((name, np.int32) for name in names.split())])


AXIS = integers(" ".join(Axis.__dataclass_fields__))
PROBLEM = integers(
    "n in_h in_w out_h out_w c c0 k k0 s phase_rows phase_columns splits add",
    ("rows", AXIS, PHASES),
    ("columns", AXIS, PHASES),
)


@dataclass(frozen=True)
class Walk:
    """The problem of `convolve`: its axes, one per phase, and the sizes of input, output and filter."""

    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    n: int
    inputs: Pair
    outputs: Pair
    c: int
    k: int
    kernel: Pair

    @property
    def phases(self) -> int:
        """How many dense problems it falls into."""
        return len(self.rows) * len(self.columns)

    @property
    def pixels(self) -> int:
        """Output pixels of the largest phase."""
        return self.n * max(r.outs for r in self.rows) * max(c.outs for c in self.columns)

    @property
    def terms(self) -> int:
        """The longest sum of any phase."""
        return self.c * max(r.taps for r in self.rows) * max(c.taps for c in self.columns)

    @property
    def in_order(self) -> bool:
        """Whether the walk takes the filter's taps as they lie in memory."""
        orders = (
            [r.tap0 + r.tap_stride * t for r in axes for t in range(r.taps)] for axes in (self.rows, self.columns)
        )
        rows, columns = (order == list(range(len(order))) for order in orders)
        return rows and columns and (len(self.columns) == 1 or all(r.taps <= 1 for r in self.rows))

    def structure(self, c0: int, k0: int, splits: int = 1, add: int = 0) -> Any:
        """The `Problem` of geometry.cuh. c0, k0: channels of the first input and output map; add: bit i, whether output
        map i is added to.
        """
        problem = np.zeros((), PROBLEM)
        for name, axes in (("rows", self.rows), ("columns", self.columns)):
            problem[name] = [astuple(a) for a in (*axes, *(Axis(),) * (PHASES - len(axes)))]
        values = (self.n, *self.inputs, *self.outputs, self.c, c0, self.k, k0, self.kernel[1], len(self.rows),
                  len(self.columns), splits, add)  # fmt: skip
        for name, value in zip(PROBLEM.names[2:], values, strict=True):  # type: ignore[index]
            problem[name] = value
        return problem[()]


def forward_walk(n: int, size: Pair, c: int, k: int, window: Window) -> Walk:
    """x (n, *size, c) -> y (n, P, Q, k)."""
    out = window.output_size(size)
    rows, columns = (
        Axis(outs=o, in0=-pad[0], in_step=s, tap_step=d, taps=r)
        for o, pad, s, d, r in zip(out, window.padding, window.stride, window.dilation, window.kernel, strict=True)
    )
    return Walk((rows,), (columns,), n, size, out, c, k, window.kernel)


def data_walk(n: int, out: Pair, size: Pair, k: int, c: int, window: Window) -> Walk:
    """dy (n, *out, k) -> dx (n, *size, c): one phase per offset within the stride, which may be at most PHASES."""
    rows, columns = (
        _phases(extent, stride, dilation, pad[0], taps)
        for extent, stride, dilation, pad, taps in zip(
            size, window.stride, window.dilation, window.padding, window.kernel, strict=True
        )
    )
    return Walk(rows, columns, n, out, size, k, c, window.kernel)


def _phases(extent: int, stride: int, dilation: int, before: int, taps: int) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    every = stride // math.gcd(stride, dilation)
    seen = 0
    for a in range(stride):
        hits = [r for r in range(taps) if (a + before - r * dilation) % stride == 0]
        tap0 = hits[0] if hits else 0
        axes.append(
            Axis(
                a,
                stride,
                max(0, -(-(extent - a) // stride)),
                (a + before - tap0 * dilation) // stride,
                1,
                -every * dilation // stride,
                len(hits),
                tap0,
                every,
                seen,
            )
        )
        seen += len(hits)
    return tuple(axes)


def vectors(*arrays: Any, channels: tuple[int, ...]) -> int:
    """4 where all channel counts are multiples of four and all arrays start at multiples of 16 bytes, else 1: floats
    per copy.
    """
    aligned = all(a is None or a.data.ptr % 16 == 0 for a in arrays)
    return 4 if aligned and all(c % 4 == 0 for c in channels) else 1
