"""Every layer that a network of the training system is made of, in ONNX operators.

One function per class, after its `forward`; batch norms use their running statistics, and dropout is the identity. A
trace of one run would be shorter, but it would hold the sizes of that run: only the layers know which number is the
height of a map. What keeps these functions true is the check that every export passes (check.py).
"""

from __future__ import annotations

import numpy as np

from engine.export.graph import ExportError, Graph, Value, emit
from kernels.core.geometry import Window, pair
from layers import (
    AttentionAndStrips,
    AttentionGate,
    BatchNorm2d,
    Conv2d,
    ConvNorm,
    ConvTranspose2d,
    DecoderStage,
    Dropout,
    FeaturePyramidPooling,
    Identity,
    InceptionBlock,
    LayerNorm,
    MiniASPP,
    Module,
    MultiHeadSelfAttention,
    PolarizedSelfAttention,
    PreActivationBlock,
    ResidualBlock,
    Sequential,
    StripPyramidPooling,
    UNet,
)

# -- single operators -------------------------------------------------------------------------------------------------


@emit.register(Identity)
@emit.register(Dropout)
def _(module: Module, graph: Graph, x: Value) -> Value:
    return x


@emit.register(Sequential)
def _(module: Sequential, graph: Graph, x: Value) -> Value:
    for step in module:
        x = graph.add(step, x)
    return x


@emit.register(Conv2d)
def _(module: Conv2d, graph: Graph, x: Value | tuple[Value, ...]) -> Value:
    window = Window.of("Conv2d", module.weight.shape[:2], module.stride, module.padding, module.dilation)
    (top, bottom), (left, right) = window.padding
    return graph.node(
        "Conv",
        graph.joined(x),
        graph.parameter("weight"),
        *_bias(module, graph),
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=[top, left, bottom, right],
        dilations=window.dilation,
        group=module.groups,
    )


@emit.register(ConvTranspose2d)
def _(module: ConvTranspose2d, graph: Graph, x: Value) -> Value:
    window = Window.of("ConvTranspose2d", module.weight.shape[:2], module.stride, module.padding, module.dilation)
    (top, bottom), (left, right) = window.padding
    return graph.node(
        "ConvTranspose",
        x,
        graph.parameter("weight"),
        *_bias(module, graph),
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=[top, left, bottom, right],
        dilations=window.dilation,
        output_padding=pair(module.output_padding, "ConvTranspose2d: output_padding", 0),
        group=module.groups,
    )


def _bias(module: Conv2d | ConvTranspose2d, graph: Graph) -> list[Value]:
    return [] if module.bias is None else [graph.parameter("bias")]


@emit.register(BatchNorm2d)
def _(module: BatchNorm2d, graph: Graph, x: Value, residual: Value | None = None) -> Value:
    vectors = (graph.parameter(name) for name in ("weight", "bias", "running_mean", "running_var"))
    y = graph.node("BatchNormalization", x, *vectors, epsilon=module.eps)
    if residual is not None:
        y = graph.node("Add", y, residual)
    if module.activation not in (None, "relu"):
        raise ExportError(f"onnx: the operator BatchNorm2d with activation {module.activation!r} has no ONNX form here")
    return graph.node("Relu", y) if module.activation else y


@emit.register(LayerNorm)
def _(module: LayerNorm, graph: Graph, x: Value) -> Value:
    last = graph.node("Transpose", x, perm=[0, 2, 3, 1])
    y = graph.node(
        "LayerNormalization", last, graph.parameter("weight"), graph.parameter("bias"), axis=-1, epsilon=module.eps
    )
    return graph.node("Transpose", y, perm=[0, 3, 1, 2])


@emit.register(ConvNorm)
def _(module: ConvNorm, graph: Graph, x: Value | tuple[Value, ...], residual: Value | None = None) -> Value:
    return graph.add(module.norm, graph.add(module.conv, x), residual)


# -- blocks -----------------------------------------------------------------------------------------------------------


@emit.register(ResidualBlock)
def _(module: ResidualBlock, graph: Graph, x: Value | tuple[Value, ...]) -> Value:
    x = graph.joined(x)
    return graph.add(module.second, graph.add(module.first, x), graph.add(module.shortcut, x))


