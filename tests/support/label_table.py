"""Every public function that takes labels, masks or indices: how to call it, and which values are right. `found` lists
what the packages have.

A row's call gets the array alone, and returns what depends on it. Rows for `host` run on the CPU only. Arguments that
are one number have rows of their own, in `NUMBERS`; EXEMPT says of the rest why no value of theirs is wrong.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import engine
import kernels
import layers
from autograd import Tensor, ops
from engine.data import Tiles, class_weights, clean, pixel_counts
from engine.data.tiles import check_masks
from engine.inference import Normalisation, evaluate_confusion
from engine.training import batches, boundary, metrics, plots
from engine.training.augmentation import Augmentation
from engine.training.mixing import Mixing
from kernels import augment, loss, metric
from kernels.core.device import device_of, to_device
from kernels.core.dispatch import registry

ARGUMENT = re.compile(r"labels?|masks?|truth|prediction|index|indices|rare|outside|ignore_index|padding_idx")


def found() -> Iterator[str]:
    """function(argument) of every public function whose argument's name says that it holds labels, masks or indices."""
    for info in pkgutil.iter_modules(kernels.__path__, "kernels."):
        importlib.import_module(info.name)  # which fills the registry
    named: list[tuple[str, Callable[..., Any]]] = [(f"ops.{name}", getattr(ops, name)) for name in ops.__all__]
    named += [(f"kernels.{name}", operator.reference) for name, operator in registry.items()]
    for name in layers.__all__:
        if hasattr(getattr(layers, name), "forward"):
            named += [
                (f"layers.{name}", getattr(layers, name)),
                (f"layers.{name}.forward", getattr(layers, name).forward),
            ]
    named += [
        (f"Tensor.{name}", method)
        for name, method in inspect.getmembers(Tensor, inspect.isfunction)
        if not name.startswith("_")
    ]
    named += [("Tensor.__getitem__", Tensor.__getitem__), ("Tensor.__setitem__", Tensor.__setitem__)]
    for module in _modules(engine):
        for name, value in vars(module).items():
            if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_") and callable(value):
                named.append((f"{module.__name__}.{name}", value))
                if inspect.isclass(value):
                    named += [
                        (f"{module.__name__}.{name}.{key}", method)
                        for key, method in inspect.getmembers(value, inspect.isfunction)
                        if not key.startswith("_") or key in ("__call__", "__getitem__")
                    ]
    seen = set()
    for name, function in named:
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            continue
        for parameter in parameters:
            if ARGUMENT.fullmatch(parameter) and (name, parameter) not in seen:
                seen.add((name, parameter))
                yield f"{name}({parameter})"


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


class Row(NamedTuple):
    """function(argument), the call, the values that are right, from low to high, the array's shape, the ignored label,
    the error of a wrong value.
    """

    name: str
    call: Callable[[Any], Any]
    high: int
    shape: tuple[int, ...] = (2, 3, 4)
    low: int = 0
    ignored: int | None = None
    error: type[Exception] = ValueError
    host: bool = False
    masks: bool = False  # a boolean array is another, right argument
    uint8: bool = False  # other integers are refused for their dtype

    def right(self, dtype: str) -> np.ndarray:
        """An array of right values."""
        low = max(self.low, 0) if dtype.startswith("u") else self.low
        return np.random.default_rng(1).integers(low, self.high + 1, self.shape).astype(dtype)


SPEC = ops.make_spec({"cross_entropy": 1.0, "dice": 1.0})
IGNORING = ops.make_spec({"focal": 1.0}, ignore_index=7)
VARIED = ops.make_spec({"margin": 1.0, "dice": 1.0}, background={"dice": "mask"})  # served by no fast kernel


def _like(values: np.ndarray, other: Any, dtype: str = "float32") -> Any:
    return to_device(np.asarray(values, dtype), device_of(other))


def _logits(labels: Any) -> Any:
    return _like(np.random.default_rng(0).standard_normal((*labels.shape, 5)), labels)


def _backward(labels: Any, spec: Any) -> Any:
    """The gradient with these labels, the state of forward from right ones."""
    z, one = _logits(labels), _like(np.ones(()), labels)
    state = loss.loss_forward(z, labels % 5 if labels.dtype.kind in "iu" else labels, spec)[2]
    return loss.loss_backward(one, z, labels, spec, state)


