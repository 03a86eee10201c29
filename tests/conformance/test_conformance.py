"""A slice of the generated comparison with PyTorch (tests/conformance; `python -m tests.conformance` runs more), shrunk
by hypothesis.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT

pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

import layers
from autograd import Tensor, ops
from tests.conformance.__main__ import differences
from tests.conformance.check import check
from tests.conformance.choices import Choices, Drawn, Replayed
from tests.conformance.found import FOUND, as_case
from tests.conformance.operands import LAYOUTS, laid_out
from tests.conformance.search import attempt, case_seed, shrink
from tests.conformance.table import WITHOUT, Row, table

CASES = int(os.environ.get("AREOGRAD_CONFORMANCE_CASES", "12"))  # per operator
ROWS = [pytest.param(row, id=name) for name, row in table().items()]


@pytest.mark.parametrize("row", ROWS)
@settings(
    max_examples=CASES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
@given(data=st.data())
def test_equals_pytorch_on_generated_cases(row: Row, data: st.DataObject) -> None:
    check(row, row.draw(Drawn(data)))


@pytest.mark.table
def test_every_public_operator_and_module_has_a_row() -> None:
    """Or stands among the exceptions, each with its reason; an exception that has got a row, or that is public no more,
    fails too.
    """
    public = {*ops.__all__, *layers.__all__}
    assert sorted(public - set(table())) == sorted(WITHOUT)


def test_the_page_lists_the_documented_differences() -> None:
    page = (ROOT / "docs" / "conformance.md").read_text()
    assert "\n".join(["", *differences(), ""]) in page, (
        "python -m tests.conformance --differences prints the list for docs/conformance.md"
    )


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize(
    ("name", "arrays", "settings"), FOUND, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(FOUND)]
)
def test_what_was_found_stays_mended(name: str, arrays: list, settings: dict, backend: str) -> None:
    found = as_case(arrays, settings)
    found.backend = backend
    check(table()[name], found)


def test_a_wrong_operator_is_found_and_its_case_shrunk() -> None:
    """The checker's own test: a ReLU that is wrong at zero, values and gradient."""
    row = dataclasses.replace(table()["relu"], ours=lambda x: ops.leaky_relu(x, 0.01))
    for k in range(100):
        choices = Choices(case_seed(0, "wrong", k))
        finding = attempt(row, choices)[1]
        if finding is not None and finding.kind == "value":
            small = shrink(row, choices.record, finding)
            assert small.kind == "value"
            assert small.case.operands[0].values.size <= 5
            return
    pytest.fail("a hundred cases have not found a wrong ReLU")


def _roundings(y: Tensor) -> Tensor:
    """Every value off by 64 roundings."""
    return y * (1 + 64 * np.finfo(y.dtype).eps) if y.dtype.kind == "f" else y


def _slope(y: Tensor) -> Tensor:
    """The same values, with gradients off by a thousandth."""
    return y + 1e-3 * (y - y.detach())


@pytest.mark.parametrize("wrong", [_roundings, _slope])
@pytest.mark.parametrize("name", ["exp", "layer_norm", "scaled_dot_product_attention"])
def test_the_bar_finds_what_is_off_by_a_few_roundings_or_a_thousandth_of_the_gradient(
    name: str, wrong: Callable[[Tensor], Tensor]
) -> None:
    """Also where numbers cancel, so that more is allowed: within a hundred cases."""
    row = dataclasses.replace(table()[name], ours=lambda *xs, **settings: wrong(table()[name].ours(*xs, **settings)))
    wanted = "value" if wrong is _roundings else "gradient"
    findings = (attempt(row, Choices(case_seed(0, "off", k)))[1] for k in range(100))
    assert any(finding is not None and finding.kind.startswith(wanted) for finding in findings)


def test_a_record_replays_its_case() -> None:
    row = table()["conv2d"]
    choices = Choices(17)
    made = row.draw(choices)
    assert repr(row.draw(Replayed(choices.record))) == repr(made)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 2)])
def test_layouts_keep_the_values(layout: str, shape: tuple[int, ...]) -> None:
    x = np.asarray(np.random.default_rng(0).standard_normal(shape))
    y = laid_out(x, layout)
    assert y.shape == x.shape
    assert np.array_equal(y, np.broadcast_to(x[:1], x.shape) if layout == "broadcast" and x.size and x.ndim else x)