@emit.register(PreActivationBlock)
def _(module: PreActivationBlock, graph: Graph, x: Value) -> Value:
    y = x
    for step in (module.norm1, module.conv1, module.norm2, module.conv2):
        y = graph.add(step, y)
    return graph.node("Add", graph.add(module.shortcut, x), y)


@emit.register(InceptionBlock)
def _(module: InceptionBlock, graph: Graph, x: Value) -> Value:
    pooled = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    entry = graph.add(module.entry, x)
    width = module.entry.conv.weight.shape[3] // 3
    one, three, five = graph.nodes_of("Split", 3, entry, [width] * 3, axis=1)
    inner = graph.add(module.branch3, three), graph.add(module.branch5, five)
    branches = (one, *inner, graph.add(module.branch_pool, pooled))
    return graph.add(module.fuse, branches, graph.add(module.shortcut, x) if module.shortcut else None)


@emit.register(MiniASPP)
def _(module: MiniASPP, graph: Graph, x: Value) -> Value:
    branches = [graph.add(branch, x) for branch in (module.point, *module.dilated)]
    if module.pool:
        mean = graph.node("Relu", graph.add(module.pool, _whole(graph, x)))
        branches.append(graph.repeated(mean, x))
    y = graph.add(module.fuse, branches)
    return graph.node("Add", y, x) if module.residual else y


@emit.register(FeaturePyramidPooling)
def _(module: FeaturePyramidPooling, graph: Graph, x: Value) -> Value:
    whole = graph.add(module.whole, _whole(graph, x))
    grid = x
    for axis in (2, 3):
        bins = graph.node("Max", graph.node("Div", graph.size(x, axis), [4]), [1])
        grid = graph.means(grid, axis, bins)
    medium = graph.resized(graph.add(module.medium, grid), x)
    return graph.add(module.fuse, [x, graph.repeated(whole, x), medium, graph.add(module.fine, x)])


@emit.register(StripPyramidPooling)
def _(module: StripPyramidPooling, graph: Graph, x: Value) -> Value:
    parts = [x]
    for k, rows, columns in zip(module.scales, module.rows, module.columns, strict=True):
        parts.append(graph.resized(graph.add(rows, graph.means(x, 2, k)), x))
        parts.append(graph.resized(graph.add(columns, graph.means(x, 3, k)), x))
    for k, square in zip(module.bins, module.squares, strict=True):
        parts.append(graph.resized(graph.add(square, graph.means(graph.means(x, 2, k), 3, k)), x))
    return graph.add(module.fuse, parts)


def _whole(graph: Graph, x: Value) -> Value:
    """(N, C, H, W) -> (N, C, 1, 1): the mean of each map."""
    return graph.node("ReduceMean", x, axes=[2, 3], keepdims=1)


# -- attention and gates ----------------------------------------------------------------------------------------------


@emit.register(PolarizedSelfAttention)
def _(module: PolarizedSelfAttention, graph: Graph, x: Value) -> Value:
    pixels = graph.node("Reshape", x, [0, 0, -1])  # (N, C, L)
    first = _channel_gates(module, graph, pixels)
    if module.mode == "sequential":
        y = _pixel_gates(graph, first)
    else:
        y = graph.node("Add", first, _pixel_gates(graph, pixels))
    if module.residual:
        y = graph.node("Add", y, pixels)
    return graph.node("Reshape", y, graph.node("Shape", x))


def _channel_gates(module: PolarizedSelfAttention, graph: Graph, x: Value) -> Value:
    query = graph.node("Unsqueeze", graph.parameter("channel_query"), [0])
    a = graph.node("Softmax", graph.node("MatMul", query, x), axis=-1)  # (1, C) @ (N, C, L) -> (N, 1, L)
    pooled = graph.node("MatMul", a, graph.node("Transpose", x, perm=[0, 2, 1]))  # (N, 1, L) @ (N, L, C) -> (N, 1, C)
    u = _dense(graph, pooled, "channel_value", "channel_value_bias")
    o = _dense(graph, u, "channel_out", "channel_out_bias")
    names = (graph.parameter("norm_weight"), graph.parameter("norm_bias"))
    gates = graph.node("Sigmoid", graph.node("LayerNormalization", o, *names, axis=-1, epsilon=module.eps))
    return graph.node("Mul", x, graph.node("Transpose", gates, perm=[0, 2, 1]))  # (N, C, L) * (N, C, 1)


