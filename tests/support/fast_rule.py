"""The rule by which fast kernels are judged (docs/accuracy.md), and what the tests of fast kernels share.

    max|fast - ref64| <= 3 max|naive - ref64| + tiny

ref64 is the reference in float64, naive the reference in float32. The naive version of a sum of products adds from left
to right, as it is
defined: how BLAS orders its sums differs from library to library, and the reference adds a data gradient's taps up in
two levels. `tiny` is four roundings (2^-24 each) of the largest value: where naive is exact by luck, a comparison of
last bits would say nothing.
"""

from __future__ import annotations

import copy
import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kernels.conv.cpu import algorithm
from kernels.core.dispatch import Operator, kernel_log
from kernels.core.geometry import Window

ROUNDING = 2.0**-24


class Plain(np.ndarray):
    """A float32 array whose matrix products are sums from left to right."""

    def __matmul__(self, other: np.ndarray) -> np.ndarray:
        return _product(self, other)

    def __rmatmul__(self, other: np.ndarray) -> np.ndarray:
        return _product(other, self)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if b.ndim == 1:
        return _product(a, b[:, None])[..., 0]
    a, b = np.ascontiguousarray(np.asarray(a).swapaxes(-1, -2)), np.asarray(b)  # a (..., T, M), b (..., T, K)
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-1], b.shape[-1]), a.dtype)
    for t in range(a.shape[-2]):
        total += a[..., t, :, None] * b[..., t, None, :]
    return total.view(Plain)


def before_a_wall(values: np.ndarray) -> np.ndarray:
    """A copy of an array that ends where memory must not be touched: whatever reads on is killed."""
    room = -(-values.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, room + mmap.PAGESIZE)
    wall = np.frombuffer(pages, np.uint8).ctypes.data + room
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    out = np.frombuffer(pages, values.dtype, values.size, room - values.nbytes).reshape(values.shape)
    out[...] = values
    return out


def plain(value: Any) -> Any:
    """A deep copy whose float32 arrays are Plain."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(plain(v) for v in value)
    return (
        value.copy().view(Plain)
        if isinstance(value, np.ndarray) and value.dtype == np.float32
        else copy.deepcopy(value)
    )


def left_to_right_data(
    dy: np.ndarray,
    w: np.ndarray,
    size: tuple[int, int],
    window: Window,
    groups: int = 1,
    parts: tuple[int, ...] | None = None,
    accumulate_into: tuple[np.ndarray | None, ...] = (None,),
) -> tuple[np.ndarray, ...]:
    """conv2d_backward_data as one sum over taps and output channels per pixel, begun with what it is added to."""
    n, p, q, k = dy.shape
    r, s, c, _ = w.shape
    (top, bottom), (left, right) = window.padding
    (sh, sw), (dh, dw) = window.stride, window.dilation
    parts, per = parts or (groups * c,), k // groups
    x = np.zeros((n, size[0] + top + bottom, size[1] + left + right, groups * c), dy.dtype)
    inside = x[:, top : top + size[0], left : left + size[1]]
    ends = np.cumsum(parts)
    for total, end, part in zip(accumulate_into, ends, parts, strict=True):
        inside[..., end - part : end] = 0 if total is None else total
    for i in range(r):
        for j in range(s):
            for m in range(k):
                first = m // per * c
                tap = x[
                    :,
                    i * dh : i * dh + (p - 1) * sh + 1 : sh,
                    j * dw : j * dw + (q - 1) * sw + 1 : sw,
                    first : first + c,
                ]
                tap += dy[..., m, None] * w[i, j, :, m]
    out = tuple(inside[..., end - part : end].copy() for end, part in zip(ends, parts, strict=True))
    for total, dx in zip(accumulate_into, out, strict=True):
        if total is not None:
            total[...] = dx
    return out


def left_to_right_transposed(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, size: tuple[int, int], window: Window, groups: int = 1
) -> np.ndarray:
    """conv_transpose2d_forward, likewise."""
    (y,) = left_to_right_data(x, w.swapaxes(2, 3), size, window, groups)
    return y if b is None else y + b


NAIVE = {"conv2d_backward_data": left_to_right_data, "conv_transpose2d_forward": left_to_right_transposed}


def flat(result: Any) -> list[np.ndarray]:
    """All arrays of a result, however nested."""
    if isinstance(result, (list, tuple)):
        return [a for part in result for a in flat(part)]
    if isinstance(result, dict):
        return [a for key in sorted(result) for a in flat(result[key])]
    return [] if result is None else [np.asarray(result)]


def widened(value: Any) -> Any:
    """float32 arrays as float64, all else as it is."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(widened(v) for v in value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.astype(np.float64) if value.dtype == np.float32 else value.copy()
    return value


