"""AdamW with clipping and a moving average of the weights, on the parameters of the report's network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from autograd import Tensor
from bench.harness import Case
from bench.shapes import device, ours


def cases() -> list[Case]:
    """Width 16 and 32."""
    out = []
    for width, parameters in ((16, 801_076), (32, 3_175_652)):
        theirs = {mode: partial(_torch, width, mode) for mode in ("fused", "foreach")}
        out.append(Case("adamw + average + clipping", f"width {width}", partial(_ours, width), {"torch": theirs}, bytes=parameters * 4 * 10))
    return out


def _ours(width: int) -> Callable[[], Any]:
    from engine.optimizer import AdamW
    from layers import UNet

    net = UNet(width=width, seed=0)
    optimizer = AdamW(net)
    rng = np.random.default_rng(0)
    for p in net.parameters():
        p.grad = Tensor(ours(rng.standard_normal(p.shape).astype(np.float32)))
    return lambda: optimizer.step(1e-3)


def _torch(width: int, mode: str) -> Callable[[], Any]:
    import torch

    from bench.twin import Average, TwinUNet

    net = TwinUNet(width).to(device())
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, **{mode: True})
    average = Average(net)

    def run() -> None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.update()

    return run
