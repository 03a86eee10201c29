"""All loss terms on CUDA: two passes over the logits and a tiny kernel between them; see loss.cu.

Served: float32 and float64, up to 16 classes, one background policy for all terms. The compiler knows the number of
classes for 5 logits (all classes, or the background masked) and for 4 in float32; other counts take the plain kernels.
Lovasz and the hardest pixels rank all pixels, which is a sort; the metric losses need sums of their own; the boundary
loss reads distances: these terms are left to the reference, which CuPy runs on the device, and added.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, module_of
from kernels.core.labels import NO_LABEL, reported
from kernels.loss import reference
from kernels.loss.spec import LossSpec

# type, logits, first class
_SHAPES = ("float", 5, 0), ("float", 5, 1), ("float", 4, 0), ("double", 5, 0), ("double", 5, 1)
_KERNELS = {
    kind: (
        *(f"loss_{step}<{kind}>" for step in ("sums_plain", "gradient_plain", "reduce_coefficients")),
        *(
            f"loss_{step}<{t}, {wide}, {first}>"
            for step in ("sums", "gradient")
            for t, wide, first in _SHAPES
            if t == kind
        ),
    )
    for kind in ("float", "double")
}
# One module per type, since one run needs one type; the last one, with all of them, is what the registry lists.
MODULES = {kind: Module("loss/cuda/loss.cu", names) for kind, names in _KERNELS.items()}
Module("loss/cuda/loss.cu", (*_KERNELS["float"], *_KERNELS["double"]))

THREADS, TILE = 128, 512  # as in loss.cu
MOST_PARTS = 2048  # blocks of pass 1
MOST_CLASSES = 16
_TYPES = {"float32": "float", "float64": "double"}
# Bits of the terms, order of the coefficients.
_NUMBERS = ("focal", "margin", "cross_entropy", "dice", "iou", "tversky", "focal_tversky", "generalized_dice", "mcc")
_PARTS = (*_NUMBERS, "margin_false_negative", "margin_false_positive")  # order of `out` after the value


def fast(kind: str, wide: int, first: int) -> bool:
    """Whether a kernel is compiled for this number of classes."""
    return (kind, wide, first) in _SHAPES


def sums_launch(pixels: int, kind: str, wide: int, first: int) -> Launch:
    """Pass 1: at most MOST_PARTS blocks, each of which leaves one partial sum per number."""
    if fast(kind, wide, first):
        return Launch(f"loss_sums<{kind}, {wide}, {first}>", (min(blocks(pixels, TILE), MOST_PARTS),), (THREADS,))
    return Launch(f"loss_sums_plain<{kind}>", (min(blocks(pixels, THREADS), MOST_PARTS),), (THREADS,))


def gradient_launch(pixels: int, kind: str, wide: int, first: int) -> Launch:
    """Pass 2: every block has its own pixels."""
    if fast(kind, wide, first):
        return Launch(f"loss_gradient<{kind}, {wide}, {first}>", (blocks(pixels, TILE),), (THREADS,))
    return Launch(f"loss_gradient_plain<{kind}>", (blocks(pixels, THREADS),), (THREADS,))


class _Plan:
    """A spec applied to given logits: the kernel's settings, or that it is not served."""

    def __init__(self, logits: Array, labels: Array, spec: LossSpec) -> None:
        names = [name for name, _ in spec.terms]
        policies = {spec.background_of(name) for name in names}
        self.first = 1 if policies == {"mask"} else 0
        self.wide = logits.shape[-1]
        self.pixels = labels.size
        self.classes = self.wide - self.first
        self.served = (
            logits.dtype.name in _TYPES
            and labels.dtype.kind in "iu"
            and len(policies) == 1
            and len(set(names)) == len(names)
            and 2 <= self.classes <= MOST_CLASSES
            and logits.size < 2**31
        )
        if self.served:
            self.kind = _TYPES[logits.dtype.name]
            self.most = self.classes if fast(self.kind, self.wide, self.first) else MOST_CLASSES
            self.settings = _settings(spec, logits.dtype.name, self.classes, self.wide)
            self.bytes = labels.dtype.itemsize * (-1 if labels.dtype.kind == "i" else 1)

    def arguments(self, name: str, labels: Array, spec: LossSpec) -> tuple[Any, ...]:
        """The last arguments of a pass: sizes (for the plain kernels, which are not compiled for them), the slot for
        wrong labels, settings.
        """
        sizes = (
            (self.pixels, self.bytes)
            if fast(self.kind, self.wide, self.first)
            else (self.pixels, self.wide, self.bytes)
        )
        return *sizes, reported(name, "labels", labels, self.wide, spec.ignore_index), self.settings


