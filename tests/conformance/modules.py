"""Rows: modules, with their parameters as operands; in training, in evaluation, and without gradients, where they cache
and fuse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import layers
from autograd import Tensor, no_grad, ops

from .choices import Choices
from .functions import ONE_BIAS
from .functions import ROWS as FUNCTIONS
from .functions import _linear as linear_case
from .norms import INFINITE_GAIN, MEAN, UNDERFLOW
from .norms import ROWS as NORMS
from .operands import Case, case, dtype, finite_cotangent, length, palette, shape, tensor
from .table import Difference, Row
from .windows import CONVOLUTIONS, conv2d, conv_arguments, conv_transpose2d, winograd_bound
from .windows import ROWS as WINDOWS
from .windows import _transposed as transposed_case

F = torch.nn.functional
LAYER_NORM = next(row for row in NORMS if row.name == "layer_norm")
TRANSPOSED = next(row for row in WINDOWS if row.name == "conv_transpose2d")
GROUP_NORM = next(row for row in FUNCTIONS if row.name == "group_norm")


def _conv(d: Choices) -> Case:
    operands, settings = conv_arguments(d)
    return _inference(d, case(d, operands, **settings))


def _inference(d: Choices, made: Case) -> Case:
    """In a third of the cases without gradients."""
    if d.chance(35):
        for o in made.operands:
            if o is not None:
                o.grad = False
    return made


def _run(module: Any, x: Any, *parameters: Any) -> Any:
    if any(p is not None and p.requires_grad for p in (x, *parameters)):
        return module(x)
    with no_grad():
        module(x)
        return module(x)


def _our_conv(x: Any, w: Any, b: Any, **settings: Any) -> Any:
    r, s, c, k = w.shape
    m = layers.Conv2d(c * settings["groups"], k, (r, s), bias=b is not None, **settings)
    m.weight, m.bias = w, b
    return _run(m, x, w, b)


def _our_transposed(x: Any, w: Any, b: Any, **settings: Any) -> Any:
    r, s, c, k = w.shape
    m = layers.ConvTranspose2d(c, k * settings["groups"], (r, s), bias=b is not None, **settings)
    m.weight, m.bias = w, b
    return _run(m, x, w, b)


def _transposed(d: Choices) -> Case:
    return _inference(d, transposed_case(d))


def _batch_norm(d: Choices) -> Case:
    name, dims = dtype(d, 0, 0), (*(max(1, n) for n in shape(d, 3, 3)), length(d))
    vectors = [tensor(d, dims[-1:], name, palette(d, 5)) for _ in range(2)]
    return case(
        d,
        [tensor(d, dims, name, palette(d, 5)), *vectors],
        steps=d.integer(0, 3),
        momentum=d.pick((0.1, 0.3)),
        eps=d.pick((1e-5, 1e-2)),
    )


def _our_batch_norm(x: Any, w: Any, b: Any, steps: int, momentum: float, eps: float) -> Any:
    m = layers.BatchNorm2d(x.shape[-1], momentum, eps).train()
    m.running_mean.data, m.running_var.data = m.running_mean.data.astype(x.dtype), m.running_var.data.astype(x.dtype)
    m.weight, m.bias = w, b
    outputs = [m(x) for _ in range(steps)]
    return *outputs, m.eval()(x), Tensor(np.array(m.running_mean.data)), Tensor(np.array(m.running_var.data))


def _torch_batch_norm(x: Any, w: Any, b: Any, steps: int, momentum: float, eps: float) -> Any:
    m = torch.nn.BatchNorm2d(x.shape[-1], eps, momentum, dtype=x.dtype)
    call = torch.func.functional_call
    moved = x.permute(0, 3, 1, 2)
    outputs = [call(m, {"weight": w, "bias": b}, moved).permute(0, 2, 3, 1) for _ in range(steps)]
    last = call(m.eval(), {"weight": w, "bias": b}, moved).permute(0, 2, 3, 1)
    return *outputs, last, m.running_mean.clone(), m.running_var.clone()


def _with(m: Any, x: Any, w: Any, b: Any) -> Any:
    m.weight, m.bias = w, b
    return _run(m, x, w, b)


def _our_linear(x: Any, w: Any, b: Any) -> Any:
    return _with(layers.Linear(1, 1), x, w, b)


def _our_layer_norm(x: Any, w: Any, b: Any, eps: float) -> Any:
    return _with(layers.LayerNorm(1, eps), x, w, b)


def _our_group_norm(x: Any, w: Any, b: Any, num_groups: int, eps: float) -> Any:
    return _with(layers.GroupNorm(num_groups, num_groups, eps), x, w, b)


def _our_instance_norm(x: Any, w: Any, b: Any, eps: float) -> Any:
    return _with(layers.InstanceNorm2d(x.shape[-1], eps), x, w, b)


def _instance_norm(d: Choices) -> Case:
    name, c = dtype(d, 0, 6), length(d)
    vectors = [None if d.chance(30) else tensor(d, (c + d.chance(2),), name, palette(d, 6)) for _ in range(2)]
    return case(
        d, [tensor(d, (length(d, 3), *shape(d, 1, 2), c), name, palette(d, 10)), *vectors], eps=d.pick((1e-5, 1e-2))
    )


def _torch_instance_norm(x: Any, w: Any, b: Any, eps: float) -> Any:
    """PyTorch's, whose backward is wrong for a cotangent that is not contiguous."""
    y = F.instance_norm(x.movedim(-1, 1), weight=w, bias=b, eps=eps)
    if y.requires_grad:
        y.register_hook(lambda dy: dy.contiguous())
    return y.movedim(1, -1)


