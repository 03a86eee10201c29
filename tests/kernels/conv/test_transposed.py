"""Transposed convolutions of every geometry that PyTorch allows, forward and backward, in float32 by the fast kernels
and by the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from autograd import Tensor, ops
from kernels.core.dispatch import use_kernels
from kernels.core.geometry import Window

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of x and of the filter, and the settings; output_padding up to what PyTorch allows: below the stride or
    the dilation.
    """
    stride, dilation = draw(pairs(1, 3)), draw(pairs(1, 4))
    most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    extra = draw(st.integers(0, most[0])), draw(st.integers(0, most[1]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (3, 2)]))
    kernel, size = draw(pairs(1, 3)), draw(pairs(1, 5))
    options = {
        "stride": stride,
        "padding": draw(pairs(0, 2)),
        "output_padding": extra,
        "groups": groups,
        "dilation": dilation,
    }
    assume(min(Window.of("", kernel, stride, options["padding"], dilation).input_size(size, extra)) > 0)
    return (2, *size, groups * inputs), (*kernel, groups * inputs, outputs), options


def near(mine: np.ndarray, theirs: Any, terms: int) -> bool:
    """Within the error of sums of so many products of float32 numbers."""
    theirs = theirs.detach().numpy()
    return mine.shape == theirs.shape and np.abs(mine - theirs).max(initial=0) <= 2.0**-23 * terms * np.abs(theirs).max(
        initial=1
    )


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(layers(), st.tuples(st.booleans(), st.booleans(), st.booleans()), st.integers(0, 99))
def test_every_geometry_equals_pytorch(layer, needs, seed) -> None:
    """Whichever gradients are wanted: without one for x nothing but the filter's kernel sees how many windows there
    are.
    """
    assume(any(needs))
    x_shape, w_shape, options = layer
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (x_shape, w_shape, (w_shape[3] * options["groups"],))]
    axes = ((0, 3, 1, 2), (2, 3, 0, 1), (0,))
    theirs = [
        torch.tensor(a.transpose(order).copy(), requires_grad=need)
        for a, order, need in zip(arrays, axes, needs, strict=True)
    ]
    y = torch.nn.functional.conv_transpose2d(*theirs, **options)
    dy = rng.standard_normal(tuple(y.shape)).astype(np.float32)
    y.backward(torch.tensor(dy))
    for backend in ("fast", "reference"):
        with use_kernels(backend):
            mine = [Tensor(a, requires_grad=need) for a, need in zip(arrays, needs, strict=True)]
            result = ops.conv_transpose2d(*mine, **options)
            result.backward(dy.transpose(0, 2, 3, 1).copy())
        assert near(result.data.transpose(0, 3, 1, 2), y, w_shape[0] * w_shape[1] * x_shape[3])
        for own, other, order in zip(mine, theirs, axes, strict=True):
            if own.requires_grad:
                assert near(own.grad.data.transpose(order), other.grad, dy.size), (
                    f"{backend}: the gradient of {own.shape}"
                )
