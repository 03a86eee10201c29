"""`Function`: one operator with its handwritten gradient.

A subclass holds its settings as attributes and implements

    forward(*arrays) -> array or tuple of arrays        uses self.save(...) for what backward needs
    backward(*dys)   -> gradient, or tuple of gradients, one per input (None where self.needs says no).
                        self.accumulators has the gradient that an input has received so far, or None: a backward may
                        add to it in place and return that very array. self.donated says which dys nobody else needs: a
                        backward may overwrite such an array and return it.

Both see arrays, never Tensors. An instance is used once: `Function(...)(x, w)` records itself and gives Tensors.
"""

from __future__ import annotations

import itertools
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd.convert import array_from, is_array
from autograd.modes import modes
from autograd.tensor import Tensor
from kernels.core import tracing
from kernels.core.device import Array, array_module
from kernels.core.tracing import FORWARD
from kernels.shape import sum_to

_sequence = itertools.count()


@dataclass(frozen=True, slots=True)
class Edge:
    """A graph edge, an input that an operator produced: where its gradient goes, and its form. The edge does not keep
    the array; backward has the arrays that forward saved.
    """

    creator: Function
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Function:
    """Base of all operators; see the module's docstring. A subclass may do without an `__init__`, and without calling
    this one's, which does nothing.
    """

    needs: tuple[bool, ...] = ()  # per input: is its gradient wanted
    parents: tuple[Tensor | Edge | None, ...] = ()  # where gradients go: leaves, and other operators' outputs
    accumulators: tuple[Array | None, ...] = ()
    donated: tuple[bool, ...] = ()
    released = False
    _called = False
    _saved: tuple[Array | None, ...] = ()
    # index among the saved arrays, description, version counter, version at saving
    _guards: tuple[tuple[int, str, list[int], int], ...] = ()

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def forward(self, *arrays: Array) -> Any:
        raise NotImplementedError(f"{self.name}: forward is not implemented")

    def backward(self, *dys: Array) -> Any:
        raise NotImplementedError(f"{self.name}: backward is not implemented")

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        """Multiplications and additions of one forward call, for the summary; 0 for operators that only move memory."""
        return 0

    def backward_flops(self, forward: int) -> int | None:
        """Those of one backward call, where `forward` of them were one of forward: for a product, as many again for
        each factor whose gradient is wanted. None where nothing is stated.
        """
        return None

    def explain(self, error: Exception, *arrays: Any) -> None:
        """Called where forward has raised `error`: raise one that names the operator, the argument and the shapes, or
        return where there is nothing to add. Arrays that fit pay nothing for it.
        """

    def save(self, *arrays: Array | None) -> None:
        """Keep arrays for backward."""
        self._saved = arrays

    @property
    def saved(self) -> tuple[Any, ...]:
        """The arrays that forward saved; RuntimeError when they were released, or changed in place since."""
        if self.released:
            raise RuntimeError(
                f"{self.name}: its saved arrays were released by an earlier backward; pass retain_graph=True there"
            )
        for position, what, counter, version in self._guards:
            if counter[0] != version:
                shape = self._saved[position].shape  # type: ignore[union-attr]
                raise RuntimeError(
                    f"{self.name}: {what} {shape} is needed by backward but was changed in place (version "
                    f"{counter[0]}, saved at {version})"
                )
        return self._saved

    @property
    def name(self) -> str:
        """The operator's name in messages and graphs: the class name."""
        return type(self).__name__

    # -- recording ----------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """Run forward on the inputs (Tensors, arrays, or None) and record it. Returns a Tensor or a tuple of Tensors.

        RuntimeError on a second call: an instance holds what backward needs of one.
        """
        if self._called:
            raise RuntimeError(
                f"{self.name}: this instance was called before, and holds what backward needs of one call; create one "
                "for each call"
            )
        self._called = True
        arrays = tuple(x.data if isinstance(x, Tensor) else _native(x) for x in inputs)
        self.needs = tuple(modes.recording and isinstance(x, Tensor) and x.requires_grad for x in inputs)
        try:
            tracer = tracing.current.tracer
            result = self.forward(*arrays) if tracer is None else tracer.run(FORWARD, self, self.forward, *arrays)
        except Exception as error:
            self.explain(error, *arrays)
            error.add_note(f"{self.name}: called with {', '.join(_described(a) for a in arrays)}")
            raise
        outputs = result if isinstance(result, tuple) else (result,)
        tensors = tuple(Tensor(out) if isinstance(out, np.ndarray) else self._output(out) for out in outputs)
        _share_versions(inputs, tensors)
        if modes.anomaly:
            for out in outputs:
                check_finite(out, f"{self.name}: output", arrays)
        if any(self.needs):
            self._record(inputs, tensors)
        else:
            self._saved = ()
        for observer in modes.observers:
            observer(self, arrays, outputs)
        return tensors if isinstance(result, tuple) else tensors[0]

    def _output(self, out: Any) -> Tensor:
        if isinstance(out, np.generic) or is_array(out):
            return Tensor(out)
        raise TypeError(f"{self.name}: forward gave a {type(out).__name__}, expected an array or a tuple of arrays")

    def _record(self, inputs: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> None:
        self.sequence = next(_sequence)
        self.parents = tuple(_parent(x) if need else None for x, need in zip(inputs, self.needs, strict=True))
        self.outputs = tuple((t.shape, t.dtype) for t in tensors)
        self.input_shapes = tuple(getattr(x, "shape", None) for x in inputs)
        self.created_at = "".join(traceback.format_stack(limit=6)[:-2]) if modes.anomaly else ""
        for k, x in enumerate(inputs):
            if (
                isinstance(x, Tensor)
                and x.inference
                and x.requires_grad is False
                and any(x.data is s for s in self._saved)
            ):
                raise RuntimeError(
                    f"{self.name}: input {k} {x.shape} was made within inference() and cannot be saved for backward"
                )
        for k, tensor in enumerate(tensors):
            if tensor.dtype.kind == "f":
                tensor._requires_grad = True
                tensor.creator = self
                tensor.index = k
        self._guard(inputs, tensors)

    def _guard(self, inputs: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> None:
        """Remember the version of every saved array that is the storage of an input or output Tensor."""
        known = [(f"input {k}", x) for k, x in enumerate(inputs) if isinstance(x, Tensor)]
        known += [(f"output {k}", t) for k, t in enumerate(tensors)]
        owners = {id(root(t.data)): (what, t._version) for what, t in known}
        saved = (
            (position, owners.get(id(root(array)))) for position, array in enumerate(self._saved) if array is not None
        )
        self._guards = tuple(
            (position, owner[0], owner[1], owner[1][0]) for position, owner in saved if owner is not None
        )

    def release(self) -> None:
        """Drop saved arrays and parents, which frees the tape before this operator."""
        self.released = True
        self._saved = ()
        self._guards = ()
        self.parents = ()


def _described(x: Any) -> str:
    return f"{x.dtype} {x.shape}" if hasattr(x, "shape") else type(x).__name__


def _native(x: Any) -> Any:
    """An input that is no Tensor: arrays in the machine's byte order, all else (None, a setting) as it is."""
    return array_from(x) if isinstance(x, np.ndarray) else x


