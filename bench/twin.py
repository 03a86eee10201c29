"""The report's network, loss and optimiser in PyTorch, as a PyTorch user would write them, with our attribute names.

Parity tests give both the same weights; benchmarks race it at equal work. PyTorch's own layout (NCHW, or channels_last)
is used inside; `load` and `gradients` translate names and shapes. Needs PyTorch; import this module only where it is
installed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class ConvNorm(nn.Module):
    def __init__(self, i: int, o: int, k: Any, dilation: int = 1, activation: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, padding="same", dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(o)
        self.activation = activation

    def forward(self, x: Any, residual: Any = None) -> Any:
        y = self.norm(self.conv(x))
        if residual is not None:
            y = y + residual
        return F.relu(y, inplace=True) if self.activation else y


class Steps(nn.Module):
    """Sequential under our name for its list."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(modules)

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


class ResidualBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(i, o, 3), ConvNorm(o, o, 3)
        self.shortcut = nn.Identity() if i == o else ConvNorm(i, o, 1, activation=False)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x), self.shortcut(x))


class InceptionBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        b = c // 4
        self.entry = ConvNorm(c, 3 * b, 1)
        self.branch3, self.branch5 = ConvNorm(b, b, 3), ConvNorm(b, b, 5)
        self.branch_pool = ConvNorm(c, b, 1)
        self.fuse = ConvNorm(c, c, 1)

    def forward(self, x: Any) -> Any:
        pooled = self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        one, three, five = self.entry(x).chunk(3, 1)
        return self.fuse(torch.cat([one, self.branch3(three), self.branch5(five), pooled], 1), x)


class MiniASPP(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        b = c // 4
        self.point = ConvNorm(c, b, 1)
        self.dilated = nn.ModuleList([ConvNorm(c, b, 3, dilation=r) for r in (1, 2, 4)])
        self.pool = nn.Conv2d(c, b, 1)
        self.fuse = ConvNorm(5 * b, c, 1)

    def forward(self, x: Any) -> Any:
        mean = F.relu(self.pool(x.mean((2, 3), keepdim=True))).expand(-1, -1, *x.shape[2:])
        return self.fuse(torch.cat([self.point(x), *(d(x) for d in self.dilated), mean], 1))


class PolarizedSelfAttention(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 2
        shapes = {
            "channel_query": (c,),
            "channel_value": (c, h),
            "channel_value_bias": (h,),
            "channel_out": (h, c),
            "channel_out_bias": (c,),
            "norm_weight": (c,),
            "norm_bias": (c,),
            "spatial_query": (c, h),
            "spatial_query_bias": (h,),
            "spatial_value": (c, h),
            "spatial_value_bias": (h,),
        }
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Any) -> Any:
        n, c, h, w = x.shape
        pixels = x.flatten(2).transpose(1, 2)  # (N, L, C)
        y = self._spatial(self._channel(pixels)) + pixels
        return y.transpose(1, 2).reshape(n, c, h, w)

    def _channel(self, x: Any) -> Any:
        a = (x @ self.channel_query).softmax(1)
        u = (a[:, None] @ x)[:, 0] @ self.channel_value + self.channel_value_bias
        o = F.layer_norm(u @ self.channel_out + self.channel_out_bias, (x.shape[2],), self.norm_weight, self.norm_bias)
        return x * o.sigmoid()[:, None]

    def _spatial(self, x: Any) -> Any:
        b = (x.mean(1) @ self.spatial_query + self.spatial_query_bias).softmax(1)
        gates = (x @ (b @ self.spatial_value.T)[:, :, None])[:, :, 0] + (b @ self.spatial_value_bias)[:, None]
        return x * gates.sigmoid()[:, :, None]


class StripPyramidPooling(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        b = c // 4
        self.rows = nn.ModuleList([ConvNorm(c, b, 1) for _ in range(3)])
        self.columns = nn.ModuleList([ConvNorm(c, b, 1) for _ in range(3)])
        self.fuse = ConvNorm(c + 6 * b, c, 1)

    def forward(self, x: Any) -> Any:
        size = x.shape[2:]
        parts = [x]
        for k, rows, columns in zip((1, 2, 4), self.rows, self.columns, strict=True):
            parts.append(F.interpolate(rows(F.adaptive_avg_pool2d(x, (k, None))), size, mode="bilinear"))
            parts.append(F.interpolate(columns(F.adaptive_avg_pool2d(x, (None, k))), size, mode="bilinear"))
        return self.fuse(torch.cat(parts, 1))


class AttentionAndStrips(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.attention = PolarizedSelfAttention(c)
        self.strips = StripPyramidPooling(c)
        self.fuse = ConvNorm(2 * c, c, 1)

    def forward(self, x: Any) -> Any:
        s = self.attention(x)
        return self.fuse(torch.cat([s, self.strips(s)], 1))


class AttentionGate(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.theta = ConvNorm(c, c // 2, 1)
        self.phi = ConvNorm(c, c // 2, 1, activation=False)
        self.psi = nn.Conv2d(c // 2, 1, 1)

    def forward(self, e: Any, d: Any) -> Any:
        return e * self.psi(self.theta(e, self.phi(d))).sigmoid()


class DecoderStage(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(i, o, 2, 2)
        self.gate = AttentionGate(o)
        self.block = ResidualBlock(2 * o, o)

    def forward(self, d: Any, e: Any) -> Any:
        d = self.up(d)
        return self.block(torch.cat([d, self.gate(e, d)], 1))


class TwinUNet(nn.Module):
    """layers.UNet(width) with its defaults: x (N, 1, H, W) -> logits (N, classes, H, W)."""

    def __init__(self, width: int, classes: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        w = [width, 2 * width, 4 * width, 8 * width]
        self.encoders = nn.ModuleList(
            [Steps(ResidualBlock(i, o), InceptionBlock(o)) for i, o in zip([1, *w], w[:3], strict=False)]
        )
        self.middle = Steps(ConvNorm(w[2], w[3], 3), ConvNorm(w[3], w[3], 3))
        self.bottleneck = Steps(MiniASPP(w[3]), AttentionAndStrips(w[3]))
        self.decoders = nn.ModuleList([DecoderStage(i, o) for i, o in ((w[3], w[2]), (w[2], w[1]), (w[1], w[0]))])
        self.head = nn.Conv2d(width, classes, 1)
        self.dropout = dropout

    def forward(self, x: Any) -> Any:
        skips = []
        for stage in self.encoders:
            x = stage(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = F.dropout(self.bottleneck(self.middle(x)), self.dropout, self.training)
        for stage, skip in zip(self.decoders, reversed(skips), strict=True):
            x = stage(x, skip)
        return self.head(x)


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
