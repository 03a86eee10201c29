"""The ONNX graph against the network: in float64, by the rule for fast kernels; for every option, batch and size."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import layers
from autograd import Tensor, inference
from engine.build import build_network
from engine.inference import labels_of, predict_logits
from engine.training.checkpoint import Checkpoint
from kernels.core.dispatch import use_kernels
from tests.support.fast_rule import judge
from tests.support.misprints import Mutant, assert_caught, planted
from tests.support.paths import REAL_TILES
from tests.support.random_networks import FORMS, OPTIONS, random_checkpoint, randomise

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing runs a graph")

from engine.export import check, model  # noqa: E402 - both need onnx to run
from engine.export.graph import ExportError, Graph, emit  # noqa: E402

SIZES = ((4, 8, 8), (3, 24, 40), (2, 64, 16))  # one pixel in the bottleneck; odd numbers there; fewer than four bands


def definitions(checkpoint: Checkpoint, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(logits of the definitions in float32, in float64) of tiles as they are stored."""
    exact = build_network(checkpoint.config, checkpoint.form)
    exact.load_state_dict(checkpoint.net.state_dict())
    exact.to(dtype=np.float64).eval()
    x = checkpoint.normalisation(checkpoint.normalisation.unit(images))
    with inference(), use_kernels("reference"):
        return checkpoint.net(Tensor(x)).data, exact(Tensor(x.astype(np.float64))).data