def _loss(operator: Callable[..., Any], **settings: Any) -> Callable[[Any], Any]:
    return lambda labels: operator(Tensor(_logits(labels)), labels, **settings)


def _augmented(masks: Any, augmentation: Any) -> Any:
    images = np.zeros(masks.shape, np.float32)
    return augmentation(images, masks, np.random.default_rng(0))


class _Net(layers.Module):
    """Logits of a network that does not look at its images."""

    def __init__(self, like: Any) -> None:
        self.place = layers.Parameter(_like(np.zeros(()), like))

    def forward(self, x: Tensor) -> Tensor:
        return Tensor(_like(np.zeros((*x.shape[:3], 5)), x.data))


def evaluated(masks: Any, ignored: int | None = None) -> Any:
    images = _like(np.zeros(masks.shape), masks, "uint8")
    return evaluate_confusion(_Net(masks), images, masks, Normalisation(0.5, 0.25), ignored=ignored)


def _tiles(masks: np.ndarray) -> Tiles:
    return Tiles(np.zeros(masks.shape, np.uint8), masks)


def _zeros(index: Any, *shape: int) -> Tensor:
    return Tensor(_like(np.zeros(shape), index))


def _set(index: Any) -> Any:
    x = _zeros(index, 4, 6)
    x[:, index] = 1.0
    return x


