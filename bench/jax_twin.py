"""The report's network, loss and optimiser in plain JAX: functions of arrays, NHWC, with our names and shapes of
weights.

Parity tests give both the same weights; benchmarks race it at equal work, a step as one compiled function. Needs JAX;
import this module only
where it is installed (benchmarks: after bench.xla.start).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Arrays = dict[str, Any]
NHWC = ("NHWC", "HWIO", "NHWC")


# -- operators ---------------------------------------------------------------------------------------------------------


def conv2d(x: Any, w: Any, dilation: int = 1, groups: int = 1) -> Any:
    """Stride 1, "same" padding: x (N, H, W, C), w (R, S, C / groups, K) -> (N, H, W, K)."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", None, (dilation, dilation), NHWC, groups)


def conv_transpose2d(x: Any, w: Any, dilated: bool = False) -> Any:
    """Kernel 2, stride 2: x (N, H, W, C), w (2, 2, C, K) -> (N, 2H, 2W, K). Windows do not overlap, so it is one matrix
    product.

    dilated: as JAX's own operator, whose forward pass is the faster and whose filter gradient is by far the slower of
        the two.
    """
    if dilated:
        return lax.conv_transpose(x, w[::-1, ::-1], (2, 2), "VALID", dimension_numbers=NHWC)
    n, h, width, _ = x.shape
    return jnp.einsum("nhwc,ijck->nhiwjk", x, w).reshape(n, 2 * h, 2 * width, w.shape[3])


def max_pool2d(x: Any, k: int, stride: int, pad: int) -> Any:
    """x (N, H, W, C); a maximum goes back to the first of equals."""
    edge = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, k, k, 1), (1, stride, stride, 1), edge)


def normalise(x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) weight + bias, over the last axis or a broadcast."""
    return (x - mean) * (lax.rsqrt(var + eps) * weight) + bias


def moments(x: Any) -> tuple[Any, Any]:
    """Mean and variance of each channel. E[x^2] - mean^2 would save a step of width 8 a twenty-fifth of its time, and
    digits.
    """
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x - mean).mean((0, 1, 2))


def batch_norm_relu(x: Any, weight: Any, bias: Any, residual: Any = None) -> Any:
    """relu(BN(x) + residual) with the batch's statistics."""
    y = normalise(x, weight, bias, *moments(x))
    return jax.nn.relu(y if residual is None else y + residual)


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    """Over the last axis."""
    mean = x.mean(-1, keepdims=True)
    return normalise(x, weight, bias, mean, jnp.square(x - mean).mean(-1, keepdims=True))


