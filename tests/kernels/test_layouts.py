"""Every array of every operator in every layout that NumPy has: a column of a table, reversed, transposed, broadcast,
read-only, at an odd address, with its bytes swapped, and, for a norm's vectors, of another float type. What comes out
is what the definition gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, ops
from kernels.core.dispatch import use_kernels
from tests.support.calls import Call, calls, finite
from tests.support.conv_checks import WINOGRAD
from tests.support.fast_rule import forced_algorithm, widened


def strided(values: np.ndarray) -> np.ndarray:
    """Every second number of a larger array of NaN, or of the largest integer."""
    other = np.nan if values.dtype.kind == "f" else True if values.dtype.kind == "b" else np.iinfo(values.dtype).max
    wide = np.full((*values.shape[:-1], 2 * values.shape[-1]), other, values.dtype)
    part = wide[..., ::2]
    part[...] = values
    return part


def read_only(values: np.ndarray) -> np.ndarray:
    """Read-only."""
    values = values.copy()
    values.setflags(write=False)
    return values


def odd(values: np.ndarray) -> np.ndarray:
    """One byte behind a whole address."""
    out = np.empty(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    out[...] = values
    return out


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "strided": strided,
    "reversed": lambda values: values[..., ::-1].copy()[..., ::-1],
    "Fortran order": lambda values: values.T.copy().T,
    "broadcast": lambda values: np.broadcast_to(values[..., :1], values.shape),
    "read-only": read_only,
    "at an odd address": odd,
    "swapped": lambda values: values.astype(values.dtype.newbyteorder()),
}


def layouts(call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every array of a call in every layout. What is written to is neither broadcast nor read-only."""
    for name, value in call.arguments.items():
        several = isinstance(value, (tuple, list))
        for k, array in enumerate(value if several else (value,)):
            if not isinstance(array, np.ndarray) or not array.ndim or name in call.own:
                continue
            for what, layout in LAYOUTS.items():
                # other numbers than those that the state was made of
                if what == "broadcast" and "state" in call.arguments:
                    continue
                if name in call.written and what in ("broadcast", "read-only"):
                    continue
                other = layout(array)
                yield f"{name}: {what}", {name: type(value)([*value[:k], other, *value[k + 1 :]]) if several else other}


def relaid(value: Any) -> Any:
    """A copy in the same layout, for a call that writes to it."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(relaid, value))
    if not isinstance(value, np.ndarray):
        return copy.deepcopy(value)
    for layout in LAYOUTS.values():
        other = layout(np.ascontiguousarray(value).astype(value.dtype)) if value.ndim else value.copy()
        if (
            other.strides == value.strides
            and other.dtype == value.dtype
            and other.flags.aligned == value.flags.aligned
            and other.flags.writeable
        ):
            return other
    return value.copy()


def outcome(call: Call, arguments: dict[str, Any], run: Callable[..., Any] | None = None) -> list[np.ndarray]:
    """What a call gives and what it leaves in what it writes to."""
    given = {name: relaid(value) if name in call.written else value for name, value in arguments.items()}
    result = call.run(given, run)
    return finite("", [finite(call.operator.name, result), *(given[name] for name in call.written)])


def of_reference() -> list[Call]:
    """The same calls with what the reference's forward hands to its backward."""
    with use_kernels("reference"):
        return calls()


@pytest.mark.parametrize(("call", "plain"), list(zip(calls(), of_reference(), strict=True)), ids=lambda call: call.name)
def test_every_layout_gives_what_the_definition_gives(call: Call, plain: Call) -> None:
    own = {name: plain.arguments[name] for name in call.own}
    with forced_algorithm("direct"):
        for what, other in layouts(call):
            given = call.arguments | other
            naive, truth = (
                outcome(call, {n: kind(v) for n, v in (given | own).items()}, call.operator.reference)
                for kind in (native, widened)
            )
            got = outcome(call, given)
            if "swapped" not in what or what.split(":")[0] not in call.written:
                assert all(a.dtype.isnative for a in got), f"{call.name}, {what}"
            for k, arrays in enumerate(zip(got, naive, truth, strict=True)):
                near(f"{call.name}, {what}: result {k}", *arrays)