def judge(name: str, fast: Any, naive: Any, ref64: Any, winograd: float | None = None) -> None:
    """Assert the rule for every array of a result; winograd: the stated bound in its place, relative to the largest
    value.
    """
    results = [flat(r) for r in (fast, naive, ref64)]
    assert len({len(r) for r in results}) == 1, f"{name}: {[len(r) for r in results]} arrays"
    for k, (a, b, c) in enumerate(zip(*results, strict=True)):
        assert a.shape == c.shape, f"{name}, result {k}: shape {a.shape}, expected {c.shape}"
        assert a.dtype == b.dtype, f"{name}, result {k}: {a.dtype}, expected {b.dtype}"
        if not c.size:
            continue
        largest = float(np.abs(c).max())
        error, own = (float(np.abs(v.astype(np.float64) - c).max()) for v in (a, b))
        bound = 3 * own + 4 * ROUNDING * largest if winograd is None else winograd * largest
        assert error <= bound, (
            f"{name}, result {k} {a.shape}: error {error:.3g}, naive {own:.3g}, bound {bound:.3g}, largest value "
            f"{largest:.3g}"
        )


def agree(
    operator: Operator,
    *args: Any,
    winograd: float | None = None,
    inplace: tuple[int, ...] = (),
    served: str = "fast",
    **kwargs: Any,
) -> Any:
    """Call a kernel, assert who served it and that it obeys the rule; returns its result.

    inplace: the arguments that the kernel writes to; they are compared as well.
    """
    outputs = outcomes(operator, *args, inplace=inplace, served=served, **kwargs)
    judge(operator.name, *outputs, winograd=winograd)
    return outputs[0][0]


def agree_together(operator: Operator, draws: list[tuple[Any, ...]]) -> Any:
    """`agree` for several calls with arguments of the same shapes, judged as one.

    For kernels whose results may all hang on a single sum: how well float32 does there is luck. Returns the results.
    """
    calls = [[flat(result) for result in outcomes(operator, *args)] for args in draws]
    together = [[np.stack(arrays) for arrays in zip(*results, strict=True)] for results in zip(*calls, strict=True)]
    judge(operator.name, *together)
    return [call[0] for call in calls]


def outcomes(
    operator: Operator, *args: Any, inplace: tuple[int, ...] = (), served: str = "fast", **kwargs: Any
) -> list[Any]:
    """[a kernel's result and what it wrote to, the naive version's, the float64 reference's]; asserts that it wrote to
    nothing else.
    """
    # A view stays a view: only what is written to, or owns its memory, is copied.
    given = [copy.deepcopy(a) if i in inplace else a for i, a in enumerate(args)]
    before = [a.copy() for a in flat([a for i, a in enumerate(args) if i not in inplace]) if a.dtype.kind in "fui"]
    with kernel_log() as log:
        result = operator(*given, **kwargs)
    calls = [entry.by for entry in log if entry.operator == operator.name]
    assert calls == [served], f"{operator.name}: served by {calls}, expected {served}"
    after = [a for a in flat([a for i, a in enumerate(args) if i not in inplace]) if a.dtype.kind in "fui"]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new, err_msg=f"{operator.name} wrote to its input")
    own, wide = [plain(a) for a in args], [widened(a) for a in args]
    naive, ref64 = (
        NAIVE.get(operator.name, operator.reference)(*own, **widened_kwargs(kwargs, False)),
        operator.reference(*wide, **widened_kwargs(kwargs, True)),
    )
    return [
        [result, *(given[i] for i in inplace)],
        [naive, *(own[i] for i in inplace)],
        [ref64, *(wide[i] for i in inplace)],
    ]


def widened_kwargs(kwargs: dict[str, Any], wide: bool) -> dict[str, Any]:
    """Keyword arguments of the reference's call."""
    return {k: widened(v) if wide else copy.deepcopy(v) for k, v in kwargs.items()}


def array(rng: np.random.Generator, *shape: int, view: bool = False) -> np.ndarray:
    """Normal float32 numbers; view: not contiguous, between numbers that must not be read (NaN)."""
    values = rng.standard_normal(shape).astype(np.float32)
    if not view:
        return values
    wide = np.full((*shape[:-2], 2 * shape[-2], shape[-1] + 3), np.nan, np.float32)
    part = wide[..., ::2, 2 : 2 + shape[-1]]
    part[...] = values
    return part


@contextmanager
def forced_algorithm(mode: str) -> Iterator[None]:
    """Within the block convolutions are chosen as with AREOGRAD_CONV=mode."""
    before = algorithm.mode
    algorithm.mode = lambda: mode  # type: ignore[assignment]
    try:
        yield
    finally:
        algorithm.mode = before