@lru_cache(maxsize=64)
def _settings(spec: LossSpec, dtype: str, classes: int, wide: int) -> Any:
    """loss/cuda/pixel.cuh's Settings<T> of a spec."""
    scalars = ("gamma", "power", "smoothing", "smooth", "share", "alpha", "beta", "tversky_power")
    integers = ("terms", "reduction", "present", "classes")
    fields = [(name, dtype) for name in scalars] + [
        ("coefficient", dtype, len(_NUMBERS)),
        ("weights", dtype, MOST_CLASSES),
    ]
    fields += [(name, "i4") for name in integers] + [("ignore", "i8")]
    s = np.zeros((), np.dtype(fields, align=True))
    values = (
        spec.gamma,
        spec.power,
        spec.label_smoothing,
        spec.smooth,
        spec.false_positive,
        spec.alpha,
        spec.beta,
        spec.tversky_power,
    )
    for name, value in zip(scalars, values, strict=True):
        s[name] = value
    coefficients = dict(spec.terms)
    s["coefficient"] = [coefficients.get(name, 0.0) for name in _NUMBERS]
    s["weights"][:classes] = 1 if spec.class_weights is None else spec.class_weights[wide - classes :]
    s["terms"] = sum(1 << k for k, name in enumerate(_NUMBERS) if name in coefficients)
    s["reduction"] = ("mean", "sum", "weighted").index(spec.margin_reduction)
    s["present"] = spec.absent == "present"
    s["classes"] = classes
    s["ignore"] = NO_LABEL if spec.ignore_index is None else spec.ignore_index
    return s[()]


def _aligned(array: Array) -> Array:
    """Contiguous, and starting at a multiple of 16 bytes."""
    array = module_of("cuda").ascontiguousarray(array)
    return array if array.data.ptr % 16 == 0 else array.copy()


def loss_forward(logits: Array, labels: Array, spec: LossSpec, distances: Array | None = None) -> Any:
    """As kernels.loss.reference.loss_forward; value and parts are 0-d views of one small device array, the state stays
    on the device.
    """
    own, rest = spec.split(_NUMBERS)
    if own is None or not (plan := _Plan(logits, labels, own)).served:
        return NotImplemented
    xp = module_of("cuda")
    z = _aligned(logits)
    y = xp.ascontiguousarray(labels)
    launch = sums_launch(plan.pixels, plan.kind, plan.wide, plan.first)
    parts = launch.grid[0]
    partial = xp.empty((4 + 3 * plan.most, parts), np.float64)
    MODULES[plan.kind].run(launch, z, y, partial, *plan.arguments("loss_forward", labels, own))
    out = xp.empty(1 + len(_PARTS), z.dtype)
    state = xp.empty(4 + 2 * plan.most, z.dtype)
    MODULES[plan.kind].run(
        Launch(f"loss_reduce_coefficients<{plan.kind}>", (1,), (256,)),
        partial,
        out,
        state,
        parts,
        plan.most,
        plan.settings,
    )
    wanted = {name for name, _ in own.terms}
    terms = {name: out[1 + k] for k, name in enumerate(_PARTS) if name.split("_false_")[0] in wanted}
    if rest is None:
        return out[0], terms, state
    more, others, _ = reference.loss_forward(logits, labels, rest, distances)
    return out[0] + more, terms | others, state


def loss_backward(
    dy: Array, logits: Array, labels: Array, spec: LossSpec, state: Array | None, distances: Array | None = None
) -> Any:
    """As kernels.loss.reference.loss_backward."""
    own, rest = spec.split(_NUMBERS)
    if (
        state is None
        or own is None
        or not (plan := _Plan(logits, labels, own)).served
        or state.shape != (4 + 2 * plan.most,)
    ):
        return NotImplemented
    xp = module_of("cuda")
    z = _aligned(logits)
    y = xp.ascontiguousarray(labels)
    dz = xp.empty(z.shape, z.dtype)
    launch = gradient_launch(plan.pixels, plan.kind, plan.wide, plan.first)
    MODULES[plan.kind].run(
        launch, xp.asarray(dy, z.dtype), z, y, state, dz, *plan.arguments("loss_backward", labels, own)
    )
    if rest is not None:
        dz += reference.loss_backward(dy, logits, labels, rest, None, distances)
    return dz
