"""Resampling on CUDA: matrices become bands, are copied to the device once and kept there; the kernels are described in
resample.cu.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.core.cuda.arrays import MOST, ready, type_of, variant, variants, width_of
from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, array_module

THREADS = 256
PLANE = 16  # products of weights per output up to which both matrices are applied at once

MODULE = Module("resample/resample.cu", variants("resample_axis", "resample_plane"))


class Bands(NamedTuple):
    """A matrix (rows, n) by its nonzero part: first (rows,), weights (rows, width); None for the identity."""

    first: Array
    weights: Array


def bands_of(matrix: np.ndarray) -> Bands | None:
    """The narrowest band that holds all nonzeros: row p's begins at first[p] and lies within the matrix."""
    rows, n = matrix.shape
    if rows == n and (matrix == np.eye(n)).all():
        return None
    filled = matrix != 0
    start = np.where(filled.any(1), filled.argmax(1), 0)
    stop = np.where(filled.any(1), n - filled[:, ::-1].argmax(1), 1)
    width = int((stop - start).max())
    first = np.minimum(start, n - width)
    return Bands(first.astype(np.int32), np.take_along_axis(matrix, first[:, None] + np.arange(width), 1))


@lru_cache(maxsize=512)
def _on_device(content: bytes, shape: tuple[int, int], transposed: bool, dtype: str, device: int) -> Bands | None:
    """The bands on the current CUDA device, made once per matrix: the key is what the matrix holds."""
    import cupy

    matrix = np.frombuffer(content).reshape(shape)
    bands = bands_of(matrix.T if transposed else matrix)
    return bands and Bands(cupy.asarray(bands.first), cupy.asarray(bands.weights.astype(dtype)))


def _bands(matrix: np.ndarray, transposed: bool, x: Array) -> Bands | None:
    return _on_device(np.asarray(matrix, np.float64).tobytes(), matrix.shape, transposed, x.dtype.name, x.device.id)


def packs_launch(kernel: str, count: int) -> Launch:
    """A thread per pack of the output."""
    return Launch(kernel, (blocks(count, THREADS),), (THREADS,))


def plan(a: tuple[int, int, int], b: tuple[int, int, int]) -> str:
    """'plane', 'ab' or 'ba': how to apply two matrices given as (rows, columns, width of the band); the smaller map
    goes between.
    """
    if a[2] * b[2] <= PLANE:
        return "plane"
    return "ab" if a[0] * b[1] <= a[1] * b[0] else "ba"


def _axis(x: Array, bands: Bands | None, axis: int) -> Array:
    """The matrix along axis 1 or 2 of x (N, H, W, C)."""
    if bands is None:
        return x
    rows, band = bands.weights.shape
    shape = (*x.shape[:axis], rows, *x.shape[axis + 1 :])
    y = array_module(x).empty(shape, x.dtype)
    inner = int(np.prod(shape[axis + 1 :]))
    kernel = variant("resample_axis", "float" if x.dtype == np.float32 else "double", inner)
    width = width_of(kernel)
    count = y.size // width
    packs = inner // width
    MODULE.run(packs_launch(kernel, count), x, bands.first, bands.weights, y, count, x.shape[axis], rows, packs, band)
    return y


def _plane(x: Array, a: Bands, b: Bands) -> Array:
    n, h, w, c = x.shape
    p = len(a.first)
    q = len(b.first)
    y = array_module(x).empty((n, p, q, c), x.dtype)
    kernel = variant("resample_plane", "float" if x.dtype == np.float32 else "double", c)
    count = y.size // width_of(kernel)
    packs = c // width_of(kernel)
    MODULE.run(
        packs_launch(kernel, count), x, *a, *b, y, count, h, w, p, q, packs, a.weights.shape[1], b.weights.shape[1]
    )
    return y


def _resample(x: Array, a: np.ndarray, b: np.ndarray, transposed: bool) -> Any:
    if type_of(x) is None or not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return NotImplemented
    n, h, w, c = x.shape
    p, q = (a.shape[1], b.shape[1]) if transposed else (len(a), len(b))
    if n * c * max(p * q, p * w, h * q) > MOST or not p * q:
        return NotImplemented
    x, rows, columns = ready(x), _bands(a, transposed, x), _bands(b, transposed, x)
    if rows is None and columns is None:
        return x.copy()
    if rows is None or columns is None:
        return _axis(_axis(x, rows, 1), columns, 2)
    how = plan((p, h, rows.weights.shape[1]), (q, w, columns.weights.shape[1]))
    if how == "plane":
        return _plane(x, rows, columns)
    return _axis(_axis(x, rows, 1), columns, 2) if how == "ab" else _axis(_axis(x, columns, 2), rows, 1)


def resample2d_forward(x: Array, a: np.ndarray, b: np.ndarray) -> Any:
    """As kernels.resample.reference.resample2d_forward, for matrices on the host."""
    return _resample(x, a, b, False)


def resample2d_backward(dy: Array, a: np.ndarray, b: np.ndarray) -> Any:
    """As kernels.resample.reference.resample2d_backward."""
    return _resample(dy, a, b, True)
