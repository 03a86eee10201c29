"""On CuPy arrays too, what does not fit is refused before a kernel is launched;
and a norm's vectors come in any form.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cupy
import numpy as np
import pytest

from autograd import Tensor, ops
from kernels import loss
from kernels.core.dispatch import use_kernels
from tests.support.calls import Call, calls
from tests.support.misfits import misfits, no_arrays


def device(value: Any) -> Any:
    """Arrays on the device."""
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map(device, value))
    return cupy.asarray(value) if isinstance(value, np.ndarray) else value


def device_calls() -> list[Call]:
    """The calls of tests/support/calls.py on the device; the matrices of resampling stay where they are made."""
    out = []
    for call in calls():
        arguments = {
            name: value if name in ("a", "b") and "resample" in call.operator.name else device(value)
            for name, value in call.arguments.items()
        }
        for name in call.own - {"state"}:
            arguments[name] = cupy.ones(arguments["dy"].shape, np.uint8)
        if "state" in arguments:
            arguments["state"] = loss.loss_forward(arguments["logits"], arguments["labels"], arguments["spec"])[2]
        out.append(replace(call, arguments=arguments))
    return out


def refused(call: Call, other: dict[str, Any]) -> bool:
    """Whether the line refuses it. What it lets pass is a sound call of other sizes."""
    try:
        call.run(other, call.operator.shapes.fit)
    except (ValueError, TypeError):
        return True
    return False


def test_no_misfit_reaches_a_kernel(served: list) -> None:
    every = device_calls()
    served.clear()
    count = 0
    for call in every:
        for what, other in [*misfits(call), *no_arrays(call)]:
            if what.split(":")[0] not in call.own and not refused(call, other):
                continue
            with pytest.raises(
                (ValueError, TypeError),
                match="another implementation" if what.split(":")[0] in call.own else call.operator.name,
            ):
                call.run(other)
            count += 1
    assert count > 4000
    assert not served


FORMS = {
    "a column of a table": lambda v: cupy.stack([v, v, v], 1)[:, 1],
    "reversed": lambda v: v[::-1].copy()[::-1],
    "broadcast": lambda v: cupy.broadcast_to(v[:1], v.shape),
    "float64": lambda v: v.astype(np.float64),
    "float16": lambda v: v.astype(np.float16),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_a_gain_and_an_offset_of_any_form(form: str, training: bool) -> None:
    rng = np.random.default_rng(0)
    x, dy, gain, offset = (
        cupy.asarray(rng.standard_normal(size).astype("f4")) for size in ((2, 5, 3, 6), (2, 5, 3, 6), 6, 6)
    )

    def run(kind: Any, change: Any) -> list[Any]:
        vectors = [Tensor(change(v).astype(kind) if kind else change(v), requires_grad=True) for v in (gain, offset)]
        z = Tensor(x.astype(kind or np.float32), requires_grad=True)
        running = Tensor(cupy.zeros(6, z.dtype)), Tensor(cupy.ones(6, z.dtype))
        y = ops.batch_norm(z, *vectors, *running, training=training, activation="relu")
        y.backward(dy.astype(z.dtype))
        assert [v.grad.dtype for v in vectors] == [v.dtype for v in vectors]
        return [y.data, z.grad.data, *(v.grad.data for v in vectors)]

    with use_kernels("reference"):
        truth = run(np.float64, FORMS[form])
    for got, exact in zip(run(None, FORMS[form]), truth, strict=True):
        rounding = 2.0**-10 if got.dtype == np.float16 else 1e-5
        assert abs(got.get() - exact.get()).max() <= rounding * max(1, abs(exact.get()).max())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("int64", "the mask is int64, expected bool"),
        ("uint8", "the mask is uint8, expected bool"),
        ("complex64", "mask: got complex numbers, expected real ones"),
    ],
)
def test_a_mask_of_other_things_than_truth_or_scores_is_refused(kind: str, words: str) -> None:
    q = Tensor(cupy.ones((1, 1, 3, 4), "f4"))
    with pytest.raises(TypeError, match=words):
        ops.scaled_dot_product_attention(q, q, q, cupy.ones((3, 3), kind))
