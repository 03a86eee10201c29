"""Batch norm, layer norm and sums over pixels on CUDA; the kernels and what they cost are described in batch_norm.cu
and layer_norm.cu.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.core.cuda.arrays import MOST, compact, ready, type_of, variant, variants, width_of
from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, array_module
from kernels.norm.records import SavedBatchNorm

THREADS = 256
WIDEST = 128  # packs a block is wide at most
SUM_ROWS, MAP_ROWS = 16, 8  # rows per thread, at least: of a sum, and of a map that only shares its channels' constants
KINDS = ("float", "double")
PARTS = 512  # blocks of rows of a sum, at most: the second pass adds their sums

BATCH = Module(
    "norm/cuda/batch_norm.cu",
    (
        *variants(
            "batch_norm_moments", "batch_norm_forward", "batch_norm_gradient_sums", "batch_norm_gradient", "sum_rows"
        ),
        *(
            f"batch_norm_{name}<{kind}>"
            for name in (
                "moments_plain",
                "moments_finish",
                "running",
                "forward_plain",
                "backward_plain",
                "gradient_finish",
            )
            for kind in KINDS
        ),
        "batch_norm_inverse",
        "sum_rows_finish",
    ),
)
LAYER = Module(
    "norm/cuda/layer_norm.cu",
    (
        *variants("layer_norm_forward", "layer_norm_gradient", "layer_norm_gradient_sums"),
        *(f"layer_norm_gradient_finish<{kind}>" for kind in KINDS),
    ),
)


# -- geometry ----------------------------------------------------------------------------------------------------------


def columns_launch(
    kernel: str, rows: int, channels: int, least: int, most: int | None = None
) -> tuple[Launch, int, int]:
    """(launch, packs a block is wide, rows it covers) of a kernel in the layout of columns.cuh; at most `most` blocks
    of rows.
    """
    packs = channels // width_of(kernel)
    wide = blocks(packs, blocks(packs, WIDEST))
    high = THREADS // wide
    per = high * max(least, blocks(rows, high * most) if most else 0)
    return Launch(kernel, (blocks(rows, per), blocks(packs, wide)), (THREADS,)), wide, per


def finish_launch(kernel: str, channels: int) -> Launch:
    """Blocks of 32 channels x 8 threads."""
    return Launch(kernel, (blocks(channels, 32),), (32, 8))


def rows_launch(kernel: str, rows: int) -> Launch:
    """A warp per row."""
    return Launch(kernel, (blocks(32 * rows, THREADS),), (THREADS,))


def plain_launch(kernel: str, channels: int) -> Launch:
    """A block per channel."""
    return Launch(kernel, (channels,), (THREADS,))


def vector_launch(kernel: str, channels: int) -> Launch:
    """A thread per channel."""
    return Launch(kernel, (blocks(channels, 128),), (128,))


def _sums(module: Module, kernel: str, terms: int, x: Array, *arguments: Any) -> tuple[Array, int, int]:
    """Run a first pass over x's rows: (its partials, their number, rows of each)."""
    channels = x.shape[-1]
    rows = x.size // channels
    launch, wide, per = columns_launch(kernel, rows, channels, SUM_ROWS, PARTS)
    parts = array_module(x).empty((launch.grid[0], terms, channels), np.float64)
    module.run(launch, *arguments, parts, rows, channels, wide, per)
    return parts, launch.grid[0], per


# -- sums and statistics -----------------------------------------------------------------------------------------------


def sum_pixels(x: Array) -> Any:
    """As kernels.core.reduction.sum_pixels; every sum is exact to float64."""
    kind = type_of(x)
    if kind is None:
        return NotImplemented
    x, channels = ready(x), x.shape[-1]
    parts, count, _ = _sums(BATCH, variant("sum_rows", kind, channels), 1, x, x)
    total = array_module(x).empty(channels, np.float64)
    BATCH.run(finish_launch("sum_rows_finish", channels), parts, total, channels, count)
    return total


def batch_norm_statistics(x: Array, plain: bool = False) -> Any:
    """As kernels.norm.reference.batch_norm_statistics; in one pass over x. plain: by the learner's kernel."""
    kind = type_of(x)
    if kind is None:
        return NotImplemented
    x, channels = ready(x), x.shape[-1]
    rows = x.size // channels
    xp = array_module(x)
    mean = xp.empty(channels, np.float64)
    variance = xp.empty(channels, np.float64)
    if plain:
        BATCH.run(plain_launch(f"batch_norm_moments_plain<{kind}>", channels), x, mean, variance, rows, channels)
    else:
        parts, count, per = _sums(BATCH, variant("batch_norm_moments", kind, channels), 2, x, x)
        BATCH.run(
            finish_launch(f"batch_norm_moments_finish<{kind}>", channels),
            x,
            parts,
            mean,
            variance,
            rows,
            channels,
            per,
            count,
        )
    return mean, variance


def batch_norm_running(
    running_mean: Array, running_var: Array, mean: Array, variance: Array, rows: int, momentum: float
) -> Any:
    """As kernels.norm.reference.batch_norm_running."""
    kind = type_of(running_mean, running_var)
    if kind is None or not (running_mean.flags.c_contiguous and running_var.flags.c_contiguous):
        return NotImplemented
    channels = len(mean)
    settings = (np.float64(momentum), np.float64(rows / (rows - 1)))
    mean, variance = (compact(v, np.float64) for v in (mean, variance))
    BATCH.run(
        vector_launch(f"batch_norm_running<{kind}>", channels),
        running_mean,
        running_var,
        mean,
        variance,
        *settings,
        channels,
    )
    return None