LOSSES = ("combined_loss", "cross_entropy", "dice_loss", "focal_loss", "iou_loss", "lovasz_softmax", "margin_loss")
LOSSES += (
    "focal_tversky_loss",
    "generalized_dice_loss",
    "mcc_loss",
    "tversky_loss",
    "jaccard_metric_loss",
    "dice_semimetric_loss",
    "top_k_loss",
)
LOSSES += ("boundary_loss",)
MODULES = ("CombinedLoss", "CrossEntropyLoss", "DiceLoss", "FocalLoss", "IoULoss", "LovaszLoss", "MarginLoss")
MODULES += (
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "MCCLoss",
    "TverskyLoss",
    "JaccardMetricLoss",
    "DiceSemimetricLoss",
    "TopKLoss",
    "BoundaryLoss",
    "UnifiedFocalLoss",
)
ROWS = [
    *(Row(f"ops.{name}(labels)", _loss(getattr(ops, name)), 4) for name in LOSSES),
    *(
        Row(f"ops.{name}(labels), ignored", _loss(getattr(ops, name), ignore_index=255), 4, ignored=255)
        for name in LOSSES
    ),
    *(Row(f"ops.{name}(labels), masked", _loss(getattr(ops, name), background="mask"), 4) for name in LOSSES),
    Row("ops.segmentation_loss(labels)", lambda y: ops.segmentation_loss(Tensor(_logits(y)), y, VARIED)[0], 4),
    *(
        Row(f"layers.{name}.forward(labels)", lambda y, name=name: getattr(layers, name)()(Tensor(_logits(y)), y), 4)
        for name in MODULES
    ),
    Row(
        "layers.SegmentationLoss.forward(labels)",
        lambda y: layers.SegmentationLoss({"iou": 1.0}, ignore_index=-1)(Tensor(_logits(y)), y),
        4,
        ignored=-1,
    ),
    Row("kernels.loss_forward(labels)", lambda y: loss.loss_forward(_logits(y), y, SPEC)[0], 4),
    Row("kernels.loss_forward(labels), ignored", lambda y: loss.loss_forward(_logits(y), y, IGNORING)[0], 4, ignored=7),
    Row("kernels.loss_backward(labels)", lambda y: _backward(y, SPEC), 4),
    Row("kernels.loss_backward(labels), unfused", lambda y: _backward(y, VARIED), 4),
    Row("kernels.signed_distances(labels)", lambda y: loss.signed_distances(y, 5, "train", None, "float32"), 4),
    Row(
        "kernels.signed_distances(labels), ignored",
        lambda y: loss.signed_distances(y, 5, "mask", 7, "float32"),
        4,
        ignored=7,
    ),
    Row(
        "kernels.confusion_per_image(truth)",
        lambda t: metric.confusion_per_image(t, _like(np.zeros(t.shape), t, "int64"), 5),
        4,
    ),
    Row(
        "kernels.confusion_per_image(truth), bytes",
        lambda t: metric.confusion_per_image(t, _like(np.zeros(t.shape), t, "uint8"), 5),
        4,
    ),
    Row(
        "kernels.confusion_per_image(prediction)",
        lambda p: metric.confusion_per_image(_like(np.zeros(p.shape), p, "uint8"), p, 5),
        4,
    ),
    Row("engine.training.metrics.confusion_per_image(truth)", lambda t: metrics.confusion_per_image(t, t * 0), 4),
    Row("engine.training.metrics.confusion_per_image(prediction)", lambda p: metrics.confusion_per_image(p * 0, p), 4),
    Row("engine.training.metrics.confusion_matrix(truth)", lambda t: metrics.confusion_matrix(t, t * 0), 4, host=True),
    Row(
        "engine.training.metrics.confusion_matrix(prediction)",
        lambda p: metrics.confusion_matrix(p * 0, p),
        4,
        host=True,
    ),
    Row(
        "engine.training.boundary.boundary_counts(truth)",
        lambda t: boundary.boundary_counts(t, t * 0, np.ones(t.shape, bool), 5, 1),
        4,
        shape=(2, 8, 8),
        host=True,
    ),
    Row(
        "engine.training.boundary.boundary_counts(prediction)",
        lambda p: boundary.boundary_counts(p * 0, p, np.ones(p.shape, bool), 5, 1),
        4,
        shape=(2, 8, 8),
        host=True,
    ),
    Row("engine.inference.evaluate_confusion(masks)", evaluated, 4, shape=(2, 8, 8)),
    Row(
        "engine.inference.evaluate_confusion(masks), ignored",
        partial(evaluated, ignored=7),
        4,
        shape=(2, 8, 8),
        ignored=7,
        host=True,
    ),
    Row(
        "engine.training.augmentation.Augmentation.__call__(masks)",
        partial(_augmented, augmentation=Augmentation()),
        4,
        host=True,
    ),
    Row(
        "engine.training.mixing.Mixing.__call__(masks)",
        partial(_augmented, augmentation=Mixing(Augmentation(), None, 0.5)),
        4,
        host=True,
    ),
    Row("engine.training.batches.rare_tiles(masks)", batches.rare_tiles, 4, host=True),
    Row(
        "engine.training.batches.stratified_batches(rare)",
        lambda r: list(batches.stratified_batches(9, r, 4, 0.5, np.random.default_rng(0))),
        8,
        (3,),
        host=True,
    ),
    Row("engine.data.tiles.Tiles(masks)", _tiles, 4, host=True, uint8=True),
    Row("engine.data.cleaning.clean(tiles)", lambda m: clean(_tiles(m)), 4, host=True, uint8=True),
    Row("engine.data.tiles.check_masks(masks)", lambda m: check_masks("masks", m), 4, host=True),
    Row("engine.data.tiles.pixel_counts(masks)", pixel_counts, 4, host=True),
    Row(
        "engine.data.weights.class_weights(masks)", lambda m: class_weights(m, "median", background=True), 4, host=True
    ),
    Row("engine.training.plots.rgb(labels)", lambda y: plots.rgb(y), 4, host=True),
    Row("engine.training.plots.choose_rows(masks)", plots.choose_rows, 4, host=True),
    Row("ops.take(index)", lambda i: ops.take(_zeros(i, 4, 6), i, 1), 5, error=IndexError),
    Row("ops.gather(index)", lambda i: ops.gather(_zeros(i, 2, 5, 4), 1, i), 4, error=IndexError),
    Row(
        "ops.scatter_add(index)",
        lambda i: ops.scatter_add(_zeros(i, 2, 5, 4), 1, i, _zeros(i, 2, 3, 4)),
        4,
        error=IndexError,
    ),
    Row("ops.embedding(input)", lambda i: ops.embedding(i, _zeros(i, 9, 2)), 8, error=IndexError),
    Row("layers.Embedding.forward(index)", lambda i: ops.embedding(i, _zeros(i, 9, 2), 8), 8, error=IndexError),
    Row(
        "ops.getitem(index)", lambda i: ops.getitem(_zeros(i, 4, 6), (..., i)), 5, low=-6, error=IndexError, masks=True
    ),
    Row("Tensor.__getitem__(index)", lambda i: _zeros(i, 6, 4)[i], 5, low=-6, error=IndexError, masks=True),
    Row("Tensor.__setitem__(index)", _set, 5, low=-6, error=IndexError, masks=True),
]

