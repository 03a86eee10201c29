"""What a row of the table says, and all rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.gradcheck.catalogue import catalogue

from .choices import Choices
from .operands import Case


@dataclass(frozen=True)
class Difference:
    """A deliberate difference from PyTorch: what it is, why, and in which cases.

    ours: what we do there. 'refuse': raise a clear error; 'may refuse': raise, or give PyTorch's value; 'allow': give a
    value where PyTorch raises; 'value': the same value with another gradient, which is not compared; 'other': another
    value; 'any': refuse or give another value.
    'more': NaN or an infinity at further places, nowhere a number in their place; 'infinite': anything where PyTorch
    has NaN or an infinity. The other numbers are compared.
    """

    what: str
    why: str
    ours: str
    applies: Callable[[Case], bool]


@dataclass(frozen=True)
class Row:
    """One operator.

    draw: a case from choices.  ours, theirs: the call with our Tensors, with PyTorch's; both get the operands and the
        settings.
    scale: 'element' where every value stands alone, 'largest' where values are sums.  cancels: what cancels on the way,
    if numbers as large as the inputs do: then, and only where PyTorch's own error does not explain ours, a few
    roundings of the largest inputs are allowed, and (smooth: a small change of the inputs is a small change of the
    results) what a rounding of every input changes. A reason that ends in ", in the gradient" is one for gradients
    alone.
    bound: the error that an algorithm states as its own, relative to the largest value.
    words: an error names one of them.
    """

    name: str
    draw: Callable[[Choices], Case]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    scale: str = "largest"
    smooth: bool = True
    cancels: str = ""
    bound: Callable[[Case], float] = lambda _: 0.0
    words: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()


CONTAINER = "holds modules or arrays, and computes nothing"
NOT_IN_TORCH = "PyTorch has no such block; test_gradients.py and test_layers.py check what it is made of"
NEW_LOSS = "PyTorch has no such loss; test_parity.py compares it with one written in PyTorch, on chosen cases"
WITHOUT: dict[str, str] = {  # public names of autograd.ops and layers that have no row, and why
    "REPORT_TERMS": "a constant",
    "make_spec": "settings of losses, and no operator",
    "segmentation_loss": "what all losses call, and the row of combined_loss with it",
    "SegmentationLoss": "the base of all losses, and the row of CombinedLoss with it",
    "polarized_channel": NOT_IN_TORCH,
    "polarized_spatial": NOT_IN_TORCH,
    **dict.fromkeys(("jaccard_metric_loss", "dice_semimetric_loss", "top_k_loss", "boundary_loss"), NEW_LOSS),
    **dict.fromkeys(
        ("JaccardMetricLoss", "DiceSemimetricLoss", "TopKLoss", "BoundaryLoss", "UnifiedFocalLoss"), NEW_LOSS
    ),
    "ConvNorm": "a convolution and batch norm, which have rows; tests/support/stateful.py compares the two with it",
    "LoadReport": "what load_state_dict found",
    "Size": "what measure found",
    "measure": "counts, and computes nothing of a network's",
    "seeded": "a seed for initial weights",
    **dict.fromkeys(("Buffer", "Identity", "Module", "ModuleDict", "ModuleList", "Parameter", "Sequential"), CONTAINER),
    **dict.fromkeys(
        ("AttentionAndStrips", "AttentionGate", "DecoderStage", "FeaturePyramidAttention", "FeaturePyramidPooling"),
        NOT_IN_TORCH,
    ),
    **dict.fromkeys(
        ("InceptionBlock", "MiniASPP", "MixedPooling", "PolarizedSelfAttention", "PreActivationBlock"), NOT_IN_TORCH
    ),
    **dict.fromkeys(("ResidualBlock", "StripPooling", "StripPyramidPooling", "UNet", "encoder_stage"), NOT_IN_TORCH),
}


@functools.cache
def table() -> dict[str, Row]:
    """All rows by name."""
    from . import (
        arithmetic,
        functions,
        in_place,
        logic,
        losses,
        modules,
        norms,
        plain_modules,
        reductions,
        regression,
        shapes,
        windows,
    )

    files = (
        arithmetic,
        in_place,
        logic,
        reductions,
        functions,
        regression,
        shapes,
        windows,
        norms,
        losses,
        modules,
        plain_modules,
    )
    rows = [row for file in files for row in file.ROWS]
    made = {row.name: row for row in rows}
    if len(made) != len(rows):
        raise ValueError("conformance: two rows have one name")
    alone = [entry for entry in catalogue().values() if entry.torch and len(entry.make().arrays) == 1]
    return made | {entry.name: arithmetic.of_entry(entry) for entry in alone if entry.name not in made}
