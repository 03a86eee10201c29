"""Windows over images of any size: they cover it, their weights sum to one, no seam shows, and rows come out one after
the other as they would all together.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from engine.windows import Strips, Windows, by_windows, feather, starts

LENGTHS = [(length, window) for window in (1, 8, 16, 24) for length in (window, window + 1, 3 * window - 1, 100, 257)]
SIZES = [(16, 24), (17, 24), (40, 60), (61, 133), (5, 7), (100, 3)]


@pytest.mark.parametrize(("length", "window"), LENGTHS)
def test_windows_cover_an_axis_and_share_a_quarter_with_their_neighbours(length: int, window: int) -> None:
    places = starts(length, window)
    assert (places[0], places[-1]) == (0, length - window)
    steps = [b - a for a, b in pairwise(places)]
    assert max(steps, default=0) <= max(1, window - window / 4)
    assert max(steps, default=0) - min(steps, default=0) <= 1  # equal, up to rounding


def test_there_are_no_more_windows_than_needed() -> None:
    assert starts(16, 16) == [0]
    assert starts(28, 16) == [0, 12]
    assert starts(29, 16) == [0, 6, 13]
    assert len(starts(10_000, 64)) == 1 + -(-(10_000 - 64) // 48)


@pytest.mark.parametrize(("length", "window"), LENGTHS)
def test_weights_sum_to_one_everywhere(length: int, window: int) -> None:
    total, seen = np.zeros(length), np.zeros(length, int)
    weights = feather(length, window)
    for start, row in zip(starts(length, window), weights, strict=True):
        total[start : start + window] += row
        seen[start : start + window] += 1
    assert (weights > 0).all()
    np.testing.assert_allclose(total, 1, rtol=2e-7)
    for start, row in zip(starts(length, window), weights, strict=True):
        assert (row[seen[start : start + window] == 1] == 1).all()  # alone, a window counts whole


def constants(image: tuple[int, int], window: tuple[int, int], values: np.ndarray) -> np.ndarray:
    """The image that windows make of which each gives one number."""
    given = iter(values)
    return by_windows(
        lambda x: np.stack([np.full((*window, 1), next(given), np.float32) for _ in x]),
        np.zeros((1, *image, 1), np.float32),
        window,
        3,
    )[0, ..., 0]


def test_no_seam_shows() -> None:
    """Windows that disagree by 1 are joined by a slope: neighbouring pixels differ by no more than the slope over the
    quarter that the windows share. A plain mean over windows has a step of 1/2.
    """
    window = Windows((64, 200), (16, 40))
    values = np.random.default_rng(0).integers(0, 2, len(window)).astype(np.float32)
    joined = constants(window.image, window.window, values)
    assert (joined.min(), joined.max()) == pytest.approx((0, 1))
    assert np.abs(np.diff(joined, axis=1)).max() <= 1.001 / 10
    assert np.abs(np.diff(joined, axis=0)).max() <= 1.001 / 4


@pytest.mark.parametrize("size", SIZES)
def test_a_function_of_single_pixels_gives_what_it_gives_without_windows(size: tuple[int, int]) -> None:
    """Labels to the last one; values up to rounding."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(3, 5)).astype(np.float32)
    images = rng.normal(size=(2, *size, 3)).astype(np.float32)
    got = by_windows(lambda x: x @ weights, images, (16, 24), 4)
    np.testing.assert_allclose(got, images @ weights, rtol=1e-5, atol=1e-5)
    assert (got.argmax(-1) == (images @ weights).argmax(-1)).all()


@pytest.mark.parametrize("size", SIZES)
def test_strips_are_the_rows_of_the_whole(size: tuple[int, int]) -> None:
    """To the bit, once each and in order, and no more than a window's rows are kept."""

    def forward(x: np.ndarray) -> np.ndarray:  # knows where in the window it is
        ramp = np.linspace(-1, 1, 16 * 24, dtype=np.float32).reshape(16, 24, 1)
        return np.concatenate([x + ramp, x * ramp], -1)

    image = np.random.default_rng(2).normal(size=size).astype(np.float32)
    whole = by_windows(forward, image[None, ..., None], (16, 24), 5)[0]
    windows = Windows(size, (16, 24))
    strips, next_row = Strips(windows), 0
    for cut in windows.cut(image):
        done = strips.add(forward(cut[..., None]))
        assert strips._total is not None
        assert len(strips._total) == 16
        if done is not None:
            top, rows = done
            assert top == next_row
            assert rows.tobytes() == whole[top : top + len(rows)].tobytes()
            next_row += len(rows)
    assert next_row == size[0]


def test_a_small_image_is_mirrored_and_the_result_cut_back() -> None:
    image = np.arange(15, dtype=np.uint8).reshape(3, 5)
    (window,) = Windows((3, 5), (8, 8)).cut(image)
    column = [0, 1, 2, 2, 1, 0, 0, 1]
    row = [0, 1, 2, 3, 4, 4, 3, 2]
    np.testing.assert_array_equal(window, image[column][:, row])
    result = Strips(Windows((3, 5), (8, 8))).add(window.astype(np.float32))
    assert result is not None
    assert result[0] == 0
    np.testing.assert_array_equal(result[1], image)