def batch_norm_inverse(variance: Array, eps: float) -> Any:
    """As kernels.norm.reference.batch_norm_inverse."""
    if type_of(variance) != "double":
        return NotImplemented
    inverse = array_module(variance).empty(variance.shape, np.float64)
    BATCH.run(
        vector_launch("batch_norm_inverse", variance.size), compact(variance), inverse, np.float64(eps), variance.size
    )
    return inverse


# -- batch norm --------------------------------------------------------------------------------------------------------


def batch_norm_forward(
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    inverse: Array,
    residual: Array | None = None,
    activation: str | None = None,
    plain: bool = False,
) -> Any:
    """As kernels.norm.reference.batch_norm_forward; the mask is a byte per value where there is a residual, else None
    (made again from x).
    """
    kind = type_of(x, weight, bias, *(() if residual is None else (residual,)))
    if kind is None:
        return NotImplemented
    x, channels, xp, relu = ready(x), x.shape[-1], array_module(x), activation == "relu"
    rows = x.size // channels
    other = None if residual is None else ready(residual)
    y = xp.empty(x.shape, x.dtype)
    mask = xp.empty(x.shape, np.uint8) if relu and residual is not None else None
    arrays = x, *map(compact, (weight, bias)), *(compact(v, np.float64) for v in (mean, inverse)), other, y, mask
    if plain:
        BATCH.run(plain_launch(f"batch_norm_forward_plain<{kind}>", channels), *arrays, rows, channels, relu)
    else:
        launch, wide, per = columns_launch(variant("batch_norm_forward", kind, channels), rows, channels, MAP_ROWS)
        BATCH.run(launch, *arrays, rows, channels, relu, wide, per)
    return y, mask


def batch_norm_backward(
    dy: Array,
    x: Array,
    norm: SavedBatchNorm,
    training: bool,
    with_residual: bool,
    donated: bool = False,
    plain: bool = False,
) -> Any:
    """As kernels.norm.reference.batch_norm_backward, in two passes: the sums, then dx. plain:
    by the learner's kernel.
    """
    mask, weight, bias, mean, inverse, activation = norm
    kind = type_of(dy, x, weight, bias)
    if kind is None or (mask is not None and (mask.dtype != np.uint8 or mask.shape != x.shape)):
        return NotImplemented
    dy, x, channels, xp = ready(dy), ready(x), x.shape[-1], array_module(x)
    relu = 0 if activation is None else 1 if mask is None else 2
    arrays = dy, x, mask, *map(compact, (weight, bias)), *(compact(v, np.float64) for v in (mean, inverse))
    rows = x.size // channels
    dweight = xp.empty(channels, x.dtype)
    dbias = xp.empty(channels, x.dtype)
    dx = xp.empty(x.shape, x.dtype)
    dresidual = xp.empty(x.shape, x.dtype) if with_residual and relu else None
    if plain:
        launch = plain_launch(f"batch_norm_backward_plain<{kind}>", channels)
        BATCH.run(launch, *arrays, dx, dresidual, dweight, dbias, rows, channels, relu, training)
    else:
        parts, count, _ = _sums(BATCH, variant("batch_norm_gradient_sums", kind, channels), 2, x, *arrays, relu)
        totals = xp.empty((2, channels), np.float64)
        BATCH.run(
            finish_launch(f"batch_norm_gradient_finish<{kind}>", channels),
            parts,
            arrays[6],
            totals,
            dweight,
            dbias,
            channels,
            count,
        )
        launch, wide, per = columns_launch(variant("batch_norm_gradient", kind, channels), rows, channels, MAP_ROWS)
        BATCH.run(launch, *arrays, totals, dx, dresidual, rows, channels, relu, training, wide, per)
    return dx, dweight, dbias, (dresidual if relu else dy) if with_residual else None


# -- layer norm --------------------------------------------------------------------------------------------------------


def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float) -> Any:
    """As kernels.norm.reference.layer_norm_forward."""
    kind = type_of(x, weight, bias)
    if kind is None or 32 * x.size > MOST * x.shape[-1]:
        return NotImplemented
    x, channels = ready(x), x.shape[-1]
    rows = x.size // channels
    y = array_module(x).empty(x.shape, x.dtype)
    launch = rows_launch(variant("layer_norm_forward", kind, channels), rows)
    LAYER.run(launch, x, ready(weight), ready(bias), y, np.float64(eps), rows, channels)
    return y


def layer_norm_backward(dy: Array, x: Array, weight: Array, eps: float) -> Any:
    """As kernels.norm.reference.layer_norm_backward."""
    kind = type_of(dy, x, weight)
    if kind is None or 32 * x.size > MOST * x.shape[-1]:
        return NotImplemented
    dy, x, channels, xp = ready(dy), ready(x), x.shape[-1], array_module(x)
    rows = x.size // channels
    dx = xp.empty(x.shape, x.dtype)
    statistics = xp.empty((2, rows), x.dtype)
    launch = rows_launch(variant("layer_norm_gradient", kind, channels), rows)
    LAYER.run(launch, dy, x, ready(weight), dx, statistics, np.float64(eps), rows, channels)
    parts, count, _ = _sums(LAYER, variant("layer_norm_gradient_sums", kind, channels), 2, x, dy, x, statistics)
    dweight = xp.empty(channels, x.dtype)
    dbias = xp.empty(channels, x.dtype)
    LAYER.run(finish_launch(f"layer_norm_gradient_finish<{kind}>", channels), parts, dweight, dbias, channels, count)
    return dx, dweight, dbias
