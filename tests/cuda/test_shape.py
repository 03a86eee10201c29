"""Concatenation, its undoing and sums in place on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.shape import cuda, reference
from tests.cuda.agreement import DTYPES, check
from tests.cuda.planting import Mutant, assert_caught, planted

DTYPE = pytest.mark.parametrize("dtype", [*DTYPES, np.int32], ids=lambda t: t.__name__)
SIZES = [(1,), (3, 5), (4, 8, 4), (2, 6), (1, 2, 3, 4, 5, 6, 7, 8), (32, 32), (40, 1)]


def maps(sizes: tuple[int, ...], dtype: Any, pixels: tuple[int, ...] = (2, 3, 5)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(100 * rng.standard_normal((*pixels, size))).astype(dtype) for size in sizes]


@DTYPE
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_concat_and_split(cp: Any, served: list, sizes: tuple[int, ...], dtype: Any) -> None:
    parts = maps(sizes, dtype)
    wide = reference.concat_channels(parts)
    np.testing.assert_array_equal(cuda.concat_channels([cp.asarray(p) for p in parts]).get(), wide)
    found = cuda.split_channels(cp.asarray(wide), sizes)
    for a, b in zip(found, parts, strict=True):
        np.testing.assert_array_equal(a.get(), b)
    assert len(served) == 2


@pytest.mark.parametrize(("sizes", "unit"), [((32, 48), 16), ((16, 24), 8), ((4, 12), 4), ((2, 4), None)], ids=str)
def test_units(sizes: tuple[int, ...], unit: int | None) -> None:
    assert cuda.unit_of(sizes) == unit


def test_views(cp: Any) -> None:
    """Slices of channels come in as copies."""
    x = cp.asarray(maps((12,), np.float32)[0])
    assert bool((cuda.concat_channels([x[..., :5], x[..., 5:]]) == x).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 8, 16), (1025,)], ids=str)
def test_accumulate(cp: Any, served: list, shape: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(0)

    def added(total: Any, more: Any) -> Any:
        total = total.copy()
        kernels = cuda if hasattr(total, "get") else reference
        assert kernels.accumulate(total, more) is None
        return total

    check(cp, added, added, [rng.standard_normal(shape), rng.standard_normal(shape)], dtype)
    assert len(served) == 1


def test_what_is_not_served(cp: Any) -> None:
    x = cp.zeros((2, 3), np.float32)
    assert cuda.concat_channels([x] * 9) is NotImplemented
    assert cuda.concat_channels([x, x.astype(np.float64)]) is NotImplemented
    assert cuda.concat_channels([x[:0], x[:0]]) is NotImplemented
    assert cuda.concat_channels([x.astype(np.float16)] * 2) is NotImplemented
    assert cuda.split_channels(x[:0], (1, 2)) is NotImplemented
    assert cuda.accumulate(cp.zeros((4, 4), np.float32)[:, ::2], cp.zeros((4, 2), np.float32)) is NotImplemented


# Sectors per request: 16 for 512 bytes in 16-byte units.
CEILINGS = {"move_channels": 16, "accumulate": 16}


def test_accesses_are_coalesced(cp: Any, counted: Any) -> None:
    parts = [cp.asarray(p) for p in maps((32, 64), np.float32, (16, 32))]
    with counted() as report:
        wide = cuda.concat_channels(parts)
        cuda.split_channels(wide, (32, 64))
        cuda.accumulate(wide, wide.copy())
    for found in report.kernels:
        name = found.name.split("<")[0].split()[-1]
        if name in CEILINGS:
            assert found.sectors_per_request <= CEILINGS[name]
            assert found.global_efficiency >= 0.99


# -- planted mistakes --------------------------------------------------------------------------------------------------


def _moved(cp: Any) -> None:
    parts = maps((3, 5), np.float32)
    wide = reference.concat_channels(parts)
    np.testing.assert_array_equal(cuda.concat_channels([cp.asarray(p) for p in parts]).get(), wide)
    for a, b in zip(cuda.split_channels(cp.asarray(wide), (3, 5)), parts, strict=True):
        np.testing.assert_array_equal(a.get(), b)


def _added(cp: Any) -> None:
    x = cp.ones((3, 5, 7), np.float32)
    cuda.accumulate(x, x.copy())
    assert bool((x == 2).all())


_MOVE = ("move_channels<unsigned, true>", "move_channels<unsigned, false>")
MUTANTS = [
    Mutant("boundary to the left map", "unit >= maps.start[k]", "unit > maps.start[k]", "fast", _moved, cuda, _MOVE),
    Mutant("offset within the map", "+ unit - start;", "+ unit;", "fast", _moved, cuda, _MOVE),
    Mutant("a unit too many", "if (i >= count) return;", "if (i > count) return;", "check", _moved, cuda, _MOVE),
    Mutant(
        "tail lost",
        "for (int k = i; k < n; ++k) total[k] += addend[k];",
        "",
        "fast",
        _added,
        cuda,
        ("accumulate<float>",),
    ),
    Mutant(
        "overwrites", "sum.v[v] += other.v[v]", "sum.v[v] = other.v[v]", "fast", _added, cuda, ("accumulate<float>",)
    ),
]


@planted(MUTANTS)
def test_planted_mistakes_are_caught(cp: Any, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(cp, mutant, monkeypatch)
