"""float16: whatever adds up does so in float32 at least, and rounds once. Against float64, with the error of float32
rounded once as the measure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from autograd import Tensor, ops
from kernels.core.dispatch import use_kernels

ULP = 2.0**-11  # half a unit in the last place of float16
MANY = 65_536
FIRST = np.zeros(20_000, int)


def near(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Values within a tenth of `scale`, of one sign:
    sums grow, and stop growing where their dtype has no digits left.
    """
    return scale * (1 + 0.1 * np.random.default_rng(sum(shape)).random(shape))


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(sum(shape)).standard_normal(shape)


class Row(NamedTuple):
    """name, operator, inputs, and how many results within it are float16, beside the last one: each may add half a unit
    in the last place.
    """

    name: str
    call: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    within: float = 0


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels = x.shape[-1]
    return ops.batch_norm(
        x, weight, bias, Tensor(np.zeros(channels, x.dtype)), Tensor(np.ones(channels, x.dtype)), True, 0.1
    )


ROWS = [
    Row("sum", ops.sum, (near(MANY, scale=0.5),)),
    Row("sum over rows", lambda x: ops.sum(x, 0), (near(MANY, 2, scale=0.5),)),
    Row("mean", ops.mean, (near(MANY, scale=1000),)),
    Row("mean over rows", lambda x: ops.mean(x, 0), (near(MANY, 2, scale=1000),)),
    Row("var", ops.var, (near(MANY, scale=10),)),
    Row("prod", ops.prod, (near(64),)),
    Row("cumsum", lambda x: ops.cumsum(x, 0), (near(20_000, scale=0.5),)),
    Row("logsumexp", lambda x: ops.logsumexp(x, 0), (normal(MANY, 2),)),
    Row("max, all equal", lambda x: ops.max(x, 0), (np.ones((MANY // 2, 2)),)),
    Row("matmul", ops.matmul, (near(2, MANY, scale=0.1), near(MANY, 2, scale=0.5))),
    Row("linear", ops.linear, (near(3000, 8, scale=0.5), near(4, 8), near(4)), 1),
    Row("broadcast: add", ops.add, (near(MANY // 2, 2), near(2))),
    Row("broadcast: mul", ops.mul, (near(MANY // 2, 2), near(2, scale=0.1))),
    Row(
        "broadcast: where", lambda x, y: ops.where(np.arange(MANY)[:, None] % 2 == 0, x, y), (near(MANY, 1), near(1, 2))
    ),
    Row("broadcast_to", lambda x: ops.broadcast_to(x, (20_000, 2)), (near(1, 2),)),
    Row("softmax", ops.softmax, (normal(4, MANY // 4),)),
    Row("log_softmax", ops.log_softmax, (normal(4, MANY // 4),), 12),  # e^y from the y that is kept: |y| units
    Row("layer_norm", ops.layer_norm, (near(8, MANY // 8, scale=1000), near(MANY // 8), normal(MANY // 8))),
    Row("layer_norm, many rows", ops.layer_norm, (normal(MANY // 8, 8), near(8), normal(8))),
    Row("rms_norm", ops.rms_norm, (normal(MANY // 8, 8, scale=300), near(8)), 1),
    Row(
        "group_norm",
        lambda x, w, b: ops.group_norm(x, 2, w, b),
        (near(2, 64, 64, 4, scale=1000), near(4), normal(4)),
        4,
    ),
    Row("batch_norm", batch_norm, (near(4, 64, 64, 4, scale=1000), near(4), normal(4))),
    Row("gate per pixel", ops.gate, (near(2, 8, 8, 2048), normal(2, 8, 8, 1))),
    Row("blend", ops.blend, (near(2, 8, 8, 2048), normal(2, 8, 8, 2048), normal(2, 8, 8, 1))),
    Row(
        "attention",
        ops.scaled_dot_product_attention,
        (normal(1, 1, 9, 16), normal(1, 1, 4096, 16), normal(1, 1, 4096, 8)),
    ),
    Row(
        "polarized_channel",
        ops.polarized_channel,
        (near(2, 4096, 6), normal(6), normal(6, 3), normal(3), normal(3, 6), normal(6), near(6), normal(6)),
    ),
    Row(
        "polarized_spatial",
        ops.polarized_spatial,
        (near(2, 4096, 6, scale=0.1), normal(6, 3, scale=0.1), normal(3), normal(6, 3, scale=0.1), normal(3)),
    ),
    Row(
        "conv2d",
        lambda x, w, b: ops.conv2d(x, w, b, padding=1),
        (near(1, 64, 64, 64, scale=0.1), near(3, 3, 64, 8, scale=0.1), near(8)),
    ),
    Row("conv2d 1x1", ops.conv2d, (near(1, 96, 96, 512, scale=0.1), near(1, 1, 512, 4, scale=0.1))),
    Row(
        "depthwise",
        lambda x, w: ops.conv2d(x, w, padding=1, groups=4),
        (near(1, 128, 128, 4, scale=0.1), near(3, 3, 1, 4, scale=0.1)),
    ),
    Row(
        "conv_transpose2d",
        lambda x, w, b: ops.conv_transpose2d(x, w, b, stride=1),
        (near(1, 64, 64, 64, scale=0.1), near(3, 3, 64, 8, scale=0.1), near(8)),
    ),
    Row("max_pool2d", lambda x: ops.max_pool2d(x, 3, 1, 1), (np.round(normal(1, 32, 32, 3)),)),
    Row("avg_pool2d", lambda x: ops.avg_pool2d(x, 64), (near(1, 128, 128, 2, scale=1000),)),
    Row("resize_bilinear", lambda x: ops.resize_bilinear(x, (128, 128)), (near(1, 4, 4, 2, scale=100),)),
    Row("mse_loss", ops.mse_loss, (near(MANY, scale=9), normal(MANY)), 1),
    Row("cross_entropy", lambda z: ops.cross_entropy(z, np.arange(MANY) % 5), (normal(MANY, 5),)),
    Row("scatter_add", lambda x, s: ops.scatter_add(x, 0, FIRST, s), (near(3), near(20_000, scale=0.5))),
    Row("take", lambda x: ops.take(x, FIRST), (near(3),)),
    Row("gather", lambda x: ops.gather(x, 0, FIRST), (near(3),)),
    Row("embedding", lambda x: ops.embedding(FIRST, x), (near(3, 2),)),
    Row("x[index]", lambda x: x[FIRST], (near(3),)),
]


def results(row: Row, dtype: str) -> list[np.ndarray]:
    """Value and gradients, computed in a dtype from the inputs as float16 has them."""
    inputs = [Tensor(a.astype(np.float16).astype(dtype), requires_grad=True) for a in row.inputs]
    y = row.call(*inputs)
    dy = (np.random.default_rng(0).random(y.shape) + 0.5).astype(np.float16)
    y.backward(Tensor(dy.astype(dtype)))
    assert y.dtype == dtype
    return [y.numpy(), *(t.grad.numpy() for t in inputs if t.grad is not None)]


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_sums_of_float16_are_taken_in_float32(row: Row, backend: str) -> None:
    with use_kernels(backend):
        got, naive, exact = (results(row, dtype) for dtype in ("float16", "float32", "float64"))
    for k, (ours, once, truth) in enumerate(zip(got, naive, exact, strict=True)):
        scale = np.abs(truth).max()
        bar = 3 * np.abs(once.astype(np.float16) - truth).max() + row.within * ULP * scale + 2.0**-25
        assert np.abs(ours - truth).max() <= bar, (
            f"result {k} of {row.name}: {np.abs(ours - truth).max() / scale:.1e} of the largest value"
        )
