"""A label, mask or index outside its range is one clear error, never a wrong count and never ignored (on CUDA:
tests/cuda/test_labels.py).
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from kernels.core.dispatch import use_kernels
from tests.support.label_table import EXEMPT, NUMBERS, ROWS, Row, found


@pytest.mark.table
def test_every_public_function_with_such_an_argument_is_in_the_table() -> None:
    rows = {row.name.split(", ")[0] for row in ROWS} | {name.split(", ")[0] for name, *_ in NUMBERS}
    missing = [
        name for name in found() if name not in rows and not any(re.fullmatch(pattern, name) for pattern in EXEMPT)
    ]
    assert not missing, "no row in tests/support/label_table.py"


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_wrong_values_are_named_and_right_ones_pass(row: Row, backend: str) -> None:
    with use_kernels(backend):
        for dtype in ("uint8",) if row.uint8 else ("int64", "uint8", ">i4", "int8"):
            values = row.right(dtype)
            row.call(values)
            bounds = np.iinfo(dtype)
            if row.ignored is not None and bounds.min <= row.ignored <= bounds.max:
                values.flat[0] = row.ignored
                row.call(values)
            values.flat[-1] = row.high  # right: the first wrong one is named, not the largest
            for bad in (row.low - 1, row.high + 1, 2**31 + 7, bounds.max, bounds.min):
                if bounds.min <= bad <= bounds.max and not row.low <= bad <= row.high and bad != row.ignored:
                    wrong = values.copy()
                    wrong.flat[values.size // 2 :] = bad
                    with pytest.raises(
                        row.error, match=rf"\w+: \w+ holds {bad} at \(.*\d.*\), expected {row.low} to {row.high}\b"
                    ):
                        row.call(wrong)


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_no_integer_is_refused(row: Row, backend: str) -> None:
    with use_kernels(backend):
        for dtype in ("float32", "float64", "bool"):
            if dtype != "bool" or not row.masks:
                with pytest.raises((TypeError, IndexError, ValueError), match=rf"{dtype}|must be of integer"):
                    row.call(np.ones(row.shape, dtype))


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize(("name", "call", "good", "bad", "message"), NUMBERS, ids=[name for name, *_ in NUMBERS])
def test_numbers(name: str, call, good: list, bad: list, message: str, backend: str) -> None:
    with use_kernels(backend):
        for value in good:
            call(value)
        for value in bad:
            with pytest.raises((TypeError, ValueError), match=message):
                call(value)
