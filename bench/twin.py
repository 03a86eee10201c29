"""The report's loss and optimiser in PyTorch, as a PyTorch user would write them, beside the network in PyTorch.

Parity tests give both the same weights; benchmarks race it at equal work. PyTorch's own layout (NCHW, or channels_last)
is used inside; `load` and `gradients` translate names and shapes. Needs PyTorch; import this module only where it is
installed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.export.twin import TwinUNet  # noqa: F401 - the network that the rest is for


def to_theirs(array: np.ndarray) -> np.ndarray:
    """A filter (R, S, C, K) in PyTorch's order (K, C, R, S); other arrays as they are."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def load(twin: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Give the twin our weights and running statistics."""
    transposed = {name for name, module in twin.named_modules() if isinstance(module, nn.ConvTranspose2d)}
    own = twin.state_dict()
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        array = state[name]
        if name.rsplit(".", 1)[0] in transposed and array.ndim == 4:
            array = array.transpose(2, 3, 0, 1)
        else:
            array = to_theirs(array)
        if tuple(array.shape) != tuple(tensor.shape):
            raise ValueError(f"twin: {name} has shape {tuple(tensor.shape)} there and {array.shape} here")
        tensor.copy_(torch.as_tensor(np.ascontiguousarray(array)))
    left = state.keys() - own.keys()
    if left:
        raise ValueError(f"twin: it has no {sorted(left)[0]}")


def to_ours(twin: nn.Module, name: str, tensor: Any) -> np.ndarray:
    """A tensor of the twin's, or its gradient, in our shape."""
    array = tensor.detach().numpy()
    if array.ndim < 4:
        return array
    transposed = isinstance(twin.get_submodule(name.rsplit(".", 1)[0]), nn.ConvTranspose2d)
    return np.ascontiguousarray(array.transpose(2, 3, 0, 1) if transposed else array.transpose(2, 3, 1, 0))


def gradients(twin: nn.Module) -> dict[str, np.ndarray]:
    """The gradients of all parameters in our shapes."""
    return {name: to_ours(twin, name, parameter.grad) for name, parameter in twin.named_parameters()}


def combined_loss(
    logits: Any, labels: Any, weight: Any, background: str = "mask", gamma: float = 2.0, smooth: float = 1.0
) -> Any:
    """.4 margin + .2 Dice + .2 focal + .2 IoU: logits (N, C, H, W), labels int64 (N, H, W), weight (C,). One softmax
    for all terms.
    """
    first = 1 if background == "mask" else 0
    z = logits[:, first:]
    w = weight[first:]
    valid = (labels >= first).unsqueeze(1).to(z.dtype)
    index = (labels - first).clamp(min=0).unsqueeze(1)
    t = torch.zeros_like(z).scatter_(1, index, 1.0) * valid
    logp = z.log_softmax(1)
    p = logp.exp()
    count = valid.sum().clamp(min=1)
    wy = (t * w.view(1, -1, 1, 1)).sum(1, keepdim=True)
    log_py = (t * logp).sum(1, keepdim=True)
    focal = (wy * (1 - log_py.exp()) ** gamma * -log_py).sum() / count
    pm = p * valid
    inter = (pm * t).sum((0, 2, 3))
    truth = t.sum((0, 2, 3))
    total = pm.sum((0, 2, 3)) + truth
    wc = w * (truth > 0)
    wc = wc / wc.sum()
    dice = (wc * (1 - (2 * inter + smooth) / (total + smooth))).sum()
    iou = (wc * (1 - (inter + smooth) / (total - inter + smooth))).sum()
    wrong = (5 * z).masked_fill(t > 0, -math.inf).logsumexp(1, keepdim=True)
    strongest = (wrong / 5 - z.logsumexp(1, keepdim=True)).exp()
    fn = (wy * (strongest - log_py.exp())).sum() / count
    fp = ((5 * z).softmax(1) * (valid - t) * w.view(1, -1, 1, 1)).sum() / count
    return 0.4 * (0.99 * fn + 0.01 * fp) + 0.2 * dice + 0.2 * focal + 0.2 * iou


class Average:
    """An exponential moving average of parameters and running statistics, warmed up as min(decay,
    (1 + t) / (10 + t)).
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.tensors = [t for n, t in module.state_dict().items() if not n.endswith("num_batches_tracked")]
        self.average = [t.detach().clone() for t in self.tensors]
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.tensors, 1 - kept)


def optimizer(module: nn.Module, weight_decay: float = 1e-2) -> torch.optim.AdamW:
    """torch.optim.AdamW with our grouping: no decay on biases and normalisation. Its fused form where there is one."""
    plain = [p for n, p in module.named_parameters() if p.ndim == 1 and not n.endswith("channel_query")]
    decayed = [p for n, p in module.named_parameters() if not (p.ndim == 1 and not n.endswith("channel_query"))]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)