def assert_same(checkpoint: Checkpoint, batches: list[np.ndarray]) -> None:
    """One graph takes all batches: logits by the rule, labels those of its logits, as `labels_of` reads them."""
    run, _ = check.runtime(model.onnx_model(checkpoint))
    found: list[tuple[np.ndarray, ...]] = []
    for images in batches:
        logits, labels = run(images)
        naive, exact = definitions(checkpoint, images)
        assert logits.shape == exact.shape
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, labels_of(logits, checkpoint.barred))
        assert not np.isin(labels, checkpoint.barred).any()
        found.append((logits.ravel(), naive.ravel(), exact.ravel()))
    judge("onnx", *(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def assert_option(name: str) -> None:
    checkpoint = random_checkpoint(**OPTIONS[name])
    rng = np.random.default_rng(1)
    assert_same(checkpoint, [check.noise(shape, checkpoint.form, checkpoint.normalisation, rng) for shape in SIZES])


def assert_form(name: str) -> None:
    form, normalisation, settings = FORMS[name]
    checkpoint = random_checkpoint(form, normalisation, bottleneck="none", **settings)
    images = check.noise((2, 16, 24), form, normalisation, np.random.default_rng(2))
    assert images.dtype == form.dtype
    assert_same(checkpoint, [images])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    assert_option(name)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_tiles(name: str) -> None:
    assert_form(name)


def test_every_layer_that_can_be_exported_is_in_one_of_these_networks() -> None:
    inside = {type(module) for settings in OPTIONS.values() for module in random_checkpoint(**settings).net.modules()}
    assert set(emit.registry) - {object} <= inside


# -- settings that no network here has --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        layers.Conv2d(4, 6, (3, 2), (2, 1), ((0, 2), (1, 0)), (1, 2), groups=2),
        layers.Conv2d(4, 6, (2, 4), padding="same", bias=False),
        layers.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=2, dilation=(2, 1)),
        layers.BatchNorm2d(4, eps=1e-2),
        layers.MiniASPP(4, rates=(1, 3), pooling=False, residual=True),
        layers.StripPyramidPooling(4, scales=(3,), strip_kernel=3, bins=(1, 3)),
        layers.PolarizedSelfAttention(4, residual=False, eps=1e-2),
        layers.ResidualBlock(4, 4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_layer_alone(module: layers.Module) -> None:
    randomise(module, np.random.default_rng(3))
    graph = Graph(module.eval())
    graph.named(graph.add(module, "x"), "y")
    dims = ["n", 4, "h", "w"]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "layer",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in graph.arrays.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(4).standard_normal((2, 7, 10, 4)).astype(np.float32)
    (y,) = session.run(None, {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
    with inference(), use_kernels("reference"):
        naive = module(Tensor(x)).data
        exact = module.to(dtype=np.float64)(Tensor(x.astype(np.float64))).data
    judge(type(module).__name__, y.transpose(0, 2, 3, 1), naive, exact)


# -- what the file says -----------------------------------------------------------------------------------------------


def test_the_interface() -> None:
    """Names, types and free axes; opset and version of old runtimes; weights by the names that PyTorch's twin has."""
    form, normalisation, _ = FORMS["rgb"]
    checkpoint = random_checkpoint(form, normalisation, record={"epoch": 3})
    content = model.onnx_model(checkpoint)
    assert content == model.onnx_model(checkpoint)
    made = onnx.load_from_string(content)
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 17)]
    assert (made.ir_version, made.producer_name) == (8, "areograd")

    def described(values: Any) -> dict[str, tuple[int, list[Any]]]:
        return {
            v.name: (v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values
        }

    kinds = onnx.TensorProto
    assert described(made.graph.input) == {"images": (kinds.UINT8, ["batch", "height", "width", 3])}
    assert described(made.graph.output) == {
        "logits": (kinds.FLOAT, ["batch", "height", "width", 5]),
        "labels": (kinds.UINT8, ["batch", "height", "width"]),
    }
    arrays = {entry.name: onnx.numpy_helper.to_array(entry) for entry in made.graph.initializer}
    state = checkpoint.net.state_dict()
    assert state.keys() <= arrays.keys()
    name = "encoders.0.steps.0.first.conv.weight"
    np.testing.assert_array_equal(arrays[name], np.einsum("rsck->kcrs", state[name]))

    known = {entry.key: json.loads(entry.value) for entry in made.metadata_props}
    assert known["classes"] == ["background", "soil", "bedrock", "sand", "big rock"]
    assert known["palette"][1] == "#c9a36a"
    assert known["never_predicted"] == []
    assert known["normalisation"] == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1], "low": 0.0, "high": 255.0}
    assert known["scores"] == {"epoch": 3}
    assert known["network"]["width"] == 4


@pytest.mark.skipif(not REAL_TILES.exists(), reason=f"{REAL_TILES} is not there")
def test_masks_and_logits_of_real_tiles() -> None:
    """Those of `predict_logits`, with our fast kernels: masks differ only where two logits are as close as rounding."""
    with np.load(REAL_TILES) as file:
        images = file["training_set"][:8, 0]
    checkpoint = random_checkpoint(width=8)
    logits, labels = check.runtime(model.onnx_model(checkpoint))[0](images)
    naive, exact = definitions(checkpoint, images)
    judge("onnx", logits, naive, exact)
    ours = predict_logits(checkpoint.net, images, checkpoint.normalisation)
    error = np.abs(ours - exact).max() + np.abs(logits - exact).max()
    assert np.abs(ours - logits).max() <= error
    first, second = np.sort(exact[..., 1:])[..., [-1, -2]].transpose(3, 0, 1, 2)
    unlike = labels != labels_of(ours, checkpoint.barred)
    assert (first - second)[unlike].max(initial=0) <= 2 * error
    assert unlike.mean() < 1e-4
    assert len(np.unique(labels)) == 4


# -- what is refused --------------------------------------------------------------------------------------------------


def test_an_operator_without_a_form_is_named() -> None:
    checkpoint = random_checkpoint()
    checkpoint.net.bottleneck = layers.StripPooling(32)
    with pytest.raises(ExportError, match=r"^onnx: the operator StripPooling has no ONNX form here$"):
        model.onnx_model(checkpoint)
    checkpoint.net.bottleneck = layers.BatchNorm2d(32, activation="gelu")
    with pytest.raises(ExportError, match="the operator BatchNorm2d with activation 'gelu' has no ONNX form here"):
        model.onnx_model(checkpoint)


def test_a_network_that_no_onnx_file_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_MOST", 1000)
    with pytest.raises(
        ExportError, match=r"onnx: the network takes [\d,]+ bytes, but an ONNX file holds at most 1,000"
    ):
        model.onnx_model(random_checkpoint())


def test_a_graph_that_is_not_the_network_is_refused() -> None:
    """One weight in fifty thousand."""
    checkpoint = random_checkpoint()
    content = model.onnx_model(checkpoint)
    found = check.agreement(content, checkpoint)
    assert found.error <= 3 * found.own
    assert (found.unlike, found.pixels) == (0, 2304)
    assert found.by.startswith("onnxruntime ")
    checkpoint.net.bottleneck.steps[0].point.conv.weight.data[0, 0, 0, 0] += np.float32(0.5)
    with pytest.raises(ExportError, match=r"^onnx: the graph is not the network: its logits, up to .* differ by "):
        check.agreement(content, checkpoint)


def test_labels_that_are_not_those_of_the_logits_are_refused() -> None:
    checkpoint = random_checkpoint(bottleneck="none")
    content = model.onnx_model(checkpoint)
    with pytest.raises(ExportError, match=r"^onnx: the graph's labels are not those of its logits"):
        check.agreement(content, replace(checkpoint, form=replace(checkpoint.form, absent=(2,))))


def test_without_a_runtime_the_evaluator_of_onnx_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(bottleneck="aspp+psa", fppm=True)
    checkpoint.net.decoders[0].gate.psi.bias.data[...] = -200  # a gate that is shut
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    warnings.simplefilter("error")
    found = check.agreement(model.onnx_model(checkpoint), checkpoint)
    assert found.by.startswith("onnx ")
    assert found.error <= 3 * found.own


# -- planted mistakes --------------------------------------------------------------------------------------------------


def assert_strips() -> None:
    assert_option("default")


def assert_pyramids() -> None:
    assert_option("fppm")


def assert_absent_classes() -> None:
    assert_form("absent")


def assert_levels() -> None:
    assert_form("float32")


MUTANTS = [
    Mutant(
        "bins end one row too early",
        "engine.export.graph:Graph._bins",
        '"Sub", bins, [1]',
        '"Sub", bins, bins',
        assert_pyramids,
    ),
    Mutant("corners are aligned", "engine.export.graph:Graph.resized", "half_pixel", "align_corners", assert_strips),
    Mutant("nearest neighbours", "engine.export.graph:Graph.resized", '"linear"', '"nearest"', assert_strips),
    Mutant("absent classes are predicted", "engine.export.model:_labels", "-np.inf", "0", assert_absent_classes),
    Mutant(
        "the lowest level is not 0",
        "engine.export.model:_standardised",
        '"Sub", x, np.float32(normalisation.low)',
        '"Sub", x, np.float32(0)',
        assert_levels,
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