def _pixel_gates(graph: Graph, x: Value) -> Value:
    mean = graph.node("Transpose", graph.node("ReduceMean", x, axes=[2], keepdims=1), perm=[0, 2, 1])  # (N, 1, C)
    b = graph.node("Softmax", _dense(graph, mean, "spatial_query", "spatial_query_bias"), axis=-1)  # (N, 1, h)
    c = graph.node("MatMul", b, graph.node("Transpose", graph.parameter("spatial_value"), perm=[1, 0]))  # (N, 1, C)
    offset = graph.node("MatMul", b, graph.node("Unsqueeze", graph.parameter("spatial_value_bias"), [1]))  # (N, 1, 1)
    return graph.node("Mul", x, graph.node("Sigmoid", graph.node("Add", graph.node("MatMul", c, x), offset)))


def _dense(graph: Graph, x: Value, weight: str, bias: str) -> Value:
    """x W + b."""
    return graph.node("Add", graph.node("MatMul", x, graph.parameter(weight)), graph.parameter(bias))


@emit.register(MultiHeadSelfAttention)
def _(module: MultiHeadSelfAttention, graph: Graph, x: Value) -> Value:
    places = graph.resized(graph.parameter("positions"), x)
    qkv = graph.add(module.project, graph.node("Add", graph.add(module.norm, x), places))
    channels = module.out.weight.shape[2]
    depth = channels // module.heads
    heads = graph.node("Reshape", qkv, [0, 3, module.heads, depth, -1])  # (N, 3, heads, d, L)
    q, k, v = (graph.node("Gather", heads, index, axis=1) for index in range(3))
    q = graph.node("Mul", graph.node("Transpose", q, perm=[0, 1, 3, 2]), np.float32(depth**-0.5))
    p = graph.node("Softmax", graph.node("MatMul", q, k), axis=-1)  # (N, heads, L, d) @ (N, heads, d, L)
    y = graph.node("MatMul", p, graph.node("Transpose", v, perm=[0, 1, 3, 2]))  # (N, heads, L, d)
    y = graph.node("Reshape", graph.node("Transpose", y, perm=[0, 1, 3, 2]), graph.node("Shape", x))
    return graph.node("Add", x, graph.add(module.out, y))


@emit.register(AttentionAndStrips)
def _(module: AttentionAndStrips, graph: Graph, x: Value) -> Value:
    s = graph.add(module.attention, x)
    return graph.add(module.fuse, (s, graph.add(module.strips, s if module.order == "serial" else x)))


@emit.register(AttentionGate)
def _(module: AttentionGate, graph: Graph, e: Value, d: Value) -> Value:
    if module.kind == "gau":
        return graph.node("Mul", graph.add(module.low, e), graph.add(module.high, _whole(graph, d)))
    z = graph.add(module.psi, graph.add(module.theta, e, graph.add(module.phi, d)))
    gate = graph.node("Sigmoid", z)
    kept = graph.node("Mul", e, gate)
    if module.kind != "blend":
        return kept
    return graph.node("Add", kept, graph.node("Mul", d, graph.node("Sub", np.float32(1), gate)))


# -- the network ------------------------------------------------------------------------------------------------------


@emit.register(DecoderStage)
def _(module: DecoderStage, graph: Graph, d: Value, e: Value) -> Value:
    d = graph.add(module.up, d)
    return graph.add(module.block, (d, graph.add(module.gate, e, d) if module.gate else e))


@emit.register(UNet)
def _(module: UNet, graph: Graph, x: Value) -> Value:
    skips = []
    for k, stage in enumerate(module.encoders):
        x = graph.add(stage, x)
        if module.pyramids and k > 0:
            x = graph.add(module.pyramids[k - 1], x)
        skips.append(x)
        x = graph.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add(module.bottleneck, graph.add(module.middle, x))
    for stage, skip in zip(module.decoders, reversed(skips), strict=True):
        x = graph.add(stage, x, skip)
    logits = graph.add(module.head, x)
    binary = module.head.weight.shape[3] == 1
    return graph.node("Pad", logits, [0, 1, 0, 0, 0, 0, 0, 0]) if binary else logits