def near(what: str, got: np.ndarray, naive: np.ndarray, truth: np.ndarray) -> None:
    """Within three times the definition's error in float32, or the loosest bound that a kernel states."""
    assert got.shape == truth.shape, what
    assert got.dtype == naive.dtype or not got.dtype.isnative, what
    got, naive, truth = (a.astype(np.float64) for a in (got, naive, truth))
    allowed = max(3 * np.abs(naive - truth).max(initial=0), max(WINOGRAD.values()) * np.abs(truth).max(initial=0))
    assert np.abs(got - truth).max(initial=0) <= allowed, what


def native(value: Any) -> Any:
    """Arrays in the processor's byte order."""
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map(native, value))
    return value.astype(value.dtype.newbyteorder("=")) if isinstance(value, np.ndarray) else value


FORMS = {
    "a column of a table": lambda v: np.stack([v, v, v], 1)[:, 1],
    "reversed": lambda v: v[::-1].copy()[::-1],
    "broadcast": lambda v: np.broadcast_to(v[:1], v.shape),
    "float64": lambda v: v.astype(np.float64),
    "float16": lambda v: v.astype(np.float16),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("operator", ["batch_norm", "conv2d_batch_norm"])
def test_a_gain_and_an_offset_of_any_form(operator: str, training: bool, form: str) -> None:
    """y and dx have x's type, the gradients of gain and offset have theirs; the values are those of float64."""
    if operator == "conv2d_batch_norm" and not training:
        pytest.skip("the fused operator trains")
    rng = np.random.default_rng(0)
    x, filters, dy = (rng.standard_normal(size) for size in ((2, 7, 5, 4), (3, 3, 4, 6), (2, 5, 3, 6)))
    z = rng.standard_normal((2, 5, 3, 6))
    gain, offset = rng.random(6) + 0.5, rng.standard_normal(6)

    def run(dtype: Any, change: Callable[[np.ndarray], np.ndarray]) -> list[Tensor]:
        vectors = [Tensor(change(v.astype(np.float32).astype(dtype)), requires_grad=True) for v in (gain, offset)]
        maps = [
            Tensor(v.astype(np.float32).astype(dtype), requires_grad=True)
            for v in ((x, filters) if operator == "conv2d_batch_norm" else (z,))
        ]
        running = Tensor(np.zeros(6, dtype)), Tensor(np.ones(6, dtype))
        settings = {"activation": "relu"} | ({} if operator == "conv2d_batch_norm" else {"training": training})
        y = getattr(ops, operator)(*maps, *vectors, *running, **settings)
        y.backward(dy.astype(dtype))
        assert [v.grad.dtype for v in vectors] == [v.dtype for v in vectors]
        assert all(m.grad.dtype == dtype for m in maps)
        return [y, *(t.grad for t in (*maps, *vectors))]

    truth = run(np.float64, lambda v: FORMS[form](v).astype(np.float64))
    for backend in ("fast", "reference"):
        with use_kernels(backend):
            for got, exact in zip(run(np.float32, FORMS[form]), truth, strict=True):
                rounding = 2.0**-10 if got.dtype == np.float16 else 1e-5
                assert np.abs(got.data - exact.data).max() <= rounding * max(1, np.abs(exact.data).max()), backend


def test_sums_of_maps_in_any_layout() -> None:
    """Large ones, which the fast kernel adds."""
    x, y = (np.random.default_rng(k).standard_normal((4, 64, 64, 4)).astype(np.float32) for k in (0, 1))
    for a in (x[..., ::2], x[:, ::-1], x.transpose(0, 2, 1, 3), np.broadcast_to(x[:1], x.shape)):
        b = y[..., : a.shape[-1]]
        np.testing.assert_array_equal((Tensor(a) + Tensor(b)).data, a + b)
