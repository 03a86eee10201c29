"""Batch norm, layer norm and sums over pixels on CUDA."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels.core.device import to_numpy
from kernels.core.reduction import sum_pixels
from kernels.norm import cuda, reference
from kernels.norm.records import SavedBatchNorm
from tests.cuda.agreement import DTYPES, agree, check, odd_shapes, pack_accesses
from tests.cuda.planting import Mutant, assert_caught, planted

# Batch 1; one pixel; channels of one float, of whole packs, of more packs than a block is wide; more rows than a block
# has.
SHAPES = [*odd_shapes(5), (1, 1, 1, 7), (2, 3, 5, 32), (1, 3, 2, 513), (1, 65, 43, 3), (1, 40, 29, 8)]
FORMS = [(None, False), ("relu", False), (None, True), ("relu", True)]
EPS = 1e-5
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


def batch(shape: tuple[int, ...], seed: int = 0, centre: float = 1.0) -> list[Any]:
    """dy, x, residual, weight, bias: x with a mean of its own in every channel."""
    rng = np.random.default_rng(seed)
    c = shape[-1]
    x = rng.standard_normal(shape) * rng.uniform(0.5, 2, c) + centre * rng.standard_normal(c)
    return [rng.standard_normal(shape), x, rng.standard_normal(shape), rng.uniform(0.5, 2, c), rng.standard_normal(c)]


def whole(kernels: Any, activation: str | None, with_residual: bool, training: bool) -> Any:
    """Statistics (or fixed ones, in evaluation), forward and backward as one function of dy, x, residual, weight,
    bias.
    """

    def run(dy: Any, x: Any, residual: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        mean, variance = kernels.batch_norm_statistics(x)
        if not training:
            mean, variance = 0 * mean + 0.25, 0 * variance + 2
        inverse = kernels.batch_norm_inverse(variance, EPS)
        y, mask = kernels.batch_norm_forward(
            x, weight, bias, mean, inverse, residual if with_residual else None, activation
        )
        gradients = kernels.batch_norm_backward(
            dy, x, SavedBatchNorm(mask, weight, bias, mean, inverse, activation), training, with_residual
        )
        return (y, *gradients)

    return run


@DTYPE
@SHAPE
def test_sums_over_pixels(cp: Any, served: list, shape: tuple[int, ...], dtype: Any) -> None:
    check(cp, cuda.sum_pixels, sum_pixels, batch(shape)[1:2], dtype)
    assert [launch.kernel.split("<")[0] for launch in served] == ["sum_rows", "sum_rows_finish"]


@DTYPE
@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("centre", [1.0, 1e4])
@SHAPE
def test_statistics(cp: Any, shape: tuple[int, ...], centre: float, plain: bool, dtype: Any) -> None:
    """centre 1e4: E[x^2] - E[x]^2 would have no correct digit in float32."""
    x = batch(shape, centre=centre)[1:2]
    check(cp, lambda x: cuda.batch_norm_statistics(x, plain), reference.batch_norm_statistics, x, dtype)


@DTYPE
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("form", FORMS, ids=str)
@SHAPE
def test_batch_norm(cp: Any, served: list, shape: tuple[int, ...], form: tuple, training: bool, dtype: Any) -> None:
    if training and np.prod(shape[:-1]) < 3:
        pytest.skip("one value has no variance, two become -1 and 1: their gradient is 0 but for rounding")
    check(
        cp,
        whole(cuda, *form, training),
        whole(reference, *form, training),
        lambda seed: batch(shape, seed),
        dtype,
        str(form),
    )
    names = {launch.kernel.split("<")[0] for launch in served}
    assert {"batch_norm_forward", "batch_norm_gradient_sums", "batch_norm_gradient"} <= names


@DTYPE
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_plain_batch_norm(cp: Any, form: tuple, dtype: Any) -> None:
    """The learner's kernels: forward gives the fast one's very bits, as both round (x - mean) scale + bias once; all
    agree with the definition.
    """
    _, x, residual, weight, bias = (cp.asarray(a, dtype) for a in batch((2, 5, 7, 12)))
    mean, variance = cuda.batch_norm_statistics(x)
    arguments = x, weight, bias, mean, cuda.batch_norm_inverse(variance, EPS), residual if form[1] else None, form[0]
    for fast, plain in zip(
        cuda.batch_norm_forward(*arguments), cuda.batch_norm_forward(*arguments, plain=True), strict=True
    ):
        assert (fast is None) == (plain is None)
        assert fast is None or bool((fast == plain).all())

    plain = SimpleNamespace(
        batch_norm_statistics=partial(cuda.batch_norm_statistics, plain=True),
        batch_norm_inverse=cuda.batch_norm_inverse,
        batch_norm_forward=partial(cuda.batch_norm_forward, plain=True),
        batch_norm_backward=partial(cuda.batch_norm_backward, plain=True),
    )
    for training in (True, False):
        check(
            cp,
            whole(plain, *form, training),
            whole(reference, *form, training),
            lambda seed: batch((2, 5, 7, 12), seed),
            dtype,
            str(form),
        )


@DTYPE
@pytest.mark.parametrize("channels", [1, 5, 32, 200])
def test_running_statistics(cp: Any, channels: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    running = [rng.standard_normal(channels).astype(dtype), rng.uniform(0.5, 2, channels).astype(dtype)]
    values = [rng.standard_normal(channels), rng.uniform(0.5, 2, channels)]
    ours, naive, exact = (
        [cp.asarray(a) for a in running],
        [a.copy() for a in running],
        [a.astype(np.float64) for a in running],
    )
    assert cuda.batch_norm_running(*ours, *map(cp.asarray, values), 40, 0.1) is None
    reference.batch_norm_running(*naive, *values, 40, 0.1)
    reference.batch_norm_running(*exact, *values, 40, 0.1)
    agree(ours, naive, exact)


@DTYPE
@SHAPE
def test_layer_norm(cp: Any, served: list, shape: tuple[int, ...], dtype: Any) -> None:
    if shape[-1] == 1:
        pytest.skip("the variance of one value is 0")
    dy, x, _, weight, bias = batch(shape)
    check(
        cp,
        lambda *a: cuda.layer_norm_forward(*a, EPS),
        lambda *a: reference.layer_norm_forward(*a, EPS),
        [x, weight, bias],
        dtype,
    )
    check(
        cp,
        lambda *a: cuda.layer_norm_backward(*a, EPS),
        lambda *a: reference.layer_norm_backward(*a, EPS),
        [dy, x, weight],
        dtype,
    )
    assert {launch.kernel.split("<")[0] for launch in served} >= {
        "layer_norm_forward",
        "layer_norm_gradient",
        "layer_norm_gradient_sums",
    }


def test_strided_and_unaligned_inputs(cp: Any) -> None:
    """Views are served through a copy: every second channel, and a map that begins four bytes into its buffer."""
    rng = np.random.default_rng(0)
    big = cp.asarray(rng.standard_normal(2 * 3 * 5 * 16 + 1).astype(np.float32))
    for x in (big[:-1].reshape(2, 3, 5, 16)[..., ::2], big[1:].reshape(2, 3, 5, 16)):
        found = cuda.batch_norm_statistics(x)
        expected = reference.batch_norm_statistics(to_numpy(x).astype(np.float64))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.get(), b, rtol=1e-6, atol=1e-7)


def test_parameters_in_a_flat_buffer(cp: Any) -> None:
    """Views of a few values that begin anywhere: read in place, value by value."""
    dy, x, residual, weight, bias = (cp.asarray(a, np.float32) for a in batch((2, 5, 7, 12)))
    flat = cp.concatenate([cp.zeros(1, np.float32), weight, bias])
    expected = whole(cuda, "relu", True, True)(dy, x, residual, weight, bias)
    for a, b in zip(whole(cuda, "relu", True, True)(dy, x, residual, flat[1:13], flat[13:]), expected, strict=True):
        assert bool((a == b).all())


def test_what_is_not_served(cp: Any) -> None:
    assert cuda.sum_pixels(cp.zeros((2, 3), np.float16)) is NotImplemented
    assert cuda.batch_norm_statistics(cp.zeros((0, 3, 3, 4), np.float32)) is NotImplemented


def test_geometry() -> None:
    """A sum's partition depends on the shape alone, covers every row and channel, and its partials stay few."""
    for rows, channels in ((1, 1), (100, 3), (65536, 32), (2_000_000, 5), (4096, 513), (7, 4096)):
        for kernel in ("k<float, 4>", "k<float, 1>"):
            if channels % cuda.width_of(kernel):
                continue
            launch, wide, per = cuda.columns_launch(kernel, rows, channels, cuda.SUM_ROWS, cuda.PARTS)
            assert launch.grid[0] * per >= rows > (launch.grid[0] - 1) * per
            assert launch.grid[1] * wide * cuda.width_of(kernel) >= channels
            assert launch.grid[0] <= cuda.PARTS
            assert wide <= cuda.WIDEST


