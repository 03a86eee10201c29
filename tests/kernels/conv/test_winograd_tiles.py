"""What Winograd's kernels prefetch: the pixels that their tiles read and write, all, once, none beyond; within their
lists.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.conv.cpu.winograd import plan as planning
from kernels.conv.cpu.winograd import tiles
from kernels.core.geometry import Window

row_of_tiles = tiles.row_of_tiles.py_func


def enqueued_runs(map_, t, span, m: int, extent: int, up: int, left: int) -> tuple[list[tuple[int, int]], int]:
    """The runs (start, length) that enqueue_tiles puts on the list, called in Python, and how many cache lines they
    are.
    """
    runs: list[tuple[int, int]] = []

    def enqueue(_lines, at: int, _x, x0: int, length: int) -> int:
        runs.append((x0, length))
        return at + (length + 15) // 16

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "enqueue", enqueue)
        patch.setattr(tiles, "row_of_tiles", row_of_tiles)
        return runs, tiles.enqueue_tiles.py_func(None, 0, map_, t, span, m, extent, up, left)


def pixels_of_tiles(
    plan, tiles: range, form: tuple[int, int], size: int, above: int, before: int, map_: tuple[int, int]
) -> set[tuple[int, int, int]]:
    """(image, row, column) of all pixels of so many tiles of `size` x `size` pixels that lie in a map."""
    t, out = plan.tiling, set()
    for tile in tiles:
        image, oy, ox = row_of_tiles(tile // t.columns, form[0], t)
        ox += tile % t.columns * form[0] * t.dw
        for i in range(size):
            for j in range(size):
                y, x = oy - above + i * t.dh, ox - before + j * t.dw
                if 0 <= y < map_[0] and 0 <= x < map_[1]:
                    out.add((int(image), int(y), int(x)))
    return out


layers = st.tuples(
    st.integers(1, 3),  # images
    st.tuples(st.integers(3, 21), st.integers(3, 21)),
    st.integers(0, 3),  # padding before
    st.integers(0, 3),  # and after
    st.integers(1, 3),  # dilation
    st.sampled_from([(4, 3), (2, 3), (2, 5)]),
)


@settings(max_examples=60, deadline=None)
@given(layers, st.integers(1, 9))
def test_tiles_are_enqueued_once_and_wholly(layer, block: int) -> None:
    images, size, low, high, dilation, form = layer
    reach = (form[1] - 1) * dilation
    window = Window((form[1],) * 2, (1, 1), ((low + reach // 2, high + reach // 2),) * 2, (dilation,) * 2)
    if min(window.output_size(size)) < 1:
        return
    channels, side = 5, form[0] + form[1] - 1
    plan = planning.plan_of(form, images, size, channels, channels, window)
    t, count = plan.tiling, plan.units * plan.tiling.columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "tiles_prefetch", lambda floats, lines: True)
        bounds = [plan.lines(block, (size, channels, side)), plan.lines(block, (plan.tiling[2:4], channels, form[0]))]
    reads, writes = (size, t.top, t.left, side), (plan.tiling[2:4], 0, 0, form[0])
    for bound, (map_, above, before, extent) in zip(bounds, (reads, writes), strict=True):
        known: set[tuple[int, int, int]] = set()
        for first in range(0, count, block):
            last = min(first + block, count)
            here = tiles.Map(None, *map_, channels)
            runs, lines = enqueued_runs(here, t, tiles.Span(0, first, last), form[0], extent, above, before)
            assert lines <= bound
            numbers = [int(p) for start, length in runs for p in range(start // channels, (start + length) // channels)]
            now = {(p // (map_[0] * map_[1]), p // map_[1] % map_[0], p % map_[1]) for p in numbers}
            wanted = pixels_of_tiles(plan, range(first, last), form, extent, above, before, map_)
            assert wanted <= now | known, "pixels that nobody prefetches"
            assert all(0 <= image < images for image, _, _ in now), "pixels beyond the map"
            if dilation == 1:  # else runs pass over the pixels of other phases
                assert now <= wanted, "pixels that no tile reads"
                assert not now & known, "pixels prefetched before"
                assert len(now) == len(numbers), "pixels prefetched twice"
            known |= wanted
