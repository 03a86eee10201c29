"""Max pooling on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.core.geometry import Window
from kernels.pool import cuda, reference
from tests.cuda.agreement import DTYPES, check, odd_shapes
from tests.cuda.planting import Mutant, assert_caught, planted

WINDOWS = [
    Window((2, 2), (2, 2)),
    Window((3, 3), (1, 1), ((1, 1), (1, 1))),
    Window((3, 3), (2, 2), ((1, 1), (1, 1))),
    Window((3, 2), (2, 1), ((1, 1), (0, 1))),
    Window((2, 2), (1, 1), ((0, 0), (0, 0)), (3, 2)),
    Window((2, 3), (3, 4), ((1, 0), (1, 1))),
    Window((5, 5), (5, 5), ((2, 2), (2, 2)), (2, 2)),
    Window((1, 1)),
]
SHAPES = [*odd_shapes(4), (2, 6, 8, 16), (1, 7, 5, 12), (1, 1, 1, 3), (1, 3, 40, 40)]
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)


def samples() -> list[tuple[tuple[int, ...], Window]]:
    return [(shape, window) for shape in SHAPES for window in WINDOWS if min(window.output_size(shape[1:3])) > 0]


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Small whole numbers: many ties, several NaN, and a corner of -inf."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, shape).astype(np.float64)
    x[:, :2, :2] = -np.inf
    x[rng.random(shape) < 0.1] = np.nan
    return x


def same(fast: Any, exact: Any) -> None:
    """Pooling rounds nothing: equal, not-a-number included."""
    for a, b in zip(fast, exact, strict=True):
        np.testing.assert_array_equal(a.get(), b)


@DTYPE
@pytest.mark.parametrize(("shape", "window"), samples(), ids=str)
def test_max_pool(cp: Any, served: list, shape: tuple[int, ...], window: Window, dtype: Any) -> None:
    x = values(shape).astype(dtype)
    y, offset = cuda.max_pool2d_forward(cp.asarray(x), window)
    same((y, offset), reference.max_pool2d_forward(x, window))
    assert offset.dtype == np.uint8

    rng = np.random.default_rng(1)
    dy, before = rng.standard_normal(y.shape), rng.standard_normal(shape)
    taps, size = offset.get(), shape[1:3]
    check(
        cp,
        lambda d: cuda.max_pool2d_backward(d, offset, size, window),
        lambda d: reference.max_pool2d_backward(d, taps, size, window),
        [dy],
        dtype,
    )

    def added(d: Any, total: Any) -> Any:
        kernels, where = (cuda, offset) if hasattr(d, "get") else (reference, taps)
        total = total.copy()
        result = kernels.max_pool2d_backward(d, where, size, window, total)
        assert result is total
        return result

    check(cp, added, added, [dy, before], dtype)
    spread = cuda.tiles(window, shape[1:3], y.shape[1:3])
    assert [launch.kernel.split("<")[0] for launch in served] == [
        "max_pool2d_forward",
        *["max_pool2d_spread" if spread else "max_pool2d_gather"] * 2,
    ]


@pytest.mark.parametrize("window", WINDOWS[:3], ids=str)
def test_unrolled_and_plain_kernels_agree(cp: Any, monkeypatch: pytest.MonkeyPatch, window: Window) -> None:
    x = cp.asarray(values((2, 9, 8, 20)), np.float32)
    first = cuda.max_pool2d_forward(x, window)
    monkeypatch.setattr(cuda, "UNROLLED", ())
    same(first, [a.get() for a in cuda.max_pool2d_forward(x, window)])


def test_spread_and_gather_agree(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, window = cp.asarray(values((2, 8, 6, 20)), np.float32), WINDOWS[0]
    y, offset = cuda.max_pool2d_forward(x, window)
    first = cuda.max_pool2d_backward(y, offset, (8, 6), window)
    monkeypatch.setattr(cuda, "tiles", lambda *_: False)
    same([first], [cuda.max_pool2d_backward(y, offset, (8, 6), window).get()])


def test_a_window_without_a_finite_value(cp: Any) -> None:
    """All -inf, with padding: the gradient goes to the first pixel of the map, not to the padding."""
    x, window = np.full((1, 3, 3, 4), -np.inf, np.float32), WINDOWS[1]
    y, offset = cuda.max_pool2d_forward(cp.asarray(x), window)
    same((y, offset), reference.max_pool2d_forward(x, window))
    assert offset.get()[0, :, :, 0].tolist() == [[4, 3, 3], [1, 0, 0], [1, 0, 0]]


def test_what_is_not_served(cp: Any) -> None:
    assert cuda.max_pool2d_forward(cp.zeros((1, 4, 4, 2), np.float16), WINDOWS[0]) is NotImplemented
    assert cuda.max_pool2d_forward(cp.zeros((0, 4, 4, 2), np.float32), WINDOWS[0]) is NotImplemented
    assert cuda.max_pool2d_forward(cp.zeros((1, 40, 40, 1), np.float32), Window((17, 17))) is NotImplemented
    accumulate_into = cp.zeros((1, 4, 4, 4), np.float32)[..., ::2]
    dy = cp.zeros((1, 2, 2, 2), np.float32)
    assert (
        cuda.max_pool2d_backward(dy, cp.zeros(dy.shape, np.uint8), (4, 4), WINDOWS[0], accumulate_into)
        is NotImplemented
    )


def test_geometry() -> None:
    for lines, packs in ((1, 1), (96, 33), (2048, 512)):
        launch = cuda.lines_launch("k", lines, packs)
        assert launch.grid[0] == lines
        assert launch.grid[1] * launch.block[0] >= packs
        assert launch.block[0] % 32 == 0


# Sectors per request: 16 for 512 bytes; the bytes of the offsets (4 per request) pull the mean down.
CEILINGS = {"max_pool2d_forward": 16, "max_pool2d_gather": 16, "max_pool2d_spread": 16}


@pytest.mark.parametrize("channels", [16, 32])
def test_accesses_are_coalesced(cp: Any, counted: Any, channels: int) -> None:
    """A request of 32 lanes is whole rows of channels. A 2x2 window of 16 channels skips every second pixel: half of
    each 128 bytes.
    """
    x = cp.asarray(np.random.default_rng(0).standard_normal((2, 16, 32, channels)), np.float32)
    with counted() as report:
        for window in (WINDOWS[0], WINDOWS[1]):
            y, offset = cuda.max_pool2d_forward(x, window)
            cuda.max_pool2d_backward(y, offset, (16, 32), window)
    for found in report.kernels:
        name = found.name.split("<")[0].split()[-1]
        if name in CEILINGS:
            assert found.sectors_per_request <= CEILINGS[name], name
            assert found.global_efficiency >= 0.95, name


# -- planted mistakes --------------------------------------------------------------------------------------------------


def _pooled(window: Window, shape: tuple[int, ...]) -> Any:
    def test(cp: Any) -> None:
        x = values(shape).astype(np.float32)
        y, offset = cuda.max_pool2d_forward(cp.asarray(x), window)
        same((y, offset), reference.max_pool2d_forward(x, window))
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
        dx = cuda.max_pool2d_backward(cp.asarray(dy), offset, shape[1:3], window)
        np.testing.assert_allclose(
            dx.get(), reference.max_pool2d_backward(dy, offset.get(), shape[1:3], window), rtol=1e-5, atol=1e-5
        )

    return test


_OVERLAPPING = _pooled(WINDOWS[3], (2, 7, 5, 3))
_VALID = _pooled(Window((3, 3)), (2, 7, 5, 3))
_TILED = _pooled(WINDOWS[0], (2, 4, 6, 3))
_GENERAL = ("max_pool2d_forward<float, 1, 0, 0>", "max_pool2d_gather<float, 1>")
_UNROLLED = ("max_pool2d_forward<float, 1, 3, 3>", "max_pool2d_gather<float, 1>")
_TILES = ("max_pool2d_forward<float, 1, 2, 2>", "max_pool2d_spread<float, 1>")
MUTANTS = [
    Mutant("last maximum wins", "value > best ||", "value >= best ||", "fast", _OVERLAPPING, cuda, _GENERAL),
    Mutant("not-a-number passes by", "value != value)", "false)", "fast", _OVERLAPPING, cuda, _GENERAL),
    Mutant(
        "first not-a-number wins",
        "value != value)",
        "value != value && best == best)",
        "fast",
        _OVERLAPPING,
        cuda,
        _GENERAL,
    ),
    Mutant("minus infinity goes to the padding", "where < 0 || ", "", "fast", _OVERLAPPING, cuda, _GENERAL),
    Mutant("right edge not predicated", " || unsigned(j) >= unsigned(g.w)", "", "fast", _OVERLAPPING, cuda, _GENERAL),
    Mutant(
        "a column too many", "if (at >= g.w * packs)", "if (at > g.w * packs)", "check", _OVERLAPPING, cuda, _GENERAL
    ),
    Mutant(
        "window beyond the last row", "i / g.stride_h >= g.p", "i / g.stride_h > g.p", "fast", _VALID, cuda, _UNROLLED
    ),
    Mutant("off the stride", "|| i % g.stride_h ||", "||", "fast", _OVERLAPPING, cuda, _GENERAL),
    Mutant(
        "transposed taps",
        "total.v[v] += where.v[v] == r * g.s + s",
        "total.v[v] += where.v[v] == s * g.s + r",
        "fast",
        _OVERLAPPING,
        cuda,
        _GENERAL,
    ),
    Mutant(
        "rows of the window swapped", "row * g.r + r) * g.w", "row * g.r + 1 - r) * g.w", "fast", _TILED, cuda, _TILES
    ),
]


@planted(MUTANTS)
def test_planted_mistakes_are_caught(cp: Any, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(cp, mutant, monkeypatch)