def _self_attention(d: Choices) -> Case:
    """Maps of the size that the positions are made for, or of another one."""
    name, heads, groups = dtype(d, 0, 0), d.integer(1, 4), d.integer(1, 4)
    c = heads * groups
    size = (d.integer(1, 4), d.integer(1, 4))
    room = size if d.chance(50) else (d.integer(1, 5), d.integer(1, 5))
    x = tensor(d, (*((length(d, 3), *room) if not d.chance(3) else shape(d, 0, 2)), c), name, palette(d, 6))
    vectors = [tensor(d, (c,), name, d.pick(("positive", "normal"))) for _ in range(2)]
    maps = [tensor(d, dims, name, "normal") for dims in ((1, 1, c, 3 * c), (3 * c,), (1, 1, c, c), (c,))]
    return case(d, [x, *vectors, *maps], heads=heads, size=size)


def _our_self_attention(x: Any, *arrays: Any, heads: int, size: tuple[int, int]) -> Any:
    m = layers.MultiHeadSelfAttention(x.shape[-1], heads, size)
    m.positions.data = m.positions.data.astype(x.dtype)
    m.norm.weight, m.norm.bias, m.project.weight, m.project.bias, m.out.weight, m.out.bias = arrays
    return _run(m, x, *arrays)


def _torch_self_attention(
    x: Any, gain: Any, offset: Any, w: Any, b: Any, out: Any, out_bias: Any, heads: int, size: tuple[int, int]
) -> Any:
    """x + torch.nn.MultiheadAttention's function of the normalised pixels and their positions,
    with the same weights.
    """
    n, h, width, c = x.shape
    if x.numel() == 0:
        return x + 0 * (gain.sum() + offset.sum() + w.sum() + b.sum() + out.sum() + out_bias.sum())
    places = F.interpolate(_positions(*size, c).to(x.dtype)[None], (h, width), mode="bilinear")[0].permute(1, 2, 0)
    u = (F.layer_norm(x, (c,), gain, offset, 1e-5) + places).reshape(n, h * width, c).transpose(0, 1)
    y, _ = F.multi_head_attention_forward(
        u,
        u,
        u,
        c,
        heads,
        w[0, 0].T,
        b,
        None,
        None,
        False,
        0.0,
        out[0, 0].T,
        out_bias,
        training=False,
        need_weights=False,
    )
    return x + y.transpose(0, 1).reshape(x.shape)


def _positions(h: int, w: int, c: int) -> Any:
    """(C, H, W): sines and cosines of the row, then of the column, a quarter of the channels each, rounded up."""
    quarter = max(1, (c + 3) // 4)
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij"
    )
    waves = [
        f(at / 10000 ** (k / quarter)) for at in (rows, columns) for f in (torch.sin, torch.cos) for k in range(quarter)
    ]
    return torch.stack(waves)[:c].float()


def _of(draw: Any) -> Any:
    """A row's cases, in a third of them without gradients."""
    return lambda d: _inference(d, draw(d))


NO_IMAGES = Difference(
    "instance norm of nothing",
    "an x without channels and vectors that do not fit are refused, and an empty batch gives an empty result; PyTorch "
    "checks neither, and its index"
    " into the batch raises",
    "any",
    lambda c: 0 in c.operands[0].values.shape,
)
ROWS = [
    Row("Conv2d", _conv, _our_conv, conv2d, differences=CONVOLUTIONS, bound=winograd_bound),
    Row(
        "ConvTranspose2d",
        _transposed,
        _our_transposed,
        conv_transpose2d,
        words=("ConvTranspose2d", "conv_transpose2d"),
        differences=TRANSPOSED.differences,
        bound=winograd_bound,
    ),
    Row(
        "BatchNorm2d",
        _batch_norm,
        _our_batch_norm,
        _torch_batch_norm,
        words=("batch_norm",),
        cancels=MEAN,
        differences=(INFINITE_GAIN, UNDERFLOW),
    ),
    Row("Linear", _of(linear_case), _our_linear, F.linear, cancels="a sum of products", differences=(ONE_BIAS,)),
    Row(
        "LayerNorm",
        _of(LAYER_NORM.draw),
        _our_layer_norm,
        LAYER_NORM.theirs,
        words=("layer_norm",),
        cancels=MEAN,
        differences=LAYER_NORM.differences,
    ),
    Row(
        "GroupNorm",
        _of(GROUP_NORM.draw),
        _our_group_norm,
        GROUP_NORM.theirs,
        words=GROUP_NORM.words,
        differences=GROUP_NORM.differences,
        cancels=MEAN,
    ),
    Row(
        "MultiHeadSelfAttention",
        finite_cotangent(_self_attention),
        _our_self_attention,
        _torch_self_attention,
        words=("MultiHeadSelfAttention", "layer_norm", "conv2d"),
        cancels=MEAN,
    ),
    Row(
        "instance_norm",
        finite_cotangent(_instance_norm),
        ops.instance_norm,
        _torch_instance_norm,
        cancels=MEAN,
        differences=(NO_IMAGES, INFINITE_GAIN),
    ),
    Row(
        "InstanceNorm2d",
        _of(finite_cotangent(_instance_norm)),
        _our_instance_norm,
        _torch_instance_norm,
        words=("instance_norm", "InstanceNorm2d"),
        cancels=MEAN,
        differences=(NO_IMAGES, INFINITE_GAIN),
    ),
]