def _parent(x: Tensor) -> Tensor | Edge:
    return x if x.creator is None else Edge(x.creator, x.index, x.shape, x.dtype)


def root(array: Array) -> Any:
    """The object that owns an array's memory: views of one storage have the same root."""
    base = getattr(array, "base", None)
    while base is not None:
        array = base
        base = getattr(array, "base", None)
    return array


def _share_versions(inputs: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> None:
    """An output that is a view of an input shares its version counter."""
    for tensor in tensors:
        if tensor.data.base is None and not any(tensor.data is getattr(x, "data", None) for x in inputs):
            continue
        storage = root(tensor.data)
        for x in inputs:
            if isinstance(x, Tensor) and root(x.data) is storage:
                tensor._version = x._version


def check_finite(array: Array, what: str, inputs: tuple[Any, ...], created_at: str = "") -> None:
    """Raise FloatingPointError naming the first non-finite index of `array`."""
    if array.dtype.kind != "f":
        return
    xp = array_module(array)
    bad = ~xp.isfinite(array)
    if not bool(bad.any()):
        return
    index = tuple(int(i) for i in np.unravel_index(int(bad.ravel().argmax()), array.shape))
    shapes = ", ".join(str(a.shape) for a in inputs if hasattr(a, "shape"))
    where = f"\nThe operator was created here:\n{created_at}" if created_at else ""
    raise FloatingPointError(
        f"{what} {array.shape} is {array[index].item()} at {index} ({int(bad.sum())} non-finite; inputs: "
        f"{shapes}){where}"
    )


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum dy over the axes along which an input of `shape` was repeated."""
    return dy if dy.shape == shape else sum_to(dy, shape)
