"""Rows of modules that are an operator with settings: the operator's cases, with the settings given to the module, or
left to its defaults.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

import layers
from autograd import Tensor, no_grad

from .arithmetic import ROWS as ARITHMETIC
from .arithmetic import drawn_dropout
from .choices import Choices
from .functions import ROWS as FUNCTIONS
from .losses import ROWS as LOSSES
from .operands import Case, case, dtype, length, palette, shape, tensor
from .regression import ROWS as REGRESSION
from .shapes import ROWS as SHAPES
from .table import Row
from .windows import ROWS as WINDOWS
from .windows import nchw, nhwc

OPERATORS = {row.name: row for rows in (ARITHMETIC, FUNCTIONS, LOSSES, REGRESSION, SHAPES, WINDOWS) for row in rows}
OF_THE_SPEC = {"margin_loss": {"reduction": "margin_reduction"}, "focal_tversky_loss": {"power": "tversky_power"}}


def run(module: Any, *xs: Any, arrays: Sequence[Any] = ()) -> Any:
    """The module's result; where nothing needs a gradient, that of its second call, which finds what the first one
    kept.
    """
    if any(isinstance(x, Tensor) and x.requires_grad for x in (*xs, *arrays)):
        return module(*xs)
    with no_grad():
        module(*xs)
        return module(*xs)


def _defaults(name: str) -> set[str]:
    """The settings of PyTorch's module that have a default."""
    given = inspect.signature(getattr(torch.nn, name)).parameters.values()
    return {p.name for p in given if p.default is not inspect.Parameter.empty}


def _drawn(row: Row, name: str, defaults: bool) -> Callable[[Choices], Case]:
    def draw(d: Choices) -> Case:
        made = row.draw(d)
        if d.chance(35):
            for o in made.operands:
                if o is not None:
                    o.grad = False
        if defaults and d.chance(25):
            made.settings = {key: value for key, value in made.settings.items() if key not in _defaults(name)}
        return made

    return draw


def _row(
    name: str,
    operator: str,
    ours: Callable[..., Any],
    theirs: Callable[..., Any] | None = None,
    defaults: bool = False,
    **changes: Any,
) -> Row:
    row = OPERATORS[operator]
    changes = {"words": (name, operator, *row.words)} | changes
    return dataclasses.replace(
        row, name=name, draw=_drawn(row, name, defaults), ours=ours, theirs=theirs or row.theirs, **changes
    )


def _like(name: str, operator: str, images: bool = False, **changes: Any) -> Row:
    """A module without arrays of its own, beside that of PyTorch with the same settings."""

    def theirs(*xs: Any, **settings: Any) -> Any:
        module = getattr(torch.nn, name)(**settings)
        return nhwc(module(nchw(xs[0]))) if images else module(*xs)

    return _row(
        name,
        operator,
        lambda *xs, **settings: run(getattr(layers, name)(**settings), *xs),
        changes.pop("theirs", theirs),
        True,
        **changes,
    )


def _loss(name: str, operator: str) -> Row:
    """A loss over logits and labels; a module's settings are the fields of LossSpec."""
    names = OF_THE_SPEC.get(operator, {})

    def ours(x: Any, t: Any, **settings: Any) -> Any:
        return run(getattr(layers, name)(**{names.get(key, key): value for key, value in settings.items()}), x, t)

    return _row(name, operator, ours)


def _regression(name: str, operator: str) -> Row:
    def ours(x: Any, t: Any, **settings: Any) -> Any:
        return run(getattr(layers, name)(**settings), x, t)

    return _row(name, operator, ours, defaults=True)


def _our_bce(x: Any, t: Any, weight: Any, pos_weight: Any, **settings: Any) -> Any:
    return run(layers.BCEWithLogitsLoss(weight, pos_weight=pos_weight, **settings), x, t)


def _our_conv1d(x: Any, w: Any, b: Any, **settings: Any) -> Any:
    r, c, k = w.shape
    m = layers.Conv1d(c * settings["groups"], k, r, bias=b is not None, **settings)
    m.weight, m.bias = w, b
    return run(m, x, arrays=(w, b))


