"""A checkpoint as an ONNX model: raw tiles in, logits and labels out, with what is needed to understand both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.build import network_options
from engine.export import layers as _forms  # noqa: F401 - registers the layers with `emit`
from engine.export.graph import IR_VERSION, OPSET, ExportError, Graph, Value
from engine.files import finite
from engine.inference import Normalisation
from engine.training.checkpoint import Checkpoint
from kernels.core.modules import version

INPUT, LOGITS, LABELS = "images", "logits", "labels"
_MOST = 2**31 - 2**24  # bytes of arrays; protobuf ends at 2 GiB


def onnx_model(checkpoint: Checkpoint) -> bytes:
    """The ONNX file. Batch, height and width are dynamic; height and width must be multiples of 8.

    images: (batch, height, width), or (batch, height, width, 3) of RGB tiles, levels as they are stored, in the dtype
        of the training tiles.
    logits: float32 (batch, height, width, classes).   labels: uint8 (batch, height, width), the class of the largest
        logit among those that the network may predict, as `engine.inference.labels_of` has it.
    Raises ExportError for a network that holds an operator without an ONNX form here, or that is too large for the
    format.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    net = checkpoint.net
    form = checkpoint.form
    size = sum(tensor.data.nbytes for _, tensor in net.named_tensors())
    if size > _MOST:
        raise ExportError(f"onnx: the network takes {size:,} bytes, but an ONNX file holds at most {_MOST:,}")
    graph = Graph(net)
    maps = _standardised(graph, checkpoint.normalisation, form.channels, form.dtype)
    last = graph.node("Transpose", graph.add(net, maps), perm=[0, 2, 3, 1])
    graph.named(last, LOGITS)
    classes = len(form.classes)
    graph.named(_labels(graph, classes, checkpoint.barred), LABELS)

    dims: list[Any] = ["batch", "height", "width"]
    stored = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "areograd",
            [helper.make_tensor_value_info(INPUT, stored, dims + [3] * (form.channels == 3))],
            [
                helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [*dims, classes]),
                helper.make_tensor_value_info(LABELS, TensorProto.UINT8, dims),
            ],
            [numpy_helper.from_array(array, name) for name, array in graph.arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="areograd",
        producer_version=version(),
    )
    helper.set_model_props(model, {key: json.dumps(value) for key, value in finite(description(checkpoint)).items()})
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def description(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What a program needs to know beside the arrays, as values that JSON has: the model's metadata."""
    form = checkpoint.form
    classes = form.classes
    return {
        "classes": classes.names,
        "palette": classes.colours,
        "mask_values": classes.values,
        "never_predicted": checkpoint.barred,
        "normalisation": asdict(checkpoint.normalisation),
        "channels": form.channels,
        "dtype": form.dtype,
        "size": form.size,
        "crop": checkpoint.config.crop,
        "network": network_options(checkpoint.config, form),
        "scores": checkpoint.record,
    }


def _standardised(graph: Graph, normalisation: Normalisation, channels: int, dtype: str) -> Value:
    """The tiles as `Normalisation` leaves them, operation by operation, channels first: float32 (N, C, H, W)."""
    from onnx import TensorProto

    x = INPUT if dtype == "float32" else graph.node("Cast", INPUT, to=TensorProto.FLOAT)
    if normalisation.low:
        x = graph.node("Sub", x, np.float32(normalisation.low))
    x = graph.node("Mul", x, np.float32(1 / (normalisation.high - normalisation.low)))
    x = graph.node("Sub", x, np.asarray(normalisation.mean, np.float32))
    x = graph.node("Mul", x, np.asarray(1 / np.asarray(normalisation.std), np.float32))
    return graph.node("Unsqueeze", x, [1]) if channels == 1 else graph.node("Transpose", x, perm=[0, 3, 1, 2])


def _labels(graph: Graph, classes: int, barred: tuple[int, ...]) -> Value:
    """uint8 (N, H, W): the class of the largest logit that is not barred, the lower one in a tie."""
    from onnx import TensorProto

    allowed = np.zeros(classes, np.float32)
    allowed[list(barred)] = -np.inf
    chosen = graph.node("ArgMax", graph.node("Add", LOGITS, allowed), axis=-1, keepdims=0)
    return graph.node("Cast", chosen, to=TensorProto.UINT8)
