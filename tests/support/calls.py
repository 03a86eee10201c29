"""Sound calls of every operator of kernels/: what tests of shapes, memory layouts and the ends of arrays start from.

A `Call` makes its arguments by name, on NumPy; sizes are odd, and large enough for the fast kernels where these have a
least size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels import attention, augment, conv, gate, loss, metric, norm, optimizer, pointwise, pool, resample, shape
from kernels.core.dispatch import Operator, registry
from kernels.core.geometry import Window
from kernels.norm.records import BatchNorm, SavedBatchNorm
from tests.support.fast_rule import flat

GIVEN = {"conv2d_norm_forward": 2, "batch_norm_forward": 1, "loss_forward": 2}  # which of the results that is

SAME = ((1, 1), (1, 1))
LAYERS = {
    "3x3": (Window((3, 3), (1, 1), SAME), 3, 5, 1),
    "1x1": (Window((1, 1)), 3, 5, 1),
    "strided": (Window((3, 2), (2, 3), ((1, 0), (2, 1)), (1, 2)), 3, 5, 1),
    "dilated": (Window((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)), 3, 5, 1),
    "grouped": (Window((3, 3), (1, 1), SAME), 6, 4, 2),
    "depthwise": (Window((3, 3), (1, 1), SAME), 21, 21, 21),
    "one channel": (Window((3, 3), (1, 1), SAME), 1, 7, 1),
    "side by side": (Window((2, 2), (2, 2)), 3, 5, 1),
}


@dataclass(frozen=True)
class Call:
    """An operator and its arguments by name, those of a record as `name.field`. written: arguments that it writes to.
    records: the records by the argument's name.
    """

    operator: Operator
    note: str
    arguments: dict[str, Any]
    written: tuple[str, ...] = ()
    records: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.operator.name}-{self.note}" if self.note else self.operator.name

    @property
    def own(self) -> set[str]:
        """Arguments that an implementation's forward hands to its backward in a form of its own: each checks them
        itself.
        """
        forms = {name for name in self.arguments if name.rpartition(".")[2] in ("mask", "state")}
        return forms - {item.name for item in self.operator.shapes.items}

    def run(self, changed: dict[str, Any] | None = None, call: Callable[..., Any] | None = None) -> Any:
        """Call the operator (or `call`), positionally where it is declared so; what it writes to is left as it was
        written to.
        """
        given = {**self.arguments, **(changed or {})}
        for name, record in self.records.items():
            fields = {key: given.pop(key) for key in list(given) if key.startswith(f"{name}.")}
            given[name] = record(**{key.removeprefix(f"{name}."): value for key, value in fields.items()})
        parameters = inspect.signature(self.operator.reference).parameters
        positional = [given[n] for n, p in parameters.items() if n in given and p.kind is p.POSITIONAL_OR_KEYWORD]
        return (call or self.operator)(
            *positional, **{n: given[n] for n, p in parameters.items() if n in given and p.kind is p.KEYWORD_ONLY}
        )


class _Maker:
    """Arrays of fixed numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *size: int) -> np.ndarray:
        return self.rng.standard_normal(size).astype(np.float32)

    def positive(self, *size: int) -> np.ndarray:
        return np.abs(self(*size)) + np.float32(0.5)


def finite(name: str, result: Any) -> list[np.ndarray]:
    """A result's arrays that are the same for every implementation; -1 in place of inf, the level of a row of scores
    that keeps nothing.
    """
    if name in GIVEN:
        result = [part for k, part in enumerate(result) if k != GIVEN[name]]
    return [np.where(np.isfinite(array), array, -1).astype(array.dtype) for array in flat(result)]


