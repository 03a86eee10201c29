"""No kernel moves more sectors, or takes more shared-memory wavefronts per request, than its committed ceiling; no
kernel is without one.
"""

from __future__ import annotations

import functools

import pytest

from bench import counters, resources
from tests.cuda.device import WHERE

resources.launchers()
pytestmark = pytest.mark.skipif(not WHERE.emulated, reason="the emulator counts; on a GPU use a profiler")
SLACK = 1.001  # figures are rounded to three digits


@functools.cache
def counted() -> dict[str, dict]:
    return counters.trace()


def above(rows: dict[str, dict], ceilings: dict[str, dict]) -> list[str]:
    """A line per figure above its ceiling."""
    out = []
    for name, row in rows.items():
        for key in counters.FIGURES:
            if row.get(key, 0) > SLACK * ceilings.get(name, {}).get(key, 0):
                out.append(
                    f"{name}, {row['call']}: {key} {row[key]}, ceiling {ceilings.get(name, {}).get(key, 'missing')}"
                )
    return out


@pytest.mark.mode("check")
def test_every_kernel_stays_below_its_ceiling() -> None:
    assert not above(counted(), counters.committed())


@pytest.mark.mode("check")
def test_every_kernel_has_a_representative_launch() -> None:
    assert sorted(set(counters.instances()) - counted().keys()) == []


def test_every_kernel_has_a_ceiling_and_no_ceiling_is_left_over() -> None:
    assert sorted(counters.committed()) == sorted(set(counters.instances()))


def test_a_kernel_above_its_ceiling_is_named() -> None:
    row = {"call": "c", "load_sectors": 4.1, "store_wavefronts": 1.0}
    assert above({"k": row}, {"k": {"load_sectors": 4.0, "store_wavefronts": 1.0}}) == [
        "k, c: load_sectors 4.1, ceiling 4.0"
    ]
    assert above({"k": row}, {}) == [
        "k, c: load_sectors 4.1, ceiling missing",
        "k, c: store_wavefronts 1.0, ceiling missing",
    ]


def test_names_are_matched_in_any_spelling() -> None:
    assert counters.plain("void k<float, (int)5, (bool)1>(const float *, int)") == counters.plain("k<float,5,true>")
