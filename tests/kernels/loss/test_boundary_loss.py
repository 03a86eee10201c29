"""Signed distance maps and the boundary loss beside other terms; its gradient and PyTorch's value are in
tests/support/cases.py.
"""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autograd import Tensor, ops
from kernels import loss
from tests.support.fast_checks import distances
from tests.support.fast_rule import array

SIDES, SEEDS = st.integers(1, 19), st.integers(0, 99)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.tuples(st.integers(1, 3), SIDES, SIDES),
    st.integers(1, 5),
    st.sampled_from([0.05, 0.5, 0.95]),
    st.booleans(),
    SEEDS,
)
@example((2, 1, 33), 2, 0.05, False, 0)
@example((2, 64, 128), 4, 0.95, True, 1)
def test_signed_distances(size, classes, share, masked, seed) -> None:
    """Squares of distances are whole numbers, so the fast maps are the reference's but for the rounding of the root."""
    distances(np.random.default_rng(seed), size, classes, share, "mask" if masked else "train")


def test_distances_of_a_hand_made_map() -> None:
    labels = np.array([[[0, 0, 0, 1], [0, 0, 1, 1], [2, 9, 1, 1]]])
    phi = loss.signed_distances(labels, 3, "train", 9, "float32")[0]
    one, inside = phi[..., 1], labels[0] == 1
    np.testing.assert_array_equal(one[~inside], np.sqrt(np.float32([5, 2, 1, 4, 1, 4, 1])))
    # the 9 beside class 1 bounds nothing
    np.testing.assert_array_equal(one[inside], 1 - np.sqrt(np.float32([1, 1, 2, 2, 5])))
    np.testing.assert_array_equal(phi[[2, 0], [0, 3], 2], [0, np.sqrt(np.float32(13))])


def test_the_boundary_loss_beside_fused_terms() -> None:
    rng = np.random.default_rng(3)
    z, labels = Tensor(array(rng, 2, 9, 17, 5), requires_grad=True), rng.integers(0, 5, (2, 9, 17))
    both, terms = ops.combined_loss(
        z, labels, background="mask", terms={"iou": 0.5, "boundary": 0.01}, return_terms=True
    )
    both.backward()
    got = z.grad.data
    z.grad = None
    alone = 0.5 * ops.iou_loss(z, labels, background="mask") + 0.01 * ops.boundary_loss(z, labels, background="mask")
    alone.backward()
    np.testing.assert_allclose(both.item(), alone.item(), rtol=1e-6)
    np.testing.assert_allclose(got, z.grad.data, atol=2e-7 * np.abs(got).max())
    assert set(terms) == {"iou", "boundary"}
