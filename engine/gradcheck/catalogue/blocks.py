"""Layers, blocks and the whole network, checked with respect to their inputs and all their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import layers
from autograd import no_grad
from engine.gradcheck.catalogue.entry import Built, Entry
from engine.gradcheck.catalogue.makers import labels, normal

Shape = tuple[int, ...]


def prepared(module: layers.Module, seed: int = 0) -> layers.Module:
    """float64, and no gain, offset or output projection at a special value: a silent branch would have no gradient to
    check.
    """
    rng = np.random.default_rng(seed)
    module.to(dtype=np.float64)
    with no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1 or not parameter.data.any():
                parameter.copy_(rng.uniform(0.4, 1.2, parameter.shape) * rng.choice((-1, 1), parameter.shape))
    return module


BLOCKS: dict[str, tuple[Callable[[], layers.Module], list[Shape]]] = {
    "Conv2d": (lambda: layers.Conv2d(4, 6, 3, stride=2, padding=1), [(2, 5, 7, 4)]),
    "Conv2d groups": (lambda: layers.Conv2d(4, 6, (3, 1), padding="same", groups=2, bias=False), [(2, 5, 7, 4)]),
    "ConvTranspose2d": (lambda: layers.ConvTranspose2d(4, 3, 2, 2), [(2, 3, 4, 4)]),
    "ConvTranspose2d general": (lambda: layers.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), [(2, 3, 4, 4)]),
    "ConvNorm": (lambda: layers.ConvNorm(4, 5, 3), [(2, 5, 6, 4)]),
    "ConvNorm residual": (lambda: layers.ConvNorm(4, 5, 3), [(2, 5, 6, 4), (2, 5, 6, 5)]),
    "BatchNorm2d": (lambda: layers.BatchNorm2d(4), [(2, 5, 6, 4)]),
    "LayerNorm": (lambda: layers.LayerNorm(4), [(2, 5, 6, 4)]),
    "GroupNorm": (lambda: layers.GroupNorm(2, 6), [(2, 3, 4, 6)]),
    "InstanceNorm2d": (lambda: layers.InstanceNorm2d(4, affine=True), [(2, 3, 4, 4)]),
    "RMSNorm": (lambda: layers.RMSNorm(4), [(2, 5, 4)]),
    "Linear": (lambda: layers.Linear(4, 3), [(2, 5, 4)]),
    "Conv1d": (lambda: layers.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), [(2, 9, 4)]),
    "ResidualBlock": (lambda: layers.ResidualBlock(4, 4), [(2, 5, 6, 4)]),
    "ResidualBlock wider": (lambda: layers.ResidualBlock(3, 6), [(2, 5, 6, 3)]),
    "PreActivationBlock": (lambda: layers.PreActivationBlock(3, 6), [(2, 5, 6, 3)]),
    "InceptionBlock": (lambda: layers.InceptionBlock(8, 8), [(2, 6, 7, 8)]),
    "InceptionBlock 3x3+3x3": (lambda: layers.InceptionBlock(4, 8, "3x3+3x3"), [(2, 6, 7, 4)]),
    "InceptionBlock no residual": (lambda: layers.InceptionBlock(4, 8, residual=False), [(2, 6, 7, 4)]),
    "encoder stage": (lambda: layers.encoder_stage("residual+inception", 1, 4), [(2, 6, 7, 1)]),
    "encoder stage residual": (lambda: layers.encoder_stage("residual", 3, 4), [(2, 6, 7, 3)]),
    "encoder stage plain": (lambda: layers.encoder_stage("plain", 3, 4), [(2, 6, 7, 3)]),
    "MiniASPP": (lambda: layers.MiniASPP(8), [(2, 6, 9, 8)]),
    "MiniASPP residual": (lambda: layers.MiniASPP(8, rates=(1, 3), pooling=False, residual=True), [(2, 6, 9, 8)]),
    "PolarizedSelfAttention": (lambda: layers.PolarizedSelfAttention(6), [(2, 3, 5, 6)]),
    "PolarizedSelfAttention parallel": (
        lambda: layers.PolarizedSelfAttention(6, "parallel", residual=False),
        [(2, 3, 5, 6)],
    ),
    "MultiHeadSelfAttention": (lambda: layers.MultiHeadSelfAttention(8, 2, (3, 4)), [(2, 3, 4, 8)]),
    "MultiHeadSelfAttention other size": (lambda: layers.MultiHeadSelfAttention(8, 2, (3, 4)), [(2, 4, 6, 8)]),
    "StripPyramidPooling": (lambda: layers.StripPyramidPooling(8), [(2, 6, 9, 8)]),
    "StripPyramidPooling bins": (lambda: layers.StripPyramidPooling(8, 4, (1,), 3, bins=(1, 2)), [(2, 6, 9, 8)]),
    "StripPooling": (lambda: layers.StripPooling(4), [(2, 5, 6, 4)]),
    "MixedPooling": (lambda: layers.MixedPooling(8, ((2, 3), (1, 2))), [(2, 5, 6, 8)]),
    "AttentionAndStrips": (lambda: layers.AttentionAndStrips(8), [(2, 4, 6, 8)]),
    "AttentionAndStrips parallel": (lambda: layers.AttentionAndStrips(8, "parallel"), [(2, 4, 6, 8)]),
    "FeaturePyramidPooling": (lambda: layers.FeaturePyramidPooling(8), [(2, 8, 8, 8)]),
    "FeaturePyramidAttention": (lambda: layers.FeaturePyramidAttention(8), [(2, 8, 16, 8)]),
    **{
        f"AttentionGate {kind}": (lambda kind=kind: layers.AttentionGate(4, 4, kind), [(2, 5, 6, 4)] * 2)  # type: ignore[misc]
        for kind in ("attn1", "attnC", "blend", "gau")
    },
    "DecoderStage": (lambda: layers.DecoderStage(6, 4, "gated", "attn1"), [(2, 3, 4, 6), (2, 6, 8, 4)]),
    "DecoderStage plain": (lambda: layers.DecoderStage(6, 4, "plain", "attn1"), [(2, 3, 4, 6), (2, 6, 8, 4)]),
}


def block(make: Callable[[], layers.Module], shapes: list[Shape]) -> Callable[..., Built]:
    """A builder for a module: fresh weights, random images of `shapes`; `shape` replaces the first."""

    def build(rng: np.random.Generator, *, shape: Shape = shapes[0]) -> Built:
        with layers.seeded(int(rng.integers(2**31))):
            module = prepared(make(), int(rng.integers(2**31)))
        arrays = [normal(*s)(rng) for s in (shape, *shapes[1:])]
        return Built(module, arrays, ["x", "second input"][: len(arrays)], module)

    return build


def network(
    rng: np.random.Generator, *, shape: Shape = (2, 16, 24, 1), width: int = 4, loss: str = "combined", **settings: Any
) -> Built:
    """layers.UNet in training mode through a loss: combined, cross_entropy, lovasz, dice, iou, focal or margin."""
    terms = {"lovasz": 1.0} if loss == "lovasz" else None if loss == "combined" else {loss: 1.0}
    settings.setdefault("dropout", 0.0)
    net = prepared(layers.UNet(width=width, in_channels=shape[-1], seed=int(rng.integers(2**31)), **settings))
    criterion = layers.CombinedLoss((0, 1, 2, 1, 3), background="mask", terms=terms)
    y = labels(*shape[:-1])(rng)

    def fn(x: Any) -> Any:
        from kernels.core.device import to_device

        return criterion(net(x), to_device(y, x.device))

    return Built(fn, [normal(*shape)(rng)], ["image"], net)


def _doc(make: Callable[[], layers.Module]) -> Any:
    """The class whose docstring describes the block, looked up when it is needed."""
    return type(make())


def entries() -> list[Entry]:
    """All blocks, then the network."""
    found = [Entry(name, "block", block(make, shapes), _doc(make)) for name, (make, shapes) in BLOCKS.items()]
    return [*found, Entry("UNet", "network", network, layers.UNet, ({}, {"loss": "cross_entropy"}))]