def bands(size: int, count: int) -> np.ndarray:
    """(count, size): row i averages from floor(i size / count) to ceil((i + 1) size / count)."""
    out = np.zeros((count, size))
    for i in range(count):
        first = i * size // count
        end = -(-(i + 1) * size // count)
        out[i, first:end] = 1 / (end - first)
    return out


# -- the network -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """The arrays of one module, under a dotted prefix: s("weight") is an array, s / "conv" a module inside. Where
    `training`, new running statistics are left in `updated`.
    """

    arrays: Mapping[str, Any]
    training: bool = True
    prefix: str = ""
    updated: Arrays = field(default_factory=dict)

    def __call__(self, name: str) -> Any:
        return self.arrays[self.prefix + name]

    def __truediv__(self, name: object) -> Scope:
        return replace(self, prefix=f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return self.prefix + name in self.arrays


def norm(s: Scope, x: Any, momentum: float = 0.1) -> Any:
    """Batch norm; running statistics take the unbiased variance."""
    if not s.training:
        return normalise(x, s("weight"), s("bias"), s("running_mean"), s("running_var"))
    mean, var = moments(x)
    count = x.size // x.shape[3]
    for name, new in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
        s.updated[s.prefix + name] = (1 - momentum) * s(name) + momentum * new
    return normalise(x, s("weight"), s("bias"), mean, var)


def conv(s: Scope, x: Any) -> Any:
    """Convolution with a bias."""
    return conv2d(x, s("weight")) + s("bias")


def conv_norm(s: Scope, x: Any, residual: Any = None, dilation: int = 1, activation: bool = True) -> Any:
    """relu(BN(conv(x)) + residual)."""
    y = norm(s / "norm", conv2d(x, (s / "conv")("weight"), dilation))
    y = y if residual is None else y + residual
    return jax.nn.relu(y) if activation else y


def residual_block(s: Scope, x: Any) -> Any:
    """Two 3x3 and a shortcut, 1x1 where the channels change."""
    shortcut = conv_norm(s / "shortcut", x, activation=False) if s.has("shortcut.conv.weight") else x
    return conv_norm(s / "second", conv_norm(s / "first", x), shortcut)


def inception_block(s: Scope, x: Any) -> Any:
    """1x1, 3x3, 5x5 and pooled branches, with a shortcut."""
    one, three, five = jnp.split(conv_norm(s / "entry", x), 3, -1)
    pooled = conv_norm(s / "branch_pool", max_pool2d(x, 3, 1, 1))
    return conv_norm(
        s / "fuse",
        jnp.concatenate([one, conv_norm(s / "branch3", three), conv_norm(s / "branch5", five), pooled], -1),
        x,
    )


def mini_aspp(s: Scope, x: Any) -> Any:
    """1x1, dilations 1, 2, 4, and the image's mean."""
    dilated = [conv_norm(s / "dilated" / k, x, dilation=rate) for k, rate in enumerate((1, 2, 4))]
    mean = jax.nn.relu(conv(s / "pool", x.mean((1, 2), keepdims=True)))
    mean = jnp.broadcast_to(mean, (*x.shape[:3], mean.shape[3]))
    return conv_norm(s / "fuse", jnp.concatenate([conv_norm(s / "point", x), *dilated, mean], -1))


def polarized_channel(x: Any, wq: Any, wv: Any, bv: Any, wz: Any, bz: Any, gain: Any, offset: Any) -> Any:
    """A gate per channel: x (N, L, C) -> (N, L, C)."""
    a = jax.nn.softmax(x @ wq, 1)
    u = jnp.einsum("nl,nlc->nc", a, x) @ wv + bv
    return x * jax.nn.sigmoid(layer_norm(u @ wz + bz, gain, offset))[:, None]


def polarized_spatial(x: Any, wq: Any, bq: Any, wv: Any, bv: Any) -> Any:
    """A gate per pixel: x (N, L, C) -> (N, L, C)."""
    b = jax.nn.softmax(x.mean(1) @ wq + bq, 1)
    gates = jnp.einsum("nlc,nc->nl", x, b @ wv.T) + (b @ bv)[:, None]
    return x * jax.nn.sigmoid(gates)[:, :, None]


CHANNEL = (
    "channel_query",
    "channel_value",
    "channel_value_bias",
    "channel_out",
    "channel_out_bias",
    "norm_weight",
    "norm_bias",
)
SPATIAL = ("spatial_query", "spatial_query_bias", "spatial_value", "spatial_value_bias")


def attention(s: Scope, x: Any) -> Any:
    """Channel gates, then pixel gates, with a shortcut."""
    pixels = x.reshape(x.shape[0], -1, x.shape[3])  # (N, L, C)
    y = polarized_spatial(polarized_channel(pixels, *map(s, CHANNEL)), *map(s, SPATIAL))
    return (y + pixels).reshape(x.shape)


def strips(s: Scope, x: Any) -> Any:
    """Means over 1, 2 and 4 bands of rows and of columns, a convolution each, resized back."""
    n, h, w, _ = x.shape
    parts = [x]
    for k, count in enumerate((1, 2, 4)):
        for name, pooled in (
            ("rows", jnp.einsum("kh,nhwc->nkwc", bands(h, count).astype(x.dtype), x)),
            ("columns", jnp.einsum("kw,nhwc->nhkc", bands(w, count).astype(x.dtype), x)),
        ):
            y = conv_norm(s / name / k, pooled)
            parts.append(jax.image.resize(y, (n, h, w, y.shape[3]), "bilinear", antialias=False))
    return conv_norm(s / "fuse", jnp.concatenate(parts, -1))


def decoder_stage(s: Scope, d: Any, e: Any) -> Any:
    """Up by 2, gate the skip, a residual block of both."""
    d = conv_transpose2d(d, (s / "up")("weight")) + (s / "up")("bias")
    gate = s / "gate"
    inner = conv_norm(gate / "theta", e, conv_norm(gate / "phi", d, activation=False))
    return residual_block(s / "block", jnp.concatenate([d, e * jax.nn.sigmoid(conv(gate / "psi", inner))], -1))


def unet(arrays: Mapping[str, Any], x: Any, training: bool = True) -> tuple[Any, Arrays]:
    """layers.UNet with its defaults and no dropout: x (N, H, W, 1) -> logits (N, H, W, classes), and the new running
    statistics.
    """
    s = Scope(arrays, training)
    skips = []
    for k in range(3):
        x = inception_block(s / "encoders" / k / "steps" / 1, residual_block(s / "encoders" / k / "steps" / 0, x))
        skips.append(x)
        x = max_pool2d(x, 2, 2, 0)
    for k in range(2):
        x = conv_norm(s / "middle" / "steps" / k, x)
    both = s / "bottleneck" / "steps" / 1
    a = attention(both / "attention", mini_aspp(s / "bottleneck" / "steps" / 0, x))
    x = conv_norm(both / "fuse", jnp.concatenate([a, strips(both / "strips", a)], -1))
    for k, skip in enumerate(reversed(skips)):
        x = decoder_stage(s / "decoders" / k, x, skip)
    return conv(s / "head", x), s.updated


# -- loss and optimiser ------------------------------------------------------------------------------------------------


def combined_loss(
    logits: Any, labels: Any, weight: Any, background: str = "mask", gamma: float = 2.0, smooth: float = 1.0
) -> Any:
    """.4 margin + .2 Dice + .2 focal + .2 IoU: logits (N, H, W, C), labels (N, H, W), weight (C,). One softmax for all
    terms.
    """
    first = 1 if background == "mask" else 0
    z = logits[..., first:]
    w = weight[first:]
    valid = (labels >= first)[..., None].astype(z.dtype)
    t = jax.nn.one_hot(labels - first, z.shape[-1], dtype=z.dtype)  # a row of zeros for what is not valid
    logp = jax.nn.log_softmax(z)
    p = jnp.exp(logp)
    count = jnp.maximum(valid.sum(), 1)
    wy, log_py = (t * w).sum(-1), (t * logp).sum(-1)
    focal = (wy * (1 - jnp.exp(log_py)) ** gamma * -log_py).sum() / count
    pm = p * valid
    inter = (pm * t).sum((0, 1, 2))
    truth = t.sum((0, 1, 2))
    total = pm.sum((0, 1, 2)) + truth
    wc = w * (truth > 0)
    wc = wc / wc.sum()
    dice = (wc * (1 - (2 * inter + smooth) / (total + smooth))).sum()
    iou = (wc * (1 - (inter + smooth) / (total - inter + smooth))).sum()
    wrong = jax.nn.logsumexp(jnp.where(t > 0, -jnp.inf, 5 * z), -1)
    strongest = jnp.exp(wrong / 5 - jax.nn.logsumexp(z, -1))
    fn = (wy * (strongest - jnp.exp(log_py))).sum() / count
    fp = (jax.nn.softmax(5 * z) * (valid - t) * w).sum() / count
    return 0.4 * (0.99 * fn + 0.01 * fp) + 0.2 * dice + 0.2 * focal + 0.2 * iou


@dataclass(frozen=True)
class AdamW:
    """AdamW with clipping and a moving average of weights and statistics; no decay where `plain` says so. Functions of
    a state.
    """

    plain: frozenset[str]
    weight_decay: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 1.0
    average: float = 0.999

    def start(self, weights: Arrays, statistics: Arrays) -> Arrays:
        """The state before the first step."""
        zeros = {k: jnp.zeros_like(w) for k, w in weights.items()}
        copies = {k: jnp.array(a) for k, a in (weights | statistics).items()}
        return {
            "weights": weights,
            "statistics": statistics,
            "m": zeros,
            "v": jax.tree.map(jnp.copy, zeros),
            "average": copies,
            "steps": jnp.zeros((), jnp.int32),
        }

    def step(self, state: Arrays, gradients: Arrays, statistics: Arrays, rate: Any) -> Arrays:
        """The state after one step."""
        steps = state["steps"] + 1
        t = steps.astype(jnp.result_type(float))
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values()))
        scale = jnp.minimum(1, self.clip / norm)
        kept = jnp.minimum(self.average, (1 + t) / (10 + t))
        first = 1 - self.beta1**t
        second = 1 - self.beta2**t
        weights, m, v = {}, {}, {}
        for name, w in state["weights"].items():
            g = gradients[name] * scale
            m[name] = self.beta1 * state["m"][name] + (1 - self.beta1) * g
            v[name] = self.beta2 * state["v"][name] + (1 - self.beta2) * g * g
            decay = 0.0 if name in self.plain else self.weight_decay
            weights[name] = w * (1 - rate * decay) - rate * (m[name] / first) / (jnp.sqrt(v[name] / second) + self.eps)
        average = {k: kept * state["average"][k] + (1 - kept) * a for k, a in (weights | statistics).items()}
        return {"weights": weights, "statistics": statistics, "m": m, "v": v, "average": average, "steps": steps}


