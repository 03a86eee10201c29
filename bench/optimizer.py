"""AdamW with clipping and a moving average of the weights, on the parameters of the report's network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from autograd import Tensor
from bench import xla
from bench.harness import Case
from bench.shapes import ours, torch_device


def cases() -> list[Case]:
    """Width 16 and 32."""
    out = []
    for width, parameters in ((16, 801_076), (32, 3_175_652)):
        theirs = {mode: partial(_torch, width, mode) for mode in ("fused", "foreach")}
        others = {"torch": theirs, "jax": xla.modes(_jax, width)}
        out.append(
            Case(
                "adamw + average + clipping", f"width {width}", partial(_ours, width), others, bytes=parameters * 4 * 9
            )
        )
    return out


def _ours(width: int) -> Callable[[], Any]:
    from engine.training.optimizer import AdamW
    from layers import UNet

    net = UNet(width=width, seed=0)
    optimizer = AdamW(net, clip=1.0, average=0.999)
    rng = np.random.default_rng(0)
    for p in net.parameters():
        p.grad = Tensor(ours(rng.standard_normal(p.shape).astype(np.float32)))
    return lambda: optimizer.step(1e-3)


def _torch(width: int, mode: str) -> Callable[[], Any]:
    import torch

    from bench.twin import Average, TwinUNet

    net = TwinUNet(width).to(torch_device())
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, **{mode: True})
    average = Average(net)

    def run() -> None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.update()

    return run


def _jax(width: int, mode: str) -> Callable[[], Any]:
    jax = xla.start(mode)
    from bench.jax_twin import parts
    from layers import UNet

    weights, statistics, adamw = parts(UNet(width=width, seed=0))
    rng = np.random.default_rng(0)
    gradients = jax.device_put({k: rng.standard_normal(w.shape).astype(np.float32) for k, w in weights.items()})
    step = jax.jit(adamw.step, donate_argnums=0)
    state = adamw.start(weights, statistics)
    statistics = {k: a + 1 for k, a in statistics.items()}  # not the state's own, which are given away

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, gradients, statistics, 1e-3))

    return run