def convolutions(a: _Maker) -> list[Call]:
    """All convolutions of LAYERS, with a bias, a residual, and gradients added to what is there."""
    calls = []
    for note, (window, c, k, groups) in LAYERS.items():
        h, w = (9, 7) if note != "side by side" else (10, 6)
        p, q = window.output_size((h, w))
        filters = a(*window.kernel, c // groups, k)
        layer = {"window": window, "groups": groups}
        calls += [
            Call(conv.conv2d_forward, note, {"maps": (a(2, h, w, c),), "w": filters, "b": a(k), **layer}),
            Call(
                conv.conv2d_forward,
                f"{note} residual",
                {"maps": (a(2, h, w, c),), "w": filters, "b": a(k), **layer, "relu": True, "residual": a(2, p, q, k)},
            ),
            Call(
                conv.conv2d_backward_data,
                note,
                {
                    "dy": a(2, p, q, k),
                    "w": filters,
                    "size": (h, w),
                    **layer,
                    "parts": (c,),
                    "accumulate_into": (a(2, h, w, c),),
                },
                ("accumulate_into",),
            ),
            Call(conv.conv2d_backward_filter, note, {"maps": (a(2, h, w, c),), "dy": a(2, p, q, k), **layer}),
        ]
        calls += [
            *transposed(a, note, window, (h, w), c, k, groups),
            *normalised(a, note, window, (h, w), c, k, groups),
        ]
    maps, window = (a(2, 9, 7, 3), a(2, 9, 7, 4)), LAYERS["3x3"][0]
    calls.append(
        Call(
            conv.conv2d_forward,
            "two maps",
            {"maps": maps, "w": a(3, 3, 7, 5), "b": a(5), "window": window, "groups": 1},
        )
    )
    calls.append(
        Call(
            conv.conv2d_backward_filter, "two maps", {"maps": maps, "dy": a(2, 9, 7, 5), "window": window, "groups": 1}
        )
    )
    return [*calls, Call(conv.backward_bias, "", {"dy": a(2, 9, 7, 5)})]


def transposed(a: _Maker, note: str, window: Window, size: tuple[int, int], c: int, k: int, groups: int) -> list[Call]:
    """The three transposed convolutions between maps of c channels (small) and of k (`size`)."""
    p, q = window.output_size(size)
    filters, layer = a(*window.kernel, c, k // groups), {"window": window, "groups": groups}
    small, large = (2, p, q, c), (2, *size, k)
    return [
        Call(conv.conv_transpose2d_forward, note, {"x": a(*small), "w": filters, "b": a(k), "size": size, **layer}),
        Call(conv.conv_transpose2d_backward_data, note, {"dy": a(*large), "w": filters, **layer}),
        Call(conv.conv_transpose2d_backward_filter, note, {"x": a(*small), "dy": a(*large), **layer}),
    ]


def fields(norm: BatchNorm | SavedBatchNorm) -> dict[str, Any]:
    """A record's fields as arguments of a Call."""
    return {f"norm.{name}": value for name, value in norm._asdict().items()}


def normalised(a: _Maker, note: str, window: Window, size: tuple[int, int], c: int, k: int, groups: int) -> list[Call]:
    """A convolution with the norm behind it."""
    p, q = window.output_size(size)
    x, filters, z = a(2, *size, c), a(*window.kernel, c // groups, k), a(2, p, q, k)
    vectors = a.positive(k), a(k)
    running = a(k), a.positive(k)
    tail = {"residual": a(2, p, q, k), "activation": "relu", "window": window, "groups": groups}
    statistics = a(k).astype(np.float64), a.positive(k).astype(np.float64)
    _, mask = norm.batch_norm_forward(z, *vectors, *statistics, tail["residual"], "relu")
    back = {
        "dy": a(2, p, q, k),
        "maps": (x,),
        "w": filters,
        "z": z,
        **fields(SavedBatchNorm(mask, *vectors, *statistics, "relu")),
        "with_residual": True,
    }
    accumulate_into = {"window": window, "groups": groups, "accumulate_into": (a(2, *size, c),)}
    return [
        Call(
            conv.conv2d_norm_forward,
            note,
            {"maps": (x,), "w": filters, **fields(BatchNorm(*vectors, *running, 0.1, 1e-5)), **tail},
            ("norm.running_mean", "norm.running_var"),
            {"norm": BatchNorm},
        ),
        Call(
            conv.conv2d_norm_backward,
            note,
            {**back, **accumulate_into},
            ("accumulate_into",),
            {"norm": SavedBatchNorm},
        ),
    ]


def norms(a: _Maker) -> list[Call]:
    """Batch norm, layer norm and sums over pixels."""
    x, dy, vectors = a(2, 31, 29, 13), a(2, 31, 29, 13), {"weight": a.positive(13), "bias": a(13)}
    statistics = {"mean": a(13).astype(np.float64), "inverse": a.positive(13).astype(np.float64)}
    other, tail = a(*x.shape), {"training": True, "with_residual": True}
    _, mask = norm.batch_norm_forward(x, *vectors.values(), *statistics.values(), other, "relu")
    saved = fields(SavedBatchNorm(mask, **vectors, **statistics, activation="relu"))
    moved = {
        "running_mean": a(13),
        "running_var": a.positive(13),
        "mean": statistics["mean"],
        "variance": a.positive(13).astype(np.float64),
    }
    return [
        Call(norm.sum_pixels, "", {"x": x}),
        Call(norm.batch_norm_statistics, "", {"x": x}),
        Call(norm.batch_norm_running, "", {**moved, "rows": 7, "momentum": 0.1}, ("running_mean", "running_var")),
        Call(norm.batch_norm_inverse, "", {"variance": a.positive(13).astype(np.float64), "eps": 1e-5}),
        Call(norm.batch_norm_forward, "", {"x": x, **vectors, **statistics, "residual": other, "activation": "relu"}),
        Call(norm.batch_norm_backward, "", {"dy": dy, "x": x, **saved, **tail}, records={"norm": SavedBatchNorm}),
        Call(norm.layer_norm_forward, "", {"x": x, **vectors, "eps": 1e-5}),
        Call(norm.layer_norm_backward, "", {"dy": dy, "x": x, "weight": vectors["weight"], "eps": 1e-5}),
    ]


def attentions(a: _Maker) -> list[Call]:
    """Dot-product attention with both kinds of masks, and both branches of polarized attention."""
    q, k, v, do = a(2, 3, 5, 4), a(2, 3, 7, 4), a(2, 3, 7, 6), a(2, 3, 5, 6)
    calls = []
    for note, mask in (("added", a(5, 7)), ("kept", a(2, 1, 5, 7) > 0), ("no mask", None)):
        o, lse = attention.attention_forward(q, k, v, mask, 0.5)
        calls.append(Call(attention.attention_forward, note, {"q": q, "k": k, "v": v, "mask": mask, "scale": 0.5}))
        calls.append(
            Call(
                attention.attention_backward,
                note,
                {"do": do, "q": q, "k": k, "v": v, "o": o, "lse": lse, "mask": mask, "scale": 0.5},
            )
        )
    x, dy = a(2, 15, 6), a(2, 15, 6)
    channel = {
        "wq": a(6),
        "wv": a(6, 3),
        "bv": a(3),
        "wz": a(3, 6),
        "bz": a(6),
        "gain": a(6),
        "offset": a(6),
        "eps": 1e-5,
    }
    spatial = {"wq": a(6, 3), "bq": a(3), "wv": a(6, 3), "bv": a(3)}
    return [
        *calls,
        Call(attention.polarized_channel_forward, "", {"x": x, **channel}),
        Call(attention.polarized_channel_backward, "", {"dy": dy, "x": x, **channel}),
        Call(attention.polarized_spatial_forward, "", {"x": x, **spatial}),
        Call(attention.polarized_spatial_backward, "", {"dy": dy, "x": x, **spatial}),
    ]


def pixelwise(a: _Maker) -> list[Call]:
    """Activations, softmax, dropout, gates and blends."""
    calls, x, dy = [], a(2, 7, 5, 11), a(2, 7, 5, 11)
    for name in ("softmax", "log_softmax"):
        calls.append(Call(getattr(pointwise, f"{name}_forward"), "", {"x": x, "axis": -1}))
        calls.append(Call(getattr(pointwise, f"{name}_backward"), "", {"dy": dy, "y": x, "axis": -1}))
    for note, z in (("per pixel", a(2, 7, 5, 1)), ("per channel", a(2, 7, 5, 11))):
        calls += [
            Call(gate.gate_forward, note, {"x": x, "z": z}),
            Call(gate.gate_backward, note, {"dy": dy, "x": x, "z": z}),
            Call(gate.blend_forward, note, {"x": x, "other": dy, "z": z}),
            Call(gate.blend_backward, note, {"dy": dy, "x": x, "other": a(2, 7, 5, 11), "z": z}),
        ]
    return [
        *calls,
        Call(pointwise.leaky_relu_forward, "", {"x": x, "slope": 0.1}),
        Call(pointwise.leaky_relu_backward, "", {"dy": dy, "x": x, "slope": 0.1}),
        Call(pointwise.dropout_forward, "", {"x": x, "p": 0.3, "seed": 5, "offset": 7}),
    ]


def maps(a: _Maker) -> list[Call]:
    """Pooling, resampling, and moving values between maps."""
    x, calls = a(2, 6, 9, 5), []
    for note, window in (("overlapping", Window((3, 3), (1, 1), SAME)), ("apart", Window((2, 3), (2, 3)))):
        y, offset = pool.max_pool2d_forward(x, window)
        back = {"dy": a(*y.shape), "offset": offset, "size": (6, 9), "window": window, "accumulate_into": a(*x.shape)}
        calls += [
            Call(pool.max_pool2d_forward, note, {"x": x, "window": window}),
            Call(pool.max_pool2d_backward, note, back, ("accumulate_into",)),
        ]
    up, down = resample.bilinear_matrix(6, 11, False), resample.adaptive_matrix(9, 4)
    wide, parts = a(2, 31, 41, 16), [a(2, 31, 41, c) for c in (3, 8, 5)]
    return [
        *calls,
        Call(resample.resample2d_forward, "", {"x": x, "a": up, "b": down}),
        Call(resample.resample2d_backward, "", {"dy": a(2, 11, 4, 5), "a": up, "b": down}),
        Call(shape.concat_channels, "", {"xs": parts}),
        Call(shape.split_channels, "", {"dy": wide, "sizes": (3, 8, 5)}),
        Call(shape.accumulate, "", {"total": a(*wide.shape), "more": wide}, ("total",)),
        Call(shape.added, "", {"a": a(*wide.shape), "b": wide}),
        Call(shape.duplicate, "", {"a": x}),
        Call(shape.overwrite, "", {"target": a(*wide.shape), "values": wide}, ("target",)),
        Call(shape.sum_to, "", {"dy": x, "shape": (9, 1)}),
    ]


def steps(a: _Maker) -> list[Call]:
    """Losses, metrics, the optimiser and augmentation."""
    z, labels = a(2, 7, 9, 5), a.rng.integers(0, 5, (2, 7, 9))
    spec = loss.LossSpec(
        (("margin", 0.7), ("dice", 1.0), ("focal", 0.4), ("cross_entropy", 0.9)),
        class_weights=(0.5, 1.0, 2.0, 1.5, 1.0),
    )
    state = loss.loss_forward(z, labels, spec)[2]
    vectors = {name: a(1003) for name in ("p", "g", "m", "average")} | {
        "v": a.positive(1003),
        "decay": a.positive(-(-1003 // optimizer.LINE)),
    }
    plain = {name: a(1003) for name in ("p", "g", "buffer", "average")} | {"decay": vectors["decay"]}
    descent = {
        "learning_rate": 1e-2,
        "momentum": 0.9,
        "dampening": 0.1,
        "nesterov": False,
        "clip": 0.7,
        "average_decay": 0.95,
    }
    numbers = {
        "step": 3,
        "learning_rate": 1e-2,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "clip": 0.7,
        "average_decay": 0.95,
    }
    parts, images = [a(3, 5), None, a(7), a(2, 3, 4)], a.rng.random((3, 9, 11)).astype(np.float32)
    settings = {"contrast": a.positive(3), "brightness": a(3) * np.float32(0.1), "gamma": a.positive(3)}
    masks = a.rng.integers(0, 5, (3, 9, 11)).astype(np.uint8)
    matrices = a.rng.uniform(-1.5, 1.5, (3, 2, 3))
    given = {"labels": labels, "classes": 5, "background": "train", "ignore_index": None, "dtype": "float32"}
    return [
        Call(loss.signed_distances, "", given),
        Call(loss.loss_forward, "", {"logits": z, "labels": labels, "spec": spec}),
        Call(
            loss.loss_backward,
            "",
            {"dy": np.asarray(1.7, np.float32), "logits": z, "labels": labels, "spec": spec, "state": state},
        ),
        Call(metric.predicted_labels, "", {"logits": z, "first": 1}),
        Call(
            metric.confusion_per_image,
            "",
            {"truth": labels, "prediction": a.rng.integers(0, 5, (2, 7, 9)), "classes": 5},
        ),
        Call(optimizer.squared_norm, "", {"g": vectors["g"]}),
        Call(optimizer.clip_factor, "", {"squared": np.asarray(7.0), "largest": 1.0, "dtype": np.float32}),
        Call(optimizer.adamw_step, "", {**vectors, **numbers}, ("p", "m", "v", "average")),
        Call(optimizer.sgd_step, "", {**plain, **descent}, ("p", "buffer", "average")),
        Call(
            optimizer.gather,
            "",
            {"parts": parts, "out": a(60), "offsets": (1, 17, 25, 33), "sizes": (15, 6, 7, 24)},
            ("out",),
        ),
        Call(
            augment.augment_batch,
            "",
            {"images": images, "masks": masks, "matrices": matrices, **settings, "outside": 0},
        ),
    ]


def calls() -> list[Call]:
    """One call at least of every operator whose arrays have shapes to compare. What backward takes of forward is made
    by the kernels in use.
    """
    a = _Maker(3)
    written = [call for family in (convolutions, norms, attentions, pixelwise, maps, steps) for call in family(a)]
    named = {call.operator.name for call in written}
    return [
        *written,
        *(of_line(a, operator) for name, operator in registry.items() if is_simple(name, operator, named)),
    ]


def is_simple(name: str, operator: Operator, named: Collection[str]) -> bool:
    """Whether an operator that has no call here takes nothing but arrays of one shape, which a call can be made of."""
    if name in named or not operator.line:
        return False
    shapes = operator.shapes
    arrays = {item.name for item in shapes.items if item.axes == ("*S",) and not item.written}
    return not shapes.conditions and arrays == set(shapes.signature.parameters)


def of_line(a: _Maker, operator: Operator) -> Call:
    """A call of such an operator."""
    return Call(operator, "", {item.name: a(2, 7, 5, 11) for item in operator.shapes.items})
