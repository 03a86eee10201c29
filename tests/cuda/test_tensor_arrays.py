"""Convolutions of float16 and bfloat16 arrays against float64 convolutions of the same numbers.

The bound is that of docs/accuracy.md: three times the error of a naive float32 sum that is rounded to the arrays' type
    at the end, plus one such rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kernels import conv
from kernels.conv import reference
from kernels.conv.cuda import tensor_core as tensor
from kernels.core.geometry import Window
from kernels.core.precision import use_precision
from tests.cuda.planting import Mutant, assert_caught, planted
from tests.cuda.tensor_shapes import (
    SAME3,
    Shape,
    assert_below_ceilings,
    naive_data,
    naive_filter,
    naive_forward,
    normal,
    random_shape,
)

HALF, BFLOAT = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
DTYPES = pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
EIGHTS, ODD = Shape(2, (9, 8), 16, 24, SAME3, 8, add=True), Shape(2, (9, 8), 5, 7, SAME3, add=True)
SHAPES = [
    EIGHTS,
    ODD,
    Shape(2, (13, 11), 40, 72, SAME3),
    Shape(2, (7, 10), 12, 20, SAME3, 4, add=True),  # runs of 8 bytes are copied one by one
    Shape(1, (11, 10), 8, 16, Window((3, 2), (2, 3), ((2, 1), (0, 1)), (1, 2)), bias=False, add=True),
    Shape(1, (6, 9), 8, 7, Window((2, 2), (2, 2))),
    Shape(1, (1, 1), 1, 1, Window((1, 1))),
    *(random_shape(seed) for seed in range(40, 44)),
]


def made(dtype: np.dtype, seed: int, *shape: int) -> np.ndarray:
    return normal(seed, *shape).astype(dtype)


def check(fast: Any, naive: np.ndarray, exact: np.ndarray, dtype: np.dtype) -> None:
    """naive: in float32, exact: in float64."""
    assert fast.dtype == dtype
    assert fast.shape == exact.shape
    fast, naive = (a.astype(dtype).astype(np.float64) for a in (fast.get(), naive))
    bound = 3 * abs(naive - exact).max() + float(ml_dtypes.finfo(dtype).eps) / 2 * abs(exact).max()
    assert abs(fast - exact).max() <= bound, f"error {abs(fast - exact).max():.3g}, bound {bound:.3g}"


def maps_of(cp: Any, shape: Shape, x: np.ndarray) -> Any:
    return tuple(cp.asarray(part) for part in (x[..., : shape.c], x[..., shape.c :]) if part.size)


def run_forward(cp: Any, shape: Shape, dtype: np.dtype) -> None:
    c = shape.c + shape.second
    x, w = made(dtype, 1, shape.n, *shape.size, c), made(dtype, 2, *shape.window.kernel, c, shape.k)
    b = made(dtype, 3, shape.k) if shape.bias else None
    y = tensor.conv2d_forward(maps_of(cp, shape, x), cp.asarray(w), None if b is None else cp.asarray(b), shape.window)
    naive, exact = ([None if a is None else a.astype(t) for a in (x, w, b)] for t in (np.float32, np.float64))
    check(y, naive_forward(*naive, shape.window), reference.conv2d_forward(exact[:1], *exact[1:], shape.window), dtype)


def run_data(cp: Any, shape: Shape, dtype: np.dtype) -> None:
    c = shape.c + shape.second
    dy, w = (
        made(dtype, 4, shape.n, *shape.window.output_size(shape.size), shape.k),
        made(dtype, 5, *shape.window.kernel, c, shape.k),
    )
    parts = (shape.c, shape.second) if shape.second else (c,)
    there = [made(dtype, 6 + i, shape.n, *shape.size, part) * dtype.type(shape.add) for i, part in enumerate(parts)]
    accumulate_into = tuple(cp.asarray(t) if shape.add else None for t in there)
    dxs = tensor.conv2d_backward_data(
        cp.asarray(dy), cp.asarray(w), shape.size, shape.window, 1, parts, accumulate_into
    )
    naive = naive_data(dy.astype(np.float32), w.astype(np.float32), shape.size, shape.window)
    (exact,) = reference.conv2d_backward_data(dy.astype(np.float64), w.astype(np.float64), shape.size, shape.window)
    start = 0
    for dx, t in zip(dxs, there, strict=True):
        own = slice(start, start := start + t.shape[3])
        check(dx, naive[..., own] + t.astype(np.float32), exact[..., own] + t.astype(np.float64), dtype)


def run_filter(cp: Any, shape: Shape, dtype: np.dtype) -> None:
    x = made(dtype, 8, shape.n, *shape.size, shape.c + shape.second)
    dy = made(dtype, 9, shape.n, *shape.window.output_size(shape.size), shape.k)
    dw = tensor.conv2d_backward_filter(maps_of(cp, shape, x), cp.asarray(dy), shape.window)
    naive, exact = ((x.astype(t), dy.astype(t), shape.window) for t in (np.float32, np.float64))
    check(dw, naive_filter(*naive), reference.conv2d_backward_filter(exact[:1], *exact[1:]), dtype)


@pytest.mark.trace
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.n}x{s.size}x{s.c}+{s.second}-{s.k}")
@DTYPES
def test_convolution_and_its_gradients(cp: Any, served: list, shape: Shape, dtype: np.dtype) -> None:
    run_forward(cp, shape, dtype)
    run_filter(cp, shape, dtype)
    width = 8 if shape.c % 8 == shape.second % 8 == shape.k % 8 == 0 else 1
    names = [launch.kernel for launch in served if launch.kernel != "add_parts"]
    assert [name.split("<")[0] for name in names] == ["forward", "filter"]
    assert all(f"<{tensor.ARRAYS[dtype.name]}," in name and name.endswith(f" {width}>") for name in names)
    run_data(cp, shape, dtype)


@DTYPES
@pytest.mark.parametrize(
    "shape", [Shape(2, (9, 15), 16, 136, SAME3), Shape(1, (11, 13), 24, 40, SAME3, 8)], ids=["wide", "middle"]
)
def test_large_tiles(cp: Any, served: list, big_tiles: None, shape: Shape, dtype: np.dtype) -> None:
    run_forward(cp, shape, dtype)
    run_filter(cp, shape, dtype)
    assert ("Middle," if shape.k < 65 else "Wide,") in served[0].kernel
    assert "Middle," in served[1].kernel


@DTYPES
def test_transposed_convolution(cp: Any, dtype: np.dtype) -> None:
    window = Window((2, 2), (2, 2))
    x, w, b = made(dtype, 1, 2, 4, 5, 8), made(dtype, 2, 2, 2, 8, 16), made(dtype, 3, 16)
    y = conv.conv_transpose2d_forward(cp.asarray(x), cp.asarray(w), cp.asarray(b), (8, 10), window)
    n, e = ([a.astype(t) for a in (x, w, b)] for t in (np.float32, np.float64))
    check(
        y,
        naive_data(n[0], n[1].swapaxes(2, 3), (8, 10), window) + n[2],
        reference.conv_transpose2d_forward(*e, (8, 10), window),
        dtype,
    )


@DTYPES
def test_the_plain_kernel_agrees(cp: Any, dtype: np.dtype) -> None:
    x, w, b = made(dtype, 1, 2, 6, 7, 5), made(dtype, 2, 3, 3, 5, 6), made(dtype, 3, 6)
    y = tensor.plain_forward((cp.asarray(x),), cp.asarray(w), cp.asarray(b), SAME3)
    naive, exact = ([a.astype(t) for a in (x, w, b)] for t in (np.float32, np.float64))
    check(y, naive_forward(*naive, SAME3), reference.conv2d_forward(exact[:1], *exact[1:], SAME3), dtype)


@pytest.mark.parametrize("policy", ["float32", "bf16"])
def test_arrays_of_16_bits_are_served_under_every_policy(cp: Any, served: list, policy: str) -> None:
    x, w = (cp.asarray(made(HALF, seed, *dims)) for seed, dims in ((1, (1, 4, 6, 8)), (2, (3, 3, 8, 8))))
    with use_precision(policy):
        y = conv.conv2d_forward((x,), w, None, SAME3)
        conv.conv2d_backward_data(y, w, (4, 6), SAME3)
        conv.conv2d_backward_filter((x,), y, SAME3)
    assert {launch.kernel for launch in served} == {"forward<F16Array, Small, 8>", "filter<F16Array, Small, 8>"}


def test_mixed_types_and_groups_are_left_to_others(cp: Any, served: list) -> None:
    x, w = cp.zeros((1, 4, 4, 8), HALF), cp.zeros((3, 3, 8, 8), HALF)
    assert tensor.conv2d_forward((x,), w.astype(np.float32), None, SAME3) is NotImplemented
    assert tensor.conv2d_forward((x,), w, cp.zeros(8, np.float32), SAME3) is NotImplemented
    assert tensor.conv2d_forward((x,), w[:, :, :4], None, SAME3, 2) is NotImplemented
    assert not served


@pytest.mark.parametrize("k", [32, 64, 128])
def test_memory_traffic_is_below_the_stated_ceilings(cp: Any, counted: Any, big_tiles: None, k: int) -> None:
    x, w = cp.asarray(made(HALF, 1, 2, 10, 18, 32)), cp.asarray(made(HALF, 2, 3, 3, 32, k))
    window = Window((3, 3))  # no padding: the emulator takes a copy's zeros for a request of their own, of single rows
    with counted() as report:
        y = tensor.conv2d_forward((x,), w, None, window)
        tensor.conv2d_backward_filter((x,), y, window)
    assert_below_ceilings(report)


def _mutant(name: str, old: str, new: str, mode: str, shape: Shape) -> Mutant:
    kernel = f"forward<F16Array, Small, {8 if shape is EIGHTS else 1}>"
    return Mutant(name, old, new, mode, lambda cp: run_forward(cp, replace(shape, add=False), HALF), tensor, [kernel])


MUTANTS = [
    _mutant(
        "lanes exchange with the wrong neighbour",
        "odd ? first : second, 1)",
        "odd ? first : second, 2)",
        "fast",
        EIGHTS,
    ),
    _mutant(
        "both lanes keep the first fragment",
        "v[2 + e] = odd ? second : got",
        "v[2 + e] = odd ? first : got",
        "fast",
        EIGHTS,
    ),
    _mutant("columns beyond the last are stored", "if (V == 1 && col + e >= k) break;", "", "check", ODD),
    _mutant(
        "copies of one number go astray",
        "*(unsigned short*)to = staged[i];",
        "*(unsigned short*)to = staged[0];",
        "fast",
        ODD,
    ),
    _mutant("nobody waits for the copies", "if constexpr (Feed::ASYNCHRONOUS) cp_async_arrived();", "", "fast", EIGHTS),
]


@planted(MUTANTS)
def test_planted_mistakes_are_caught(cp: Any, monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    assert_caught(cp, mutant, monkeypatch)
