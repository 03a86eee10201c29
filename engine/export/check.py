"""The check that every ONNX file passes before it is written: the graph against the network, on tiles of noise."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from autograd import Tensor, inference
from engine.build import Form, build_network
from engine.export.graph import ExportError
from engine.export.model import INPUT, LABELS, LOGITS
from engine.inference import Normalisation, labels_of
from engine.training.checkpoint import Checkpoint
from kernels.core.device import CPU
from kernels.core.dispatch import use_kernels
from layers import UNet

SHAPES = ((1, 32, 48), (2, 24, 16))  # N, H, W: other batches and sizes than those that the network has seen
_FACTOR = 10  # a wrong graph is wrong by orders of magnitude, not by a factor
_ROUNDING = 2.0**-24


class Agreement(NamedTuple):
    """How well a graph agrees with the network.

    error: the largest difference of a logit from the network in float64.  own: that of the network's definition in
    float32.  largest: the largest logit.  pixels, unlike: how many pixels were compared, and how many of them have
    another label than the definition gives.  by: the runtime.
    """

    error: float
    own: float
    largest: float
    pixels: int
    unlike: int
    by: str

    def __str__(self) -> str:
        return (
            f"logits up to {self.largest:.3g} differ from float64 by {self.error:.1e} (ours by {self.own:.1e}), "
            f"{self.unlike} of {self.pixels} labels differ; {self.by}"
        )


def agreement(content: bytes, checkpoint: Checkpoint) -> Agreement:
    """Run an ONNX file and the network on the same noise. Raises ExportError where rounding does not explain what
    differs.
    """
    run, by = runtime(content)
    plain = _copy(checkpoint, np.float32)
    exact = _copy(checkpoint, np.float64)
    rng = np.random.default_rng(0)
    errors, pixels, unlike = [], 0, 0
    for shape in SHAPES:
        images = noise(shape, checkpoint.form, checkpoint.normalisation, rng)
        x = checkpoint.normalisation(checkpoint.normalisation.unit(images))
        with inference(), use_kernels("reference"):
            truth = exact(Tensor(x.astype(np.float64))).data
            own = plain(Tensor(x)).data
        logits, labels = run(images)
        if logits.shape != truth.shape or labels.shape != shape:
            raise ExportError(f"onnx: the graph gives logits {logits.shape} and labels {labels.shape} for {shape}")
        if (labels != labels_of(logits, checkpoint.barred)).any():
            raise ExportError(f"onnx: the graph's labels are not those of its logits ({by})")
        errors.append([np.abs(logits - truth).max(), np.abs(own - truth).max(), np.abs(truth).max()])
        pixels += labels.size
        unlike += int((labels != labels_of(own, checkpoint.barred)).sum())
    error, rounding, largest = (float(column) for column in np.max(errors, axis=0))
    if not error <= _FACTOR * rounding + 4 * _ROUNDING * largest:
        raise ExportError(
            f"onnx: the graph is not the network: its logits, up to {largest:.3g}, differ by {error:.2g}, but rounding "
            f"explains {rounding:.2g} ({by})"
        )
    return Agreement(error, rounding, largest, pixels, unlike, by)


def _copy(checkpoint: Checkpoint, dtype: type[np.floating]) -> UNet:
    """The network on the CPU, with arrays of its own."""
    net = build_network(checkpoint.config, checkpoint.form)
    net.load_state_dict(checkpoint.net.state_dict())
    return net.to(CPU, dtype).eval()


def noise(
    shape: tuple[int, int, int], form: Form, normalisation: Normalisation, rng: np.random.Generator
) -> np.ndarray:
    """Tiles of the form that a network was trained on, of any size (N, H, W): levels drawn between low and high."""
    full = shape if form.channels == 1 else (*shape, form.channels)
    return rng.uniform(normalisation.low, normalisation.high, full).astype(form.dtype)


def runtime(content: bytes) -> tuple[Callable[[np.ndarray], list[np.ndarray]], str]:
    """(images -> [logits, labels] of an ONNX file, by what): ONNX Runtime where it is installed, else the evaluator
    that comes with onnx.
    """
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run([LOGITS, LABELS], {INPUT: images}), f"onnxruntime {onnxruntime.__version__}"
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load_from_string(content))

    def run(images: np.ndarray) -> list[np.ndarray]:
        with np.errstate(all="ignore"):  # its sigmoid overflows on the way to the right result
            return evaluator.run([LOGITS, LABELS], {INPUT: images})

    return run, f"onnx {onnx.__version__}"
