"""Convolutions for tensor cores: shapes, the naive side of a comparison, and ceilings of memory traffic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.conv import reference
from kernels.core.geometry import Window

SAME3 = Window((3, 3), (1, 1), ((1, 1), (1, 1)))


def sequential(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (M, D) @ b (D, K) in float32, one product after the other."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total += a[:, k, None] * b[k]
    return total


def naive_forward(x, w, b, window):
    cols = reference.patches(x, window)
    y = sequential(cols.reshape(-1, w[..., 0].size), w.reshape(-1, w.shape[3])).reshape(*cols.shape[:3], -1)
    return y if b is None else y + b


def naive_data(dy, w, size, window):
    k = w.shape[3]
    cols = sequential(dy.reshape(-1, k), w.reshape(-1, k).T)
    return reference.unpatch(cols.reshape(*dy.shape[:3], *w.shape[:3]), size, window)


def naive_filter(x, dy, window):
    cols = reference.patches(x, window)
    dw = sequential(cols.reshape(dy[..., 0].size, -1).T, dy.reshape(-1, dy.shape[3]))
    return dw.reshape(*window.kernel, x.shape[3], dy.shape[3])


@dataclass(frozen=True)
class Shape:
    """A convolution: sizes, window, channels of the second map (0: one map), whether results are added to what is
    there.
    """

    n: int
    size: tuple[int, int]
    c: int
    k: int
    window: Window
    second: int = 0
    bias: bool = True
    add: bool = False


def random_shape(seed: int) -> Shape:
    rng = np.random.default_rng(seed)
    pick = lambda low, high: (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))  # noqa: E731
    while True:
        window = Window(pick(1, 4), pick(1, 3), (pick(0, 3), pick(0, 3)), pick(1, 3))
        size = pick(1, 19)
        if min(window.output_size(size)) >= 1:
            fours = 4 if rng.random() < 0.5 else 1
            c, k = (max(1, int(rng.integers(1, 41)) // fours) * fours for _ in range(2))
            second = int(rng.integers(1, 9)) * fours if rng.random() < 0.4 else 0
            return Shape(int(rng.integers(1, 4)), size, c, k, window, second, rng.random() < 0.5, rng.random() < 0.5)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_below_ceilings(report) -> None:
    """What the headers of tensor_core.cu and tensor_core_backward_filter.cu state of a forward and a filter gradient
    with 16-byte copies.
    """
    report.assert_clean()
    for name in ("forward", "filter"):
        kernel = report.kernel(name)
        assert kernel.bank_conflict_factor == 1
        assert kernel.global_efficiency == 1
        assert kernel.sectors_per_request_of("store") <= 8
        assert max(r["sectors"] / r["requests"] for r in kernel.lines if r["space"] == "global") <= 16