# Sectors per request: 16 for a warp's 512 bytes in 16-byte accesses; more means that rows are read in pieces.
CEILINGS = {
    "batch_norm_moments": 16,
    "batch_norm_forward": 16,
    "batch_norm_gradient_sums": 16,
    "batch_norm_gradient": 16,
    "sum_rows": 16,
}


@pytest.mark.parametrize("channels", [16, 32, 128])
def test_accesses_are_coalesced(cp: Any, counted: Any, channels: int) -> None:
    arrays = [cp.asarray(a, np.float32) for a in batch((1, 32, 64, channels))]
    with counted() as report:
        whole(cuda, "relu", True, True)(*arrays)
        cuda.sum_pixels(arrays[0])
    for kernel, ceiling in CEILINGS.items():
        sectors, efficiency = pack_accesses(report.kernel(kernel))
        assert sectors <= ceiling, kernel
        assert efficiency >= 0.99, kernel
        assert report.kernel(kernel).bank_conflict_factor <= 1.01, kernel


def test_the_plain_kernel_is_not_coalesced(cp: Any, counted: Any) -> None:
    """What the fast layout is for: 32 lanes of the plain kernel touch 32 rows, and of each sector only one value in
    eight is used.
    """
    x = cp.asarray(batch((1, 32, 64, 32))[1], np.float32)
    with counted() as report:
        cuda.batch_norm_statistics(x, plain=True)
    assert report.kernel("batch_norm_moments_plain").global_efficiency < 1 / 4