EXEMPT = {
    r"(kernels|ops|engine\.gradcheck\.catalogue)\..*attention.*\(mask\)": (
        "boolean, or any float, which is added to scores; compared for its dtype and shape"
    ),
    r"kernels\..*norm_backward\(mask\)": "state that forward made: a bit per element, all of which are right",
    r"ops\..*\(ignore_index\)|layers\..*\(ignore_index\)": "NUMBERS",
    r"kernels\.signed_distances\(ignore_index\)": "the losses that call it compare the number",
    r"engine\.dual\..*\(rare\)": "found by its name in shared_class",
    r".*\(padding_idx\)|.*\(outside\)": "NUMBERS",
    r"engine\.data\.tiles\.Tiles\.(__getitem__|take)\(index\)": "an index of NumPy's, compared by NumPy",
    r"engine\.(training\.step|graphs\.(cuda_graph|cpu_step))\..*\(labels\)": "what the loss is given, which compares",
    r"engine\.training\.mixing\.(CopyPaste|cutmix|patches_of).*\(masks\)": (
        "moved, or asked for some labels; Mixing and Tiles compare them"
    ),
    r"engine\.training\.mixing\.Patch\(label\)": "what patches_of was asked for",
    r"engine\.training\.plots\.(draw_predictions|wrong_pixels)\(.*\)": "drawn by rgb",
    r"engine\.report\.page\.Confusion\(truth\)": "names of rows",
    r"kernels\.augment_batch\(masks\)": "moved, whatever they are",
    r"engine\.(training\.batches\.|data\.stored\.Stored\.).*\(index\)": ("moved, whatever they are"),
    r"engine\.(config\.Config|data\.(loading\.load|folder\.load_folder|pairs\..*|decoding\.Task))\(masks?\)": (
        "the name of a folder or file"
    ),
    r"engine\.(data\.preparation\..*|evaluate\.Arguments)\(masks\)": "the name of a folder",
    r"engine\.predict\.outputs\.(Wanted\(masks\)|Item\(index\))": "a word; a place that was counted",
    r"engine\.(ensemble\.Strip\(labels\)|predict\.outputs\.Submission\.write\(mask\))": "what a network has given",
}


def _augment(outside: Any, dtype: str = "uint8") -> Any:
    images, one = np.zeros((1, 2, 2), np.float32), np.ones(1, np.float32)
    return augment.augment_batch(images, np.zeros((1, 2, 2), dtype), np.full((1, 2, 3), 9.0), one, one, one, outside)


Z, Y = Tensor(np.zeros((3, 5), np.float32)), np.array([0, 1, 2])
# name, call, values that are right, values that are wrong, what the message says
NUMBERS: list[tuple[str, Callable[[Any], Any], list[Any], list[Any], str]] = [
    (
        "ops.cross_entropy(ignore_index)",
        lambda n: ops.cross_entropy(Z, Y, ignore_index=n),
        [None, 0, -100, np.int64(255)],
        [1.5, "0", 2**63],
        "ignore_index is",
    ),
    ("kernels.augment_batch(outside)", _augment, [None, 0, 255], [-1, 256], "outside is .*, expected 0 to 255"),
    (
        "kernels.augment_batch(outside), int16",
        lambda n: _augment(n, "int16"),
        [None, -100, 300],
        [2**15],
        "outside is .*, expected -32768 to 32767",
    ),
    (
        "ops.embedding(padding_idx)",
        lambda n: ops.embedding(Y, Tensor(np.zeros((4, 2))), n),
        [None, -4, 3],
        [-5, 4],
        "padding_idx is .*, expected -4 to 3",
    ),
    (
        "layers.Embedding(padding_idx)",
        lambda n: layers.Embedding(4, 2, n),
        [None, -4, 3],
        [-5, 4],
        "padding_idx is .*, expected -4 to 3",
    ),
]
