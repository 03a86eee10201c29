"""An ONNX graph in the making: nodes, named after the modules that they come from, and arrays."""

from __future__ import annotations

from collections import Counter
from functools import singledispatch
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.export.channels import channels_first
from layers import Module

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # that of opset 17, so that runtimes of its time read the file
Value = str  # the name of an array in the graph


class ExportError(InputError):
    """A network cannot be exported; the message names the operator, the package or the file."""


@singledispatch
def emit(module: Module, graph: Graph, *inputs: Any) -> Value:
    """Add the nodes of a module's forward pass in evaluation mode; returns its result. Maps are (N, C, H, W).

    One function per class, in layers.py. Raises ExportError for a class that has none.
    """
    raise ExportError(f"onnx: the operator {type(module).__name__} has no ONNX form here")


class Graph:
    """Nodes and arrays of the graph of a network. Values are names; numbers and arrays among a node's inputs become
    constants.
    """

    def __init__(self, net: Module) -> None:
        self.nodes: list[Any] = []
        self.arrays: dict[Value, np.ndarray] = {}
        self._parameters = channels_first(net)
        self._names = {id(module): name for name, module in net.named_modules()}
        self._at = ""  # the dotted name of the module whose nodes are being added
        self._counts: Counter[str] = Counter()
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._sizes: dict[tuple[Value, int], Value] = {}

    def add(self, module: Module, *inputs: Any) -> Value:
        """The result of a module: see `emit`."""
        before = self._at
        self._at = self._names[id(module)]
        result = emit(module, self, *inputs)
        self._at = before
        return result

    def node(self, operator: str, *inputs: Any, **attributes: Any) -> Value:
        """The result of a node of this operator."""
        return self.nodes_of(operator, 1, *inputs, **attributes)[0]

    def nodes_of(self, operator: str, count: int, *inputs: Any, **attributes: Any) -> list[Value]:
        """The `count` results of one node."""
        from onnx import helper

        place = f"{self._at.replace('.', '/')}/{operator}"
        self._counts[place] += 1
        name = place if self._counts[place] == 1 else f"{place}_{self._counts[place]}"
        outputs = [name if count == 1 else f"{name}:{k}" for k in range(count)]
        given = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes.append(helper.make_node(operator, given, outputs, name, **attributes))
        return outputs

    def named(self, value: Value, name: Value) -> None:
        """The graph's result of this name."""
        from onnx import helper

        self.nodes.append(helper.make_node("Identity", [value], [name], name))

    def parameter(self, name: str) -> Value:
        """A parameter or buffer of the module whose nodes are being added, by the name that it has in the network."""
        full = f"{self._at}.{name}" if self._at else name
        self.arrays[full] = self._parameters[full]
        return full

    def constant(self, value: Any) -> Value:
        """Whole numbers as int64, arrays as they are; equal ones are kept once."""
        array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else np.asarray(value, np.int64)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = f"constant:{len(self._constants)}"
            self.arrays[self._constants[key]] = array
        return self._constants[key]

    # -- what several layers need -------------------------------------------------------------------------------------

    def size(self, x: Value, axis: int) -> Value:
        """The length of an axis, known when the graph runs: int64 (1,)."""
        if (x, axis) not in self._sizes:
            self._sizes[x, axis] = self.node("Shape", x, start=axis, end=axis + 1)
        return self._sizes[x, axis]

    def joined(self, x: Value | tuple[Value, ...] | list[Value]) -> Value:
        """Several maps as one, their channels after one another; one map as it is."""
        return x if isinstance(x, str) else self.node("Concat", *x, axis=1)

    def means(self, x: Value, axis: int, bins: Any) -> Value:
        """Means over `bins` bins of the rows (axis 2) or columns (axis 3), as adaptive_avg_pool2d has them. bins: a
        number, or one that is known when the graph runs, int64 (1,).
        """
        if bins == 1:
            return self.node("ReduceMean", x, axes=[axis], keepdims=1)
        matrix = self._bins(self.size(x, axis), bins if isinstance(bins, str) else [bins])
        if axis == 2:
            return self.node("MatMul", matrix, x)  # (bins, H) @ (N, C, H, W) -> (N, C, bins, W)
        return self.node("MatMul", x, self.node("Transpose", matrix, perm=[1, 0]))

    def _bins(self, n: Value, bins: Any) -> Value:
        """float32 (bins, n): row i averages the pixels [floor(i n / bins), ceil((i + 1) n / bins))."""
        rows = self.node("Unsqueeze", self._range(bins), [1])
        start = self.node("Div", self.node("Mul", rows, n), bins)  # whole numbers: rounded down
        after = self.node("Mul", self.node("Add", rows, [1]), n)
        stop = self.node("Div", self.node("Add", after, self.node("Sub", bins, [1])), bins)
        pixels = self._range(n)
        inside = self.node("And", self.node("GreaterOrEqual", pixels, start), self.node("Less", pixels, stop))
        count = self.node("Cast", self.node("Sub", stop, start), to=_float())
        return self.node("Div", self.node("Cast", inside, to=_float()), count)

    def _range(self, count: Any) -> Value:
        """0, 1, ..., count - 1."""
        return self.node("Range", 0, self.node("Squeeze", count, [0]), 1)

    def resized(self, x: Value, like: Value) -> Value:
        """x at the height and width of `like`, bilinear, align_corners=False."""
        sizes = self.node("Concat", *(self.size(x, k) for k in (0, 1)), *(self.size(like, k) for k in (2, 3)), axis=0)
        return self.node("Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")

    def repeated(self, x: Value, like: Value) -> Value:
        """x (N, C, 1, 1) over the height and width of `like`."""
        return self.node("Expand", x, self.node("Concat", [1, 1], self.size(like, 2), self.size(like, 3), axis=0))


def _float() -> int:
    from onnx import TensorProto

    return TensorProto.FLOAT