# -- planted mistakes --------------------------------------------------------------------------------------------------


def _forward_and_backward(cp: Any) -> None:
    check(cp, whole(cuda, "relu", True, True), whole(reference, "relu", True, True), batch((1, 40, 29, 3)), np.float32)


def _statistics(cp: Any) -> None:
    check(cp, cuda.batch_norm_statistics, reference.batch_norm_statistics, batch((1, 65, 43, 3))[1:2], np.float32)


def _layer(cp: Any) -> None:
    dy, x, _, weight, _ = batch((3, 5, 3, 37))
    check(
        cp,
        lambda *a: cuda.layer_norm_backward(*a, EPS),
        lambda *a: reference.layer_norm_backward(*a, EPS),
        [dy, x, weight],
        np.float32,
    )


_MOMENTS = ("batch_norm_moments<float, 1>", "batch_norm_moments_finish<float>")
_ALL = (
    *_MOMENTS,
    "batch_norm_inverse",
    "batch_norm_forward<float, 1>",
    "batch_norm_gradient_sums<float, 1>",
    "batch_norm_gradient_finish<float>",
    "batch_norm_gradient<float, 1>",
)
_LAYER = ("layer_norm_gradient<float, 1>", "layer_norm_gradient_sums<float, 1>", "layer_norm_gradient_finish<float>")
MUTANTS = [
    Mutant(
        "shift not added back",
        "double(shift[channel]) + mine.mean",
        "mine.mean",
        "fast",
        _statistics,
        cuda,
        _MOMENTS,
        "BATCH",
    ),
    Mutant(
        "merge without the means' distance",
        " + d * d * (a.count * b.count / n)",
        "",
        "fast",
        _statistics,
        cuda,
        _MOMENTS,
        "BATCH",
    ),
    Mutant(
        "last partial counted as whole",
        "double(min(per, rows - k * per))",
        "double(per)",
        "fast",
        _statistics,
        cuda,
        _MOMENTS,
        "BATCH",
    ),
    Mutant(
        "no barrier within the merge",
        "__syncthreads();\n      const int other",
        "const int other",
        "trace",
        _statistics,
        cuda,
        _MOMENTS,
        "BATCH",
    ),
    Mutant(
        "odd row out",
        "p.ty + half < p.high) scratch",
        "p.ty + half + 1 < p.high) scratch",
        "fast",
        _forward_and_backward,
        cuda,
        _ALL,
        "BATCH",
    ),
    Mutant(
        "a row too many",
        "min(rows, int(blockIdx.x + 1) * per)",
        "(int(blockIdx.x + 1) * per)",
        "check",
        _statistics,
        cuda,
        _MOMENTS,
        "BATCH",
    ),
    Mutant(
        "mask of the wrong sign",
        "open.v[v] ? g.v[v] : T(0)",
        "open.v[v] ? T(0) : g.v[v]",
        "fast",
        _forward_and_backward,
        cuda,
        _ALL,
        "BATCH",
    ),
    Mutant(
        "dweight without inverse",
        "T(product * inverse[channel])",
        "T(product)",
        "fast",
        _forward_and_backward,
        cuda,
        _ALL,
        "BATCH",
    ),
    Mutant(
        "row bound",
        "if (row >= rows) return;\n  dy +=",
        "if (row > rows) return;\n  dy +=",
        "check",
        _layer,
        cuda,
        _LAYER,
        "LAYER",
    ),
    Mutant(
        "lost mean of g",
        "gradient.v[v] * w.v[v] - sum -",
        "gradient.v[v] * w.v[v] -",
        "fast",
        _layer,
        cuda,
        _LAYER,
        "LAYER",
    ),
]


@planted(MUTANTS)
def test_planted_mistakes_are_caught(cp: Any, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(cp, mutant, monkeypatch)
