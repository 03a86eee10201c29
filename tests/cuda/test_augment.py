"""The augmentation kernel against the reference: images within rounding, labels exactly; and what it costs."""

from __future__ import annotations

import cupy
import numpy as np
import pytest

from engine.training.augmentation import Augmentation
from engine.training.mixing import CopyPaste, Mixing, Patch
from kernels.augment import augment_batch, cuda, reference
from kernels.core.cuda.module import launch_log
from kernels.core.dispatch import kernel_log
from tests.cuda.bounds import ANY, Mutant, assert_caught, assert_close, clean, trace_only, wider
from tests.support import augmentation_checks

SHAPES = [(1, 1, 1), (2, 1, 7), (3, 13, 1), (2, 17, 19), (1, 40, 65)]
WILD = Augmentation(affine=1, photometric=0.7, rotate=170, scale=3, shift=1.5)


def made(shape: tuple[int, int, int], dtype: str, seed: int = 0):
    """images, masks, then what WILD draws: maps that leave the tile far behind, and settings of which some change
    nothing.
    """
    rng = np.random.default_rng(seed)
    n, h, w = shape
    matrices = WILD.draw_matrices(n, (h, w), rng)
    settings = [rng.uniform(low, high, n).astype(dtype) for low, high in ((0.5, 1.6), (-0.2, 0.2), (0.5, 2))]
    for value, neutral in zip(settings, (1, 0, 1), strict=True):
        value[::3] = neutral
    return [rng.random(shape).astype(dtype), rng.integers(0, 5, shape).astype("u1"), matrices, *settings]


