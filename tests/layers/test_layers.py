"""Blocks and the whole network: gradients of inputs and parameters together, shapes, flags, state."""

from __future__ import annotations

import re

import numpy as np
import pytest

import layers
from autograd import Tensor, assert_gradients, ops, random
from engine.gradcheck.catalogue.blocks import BLOCKS, prepared
from kernels.loss import TERMS
from layers.bottleneck import bottleneck


def image(*shape: int, seed: int = 1) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize("name", BLOCKS)
def test_block_gradients_of_inputs_and_parameters(name: str) -> None:
    make, shapes = BLOCKS[name]
    module = prepared(make())
    inputs = [image(*shape, seed=k) for k, shape in enumerate(shapes)]
    report = assert_gradients(module, *inputs, parameters=module.parameters(), name=name)
    assert report.evaluations < 40


@pytest.mark.parametrize("loss", [layers.CombinedLoss, layers.CrossEntropyLoss, layers.LovaszLoss])
def test_whole_network_gradients(loss) -> None:
    """Width 4, image, every parameter, in training mode, through the loss."""
    net = prepared(layers.UNet(width=4, dropout=0.0, seed=0))
    labels = np.random.default_rng(0).integers(0, 5, (2, 16, 24))
    criterion = loss((0, 1, 2, 1, 3), background="mask")
    x = image(2, 16, 24, 1)
    assert_gradients(lambda x: criterion(net(x), labels), x, parameters=net.parameters(), name="UNet")


@pytest.mark.parametrize(
    "settings",
    [
        {"bottleneck": "aspp+psa"},
        {"bottleneck": "psa", "psa_mode": "parallel"},
        {"bottleneck": "mhsa"},
        {"bottleneck": "none", "skips": "plain", "encoder": "plain"},
        {"encoder": "residual", "preactivation": True, "gate": "gau"},
        {"order": "parallel", "five": "3x3+3x3"},
        {"gate": "blend", "fppm": True},
    ],
    ids=lambda s: " ".join(map(str, s.values())),
)
def test_every_variant_of_the_network(settings: dict) -> None:
    net = prepared(layers.UNet(width=4, dropout=0.0, seed=0, size=(16, 24), **settings))
    x = image(2, 16, 24, 1)
    assert net(x).shape == (2, 16, 24, 5)
    assert_gradients(lambda x: net(x), x, parameters=net.parameters(), name=str(settings))


def test_network_size_is_the_papers() -> None:
    """Width 16 has .79 M parameters and .70 GFLOP, width 32 has 3.15 M and 2.79 GFLOP (within a few percent:
    details differ).
    """
    for width, parameters, flops in ((8, 0.20e6, 0.18e9), (16, 0.79e6, 0.70e9), (32, 3.15e6, 2.79e9)):
        size = layers.measure(layers.UNet(width=width))
        assert size.parameters == pytest.approx(parameters, rel=0.03)
        assert size.flops == pytest.approx(flops, rel=0.1)
        assert "M parameters" in str(size)
        assert size.by_operator["Conv2d"] + size.by_operator["Conv2dReLU"] > 0.9 * size.flops


def test_flops_of_a_convolution_by_hand() -> None:
    class Wrapped(layers.Module):
        def __init__(self) -> None:
            self.conv = layers.Conv2d(3, 8, 3, padding="same", bias=False)

        def forward(self, x):
            return self.conv(x)

    size = layers.measure(Wrapped(), (1, 10, 12, 3))
    assert size.flops == 2 * 10 * 12 * 3 * 3 * 3 * 8
    assert size.activations == 10 * 12 * 8 * 4


def test_seed_fixes_the_weights_and_nothing_else_does() -> None:
    a, b, c = (layers.UNet(width=4, seed=s).state_dict() for s in (1, 1, 2))
    assert all((a[k] == b[k]).all() for k in a)
    assert any((a[k] != c[k]).any() for k in a)


def test_residual_branches_start_silent() -> None:
    block = layers.ResidualBlock(4, 4).eval()
    x = Tensor(np.abs(image(1, 5, 5, 4).data).astype(np.float32))
    assert (block(x).data == x.data).all()
    e, d = Tensor(np.ones((1, 2, 2, 4), np.float32)), Tensor(np.zeros((1, 2, 2, 4), np.float32))
    random.seed(0)
    open_share = [layers.AttentionGate(4).eval()(e, d).data.mean() for _ in range(50)]  # the weights are random
    assert 0.5 < np.median(open_share) <= 1.0


