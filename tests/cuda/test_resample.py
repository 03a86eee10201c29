"""Resampling on CUDA: pooling by means and interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.resample import adaptive_matrix, average_matrix, bilinear_matrix, cuda, nearest_matrix, reference
from tests.cuda.agreement import DTYPES, check
from tests.cuda.planting import Mutant, assert_caught, planted

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
# name: (A, B, how forward and backward are done)
MATRICES = {
    "bilinear x2": (bilinear_matrix(4, 8, False), bilinear_matrix(7, 14, False), "plane", "plane"),
    "bilinear down": (bilinear_matrix(13, 5, False), bilinear_matrix(11, 3, False), "plane", "plane"),
    "bilinear x8": (bilinear_matrix(3, 24, True), bilinear_matrix(2, 16, True), "plane", "axes"),
    "nearest x2": (nearest_matrix(5, 10, False), nearest_matrix(3, 6, False), "plane", "plane"),
    "average 2x2": (
        average_matrix(6, 2, 2, 0, 0, True, False),
        average_matrix(9, 3, 2, 1, 1, False, False),
        "plane",
        "plane",
    ),
    "global": (adaptive_matrix(13, 1), adaptive_matrix(19, 1), "axes", "plane"),
    "bins": (adaptive_matrix(17, 3), adaptive_matrix(19, 5), "axes", "plane"),
    "strip of rows": (adaptive_matrix(17, 1), adaptive_matrix(9, 9), "one axis", "one axis"),
    "strips of columns": (adaptive_matrix(3, 3), adaptive_matrix(18, 4), "one axis", "one axis"),
    "identity": (adaptive_matrix(3, 3), adaptive_matrix(5, 5), "copy", "copy"),
    "dense": (
        np.random.default_rng(0).standard_normal((7, 9)),
        np.random.default_rng(1).standard_normal((4, 11)),
        "axes",
        "axes",
    ),
    "empty rows": (np.diag([0.0, 2.0, 0.0]), np.zeros((3, 4)), "plane", "plane"),
}
LAUNCHES = {"plane": ["resample_plane"], "axes": ["resample_axis"] * 2, "one axis": ["resample_axis"], "copy": []}


@DTYPE
@pytest.mark.parametrize("channels", [1, 5, 16])
@pytest.mark.parametrize("name", MATRICES)
def test_resample(cp: Any, served: list, name: str, channels: int, dtype: Any) -> None:
    a, b, *how = MATRICES[name]
    rng = np.random.default_rng(0)
    batch = 2 if channels > 1 else 16  # the error that naive code makes in two numbers may be small by luck
    x, dy = (rng.standard_normal((batch, *size, channels)) for size in ((a.shape[1], b.shape[1]), (len(a), len(b))))
    check(
        cp,
        lambda x: cuda.resample2d_forward(x, a, b),
        lambda x: reference.resample2d_forward(x, a, b),
        [x],
        dtype,
        name,
    )
    check(
        cp,
        lambda d: cuda.resample2d_backward(d, a, b),
        lambda d: reference.resample2d_backward(d, a, b),
        [dy],
        dtype,
        f"{name}, backward",
    )
    assert [launch.kernel.split("<")[0] for launch in served] == [kernel for way in how for kernel in LAUNCHES[way]]


def test_bands() -> None:
    """The narrowest band: every nonzero is in it, at its place, and it stays within the matrix."""
    for name, matrices in MATRICES.items():
        for matrix in (*matrices[:2], matrices[0].T):
            bands = cuda.bands_of(matrix)
            if bands is None:
                np.testing.assert_array_equal(matrix, np.eye(len(matrix)))
                continue
            again = np.zeros(matrix.shape)
            for row, (first, weights) in enumerate(zip(bands.first, bands.weights, strict=True)):
                again[row, first : first + len(weights)] = weights
            np.testing.assert_array_equal(again, matrix, name)
    assert cuda.bands_of(bilinear_matrix(64, 128, False)).weights.shape == (128, 2)
    assert cuda.bands_of(bilinear_matrix(64, 128, False).T).weights.shape == (64, 4)


def test_matrices_are_copied_to_the_device_once(cp: Any) -> None:
    """Whatever array they come in; another matrix of the same shape is another one, and so is one changed in place."""
    cuda._on_device.cache_clear()
    x, a, b = cp.ones((1, 4, 4, 2), np.float32), bilinear_matrix(4, 8, False), bilinear_matrix(4, 8, True)
    for _ in range(3):
        cuda.resample2d_forward(x, a.copy(), b)
    assert cuda._on_device.cache_info().misses == 2
    own = a.copy()
    own *= 2
    assert bool((cuda.resample2d_forward(x, own, b) == 2).all())


def test_order_of_two_axes() -> None:
    """The smaller map goes between the two passes."""
    assert cuda.plan((128, 64, 2), (128, 64, 2)) == "plane"
    assert cuda.plan((1, 64, 64), (128, 128, 40)) == "ab"
    assert cuda.plan((64, 64, 40), (1, 128, 128)) == "ba"
    assert cuda.plan((1, 64, 64), (1, 128, 128)) == "ba"


def test_what_is_not_served(cp: Any) -> None:
    a = bilinear_matrix(4, 8, False)
    assert cuda.resample2d_forward(cp.zeros((1, 4, 4, 2), np.float16), a, a) is NotImplemented
    assert cuda.resample2d_forward(cp.zeros((0, 4, 4, 2), np.float32), a, a) is NotImplemented
    assert cuda.resample2d_forward(cp.zeros((1, 4, 4, 2), np.float32), cp.asarray(a), a) is NotImplemented


# Sectors per request: 16 for 512 bytes; the weights' requests touch one or two, so the mean is far lower.
CEILINGS = {"resample_plane": 16, "resample_axis": 16}


def test_accesses_are_coalesced(cp: Any, counted: Any) -> None:
    x = cp.asarray(np.random.default_rng(0).standard_normal((2, 8, 16, 32)), np.float32)
    with counted() as report:
        cuda.resample2d_forward(x, bilinear_matrix(8, 16, False), bilinear_matrix(16, 32, False))
        cuda.resample2d_forward(x, adaptive_matrix(8, 1), adaptive_matrix(16, 1))
    for kernel, ceiling in CEILINGS.items():
        assert report.kernel(kernel).sectors_per_request <= ceiling
        assert report.kernel(kernel).global_efficiency >= 0.99


# -- planted mistakes --------------------------------------------------------------------------------------------------


def _case(name: str) -> Any:
    def test(cp: Any) -> None:
        a, b, *_ = MATRICES[name]
        x = np.random.default_rng(0).standard_normal((2, a.shape[1], b.shape[1], 5))
        check(
            cp,
            lambda x: cuda.resample2d_forward(x, a, b),
            lambda x: reference.resample2d_forward(x, a, b),
            [x],
            np.float32,
        )

    return test


_AXIS, _PLANE = ("resample_axis<float, 1>",), ("resample_plane<float, 1>",)
MUTANTS = [
    Mutant(
        "band's last weight",
        "for (int k = 0; k < band; ++k)",
        "for (int k = 0; k + 1 < band; ++k)",
        "fast",
        _case("bins"),
        cuda,
        _AXIS,
    ),
    Mutant(
        "row and image swapped",
        "outer = line / p, row = line % p",
        "outer = line % p, row = line / p",
        "fast",
        _case("bins"),
        cuda,
        _AXIS,
    ),
    Mutant(
        "a thread too many",
        "if (i >= count) return;\n  const int line",
        "if (i > count) return;\n  const int line",
        "check",
        _case("bins"),
        cuda,
        _AXIS,
    ),
    Mutant(
        "begins a row late",
        "first_a[row] + r) * w",
        "first_a[row] + r + 1) * w",
        "fast",
        _case("bilinear x2"),
        cuda,
        _PLANE,
    ),
    Mutant(
        "weights of the row for the column",
        "b[column * band_b + s]",
        "b[row * band_b + s]",
        "fast",
        _case("bilinear down"),
        cuda,
        _PLANE,
    ),
]


@planted(MUTANTS)
def test_planted_mistakes_are_caught(cp: Any, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(cp, mutant, monkeypatch)