def check(shape: tuple[int, int, int], dtype: str, outside: int | None, seed: int = 0) -> None:
    arrays = made(shape, dtype, seed)
    with clean(), launch_log() as log, kernel_log() as served:
        images, masks = augment_batch(*map(cupy.asarray, arrays), outside)
    assert served[0].by == "fast"
    assert [launch.kernel for launch in log] == [f"augment<{'float' if dtype == 'float32' else 'double'}>"]
    naive, labels = reference.augment_batch(*arrays, outside)
    exact, _ = reference.augment_batch(*(a if k == 1 else wider(a) for k, a in enumerate(arrays)), outside)
    assert_close(images, naive, exact)
    assert (masks.get() == labels).all()
    assert masks.dtype == labels.dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("outside", [None, 0, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape: tuple[int, int, int], outside: int | None, dtype: str) -> None:
    check(shape, dtype, outside)


def test_mixing_draws_the_same_on_every_device() -> None:
    """Copy-paste and CutMix: labels exactly, images to the rounding of two interpolations of numbers in [0, 1]."""
    rng = np.random.default_rng(0)
    patch = Patch(rng.random((5, 7)).astype("f4"), np.pad(np.full((3, 5), 2, "u1"), 1, constant_values=1), 4)
    mixing = Mixing(Augmentation(), CopyPaste([patch], 0.8, forbidden=3), 0.5)
    images, masks = rng.random((6, 12, 20)).astype("f4"), rng.integers(0, 5, (6, 12, 20)).astype("u1")
    host, labels = mixing(images, masks, np.random.default_rng(1))
    with clean():
        there, codes = mixing(cupy.asarray(images), cupy.asarray(masks), np.random.default_rng(1))
    assert (labels != masks).any()
    assert (codes.get() == labels).all()
    np.testing.assert_allclose(there.get(), host, atol=16 * np.finfo("f4").eps)


def test_the_plain_kernel_gives_the_same() -> None:
    arrays = [cupy.asarray(a) for a in made((3, 9, 14), "float32", 1)]
    n, h, w = arrays[0].shape
    out, labels = cupy.empty_like(arrays[0]), cupy.empty_like(arrays[1])
    with clean():
        cuda.MODULE.run(cuda.plain_launch(n), *arrays, out, labels, n, h, w, 0)
    fast, masks = augment_batch(*arrays, 0)
    naive, _ = reference.augment_batch(*(a.get() for a in arrays), 0)
    assert_close(
        out, naive, reference.augment_batch(*(a.get() if a.dtype == "u1" else wider(a.get()) for a in arrays), 0)[0]
    )
    assert (labels == masks).all()
    np.testing.assert_allclose(out.get(), fast.get(), atol=2e-6)


PROPERTIES = [
    getattr(augmentation_checks, name)
    for name in (
        "identity_is_exact",
        "half_turn_equals_both_flips",
        "integer_shift_equals_slicing",
        "bilinear_between_pixels",
        "zoom_magnifies_about_the_centre",
    )
]


@pytest.mark.parametrize("property_of", PROPERTIES, ids=lambda f: f"test_{f.__name__}")
def test_what_holds_on_the_cpu_holds_here(property_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-computed cases of tests/support/augmentation_checks.py, through the CUDA kernel."""
    served = []

    def there(*arrays):
        with kernel_log() as log:
            out = augment_batch(*(cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays))
        served.extend(s.by for s in log)
        return tuple(a.get() for a in out)

    monkeypatch.setattr(augmentation_checks, "augment_batch", there)
    property_of(augmentation_checks.batch())
    assert served
    assert set(served) == {"fast"}


def test_the_same_draws_on_both_devices() -> None:
    images, masks = made((4, 12, 15), "float32")[:2]
    here = WILD(images, masks, np.random.default_rng(3))
    there = WILD(cupy.asarray(images), cupy.asarray(masks), np.random.default_rng(3))
    np.testing.assert_allclose(there[0].get(), here[0], atol=3e-6)
    assert (there[1].get() == here[1]).all()


def test_an_empty_batch_and_geometry() -> None:
    with kernel_log() as served:
        images, masks = augment_batch(*map(cupy.asarray, made((0, 4, 4), "float32")), 0)
    assert images.shape == masks.shape == (0, 4, 4)
    assert served[0].by == "fast"
    assert cuda.augment_launch(16, 64, 128, "float") == cuda.Launch("augment<float>", (8, 16), (256,))
    assert cuda.augment_launch(3, 2, 2, "double").grid == (1, 3)


@trace_only
def test_rows_are_read_in_whole_sectors() -> None:
    """Unmoved tiles: 4 sectors for a warp's 32 floats, a few more for the neighbour to the right."""
    arrays = [cupy.asarray(a) for a in made((1, 32, 64), "float32")]
    arrays[2][...] = cupy.asarray(np.eye(2, 3))
    with clean() as report:
        augment_batch(*arrays, 0)
    kernel = report.kernel("augment")
    assert kernel.sectors_per_request_of(kind="store") <= 4
    assert kernel.sectors_per_request_of(kind="load") <= 4.5
    assert kernel.wavefronts_per_request <= 2  # the map and the sums are 8 bytes wide: two passes each


def _odd() -> None:
    check((2, 17, 19), "float32", 0)


def _mirrored() -> None:
    check((2, 17, 19), "float32", None)


MUTANTS = [
    Mutant(
        "mirrored with the edge repeated", cuda.MODULE, "2 * n - 2 - i", "2 * n - 1 - i", ("check", "trace"), _mirrored
    ),
    Mutant(
        "pixels beyond the last",
        cuda.MODULE,
        "i < pixels; i += gridDim.x",
        "i <= pixels; i += gridDim.x",
        ("check", "trace"),
        lambda: check((1, 17, 19), "float32", 0),
    ),
    Mutant(
        "the map is read before it is there",
        cuda.MODULE,
        "matrices[6 * tile + threadIdx.x];\n  __syncthreads();",
        "matrices[6 * tile + threadIdx.x];",
        ("trace",),
        _odd,
    ),
    Mutant(
        "truncated instead of floored",
        cuda.MODULE,
        "const double left = floor(u)",
        "const double left = trunc(u)",
        ANY,
        _odd,
    ),
    Mutant(
        "x and y swapped",
        cuda.MODULE,
        "i % w, i / w, h, w, outside, label)",
        "i / w, i % w, h, w, outside, label)",
        ANY,
        _odd,
    ),
    Mutant("outside is not marked", cuda.MODULE, "outside >= 0 && !inside", "outside > 0 && !inside", ANY, _odd),
    Mutant(
        "a strip of the mean is left out",
        cuda.MODULE,
        "i < pixels; i += THREADS) total",
        "i < pixels - 1; i += THREADS) total",
        ANY,
        _odd,
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_planted_mistake_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(mutant, monkeypatch)
