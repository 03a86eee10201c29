"""Both branches of polarized self-attention against the float64 reference, and what they cost."""

from __future__ import annotations

import cupy
import numpy as np
import pytest

from kernels import attention
from kernels.attention import reference
from kernels.attention.cuda import polarized
from kernels.core.cuda.module import launch_log
from kernels.core.dispatch import kernel_log
from tests.cuda.bounds import ANY, Mutant, assert_caught, assert_close, clean, trace_only, wider

SHAPES = [(2, 12, 6, 3), (1, 1, 1, 1), (3, 35, 40, 20), (1, 361, 33, 7), (2, 17, 5, 11)]  # N, L, C, h


def operands(branch: str, n: int, pixels: int, c: int, h: int, dtype: str) -> list[np.ndarray]:
    """dy, x and the weights."""
    rng = np.random.default_rng(pixels + c)
    shapes = [(n, pixels, c), (n, pixels, c)]
    shapes += [(c,), (c, h), (h,), (h, c), (c,), (c,), (c,)] if branch == "channel" else [(c, h), (h,), (c, h), (h,)]
    return [
        (rng.standard_normal(s) * (1 if k < 2 else c**-0.5 if k < 6 else 1)).astype(dtype) for k, s in enumerate(shapes)
    ]


def check(branch: str, n: int, pixels: int, c: int, h: int, dtype: str) -> None:
    arrays = operands(branch, n, pixels, c, h, dtype)
    forward, backward = f"polarized_{branch}_forward", f"polarized_{branch}_backward"
    eps = (1e-5,) if branch == "channel" else ()
    there = [cupy.asarray(a) for a in arrays]
    with clean(), launch_log() as log, kernel_log() as served:
        y = getattr(attention, forward)(*there[1:], *eps)
        gradients = getattr(attention, backward)(*there, *eps)
    assert [s.by for s in served] == ["fast", "fast"]
    assert [launch.kernel.split("<")[0] for launch in log] == [
        f"{branch}_forward",
        f"{branch}_backward",
        "reduce_images",
    ]
    naive, exact = (
        (getattr(reference, forward)(*some[1:], *eps), *getattr(reference, backward)(*some, *eps))
        for some in (arrays, [wider(a) for a in arrays])
    )
    assert len(gradients) == len(exact) - 1
    for got, rough, best in zip((y, *gradients), naive, exact, strict=True):
        assert_close(got, rough, best)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("branch", ["channel", "spatial"])
def test_equals_the_reference(branch: str, shape: tuple[int, int, int, int], dtype: str) -> None:
    check(branch, *shape, dtype)


def test_large_scores_and_what_is_not_served() -> None:
    _, x, *weights = (cupy.asarray(a) for a in operands("channel", 2, 9, 6, 3, "float32"))
    y = attention.polarized_channel_forward(1000 * x, *weights, 1e-5)
    assert bool(cupy.isfinite(y).all())
    with kernel_log() as served:
        attention.polarized_channel_forward(
            cupy.zeros((1, 40000, 1), "f8"), *(cupy.ones(s) for s in ((1,), (1, 1), 1, (1, 1), 1, 1, 1)), 1e-5
        )
        attention.polarized_spatial_forward(cupy.zeros((0, 4, 2)), *(cupy.ones(s) for s in ((2, 1), 1, (2, 1), 1)))
    assert [s.by for s in served] == ["reference", "reference"]


def test_launch_geometry() -> None:
    launch = polarized.image_launch("channel_backward", "float", 16, 128, 256, 128)
    assert launch == polarized.Launch("channel_backward<float>", (16,), (512,), 4 * (2 * 128 + 6 * 256 + 2 * 128))
    assert polarized.parameters_launch("double", 6, 3, 21).grid == (1,)


@trace_only
def test_memory_is_read_in_whole_sectors() -> None:
    """Images and weights are read along their rows: 4 sectors for the 128 bytes of a warp."""
    for branch in ("channel", "spatial"):
        arrays = [cupy.asarray(a) for a in operands(branch, 1, 32, 64, 32, "float32")]
        eps = (1e-5,) if branch == "channel" else ()
        with clean() as report:
            getattr(attention, f"polarized_{branch}_forward")(*arrays[1:], *eps)
            getattr(attention, f"polarized_{branch}_backward")(*arrays, *eps)
        for name in (f"{branch}_forward", f"{branch}_backward", "reduce_images"):
            assert report.kernel(name).sectors_per_request <= 4.2
            assert report.kernel(name).wavefronts_per_request <= 2  # sums are 8 bytes wide: two passes each


def _channel() -> None:
    check("channel", 2, 35, 40, 20, "float32")


def _spatial() -> None:
    check("spatial", 2, 35, 40, 20, "float32")


SOURCE = polarized.MODULES["float"]
MUTANTS = [
    Mutant(
        "the sums of warps are added before they are there",
        SOURCE,
        "scratch.columns[warp][lane] = total + run;\n    __syncthreads();",
        "scratch.columns[warp][lane] = total + run;",
        ("trace",),
        _channel,
    ),
    Mutant(
        "a row's sum is used before it is there",
        SOURCE,
        "if (lane == 0) out[l] = total;\n  }\n  __syncthreads();",
        "if (lane == 0) out[l] = total;\n  }",
        ("trace",),
        _spatial,
    ),
    Mutant(
        "columns beyond the last",
        SOURCE,
        "if (warp == 0 && c < columns)",
        "if (warp == 0)",
        ("trace", "check", "fast"),
        _channel,
    ),
    Mutant(
        "long runs are dropped",
        SOURCE,
        "total += run, run = 0;",
        "run = 0;",
        ANY,
        lambda: check("channel", 1, 1100, 3, 2, "float32"),
    ),
    Mutant("the softmax's mean is left out", SOURCE, "y[k] * (dy[k] - mean)", "y[k] * dy[k]", ANY, _spatial),
    Mutant(
        "an image is left out of the parameters' gradients",
        SOURCE,
        "for (int i = 0; i < n; ++i) total += static_cast",
        "for (int i = 1; i < n; ++i) total += static_cast",
        ANY,
        _channel,
    ),
    Mutant(
        "left and right swapped",
        SOURCE,
        "at / pair.widths, *right = rows + pair.right + at % pair.widths",
        "at % pair.widths, *right = rows + pair.right + at / pair.widths",
        ANY,
        _channel,
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_planted_mistake_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(mutant, monkeypatch)
