"""Labels, masks and indices outside their range on CUDA: found by the kernels, raised by the next copy to the host,
never counted or ignored.
"""

from __future__ import annotations

import cupy
import pytest

from autograd import Tensor
from kernels.core.device import to_numpy
from kernels.core.dispatch import use_kernels
from kernels.core.labels import raise_reported
from tests.support.label_table import ROWS, Row, evaluated

ON_DEVICE = [row for row in ROWS if not row.host]


def copied(result: object) -> None:
    """A copy to the host, as whoever looks at the result makes it."""
    to_numpy(result.data if isinstance(result, Tensor) else result)


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("row", ON_DEVICE, ids=lambda row: row.name)
def test_wrong_values_are_named_by_the_next_copy(row: Row, backend: str) -> None:
    with use_kernels(backend):
        for dtype, bad in (("int64", row.low - 1), ("uint8", 201), ("int32", row.high + 1)):
            values = row.right(dtype)
            if row.ignored is not None and dtype != "uint8":
                values.flat[0] = row.ignored
            copied(row.call(cupy.asarray(values)))
            if bad == row.ignored:
                continue
            values.flat[-1] = row.high
            values.flat[values.size // 2 : -1] = bad
            with pytest.raises(
                row.error, match=rf"\w+: \w+ holds {bad} at \(.*\d.*\), expected {row.low} to {row.high}\b"
            ):
                copied(row.call(cupy.asarray(values)))
            raise_reported()  # said once


@pytest.mark.parametrize("row", ON_DEVICE, ids=lambda row: row.name)
def test_what_is_no_integer_is_refused(row: Row) -> None:
    for dtype in ("float32", "bool"):
        if dtype != "bool" or not row.masks:
            with pytest.raises((TypeError, IndexError, ValueError)):
                copied(row.call(cupy.ones(row.shape, dtype)))


@pytest.mark.parametrize("bad", [5, 6, 200])
def test_what_is_no_class_does_not_fall_among_the_ignored(bad: int) -> None:
    """Ignored pixels are counted in a row behind the classes', into which a label one too high would fall."""
    masks = cupy.full((2, 8, 8), 7, "uint8")
    assert evaluated(masks, ignored=7).sum() == 0
    masks[1, 2, 3] = bad
    with pytest.raises(ValueError, match="truth holds 6 at"):
        evaluated(masks, ignored=7)
