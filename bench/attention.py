"""Multi-head and polarized self-attention, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from autograd import ops
from bench.composite import forward_backward
from bench.harness import Case
from bench.shapes import BATCH, REDUCED, STAGES, array


def cases() -> list[Case]:
    """Dot-product attention over 128, 512 and 2048 pixels; both polarized branches at the bottleneck of width 32."""
    out = []
    for t, n in ((128, BATCH), (512, BATCH), (2048, 2)):
        t //= REDUCED
        flops = 14 * n * 4 * t * t * 64
        data = partial(_heads, n, t)
        modes = ("eager", "compile")
        out.append(
            forward_backward(
                "attention",
                f"{n}x4x{t}x64",
                ops.scaled_dot_product_attention,
                _their_attention,
                data,
                (),
                flops,
                modes=modes,
            )
        )
    n = BATCH
    h, w, c = STAGES[3]
    pixels = h * w
    traffic = 4 * n * pixels * c * 5
    for name, ours, theirs, jax, data in (
        ("polarized channel", ops.polarized_channel, _their_channel, _jax_channel, partial(_channel, n, pixels, c)),
        ("polarized spatial", ops.polarized_spatial, _their_spatial, _jax_spatial, partial(_spatial, n, pixels, c)),
    ):
        out.append(
            forward_backward(
                name, f"{n}x{pixels}x{c}", ours, theirs, data, (), bytes=traffic, modes=("eager", "compile"), jax=jax
            )
        )
    return out


def _heads(n: int, t: int) -> list[np.ndarray]:
    return [array(n, 4, t, 64, seed=k) for k in range(3)]


def _channel(n: int, pixels: int, c: int) -> list[np.ndarray]:
    h = c // 2
    return [array(n, pixels, c), *(0.1 * array(*s) for s in ((c,), (c, h), (h,), (h, c), (c,), (c,), (c,)))]


def _spatial(n: int, pixels: int, c: int) -> list[np.ndarray]:
    h = c // 2
    return [array(n, pixels, c), *(0.1 * array(*s) for s in ((c, h), (h,), (c, h), (h,)))]


def _their_attention(q: Any, k: Any, v: Any) -> Any:
    import torch.nn.functional as F

    return F.scaled_dot_product_attention(q, k, v)


def _their_channel(x: Any, wq: Any, wv: Any, bv: Any, wz: Any, bz: Any, gain: Any, offset: Any) -> Any:
    import torch.nn.functional as F

    a = (x @ wq).softmax(1)
    u = (a[:, None] @ x)[:, 0] @ wv + bv
    return x * F.layer_norm(u @ wz + bz, gain.shape, gain, offset).sigmoid()[:, None]


def _their_spatial(x: Any, wq: Any, bq: Any, wv: Any, bv: Any) -> Any:
    b = (x.mean(1) @ wq + bq).softmax(1)
    gates = (x @ (b @ wv.T)[:, :, None])[:, :, 0] + (b @ bv)[:, None]
    return x * gates.sigmoid()[:, :, None]


def _jax_channel(*arrays: Any) -> Any:
    from bench.jax_twin import polarized_channel

    return polarized_channel(*arrays)


def _jax_spatial(*arrays: Any) -> Any:
    from bench.jax_twin import polarized_spatial

    return polarized_spatial(*arrays)