def test_transposed_convolution_starts_as_nearest_upsampling() -> None:
    up = layers.ConvTranspose2d(3, 4, 2, 2)
    y = up(Tensor(image(1, 2, 3, 3).data.astype(np.float32))).data
    assert (y[:, ::2, ::2] == y[:, 1::2, 1::2]).all()
    assert (y[:, ::2, ::2] == y[:, ::2, 1::2]).all()


def test_training_and_evaluation_mode() -> None:
    net = layers.UNet(width=4, seed=0)
    x = Tensor(image(2, 16, 16, 1).data.astype(np.float32))
    before = net.state_dict()
    net.eval()
    assert (net(x).data == net(x).data).all()
    assert all((before[k] == v).all() for k, v in net.state_dict().items())
    net.train()
    net(x)
    changed = [k for k, v in net.state_dict().items() if (before[k] != v).any()]
    assert changed
    assert all("running" in k for k in changed)


def test_state_round_trip_and_its_errors() -> None:
    a, b = layers.UNet(width=4, seed=1), layers.UNet(width=4, seed=2)
    state = a.state_dict()
    b.load_state_dict(state)
    assert all((state[k] == v).all() for k, v in b.state_dict().items())
    with pytest.raises(ValueError, match=r"missing head\.weight"):
        b.load_state_dict({k: v for k, v in state.items() if k != "head.weight"})
    with pytest.raises(ValueError, match="unknown tail"):
        b.load_state_dict({**state, "tail": np.zeros(3)})
    with pytest.raises(ValueError, match=r"head.bias has shape \(4,\), expected \(5,\)"):
        b.load_state_dict({**state, "head.bias": np.zeros(4)})


def test_parameters_that_decay() -> None:
    net = layers.UNet(width=4)
    for name, parameter in net.named_parameters():
        assert parameter.decay == (parameter.ndim > 1 or name.endswith("channel_query")), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.UNet(width=6), "width is 6, expected a positive multiple of 4"),
        (lambda: layers.UNet(width=4, bottleneck="aspp"), "bottleneck is 'aspp', expected one of aspp"),
        (lambda: layers.UNet(width=4, skips="open"), "skips is 'open'"),
        (lambda: layers.UNet(width=4, encoder="vgg"), "encoder is 'vgg'"),
        (lambda: layers.UNet(width=4, gate="attn"), "kind is 'attn'"),
        (lambda: layers.UNet(width=4, classes=0), "classes is 0"),
        (
            lambda: layers.UNet(width=4)(Tensor(np.zeros((1, 12, 16, 1), np.float32))),
            r"\(1, 12, 16, 1\), expected .* multiples of 8",
        ),
        (lambda: layers.InceptionBlock(4, 6), "out_channels is 6, expected a multiple of 4"),
        (lambda: layers.InceptionBlock(4, 8, "7x7"), "five is '7x7'"),
        (lambda: layers.Conv2d(3, 4, 3, groups=2), "groups = 2 must divide"),
        (lambda: layers.ConvTranspose2d(3, 4, 3, groups=2), "groups = 2 must divide"),
        (lambda: layers.MultiHeadSelfAttention(6, 4), "heads = 4 must divide the 6"),
        (lambda: layers.PolarizedSelfAttention(4, "both"), "mode is 'both'"),
        (lambda: layers.AttentionAndStrips(4, "random"), "order is 'random'"),
        (lambda: layers.MiniASPP(4, 8, residual=True), "got 8 and 4"),
        (lambda: layers.StripPyramidPooling(4, strip_kernel=2), "strip_kernel is 2"),
        (lambda: layers.AttentionGate(4, 6, "blend"), "got 4 and 6"),
        (lambda: layers.Dropout(1.0), "p is 1.0"),
        (lambda: layers.FeaturePyramidAttention(4)(image(1, 4, 8, 4)), "multiples of 8"),
        (lambda: layers.CombinedLoss(terms={"hinge": 1}), "unknown term 'hinge'"),
        (lambda: layers.CombinedLoss(background="ignore"), "background of all terms is 'ignore'"),
    ],
)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


