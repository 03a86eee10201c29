"""Polarized self-attention on CUDA: a block per image, one launch forward and two backward; see polarized.cu. float32
and float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.core.cuda.module import Launch, Module, blocks, device_limits
from kernels.core.device import Array, module_of

_STEPS = ("channel_forward", "channel_backward", "spatial_forward", "spatial_backward", "reduce_images")
# One module per type, since one run needs one type; the last one, with all of them, is what the registry lists.
MODULES = {
    kind: Module("attention/cuda/polarized.cu", tuple(f"{step}<{kind}>" for step in _STEPS))
    for kind in ("float", "double")
}
Module("attention/cuda/polarized.cu", tuple(name for module in MODULES.values() for name in module.instances))
THREADS = 512
_TYPES = {"float32": "float", "float64": "double"}
_RESERVED = 6 * 1024  # bytes of shared memory for sums
_OUTER = np.dtype([(name, np.int32) for name in ("left", "right", "heights", "widths")])
# Numbers in shared memory: (per pixel, per channel, per inner channel)
_ROOM = {
    "channel_forward": (1, 3, 1),
    "channel_backward": (2, 6, 2),
    "spatial_forward": (1, 2, 1),
    "spatial_backward": (2, 4, 2),
}


def image_launch(step: str, kind: str, n: int, pixels: int, channels: int, inner: int) -> Launch:
    """A block per image."""
    numbers = sum(a * b for a, b in zip(_ROOM[step], (pixels, channels, inner), strict=True))
    return Launch(f"{step}<{kind}>", (n,), (THREADS,), numbers * (4 if kind == "float" else 8))


def parameters_launch(kind: str, channels: int, inner: int, width: int) -> Launch:
    """A thread per number: two matrices, and every vector."""
    return Launch(f"reduce_images<{kind}>", (blocks(2 * channels * inner + width, 256),), (256,))


class _Branch:
    """Contiguous operands of one branch, its structure of weights, and whether it is served."""

    def __init__(
        self, step: str, x: Array, weights: tuple[Array, ...], inner: int, eps: float | None, *more: Array
    ) -> None:
        arrays = (x, *weights, *more)
        n, pixels, channels = x.shape
        self.served = (
            x.dtype.name in _TYPES and all(a.dtype == x.dtype for a in arrays) and 0 < x.size < 2**31 and inner > 0
        )
        if not self.served:
            return
        xp = module_of("cuda")
        self.kind = _TYPES[x.dtype.name]
        self.sizes = (n, pixels, channels, inner)
        self.launch = image_launch(step, self.kind, *self.sizes)
        self.served = self.launch.shared + _RESERVED <= device_limits()[1]
        self.x, *rest = (xp.ascontiguousarray(a) for a in arrays)
        self.weights = rest[: len(weights)]
        self.more = rest[len(weights) :]
        scalars = [] if eps is None else [("eps", x.dtype)]
        layout = (
            [(f"w{k}", np.uint64) for k in range(len(weights))]
            + scalars
            + [(name, np.int32) for name in ("pixels", "channels", "inner")]
        )
        found = np.zeros((), np.dtype(layout, align=True))
        values = [w.data.ptr for w in self.weights] + ([] if eps is None else [eps]) + list(self.sizes[1:])
        for (name, _), value in zip(layout, values, strict=True):
            found[name] = value
        self.settings = found[()]

    def forward(self) -> Array:
        """y."""
        y = module_of("cuda").empty(self.x.shape, self.x.dtype)
        MODULES[self.kind].run(self.launch, self.x, y, self.settings)
        return y

    def backward(self, width: int, one: tuple[int, ...], two: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
        """dx; two matrices sum_n left right^T, each given as (place of left, place of right, its length, its length);
        sum_n of the rows (width,).
        """
        xp = module_of("cuda")
        n, _, channels, inner = self.sizes
        dx = xp.empty(self.x.shape, self.x.dtype)
        rows = xp.empty((n, width), self.x.dtype)
        MODULES[self.kind].run(self.launch, *self.more, self.x, dx, rows, self.settings)
        out = xp.empty(2 * channels * inner + width, self.x.dtype)
        pairs = [np.array(pair, _OUTER)[()] for pair in (one, two)]
        MODULES[self.kind].run(parameters_launch(self.kind, channels, inner, width), rows, out, n, width, *pairs)
        size = channels * inner
        return dx, out[:size].reshape(one[2:]), out[size : 2 * size].reshape(two[2:]), out[2 * size :]


def polarized_channel_forward(
    x: Array, wq: Array, wv: Array, bv: Array, wz: Array, bz: Array, gain: Array, offset: Array, eps: float
) -> Any:
    """As kernels.attention.reference.polarized_channel_forward."""
    branch = _Branch("channel_forward", x, (wq, wv, bv, wz, bz, gain, offset), wv.shape[1], eps)
    return branch.forward() if branch.served else NotImplemented


def polarized_channel_backward(
    dy: Array, x: Array, wq: Array, wv: Array, bv: Array, wz: Array, bz: Array, gain: Array, offset: Array, eps: float
) -> Any:
    """As kernels.attention.reference.polarized_channel_backward. A row: pooled, u, do, du, dgain, doffset, dwq."""
    c, h = wv.shape
    branch = _Branch("channel_backward", x, (wq, wv, bv, wz, bz, gain, offset), h, eps, dy)
    if not branch.served:
        return NotImplemented
    dx, dwv, dwz, sums = branch.backward(5 * c + 2 * h, (0, 2 * c + h, c, h), (c, c + h, h, c))
    dbz = sums[c + h : 2 * c + h]
    dbv = sums[2 * c + h : 2 * c + 2 * h]
    vectors = sums[2 * c + 2 * h :]
    return dx, vectors[2 * c :], dwv, dbv, dwz, dbz, vectors[:c], vectors[c : 2 * c]


def polarized_spatial_forward(x: Array, wq: Array, bq: Array, wv: Array, bv: Array) -> Any:
    """As kernels.attention.reference.polarized_spatial_forward."""
    branch = _Branch("spatial_forward", x, (wq, bq, wv, bv), wq.shape[1], None)
    return branch.forward() if branch.served else NotImplemented


def polarized_spatial_backward(dy: Array, x: Array, wq: Array, bq: Array, wv: Array, bv: Array) -> Any:
    """As kernels.attention.reference.polarized_spatial_backward. A row: mean, b, dc, dl, total b."""
    c, h = wq.shape
    branch = _Branch("spatial_backward", x, (wq, bq, wv, bv), h, None, dy)
    if not branch.served:
        return NotImplemented
    dx, dwq, dwv, sums = branch.backward(2 * c + 3 * h, (0, 2 * c + h, c, h), (c + h, c, c, h))
    return dx, dwq, sums[2 * c + h : 2 * c + 2 * h], dwv, sums[2 * c + 2 * h :]