def parts(net: Any) -> tuple[Arrays, Arrays, AdamW]:
    """A layers.UNet's weights, its running statistics, and the optimiser with its grouping."""
    names: Sequence[tuple[str, Any]] = list(net.named_parameters())
    trained = dict(names)
    state = net.state_dict()
    weights = {k: jnp.asarray(a) for k, a in state.items() if k in trained}
    statistics = {k: jnp.asarray(a) for k, a in state.items() if k not in trained}
    return weights, statistics, AdamW(frozenset(k for k, p in names if not p.decay))


def loss_and_gradients(
    weights: Arrays,
    statistics: Arrays,
    x: Any,
    labels: Any,
    weight: Any,
    background: str = "mask",
    training: bool = True,
) -> Any:
    """((loss, (logits, new statistics)), gradients) of one batch."""

    def of(weights: Arrays) -> Any:
        logits, updated = unet(weights | statistics, x, training)
        return combined_loss(logits, labels, weight, background), (logits, updated)

    return jax.value_and_grad(of, has_aux=True)(weights)


def training_step(optimiser: AdamW, state: Arrays, x: Any, labels: Any, weight: Any, rate: Any) -> tuple[Arrays, Any]:
    """(state, loss) after one step: all that bench.step times, to be compiled as one function."""
    (loss, (_, statistics)), gradients = loss_and_gradients(state["weights"], state["statistics"], x, labels, weight)
    return optimiser.step(state, gradients, statistics, rate), loss