def _our_embedding(index: Any, weight: Any, padding_idx: int | None) -> Any:
    m = layers.Embedding(max(len(weight), 1), max(weight.shape[1], 1), padding_idx)
    m.weight = weight
    return run(m, index, arrays=(weight,))


def _our_rms_norm(x: Any, weight: Any, eps: float | None, name: str) -> Any:
    m = layers.RMSNorm(x.shape[-1], eps)
    m.weight = weight
    return run(m, x, arrays=(weight,))


def _dropout(name: str, like: Callable[[Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return drawn_dropout(lambda x, p, training: getattr(layers, name)(p).train(training)(x), like)


def _images(d: Choices) -> Case:
    made = OPERATORS["dropout"].draw(d)
    dims = (length(d, 3), length(d), length(d), length(d))
    made.operands = [tensor(d, shape(d) if d.chance(4) else dims, dtype(d), palette(d, 30))]
    return made


def _whole_channels(kept: Any) -> Any:
    if kept.ndim != 4:
        raise ValueError("Dropout2d takes images")
    return kept[:, :1, :1].expand(kept.shape) if kept.numel() else kept


def _torch_dropout2d(x: Any, p: float, training: bool, seed: int) -> Any:
    if x.ndim != 4:
        raise ValueError("Dropout2d takes images")
    return _DROPOUT2D[1](x, p, training, seed)


def _flatten(d: Choices) -> Case:
    x = tensor(d, shape(d), dtype(d, 15), palette(d, 10))
    n = max(x.values.ndim, 1)
    return case(d, [x], start_dim=d.integer(-n, n - 1) + n * d.chance(4), end_dim=d.pick((-1, -1, n - 1, -n)))


_DROPOUT2D = _dropout("Dropout2d", _whole_channels)
ROWS = [
    _like("ReLU", "relu"),
    _like("LeakyReLU", "leaky_relu"),
    _like("Sigmoid", "sigmoid"),
    _like("Tanh", "tanh"),
    _like("SiLU", "silu"),
    _like("GELU", "gelu"),
    _like("Softplus", "softplus"),
    _row("Dropout", "dropout", *_dropout("Dropout", lambda kept: kept)),
    dataclasses.replace(_row("Dropout2d", "dropout", _DROPOUT2D[0], _torch_dropout2d), draw=_images),
    _like("MaxPool2d", "max_pool2d", theirs=OPERATORS["max_pool2d"].theirs),
    _like("AvgPool2d", "avg_pool2d", images=True),
    _like("AdaptiveAvgPool2d", "adaptive_avg_pool2d", images=True),
    dataclasses.replace(_like("Flatten", "flatten"), draw=_flatten),
    _row("Embedding", "embedding", _our_embedding),
    _row("Conv1d", "conv1d", _our_conv1d),
    _row("RMSNorm", "rms_norm", _our_rms_norm),
    *(
        _regression(name, operator)
        for name, operator in {"MSELoss": "mse_loss", "L1Loss": "l1_loss", "SmoothL1Loss": "smooth_l1_loss"}.items()
    ),
    _row("BCEWithLogitsLoss", "binary_cross_entropy_with_logits", _our_bce),
    _loss("CrossEntropyLoss", "cross_entropy"),
    _loss("FocalLoss", "focal_loss"),
    _loss("DiceLoss", "dice_loss"),
    _loss("IoULoss", "iou_loss"),
    _loss("TverskyLoss", "tversky_loss"),
    _loss("FocalTverskyLoss", "focal_tversky_loss"),
    _loss("GeneralizedDiceLoss", "generalized_dice_loss"),
    _loss("MCCLoss", "mcc_loss"),
    _loss("MarginLoss", "margin_loss"),
    _loss("LovaszLoss", "lovasz_softmax"),
    _loss("CombinedLoss", "combined_loss"),
]