OF_MAPS = {
    "AttentionAndStrips": lambda: layers.AttentionAndStrips(8),
    "AttentionGate": lambda: layers.AttentionGate(8),
    "Conv2d": lambda: layers.Conv2d(8, 8, 1),
    "ConvNorm": lambda: layers.ConvNorm(8, 8, 1),
    "Dropout2d": lambda: layers.Dropout2d(0.5),
    "FeaturePyramidAttention": lambda: layers.FeaturePyramidAttention(8),
    "FeaturePyramidPooling": lambda: layers.FeaturePyramidPooling(8),
    "InceptionBlock": lambda: layers.InceptionBlock(8, 8),
    "MiniASPP": lambda: layers.MiniASPP(8),
    "MixedPooling": lambda: layers.MixedPooling(8),
    "MultiHeadSelfAttention": lambda: layers.MultiHeadSelfAttention(8),
    "PolarizedSelfAttention": lambda: layers.PolarizedSelfAttention(8),
    "PreActivationBlock": lambda: layers.PreActivationBlock(8, 8),
    "ResidualBlock": lambda: layers.ResidualBlock(8, 8),
    "StripPooling": lambda: layers.StripPooling(8),
    "StripPyramidPooling": lambda: layers.StripPyramidPooling(8),
    "UNet": layers.UNet,
}


@pytest.mark.parametrize("shape", [(8,), (2, 8), (1, 1, 1, 1, 8)])
@pytest.mark.parametrize("name", OF_MAPS)
def test_maps_of_another_number_of_axes_are_refused_in_one_line(name: str, shape: tuple[int, ...]) -> None:
    """By the module, or by the operator that it starts with."""
    module, x = OF_MAPS[name](), Tensor(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=rf"^\w+: .*x .*{re.escape(str(shape))}"):
        module(*([x, x] if name == "AttentionGate" else [x]))


def test_losses_report_their_terms_separately() -> None:
    rng = np.random.default_rng(0)
    logits, labels = Tensor(rng.standard_normal((2, 4, 5, 5))), rng.integers(0, 5, (2, 4, 5))
    combined = layers.CombinedLoss((0, 1, 1, 1, 5))
    total = combined(logits, labels).item()
    terms = {k: float(v) for k, v in combined.terms.items()}
    assert total == pytest.approx(0.4 * terms["margin"] + 0.2 * (terms["dice"] + terms["focal"] + terms["iou"]))
    assert terms["margin"] == pytest.approx(
        0.99 * terms["margin_false_negative"] + 0.01 * terms["margin_false_positive"]
    )
    for cls, name in (
        (layers.DiceLoss, "dice"),
        (layers.FocalLoss, "focal"),
        (layers.IoULoss, "iou"),
        (layers.MarginLoss, "margin"),
    ):
        assert cls((0, 1, 1, 1, 5))(logits, labels).item() == pytest.approx(terms[name])
    others = (layers.TverskyLoss, layers.FocalTverskyLoss, layers.GeneralizedDiceLoss, layers.MCCLoss)
    for cls in (layers.CrossEntropyLoss, layers.LovaszLoss, *others):
        assert np.isfinite(cls((0, 1, 1, 1, 5))(logits, labels).item())
    value, parts = ops.combined_loss(logits, labels, (0, 1, 1, 1, 5), return_terms=True)
    assert value.item() == total
    assert set(parts) == set(terms)


def test_masked_background_ignores_the_background_logit() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((1, 4, 5, 5)), rng.integers(0, 5, (1, 4, 5))
    other = logits.copy()
    other[..., 0] += 10
    other[labels == 0] = 7
    for term in TERMS:
        loss = layers.SegmentationLoss({term: 1.0}, background="mask")
        assert loss(Tensor(logits), labels).item() == loss(Tensor(other), labels).item()
        literal = layers.SegmentationLoss({term: 1.0})
        assert literal(Tensor(logits), labels).item() != literal(Tensor(other), labels).item()


def test_bottleneck_kinds() -> None:
    for kind in ("aspp+psa+spp", "aspp+psa", "psa", "mhsa", "none"):
        module = bottleneck(kind, 8, (4, 6))
        assert module(Tensor(np.ones((2, 4, 6, 8), np.float32))).shape == (2, 4, 6, 8)


def test_dropout2d_drops_whole_channels_and_hands_the_same_mask_to_the_gradient() -> None:
    x = Tensor(np.random.default_rng(0).standard_normal((40, 3, 5, 50)).astype(np.float32), requires_grad=True)
    drop = layers.Dropout2d(0.3)
    y = drop(x)
    kept = (y.data != 0).all((1, 2))
    assert (kept | (y.data == 0).all((1, 2))).all()
    assert 0.65 < kept.mean() < 0.75
    np.testing.assert_allclose(y.data, x.data * kept[:, None, None] / 0.7, rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.data, np.broadcast_to(kept[:, None, None] / np.float32(0.7), x.shape), rtol=1e-6)
    assert (drop(x).data != y.data).any(), "another mask for every call"
    drop.eval()
    assert drop(x) is x
    with pytest.raises(ValueError, match=r"Dropout2d: x has shape \(3, 4\), expected \(N, H, W, C\)"):
        drop(x[0, 0, :, :4][:3])
