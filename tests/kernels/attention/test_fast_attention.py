"""Fast attention kernels equal the float64 reference under the naive rule (docs/accuracy.md), over random shapes; and
what they need and leave.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels import attention
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.thread_pool import parallel
from tests.support.attention_masks import MASKS
from tests.support.fast_checks import dot_product, polarized, polarized_operands
from tests.support.fast_rule import array
from tests.support.random_shapes import CHANNELS, FEW, SEEDS, pair, served_by

# -- polarized attention -----------------------------------------------------------------------------------------------


BRANCHES = ("channel", "spatial")


@settings(max_examples=40, **FEW)
@given(st.sampled_from(BRANCHES), st.integers(1, 4), st.integers(1, 150), CHANNELS, st.integers(1, 40), SEEDS)
@example("channel", 1, 1, 1, 1, 0)
@example("spatial", 1, 1, 1, 1, 0)
@example("channel", 2, 128, 256, 128, 1)
@example("spatial", 2, 128, 256, 128, 1)
@example("channel", 40, 3, 2, 1, 2)
def test_polarized_attention(branch, n, pixels, channels, inner, seed) -> None:
    polarized(np.random.default_rng(seed), branch, n, pixels, channels, inner)


@pytest.mark.parametrize("branch", BRANCHES)
def test_launches_of_polarized_attention_are_all_of_it(branch: str, monkeypatch) -> None:
    """Run once more as they were recorded, with other numbers in the same arrays, they give these numbers' results."""
    launches: list[tuple] = []

    def recorded(*arguments, **options) -> None:
        launches.append((arguments, options))
        parallel(*arguments, **options)

    monkeypatch.setattr("kernels.attention.cpu.polarized.parallel", recorded)
    rng = np.random.default_rng(0)
    arrays, eps = polarized_operands(rng, branch, 3, 21, 13, 6)
    y = getattr(attention, f"polarized_{branch}_forward")(*arrays[1:], *eps)
    gradients = getattr(attention, f"polarized_{branch}_backward")(*arrays, *eps)
    for a in arrays:
        a[...] = array(rng, *a.shape) if a.ndim > 1 else array(rng, 1, a.size)[0]
    for arguments, options in launches:
        parallel(*arguments, **options)
    assert len(launches) == 3
    wanted = (
        getattr(attention, f"polarized_{branch}_forward")(*arrays[1:], *eps),
        *getattr(attention, f"polarized_{branch}_backward")(*arrays, *eps),
    )
    for got, want in zip((y, *gradients), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("branch", BRANCHES)
def test_polarized_attention_that_is_left_to_the_reference(branch: str) -> None:
    """Empty batches, float64, views. Large scores are ours, and stay finite."""
    forward, backward = (getattr(attention, f"polarized_{branch}_{step}") for step in ("forward", "backward"))
    (x, _, *weights), eps = polarized_operands(np.random.default_rng(0), branch, 2, 6, 5, 3)
    for arrays in (
        [x[:0], x[:0], *weights],
        [a.astype(np.float64) for a in (x, x, *weights)],
        [np.broadcast_to(x[0], x.shape), x, *weights],
    ):
        assert served_by(backward, *arrays, *eps) == "reference"
    for arrays in ([x[:0], *weights], [x[:, ::-1], *weights], [x, weights[0].astype(np.float64), *weights[1:]]):
        assert served_by(forward, *arrays, *eps) == "reference"
    large = 1000 * x
    assert served_by(forward, large, *weights, *eps) == "fast"
    assert np.isfinite(forward(large, *weights, *eps)).all()
    assert all(np.isfinite(d).all() for d in backward(x, large, *weights, *eps))


# -- dot-product attention ---------------------------------------------------------------------------------------------


@settings(max_examples=40, **FEW)
@given(pair(1, 3), pair(1, 150), st.tuples(CHANNELS, CHANNELS), st.sampled_from(MASKS), st.booleans(), SEEDS)
@example((1, 1), (1, 1), (1, 1), "none", False, 0)
@example((1, 2), (128, 128), (64, 64), "causal", False, 1)
@example((2, 1), (64, 192), (130, 48), "broadcast", True, 2)
def test_dot_product_attention(batch, lengths, widths, kind, view, seed) -> None:
    dot_product(np.random.default_rng(seed), batch, lengths, widths, kind, view)


def test_attention_over_many_pixels_stores_no_scores() -> None:
    """1024 queries and keys: less than a tenth of what their scores would take, beside operands and results."""
    rng = np.random.default_rng(0)
    q, k, v = (array(rng, 1, 1, 1024, 8) for _ in range(3))
    attention.attention_backward(q, q, k, v, *attention.attention_forward(q, k, v, None, 0.3), None, 0.3)
    tracemalloc.start()
    try:
        before, pooled = tracemalloc.get_traced_memory()[0], buffer_pool.pool.live
        o, lse = attention.attention_forward(q, k, v, None, 0.3)
        attention.attention_backward(q, q, k, v, o, lse, None, 0.3)
        most = tracemalloc.get_traced_memory()[1] - before + buffer_pool.pool.live - pooled
    finally:
        tracemalloc.stop()
    assert most < 4 * 1024 * 1024 // 10


def test_dot_product_attention_with_large_scores_nan_and_what_is_left_to_the_reference() -> None:
    rng = np.random.default_rng(0)
    q, v = np.array([[[[300.0, 0], [-300, 0]]]], np.float32), np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    o, lse = attention.attention_forward(q, q, v, None, 1.0)
    np.testing.assert_array_equal(o, v)
    np.testing.assert_array_equal(lse, np.full((1, 1, 2), 90000, np.float32))
    q, v = array(rng, 1, 1, 70, 5), array(rng, 1, 1, 70, 5)
    q[0, 0, 66, 2] = np.nan
    o, _ = attention.attention_forward(q, v, v, None, 1.0)
    assert np.isnan(o[0, 0, 66]).all()
    assert np.isfinite(np.delete(o[0, 0], 66, 0)).all()
    for arrays in ((q[:0], v[:0], v[:0]), (np.float64(q), np.float64(v), np.float64(v)), (q, v, np.float64(v))):
        assert served_by(attention.attention_forward, *arrays, None, 1.0) == "reference"
    assert served_by(attention.attention_forward, q, v, v, np.zeros((70, 70)), 1.0) == "reference"
