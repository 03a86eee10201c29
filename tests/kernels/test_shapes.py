"""Every operator compares its arrays before any kernel runs: what does not fit is a ValueError or a TypeError that
names it, never a number.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from kernels import conv, pointwise, shape
from kernels.core.dispatch import registry, use_kernels
from kernels.core.geometry import Window
from kernels.core.shapes import Shapes
from kernels.norm.records import BatchNorm, SavedBatchNorm
from tests.support.calls import Call, calls, finite
from tests.support.conv_checks import WINOGRAD
from tests.support.fast_rule import forced_algorithm, judge, widened
from tests.support.misfits import misfits, no_arrays


def wide(call: Call, other: dict[str, Any]) -> dict[str, Any]:
    """All arguments, float32 arrays as float64."""
    return {name: widened(value) for name, value in (call.arguments | other).items()}


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_no_misfit_gives_a_number(backend: str) -> None:
    """A changed array is refused with the operator's name. What is left are sizes that are free: the operator gives
    what its definition gives.
    """
    refused = 0
    with use_kernels(backend), forced_algorithm("direct"):
        for call in calls():
            for what, other in misfits(call):
                try:
                    got = call.run(copy.deepcopy(other))
                except (ValueError, TypeError) as error:
                    own = what.split(":")[0] in call.own and "another implementation" in str(error)
                    if not own and call.operator.name not in str(error):
                        pytest.fail(f"{call.name}, {what}: {error}")
                    refused += 1
                    continue
                naive, truth = (
                    call.run(given, call.operator.reference) for given in (copy.deepcopy(other), wide(call, other))
                )
                judge(
                    f"{call.name}, {what}",
                    *(finite(call.operator.name, result) for result in (got, naive, truth)),
                    winograd=max(WINOGRAD.values()),
                )
    assert refused > 4000


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_what_is_no_array_of_numbers_is_refused(backend: str) -> None:
    with use_kernels(backend):
        for call in calls():
            for what, other in no_arrays(call):
                try:
                    got = call.run(other)
                except TypeError as error:
                    if call.operator.name not in str(error):
                        pytest.fail(f"{call.name}, {what}: {error}")
                    continue
                pytest.fail(f"{call.name}, {what}: gave {type(got)}")


@pytest.mark.table
def test_every_operator_says_what_its_arrays_look_like() -> None:
    """And stands in the table of calls; `evaluate` alone takes any arrays,
    for it runs a rule that is given with them.
    """
    assert {name for name, operator in registry.items() if not operator.line} == {"evaluate"}
    assert {call.operator.name for call in calls()} == registry.keys() - {"evaluate"}
    for name, operator in registry.items():
        if not operator.line:
            continue
        kinds = {p: str(parameter.annotation) for p, parameter in operator.shapes.signature.parameters.items()}
        for record in (BatchNorm, SavedBatchNorm):
            for p in [p for p, kind in kinds.items() if kind == record.__name__]:
                kinds |= {f"{p}.{field}": str(kind) for field, kind in record.__annotations__.items()}
        arrays = {p for p, kind in kinds.items() if "Array" in kind}
        missing = arrays - {item.name for item in operator.shapes.items} - {"mask", "norm.mask", "state"}
        assert not missing, f"{name} says nothing of {missing}"


MISFITS = [
    (
        conv.conv2d_forward,
        ((np.zeros((1, 5, 5, 3), "f4"),), np.zeros((3, 3, 4, 2), "f4"), None, Window((3, 3))),
        r"conv2d_forward: w has shape \(3, 3, 4, 2\), expected \(3, 3, 3, K\) for maps \(1, 5, 5, 3\)",
    ),
    (
        conv.conv2d_forward,
        ((np.zeros((1, 5, 5, 3), "f4"),), np.zeros((2, 3, 3, 2), "f4"), None, Window((3, 3))),
        r"w has shape \(2, 3, 3, 2\), expected \(3, 3, 3, K\)",
    ),
    (
        conv.conv2d_forward,
        ((np.zeros((1, 2, 5, 3), "f4"),), np.zeros((3, 3, 3, 2), "f4"), None, Window((3, 3))),
        r"conv2d_forward: expected min\(window.output_size\(\(H, W\)\)\) > 0, got H = 2, W = 5",
    ),
    (
        conv.conv2d_forward,
        ((np.zeros((1, 5, 5, 3), "f4"),), np.zeros((3, 3, 3, 2), "f4"), None, Window((3, 3)), 0),
        r"conv2d_forward: cannot compute C // groups",
    ),
    (
        pointwise.relu_backward,
        (np.zeros((2, 3), "f4"), np.zeros((3, 2), "f4")),
        r"relu_backward: y has shape \(3, 2\), expected \(2, 3\) for dy \(2, 3\)",
    ),
    (
        shape.accumulate,
        (np.zeros(3, "f4"), np.zeros((1, 3), "f4")),
        r"accumulate: more has shape \(1, 3\), expected \(3\) for total \(3,\)",
    ),
    (
        shape.split_channels,
        (np.zeros((2, 5), "f4"), [2, 2]),
        r"split_channels: expected sum\(sizes\) == C, got C = 5, sizes = \[2, 2\]",
    ),
]


@pytest.mark.parametrize(("operator", "arguments", "message"), MISFITS)
def test_messages_name_the_operator_and_both_shapes(operator, arguments, message: str) -> None:
    for _ in range(2):  # what was refused is not remembered as right
        with pytest.raises(ValueError, match=message):
            operator(*arguments)


def test_what_is_written_to_must_be_writeable() -> None:
    total = np.broadcast_to(np.float32(0), (3, 4))
    with pytest.raises(ValueError, match="accumulate: total is written to, but it is read-only"):
        shape.accumulate(total, np.ones((3, 4), np.float32))
    for call in calls():
        for name in call.written:
            value = copy.deepcopy(call.arguments[name])
            for array in value if isinstance(value, tuple) else (value,):
                array.setflags(write=False)
            with pytest.raises(ValueError, match=f"{call.operator.name}: {name}.* is written to"):
                call.run({name: value})


def test_a_call_like_an_earlier_one_is_looked_up(monkeypatch) -> None:
    """Only new shapes, kinds and settings are compared; changed values, and what the line does not name, are not."""
    seen: list[Any] = []
    real = Shapes._compare
    monkeypatch.setattr(Shapes, "_compare", lambda self, arguments: seen.append(arguments) or real(self, arguments))
    x = np.ones((2, 61, 3), np.float32)
    for offset in range(3):
        pointwise.dropout_forward(x + offset, 0.5, 1, offset)
    assert len(seen) <= 1
    pointwise.dropout_forward(np.ones((2, 61, 3, 1, 1), np.float32), 0.5, 1, 2)
    assert len(seen) <= 2


@pytest.mark.parametrize(
    ("line", "message"), [("y (N)", "name y, which it does not take"), ("x N", "got 'x N', expected a name")]
)
def test_a_line_with_a_mistake_is_refused(line: str, message: str) -> None:
    def doubled(x):
        return 2 * x

    with pytest.raises(ValueError, match=message):
        Shapes(doubled, line)
